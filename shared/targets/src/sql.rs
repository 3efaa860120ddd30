//! SQL targets, whatever the server: batches guarded by version, one bad row never in the way of the others.
//!
//! A [`Dialect`] knows how one server is spoken to; what follows is the same for all of them.

mod hand_over;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::sync::Mutex;
use usersync_core::{
    fields::Fields,
    target::{Table, TargetConfig},
    user_id::UserId,
};

use self::hand_over::Member;
use crate::{
    Action, ConfigError, Conflict, Delivery, Failure, Holdings, Limits, Others, Outcome, Standing,
    Target, Unchecked, cell,
    check::sql::SqlHoldings,
    connections::{Connections, TRUSTED},
    dialect::{Dialect, Fate, Held},
    layout::{Layout, Live, LiveColumn, Row, Shape},
    others::Nobody,
    portions, table,
    trouble::{Blame, Trouble},
};

const CONCURRENCY: usize = 4;
const BATCH: usize = 256;
/// The table's name, unless it is told.
pub(crate) const TABLE: &str = "users";
/// How long a table is taken to be as it was: somebody may add keys and triggers.
const FRESH: Duration = Duration::from_secs(30);
/// A table that didn't fit is looked at again after this long, so that it may be repaired meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Why a row isn't written over.
const NOTED: &str = "the application has changed this row, and its outbox hasn't told of it yet";
/// How often a statement is tried that the server rolled back for the sake of another one.
const TURNS: u32 = 4;

/// What is known of the table.
enum Place {
    Unknown,
    Fits(Arc<Layout>, Instant),
    Wrong(Failure, Instant),
}

/// A table in an SQL database.
pub(crate) struct SqlTarget<D: Dialect> {
    dialect: D,
    table: Table,
    name: String,
    deletes: bool,
    verify: bool,
    fields: Fields,
    place: Mutex<Place>,
    connections: Connections<D::Connection>,
    timeout: Duration,
    limits: Limits,
    /// How the table is made when it isn't there.
    hint: String,
}

impl<D: Dialect> SqlTarget<D> {
    pub(crate) fn new(config: &TargetConfig, dialect: D) -> Result<Self, ConfigError> {
        let table = table::table(config)?;
        let limits = Limits::of(config, CONCURRENCY, BATCH);
        Ok(Self {
            name: table.name.clone().unwrap_or_else(|| TABLE.to_owned()),
            table,
            deletes: table::deletes(config),
            verify: config.verify,
            fields: config.fields.clone(),
            place: Mutex::new(Place::Unknown),
            // One more for those who only look.
            connections: Connections::new(limits.concurrency + 1),
            timeout: config.timeout,
            limits,
            hint: format!(
                "create it with: usersync-worker --init-target {}",
                config.name
            ),
            dialect,
        })
    }

    /// The mapping, checked against the table when it isn't known.
    async fn layout(&self) -> Result<Arc<Layout>, Trouble> {
        // Held while looking: who comes meanwhile waits for the answer instead of asking too.
        let mut place = self.place.lock().await;
        match &*place {
            Place::Fits(layout, since) if since.elapsed() < FRESH => return Ok(layout.clone()),
            Place::Wrong(failure, since) if since.elapsed() < LOOK_AGAIN => {
                return Err(Trouble::misfit(failure.clone()));
            }
            Place::Unknown | Place::Fits(..) | Place::Wrong(..) => {}
        }
        let live = self.look().await?;
        let layout = match &live {
            None => Err(format!(
                "there is no table `{}` that this login can see; {}",
                self.name, self.hint
            )),
            Some(live) => Layout::of(&self.table, &self.name, live, self.deletes),
        };
        match layout {
            Ok(layout) => {
                let layout = Arc::new(layout);
                *place = Place::Fits(layout.clone(), Instant::now());
                Ok(layout)
            }
            Err(reason) => {
                let failure = Failure::new(reason);
                *place = Place::Wrong(failure.clone(), Instant::now());
                Err(Trouble::misfit(failure))
            }
        }
    }

    async fn forget(&self) {
        *self.place.lock().await = Place::Unknown;
    }

    async fn look(&self) -> Result<Option<Live>, Trouble> {
        let lease = self.connections.lease().await;
        let mut connection = self.connection(&lease).await?;
        let live = self.dialect.look(&mut connection, &self.name).await?;
        lease.keep(connection);
        Ok(live)
    }

    /// Why what is read there isn't what is written there, if so.
    async fn obstacle(&self) -> Result<Option<String>, Trouble> {
        let lease = self.connections.lease().await;
        let mut connection = self.connection(&lease).await?;
        let obstacle = self.dialect.obstacle(&mut connection, &self.name).await?;
        lease.keep(connection);
        Ok(obstacle)
    }

    /// A connection that works, as far as one can tell.
    async fn connection(
        &self,
        lease: &crate::connections::Lease<'_, D::Connection>,
    ) -> Result<D::Connection, Trouble> {
        while let Some((mut connection, idle)) = lease.idle() {
            if idle < TRUSTED || self.dialect.ping(&mut connection).await.is_ok() {
                return Ok(connection);
            }
        }
        self.dialect.connect().await
    }

    /// Sends one statement; one that collided with another is sent again.
    async fn send(&self, layout: &Layout, rows: &[Row], how: How) -> Result<Vec<Fate>, Trouble> {
        let mut turn = 1;
        loop {
            let lease = self.connections.lease().await;
            let mut connection = self.connection(&lease).await?;
            let done = match (how, &layout.outbox) {
                (How::Upsert, None) if !self.dialect.needs_transactions() => {
                    self.dialect.upsert(&mut connection, layout, rows).await
                }
                _ => {
                    self.in_transaction(&mut connection, layout, rows, how)
                        .await
                }
            };
            match done {
                Ok(fates) => {
                    lease.keep(connection);
                    return Ok(fates);
                }
                Err(trouble) => {
                    if !trouble.lost {
                        lease.keep(connection);
                    }
                    if trouble.blame != Blame::Collision || turn == TURNS {
                        return Err(trouble);
                    }
                }
            }
            turn += 1;
        }
    }

    async fn apply(
        &self,
        connection: &mut D::Connection,
        layout: &Layout,
        rows: &[Row],
        how: How,
    ) -> Result<Vec<Fate>, Trouble> {
        match how {
            How::Upsert => self.dialect.upsert(connection, layout, rows).await,
            How::Update => self.dialect.update(connection, layout, rows).await,
        }
    }

    /// Writes rows, unless their table is a source, too, and has a change of one of them that isn't published yet: what the
    /// application did is newer than any state, and to write over it would undo it for good. The write comes first, for
    /// it waits for whoever holds a row; what they have noted by then is seen by the next statement.
    async fn in_transaction(
        &self,
        connection: &mut D::Connection,
        layout: &Layout,
        rows: &[Row],
        how: How,
    ) -> Result<Vec<Fate>, Trouble> {
        self.dialect
            .run(connection, &self.dialect.begin(layout))
            .await?;
        let writing = async {
            let fates = self.apply(connection, layout, rows, how).await?;
            let noted = match &layout.outbox {
                Some(outbox) => {
                    let noted = self.dialect.is_noted(connection, layout, outbox, rows);
                    noted.await?
                }
                None => false,
            };
            Ok::<_, Trouble>((fates, noted))
        };
        match writing.await {
            Ok((fates, false)) => {
                match self.dialect.run(connection, &self.dialect.commit()).await {
                    Ok(()) => Ok(fates),
                    // What the session says must not outlive the transaction.
                    Err(trouble) if !trouble.lost => {
                        self.dialect
                            .run(connection, &self.dialect.rollback())
                            .await?;
                        Err(trouble)
                    }
                    Err(trouble) => Err(trouble),
                }
            }
            Ok((_, true)) => {
                self.dialect
                    .run(connection, &self.dialect.rollback())
                    .await?;
                match rows {
                    [_] => Ok(vec![Fate::Noted]),
                    // Halves are tried, until it is alone.
                    _ => Err(Trouble {
                        blame: Blame::Conflict,
                        failure: Failure::new(NOTED),
                        foreign: false,
                        lost: false,
                    }),
                }
            }
            Err(trouble) => {
                if !trouble.lost {
                    self.dialect
                        .run(connection, &self.dialect.rollback())
                        .await?;
                }
                Err(trouble)
            }
        }
    }

    /// Writes rows of one shape. When the server refuses one of them, halves are tried, and halves of those,
    /// until that row is alone. Those are `taken` who are to have what another row has.
    async fn write(
        &self,
        layout: &Layout,
        rows: &[Row],
        how: How,
        outcomes: &mut [Option<Outcome>],
        taken: &mut Vec<Member>,
    ) -> Result<(), Trouble> {
        let rows = &*self.without_strangers(layout, rows, how, outcomes).await?;
        let portions = portions::of(rows, Row::size);
        let mut pending: Vec<Cow<'_, [Row]>> = portions.into_iter().map(Cow::Borrowed).collect();
        pending.reverse();
        while let Some(rows) = pending.pop() {
            let trouble = match self.send(layout, &rows, how).await {
                Ok(fates) => {
                    for (row, fate) in rows.iter().zip(fates) {
                        match fate {
                            Fate::InTheWay => taken.push(Member::new(row, how)),
                            fate => outcomes[row.index] = Some(outcome(fate)),
                        }
                    }
                    self.read_back(layout, &rows, outcomes).await?;
                    continue;
                }
                Err(trouble) => trouble,
            };
            match (trouble.blame, &*rows) {
                (Blame::Conflict, [row]) => taken.push(Member::new(row, how)),
                (Blame::Row, [row]) => {
                    let trouble = self.named(layout, row, trouble).await?;
                    outcomes[row.index] = Some(trouble.outcome());
                }
                (Blame::Row | Blame::Conflict, several) => {
                    pending.extend(self.parts(layout, several, how, trouble.blame, taken).await);
                }
                _ => return Err(trouble),
            }
        }
        Ok(())
    }

    /// The rows that are to be written. In a table that is the application's own, nobody who isn't there is deleted: the row that
    /// would say so is no user of the application's, and in the way of one who comes under that id (ADR 49).
    async fn without_strangers<'r>(
        &self,
        layout: &Layout,
        rows: &'r [Row],
        how: How,
        outcomes: &mut [Option<Outcome>],
    ) -> Result<Cow<'r, [Row]>, Trouble> {
        let deleted: Vec<Row> = rows.iter().filter(|row| row.deleted).cloned().collect();
        if layout.outbox.is_none() || how != How::Upsert || deleted.is_empty() {
            return Ok(Cow::Borrowed(rows));
        }
        let held = self.read(layout, &deleted).await?;
        let is_stranger = |row: &Row| row.deleted && !held.contains_key(&row.id);
        for row in rows.iter().filter(|row| is_stranger(row)) {
            // There is no row with a version, so nothing refuses an older one that comes late.
            outcomes[row.index] = Some(Outcome::Delivered { guarded: false });
        }
        let rows = rows.iter().filter(|row| !is_stranger(row));
        Ok(Cow::Owned(rows.cloned().collect()))
    }

    /// Where triggers may have changed what was written: nobody is delivered whose row holds something else.
    async fn read_back(
        &self,
        layout: &Layout,
        rows: &[Row],
        outcomes: &mut [Option<Outcome>],
    ) -> Result<(), Trouble> {
        if !layout.altered {
            return Ok(());
        }
        let held = self.read(layout, rows).await?;
        for row in rows {
            let outcome = &mut outcomes[row.index];
            if !matches!(outcome, Some(Outcome::Delivered { .. })) {
                continue;
            }
            let action = match row.deleted {
                true => Action::Delete,
                false => Action::Upsert,
            };
            let trouble = match standing(layout, action, row, held.get(&row.id)) {
                Standing::Same | Standing::Newer(_) => continue,
                Standing::Different(member) => Trouble::unwritten().with(&member),
                _ => Trouble::unwritten(),
            };
            *outcome = Some(trouble.outcome());
        }
        Ok(())
    }

    /// The same trouble with a row, with the column where it can be found; else trouble with the table, if that isn't as it was.
    async fn named(
        &self,
        layout: &Layout,
        row: &Row,
        trouble: Trouble,
    ) -> Result<Trouble, Trouble> {
        if trouble.foreign {
            self.forget().await;
            self.layout().await?;
        }
        let is_value = trouble
            .failure
            .code
            .as_deref()
            .is_some_and(|code| code.starts_with("22"));
        if !is_value || trouble.failure.reason.contains(", column `") {
            return Ok(trouble);
        }
        let lease = self.connections.lease().await;
        let mut connection = self.connection(&lease).await?;
        let column = self.dialect.culprit(&mut connection, layout, row).await;
        lease.keep(connection);
        Ok(match column {
            Some(column) => trouble.at(&column),
            None => trouble,
        })
    }

    /// What is left of `rows` that were refused together: without those who are `taken`, where they can be found; else halves.
    async fn parts(
        &self,
        layout: &Layout,
        rows: &[Row],
        how: How,
        blame: Blame,
        taken: &mut Vec<Member>,
    ) -> Vec<Cow<'static, [Row]>> {
        if blame == Blame::Conflict
            && let Ok(found) = self.claimants(layout, rows).await
            && !found.is_empty()
        {
            let (theirs, rest): (Vec<&Row>, _) =
                rows.iter().partition(|row| found.contains(&row.id));
            taken.extend(theirs.into_iter().map(|row| Member::new(row, how)));
            let rest: Vec<Row> = rest.into_iter().cloned().collect();
            return if rest.is_empty() {
                Vec::new()
            } else {
                vec![Cow::Owned(rest)]
            };
        }
        let (left, right) = rows.split_at(rows.len() / 2);
        [right, left].map(|half| Cow::Owned(half.to_vec())).into()
    }

    async fn deliver_all(
        &self,
        batch: &[Delivery],
        others: &dyn Others,
        outcomes: &mut [Option<Outcome>],
    ) -> Result<(), Trouble> {
        let layout = self.layout().await?;
        let mut upserts: BTreeMap<Shape, Vec<Row>> = BTreeMap::new();
        let mut disables = Vec::new();
        for (index, delivery) in batch.iter().enumerate() {
            match layout.row(index, delivery) {
                Err(reason) => outcomes[index] = Some(Outcome::Permanent(Failure::new(reason))),
                Ok(row) if delivery.action == Action::Disable => disables.push(row),
                Ok(row) => upserts.entry(row.shape()).or_default().push(row),
            }
        }
        let written = async {
            let mut taken = Vec::new();
            for mut rows in upserts.into_values() {
                // All take locks in the same order, so that they rarely collide.
                rows.sort_by(|a, b| a.id.cmp(&b.id));
                self.write(&layout, &rows, How::Upsert, outcomes, &mut taken)
                    .await?;
            }
            self.disable(&layout, disables, outcomes, &mut taken)
                .await?;
            if taken.is_empty() {
                return Ok(());
            }
            // Rare, and large.
            Box::pin(self.hand_over(&layout, taken, others, outcomes)).await
        };
        let written = written.await;
        if written
            .as_ref()
            .is_err_and(|trouble: &Trouble| trouble.blame == Blame::Table)
        {
            self.forget().await;
        }
        written
    }

    /// Sets the status where the user is; whoever isn't there needs nothing.
    async fn disable(
        &self,
        layout: &Layout,
        mut rows: Vec<Row>,
        outcomes: &mut [Option<Outcome>],
        taken: &mut Vec<Member>,
    ) -> Result<(), Trouble> {
        if rows.is_empty() {
            return Ok(());
        }
        let held = self.read(layout, &rows).await?;
        let mut buried = Vec::new();
        rows.retain(|row| {
            let known = match held.get(&row.id) {
                None => Fate::Written,
                Some(held) if held.version > row.version => Fate::Newer,
                Some(held) => {
                    if held.deleted {
                        buried.push(row.buried());
                    }
                    return !held.deleted;
                }
            };
            outcomes[row.index] = Some(outcome(known));
            false
        });
        // Who is deleted stays so, with the new version.
        for (mut rows, how) in [(rows, How::Update), (buried, How::Upsert)] {
            rows.sort_by(|a, b| a.id.cmp(&b.id));
            self.write(layout, &rows, how, outcomes, taken).await?;
        }
        Ok(())
    }

    async fn read(&self, layout: &Layout, rows: &[Row]) -> Result<HashMap<String, Held>, Trouble> {
        let ids: Vec<String> = rows.iter().map(|row| row.id.clone()).collect();
        let lease = self.connections.lease().await;
        let mut connection = self.connection(&lease).await?;
        let held = self.dialect.read(&mut connection, layout, &ids).await?;
        lease.keep(connection);
        Ok(held)
    }

    async fn compare_all(&self, batch: &[Delivery]) -> Result<Vec<Standing>, Trouble> {
        let layout = self.layout().await?;
        let rows = batch
            .iter()
            .enumerate()
            .map(|(index, delivery)| layout.row(index, delivery));
        let rows: Vec<_> = rows.collect();
        let written: Vec<Row> = rows.iter().flatten().cloned().collect();
        let held = self.read(&layout, &written).await?;
        let verdicts = batch.iter().zip(rows).map(|(delivery, row)| match row {
            Err(reason) => Standing::Refused(Failure::new(reason)),
            Ok(row) => standing(&layout, delivery.action, &row, held.get(&row.id)),
        });
        Ok(verdicts.collect())
    }

    /// The statements that make what is missing.
    async fn missing(&self) -> Result<Vec<String>, Trouble> {
        let Some(live) = self.look().await? else {
            return Ok(vec![self.dialect.create(&self.name, &self.table)]);
        };
        let absent = |name: &'_ str| {
            !live
                .columns
                .iter()
                .any(|column: &LiveColumn| column.name == name)
        };
        let Table {
            version, deleted, ..
        } = &self.table;
        let version = absent(version).then_some(version.as_str());
        let deleted = absent(deleted).then_some(deleted.as_str());
        Ok(self.dialect.add(&self.name, version, deleted))
    }

    async fn make(&self) -> Result<(), Trouble> {
        let statements = self.in_time(self.missing()).await?;
        let lease = self.connections.lease().await;
        let mut connection = self.connection(&lease).await?;
        for statement in &statements {
            self.dialect.run(&mut connection, statement).await?;
        }
        lease.keep(connection);
        self.forget().await;
        Ok(())
    }

    /// `work`, for as long as a call may take.
    async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, Trouble>>,
    ) -> Result<T, Trouble> {
        tokio::time::timeout(self.timeout, work)
            .await
            .unwrap_or_else(|_| Err(Trouble::late()))
    }
}

/// How a row is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum How {
    /// Whether it is there or not.
    Upsert,
    /// Where it is there.
    Update,
}

#[async_trait]
impl<D: Dialect> Target for SqlTarget<D> {
    async fn deliver(&self, batch: &[Delivery]) -> Vec<Outcome> {
        self.deliver_among(batch, &Nobody).await
    }

    async fn deliver_among(&self, batch: &[Delivery], others: &dyn Others) -> Vec<Outcome> {
        let mut outcomes = vec![None; batch.len()];
        let trouble = self
            .in_time(self.deliver_all(batch, others, &mut outcomes))
            .await
            .err();
        if trouble
            .as_ref()
            .is_some_and(|trouble| trouble.blame == Blame::Demoted)
        {
            // They all lead to that server, and another one may be at its address.
            self.connections.close_idle();
        }
        // What had been settled before the trouble stays so.
        let rest = trouble
            .as_ref()
            .map_or_else(|| Trouble::late().outcome(), Trouble::outcome);
        outcomes
            .into_iter()
            .map(|outcome| outcome.unwrap_or_else(|| rest.clone()))
            .collect()
    }

    fn forgets_versions(&self) -> bool {
        true
    }

    async fn forget_version(&self, user_id: &UserId, version: u64) -> Result<(), Failure> {
        let forgetting = async {
            let layout = self.layout().await?;
            if layout.ids.fit(user_id).is_err() {
                // Nobody like that is there.
                return Ok(());
            }
            let version = i64::try_from(version).unwrap_or(i64::MAX);
            let lease = self.connections.lease().await;
            let mut connection = self.connection(&lease).await?;
            let id = user_id.to_string();
            let forgetting = self.dialect.forget(&mut connection, &layout, &id, version);
            forgetting.await?;
            lease.keep(connection);
            Ok(())
        };
        let forgotten = self.in_time(forgetting).await;
        forgotten.map_err(|trouble| trouble.failure)
    }

    async fn probe(&self) -> Result<(), Failure> {
        self.forget().await;
        let looked = self.in_time(async {
            self.layout().await?;
            let lease = self.connections.lease().await;
            let mut connection = self.connection(&lease).await?;
            self.dialect
                .writable(&mut connection, &self.name, &self.table)
                .await?;
            lease.keep(connection);
            Ok(())
        });
        let looked: Result<(), Trouble> = looked.await;
        looked.map_err(|trouble| {
            // Another server may be at its address by now.
            self.connections.close_idle();
            trouble.failure
        })
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    async fn ddl(&self) -> Result<Vec<String>, Failure> {
        self.in_time(self.missing())
            .await
            .map_err(|trouble| trouble.failure)
    }

    async fn init(&self) -> Result<(), Failure> {
        // Changing a large table takes its time, and nobody waits for it but the operator.
        self.make().await.map_err(|trouble| trouble.failure)
    }

    fn verifies(&self) -> bool {
        self.verify
    }

    async fn compare(&self, batch: &[Delivery]) -> Option<Vec<Standing>> {
        let compared = self.in_time(self.compare_all(batch)).await;
        Some(compared.unwrap_or_else(|trouble| Standing::unknown(&trouble.outcome(), batch.len())))
    }

    async fn holdings(&self) -> Result<Box<dyn Holdings + '_>, Unchecked> {
        let layout = self.in_time(self.layout()).await;
        let layout = layout.map_err(|trouble| trouble.failure)?;
        let obstacle = self.in_time(self.obstacle()).await;
        if let Some(reason) = obstacle.map_err(|trouble| trouble.failure)? {
            return Err(Failure::new(reason).into());
        }
        let told = |path: &str| table::is_told(&self.fields, path);
        Ok(Box::new(SqlHoldings::new(&self.dialect, layout, told)))
    }
}

fn outcome(fate: Fate) -> Outcome {
    match fate {
        Fate::Written => Outcome::Delivered { guarded: true },
        Fate::Newer => Outcome::AlreadyNewer,
        Fate::Unwritten => Trouble::unwritten().outcome(),
        Fate::Noted => Outcome::Conflict(Conflict::passing(Failure::new(NOTED))),
        Fate::InTheWay => Trouble::in_the_way().outcome(),
    }
}

/// How `held` stands to what was delivered.
fn standing(layout: &Layout, action: Action, row: &Row, held: Option<&Held>) -> Standing {
    let Some(held) = held else {
        // Nobody has to be there to be disabled, or deleted.
        return match action {
            Action::Disable | Action::Delete => Standing::Same,
            Action::Upsert => Standing::Missing,
        };
    };
    if held.version > row.version {
        return Standing::Newer(held.version.unsigned_abs());
    }
    if action == Action::Disable && held.deleted {
        return Standing::Same;
    }
    content(layout, action, row, held).aged(held.version < row.version)
}

/// The same, whatever the versions.
fn content(layout: &Layout, action: Action, row: &Row, held: &Held) -> Standing {
    match (action, held.deleted) {
        (Action::Upsert, true) => return Standing::Missing,
        (Action::Delete, false) => return Standing::Extra,
        _ if held.twice => return Standing::Different("there are several rows of this id".into()),
        _ => {}
    }
    let columns = layout.columns.iter().zip(&held.cells).zip(&row.cells);
    let mut differing = columns.filter(|((column, held), told)| {
        told.as_ref().is_some_and(|told| {
            let (held, told) = (held.as_deref(), told.as_deref());
            !cell::is_alike(column.stored, held, told, row.merged)
        })
    });
    match differing.next() {
        Some(((column, _), _)) => Standing::Different(column.path.clone().into()),
        None => Standing::Same,
    }
}

/// An error by its kind; what the server said is for the dialect, for it may hold values.
pub(crate) fn broken(error: &sqlx::Error, server: &str) -> Trouble {
    let (blame, reason) = match error {
        sqlx::Error::Io(error) => (
            Blame::Server,
            format!("can't reach {server}: {}", error.kind()),
        ),
        sqlx::Error::Tls(_) => (Blame::Server, format!("can't agree on TLS with {server}")),
        sqlx::Error::Configuration(_) => (Blame::Server, format!("the url doesn't suit {server}")),
        sqlx::Error::Protocol(_) => (Blame::Server, format!("{server} broke the protocol")),
        _ => (Blame::Busy, format!("the answer of {server} can't be read")),
    };
    Trouble {
        blame,
        failure: Failure::new(reason),
        foreign: false,
        lost: true,
    }
}
