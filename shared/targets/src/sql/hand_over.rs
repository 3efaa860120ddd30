//! Unique values that change hands: whoever has what a user is to have is written in the same transaction, with nothing
//! but their own newest state and under their own guard.
//!
//! First everybody is found who has to move, by the server's own comparison and as far as it goes: whoever has what the first
//! one is to have, whoever has what that one is to have, and so on. Then their rows are locked, what others are waiting for
//! is set aside, and all of them are written. Somebody who can't move keeps all those from moving who wait for them, and
//! they are told who it is.

mod plan;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use usersync_core::user_id::UserId;

use self::plan::{Plan, Stuck};
use super::{How, NOTED, SqlTarget, outcome};
use crate::{
    Action, Conflict, Failure, Meant, Others, Outcome, Skip,
    dialect::{Against, Dialect, Fate, Held},
    layout::{Layout, Row, Shape},
    trouble::{Blame, Trouble},
    unique::{Claim, Form, Parked},
};

/// The most users who are moved for the sake of one batch.
const MOST: usize = 5_000;
/// What is set aside becomes in turn: what refuses to be nothing may take something made up.
const FORMS: [Form; 6] = [
    Form::Null,
    Form::Null,
    Form::Near,
    Form::Near,
    Form::Made,
    Form::Made,
];
/// How many are looked for in one statement.
const AT_ONCE: usize = 256;

/// A row that is to be written, and how.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) row: Row,
    pub(super) how: How,
}

impl Member {
    pub(super) fn new(row: &Row, how: How) -> Self {
        let row = row.clone();
        Self { row, how }
    }
}

/// Why rows were not written together.
enum Failed {
    /// The server refuses this, or somebody else was in the way.
    Refused(Trouble),
    /// Somebody has a newer version than the newest state says.
    Ahead(String),
    /// What this user has can't be set aside.
    Unparkable(String, usize),
    /// The application has changed one of these rows, and its outbox hasn't told of it yet.
    Noted,
}

impl<D: Dialect> SqlTarget<D> {
    /// Writes rows that other rows stand in the way of, and says in `outcomes` what became of each.
    pub(super) async fn hand_over(
        &self,
        layout: &Layout,
        mut taken: Vec<Member>,
        others: &dyn Others,
        outcomes: &mut [Option<Outcome>],
    ) -> Result<(), Trouble> {
        let mut last = HashMap::new();
        for (turn, form) in FORMS.into_iter().enumerate() {
            if taken.is_empty() {
                return Ok(());
            }
            let plan = match self.plan(layout, &taken, others).await {
                Ok(plan) => plan,
                // One of them can't even be asked about: the others must not suffer.
                Err(trouble) if trouble.blame == Blame::Row => {
                    return self
                        .one_by_one(layout, taken, trouble, others, outcomes)
                        .await;
                }
                // A key that can't be asked about, for a reason of its own: nobody's fault but ours.
                Err(trouble) if trouble.blame == Blame::Table => {
                    for member in taken {
                        outcomes[member.row.index] = Some(in_the_way::<D>());
                    }
                    return Ok(());
                }
                Err(trouble) => return Err(trouble),
            };
            taken.retain(|member| match plan.stuck.get(&member.row.id) {
                Some(stuck) => {
                    outcomes[member.row.index] = Some(stuck.outcome::<D>());
                    false
                }
                None => true,
            });
            let groups = match turn {
                0 => vec![plan.all(&taken)],
                _ => plan.groups(&taken),
            };
            for group in groups {
                match self.exchange(layout, &plan, &group, form).await? {
                    Ok(fates) => {
                        taken.retain(|member| match fates.get(&member.row.id) {
                            Some(fate) => {
                                outcomes[member.row.index] = Some(outcome(*fate));
                                false
                            }
                            None => true,
                        });
                        let (asked, others_too): (Vec<_>, Vec<_>) = group
                            .into_values()
                            .map(|member| member.row)
                            .partition(|row| row.index != usize::MAX);
                        self.read_back(layout, &asked, outcomes).await?;
                        let written = others_too.iter().filter_map(|row| row.id.parse().ok());
                        others.written(written.collect());
                    }
                    Err(failed) => {
                        // Who was asked for and is ahead is through; the others come to terms with what they are by then.
                        if let Failed::Ahead(ahead) = &failed {
                            taken.retain(|member| {
                                let is_ahead = member.row.id == *ahead;
                                if is_ahead {
                                    outcomes[member.row.index] = Some(outcome(Fate::Newer));
                                }
                                !is_ahead
                            });
                        }
                        let failed = failed.outcome::<D>(layout, &group);
                        last.extend(group.into_keys().map(|id| (id, failed.clone())));
                    }
                }
            }
        }
        for member in taken {
            let failed = last.remove(&member.row.id);
            outcomes[member.row.index] = Some(failed.unwrap_or_else(in_the_way::<D>));
        }
        Ok(())
    }

    /// The same for each alone, after `trouble` with one of them.
    async fn one_by_one(
        &self,
        layout: &Layout,
        taken: Vec<Member>,
        trouble: Trouble,
        others: &dyn Others,
        outcomes: &mut [Option<Outcome>],
    ) -> Result<(), Trouble> {
        if let [member] = taken.as_slice() {
            outcomes[member.row.index] = Some(trouble.outcome());
            return Ok(());
        }
        for member in taken {
            Box::pin(self.hand_over(layout, vec![member], others, outcomes)).await?;
        }
        Ok(())
    }

    /// Finds everybody who has to move so that `taken` can be written.
    async fn plan(
        &self,
        layout: &Layout,
        taken: &[Member],
        others: &dyn Others,
    ) -> Result<Plan, Trouble> {
        let mut plan = Plan::default();
        let mut found = taken.to_vec();
        while !found.is_empty() {
            let rows: Vec<Row> = found.iter().map(|member| member.row.clone()).collect();
            plan.add(found);
            let holders = plan.claim(self.claims(layout, &rows, Against::Table).await?);
            let room = MOST.saturating_sub(plan.members.len());
            if holders.len() > room {
                for id in &holders[room..] {
                    let why = format!("more than {MOST} users would have to be written with it");
                    plan.keep(id.clone(), why, 0, true);
                }
            }
            found = self
                .ask(
                    layout,
                    &holders[..holders.len().min(room)],
                    others,
                    &mut plan,
                )
                .await;
        }
        let rows: Vec<Row> = plan
            .members
            .values()
            .map(|member| member.row.clone())
            .collect();
        let rivals = self.claims(layout, &rows, Against::Rows).await?;
        let now_us = Timestamp::now().as_microsecond().unsigned_abs();
        plan.settle(rivals, layout, now_us);
        Ok(plan)
    }

    /// What is to be written of those who have what others are to have; `plan` is told who keeps it, and why.
    async fn ask(
        &self,
        layout: &Layout,
        holders: &[String],
        others: &dyn Others,
        plan: &mut Plan,
    ) -> Vec<Member> {
        let mut users: Vec<UserId> = Vec::with_capacity(holders.len());
        for id in holders {
            match id.parse() {
                Ok(user) => users.push(user),
                Err(_) => plan.keep(id.clone(), "which is the id of no user".to_owned(), 0, true),
            }
        }
        if users.is_empty() {
            return Vec::new();
        }
        let mut members = Vec::with_capacity(users.len());
        for (user, meant) in users.iter().zip(others.newest(&users).await) {
            let id = user.to_string();
            let (why, version, lasting) = match meant {
                Meant::Told(delivery) => match layout.row(usize::MAX, &delivery) {
                    Ok(row) => {
                        let how = match delivery.action {
                            Action::Disable => How::Update,
                            Action::Upsert | Action::Delete => How::Upsert,
                        };
                        members.push(Member { row, how });
                        continue;
                    }
                    Err(reason) => {
                        let why = format!("whose newest state can't be written here: {reason}");
                        (why, delivery.version, true)
                    }
                },
                Meant::Kept(Skip::OutOfScope, version) => (
                    "who isn't in this target's scope and is kept here (on_out_of_scope = \"ignore\")".to_owned(),
                    version,
                    true,
                ),
                Meant::Kept(Skip::Deleted, version) => (
                    "who was deleted and is kept here (on_delete = \"ignore\")".to_owned(),
                    version,
                    true,
                ),
                Meant::Unknown => ("whom usersync doesn't know".to_owned(), 0, true),
                Meant::Refused(failure, version) => {
                    (format!("of whom this target can't be told: {failure}"), version, true)
                }
                Meant::Unavailable(failure) => {
                    (format!("and what becomes of it isn't known: {failure}"), 0, false)
                }
            };
            plan.keep(id, why, version, lasting);
        }
        members
    }

    async fn claims(
        &self,
        layout: &Layout,
        rows: &[Row],
        against: Against,
    ) -> Result<Vec<Claim>, Trouble> {
        let lease = self.connections.lease().await;
        let mut connection = self.connection(&lease).await?;
        let mut claims = Vec::new();
        // Rows are compared with each other all at once.
        let at_once = match against {
            Against::Table => AT_ONCE,
            Against::Rows => rows.len().max(1),
        };
        for rows in rows.chunks(at_once) {
            match self
                .dialect
                .claims(&mut connection, layout, rows, against)
                .await
            {
                Ok(found) => claims.extend(found),
                Err(trouble) => {
                    if !trouble.lost {
                        lease.keep(connection);
                    }
                    return Err(trouble);
                }
            }
        }
        lease.keep(connection);
        Ok(claims)
    }

    /// Who of `rows` is to have what somebody has already.
    pub(super) async fn claimants(
        &self,
        layout: &Layout,
        rows: &[Row],
    ) -> Result<BTreeSet<String>, Trouble> {
        let claims = self.claims(layout, rows, Against::Table).await?;
        Ok(claims.into_iter().map(|claim| claim.by).collect())
    }

    /// Writes `group` in one transaction: all of it, or nothing.
    async fn exchange(
        &self,
        layout: &Layout,
        plan: &Plan,
        group: &BTreeMap<String, Member>,
        form: Form,
    ) -> Result<Result<HashMap<String, Fate>, Failed>, Trouble> {
        if group.is_empty() {
            return Ok(Ok(HashMap::new()));
        }
        let lease = self.connections.lease().await;
        let mut connection = self.connection(&lease).await?;
        self.dialect
            .run(&mut connection, &self.dialect.begin(layout))
            .await?;
        let written = self
            .write_all(&mut connection, layout, plan, group, form)
            .await;
        let done = match written {
            Ok(fates) => self
                .dialect
                .run(&mut connection, &self.dialect.commit())
                .await
                .map(|()| fates)
                .map_err(Failed::Refused),
            Err(failed) => Err(failed),
        };
        if let Err(failed) = &done {
            if failed.lost() {
                drop(connection);
            } else {
                self.dialect
                    .run(&mut connection, &self.dialect.rollback())
                    .await?;
                lease.keep(connection);
            }
        } else {
            lease.keep(connection);
        }
        match done {
            Err(Failed::Refused(trouble))
                if matches!(
                    trouble.blame,
                    Blame::Server | Blame::Demoted | Blame::Table | Blame::Busy
                ) =>
            {
                Err(trouble)
            }
            done => Ok(done),
        }
    }

    async fn write_all(
        &self,
        connection: &mut D::Connection,
        layout: &Layout,
        plan: &Plan,
        group: &BTreeMap<String, Member>,
        form: Form,
    ) -> Result<HashMap<String, Fate>, Failed> {
        let ids: Vec<String> = group.keys().cloned().collect();
        let held = self.dialect.lock(connection, layout, &ids).await?;
        let newer = |id: &str, row: &Row| {
            let held = held.get(id);
            held.is_some_and(|held: &Held| held.version > row.version)
        };
        let mut fates = HashMap::new();
        for (id, member) in group {
            if newer(id, &member.row) {
                if !plan.is_asked_for(id) {
                    return Err(Failed::Ahead(id.clone()));
                }
                fates.insert(id.clone(), Fate::Newer);
            }
        }
        // What somebody has in a newer version is theirs: nobody may take it from them by what is older.
        let writing = group.keys().filter(|id| !fates.contains_key(*id));
        let mut claims = writing.flat_map(|id| plan.claims_of(id));
        if let Some((of, _)) = claims.find(|(of, _)| fates.contains_key(*of)) {
            return Err(Failed::Ahead(of.clone()));
        }
        let parked = parked(layout, plan, group, &held, &fates, form)?;
        self.dialect.park(connection, layout, &parked).await?;
        let mut shapes: BTreeMap<(How, Shape), Vec<Row>> = BTreeMap::new();
        for (id, member) in group.iter().filter(|(id, _)| !fates.contains_key(*id)) {
            // Somebody who isn't there needs no status.
            let gone = member.how == How::Update && held.get(id).is_none_or(|held| held.deleted);
            if !gone {
                let shape = (member.how, member.row.shape());
                shapes.entry(shape).or_default().push(member.row.clone());
            }
        }
        for ((how, _), rows) in shapes {
            let written = self.apply(connection, layout, &rows, how).await?;
            for (row, fate) in rows.iter().zip(written) {
                match fate {
                    Fate::InTheWay => return Err(Failed::Refused(Trouble::in_the_way())),
                    Fate::Unwritten => return Err(Failed::Refused(Trouble::unwritten())),
                    Fate::Written | Fate::Newer | Fate::Noted => {}
                }
                fates.insert(row.id.clone(), fate);
            }
        }
        if let Some(outbox) = &layout.outbox {
            let rows: Vec<Row> = group.values().map(|member| member.row.clone()).collect();
            if self
                .dialect
                .is_noted(connection, layout, outbox, &rows)
                .await?
            {
                return Err(Failed::Noted);
            }
        }
        for id in group.keys() {
            fates.entry(id.clone()).or_insert(Fate::Written);
        }
        Ok(fates)
    }
}

/// What is set aside: what somebody in `group` has and somebody else in it is to have.
fn parked(
    layout: &Layout,
    plan: &Plan,
    group: &BTreeMap<String, Member>,
    held: &HashMap<String, Held>,
    fates: &HashMap<String, Fate>,
    form: Form,
) -> Result<Vec<Parked>, Failed> {
    let mut parked: BTreeMap<String, BTreeMap<usize, Option<String>>> = BTreeMap::new();
    let writing = group.keys().filter(|by| !fates.contains_key(*by));
    for (of, key) in writing.flat_map(|by| plan.claims_of(by)) {
        let (Some(holder), Some(held)) = (group.get(of), held.get(of)) else {
            continue;
        };
        let cells = layout
            .keys
            .parked(key, &layout.columns, &holder.row, &held.cells, form);
        let cells = cells.ok_or_else(|| Failed::Unparkable(of.clone(), key))?;
        parked.entry(of.clone()).or_default().extend(cells);
    }
    let parked = parked.into_iter().map(|(id, cells)| Parked {
        id,
        cells: cells.into_iter().collect(),
    });
    Ok(parked.collect())
}

impl From<Trouble> for Failed {
    fn from(trouble: Trouble) -> Self {
        Self::Refused(trouble)
    }
}

impl Failed {
    fn lost(&self) -> bool {
        matches!(self, Self::Refused(trouble) if trouble.lost)
    }

    /// What it means for those of `group` that somebody asked for.
    fn outcome<D: Dialect>(self, layout: &Layout, group: &BTreeMap<String, Member>) -> Outcome {
        let conflict = |reason: String, lasting| {
            let holders = group
                .values()
                .filter(|member| member.row.index == usize::MAX);
            let holders = holders.filter_map(|member| plan::user(&member.row));
            Outcome::Conflict(Conflict {
                failure: coded::<D>(reason),
                holders: holders.take(plan::NAMED).collect(),
                lasting,
            })
        };
        let others = group
            .keys()
            .take(plan::NAMED)
            .cloned()
            .collect::<Vec<_>>()
            .join(", ");
        match self {
            Self::Refused(trouble) if trouble.blame == Blame::Row && group.len() > 1 => conflict(
                format!(
                    "values that must be unique change hands among users {others}, and the server refuses one of them: {}",
                    trouble.failure
                ),
                true,
            ),
            Self::Refused(trouble) if trouble.blame == Blame::Conflict => in_the_way::<D>(),
            Self::Refused(trouble) => trouble.outcome(),
            Self::Ahead(id) => conflict(
                format!(
                    "user {id} has a value that must be unique, in a newer version than its newest state"
                ),
                false,
            ),
            Self::Unparkable(id, key) => conflict(
                format!(
                    "user {id} has a value that must be unique (key `{}`), and no column of it can be written over meanwhile",
                    layout.keys.name(key)
                ),
                true,
            ),
            Self::Noted => Outcome::Conflict(Conflict::passing(Failure::new(NOTED))),
        }
    }
}

/// Somebody is in the way, and nobody knows who.
fn in_the_way<D: Dialect>() -> Outcome {
    let reason = "another row has a value that must be unique, and which one can't be told here";
    Outcome::Conflict(Conflict::passing(coded::<D>(reason.to_owned())))
}

fn coded<D: Dialect>(reason: String) -> Failure {
    Failure {
        code: Some(D::DUPLICATE.into()),
        ..Failure::new(reason)
    }
}

impl Stuck {
    fn outcome<D: Dialect>(&self) -> Outcome {
        Outcome::Conflict(Conflict {
            failure: coded::<D>(self.reason.clone()),
            holders: self.holders.clone(),
            lasting: self.lasting,
        })
    }
}
