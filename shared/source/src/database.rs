//! One connection to a main database, with a limit on how long anything may take.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::timeout;

use crate::{
    About, Failure, Kind, Lag, Layout, OutboxRow, Server, SourceConfig, SourceError, Stamp,
    TableName, UserRow,
    layout::deleted_mark,
    mysql::MySql,
    postgres::Postgres,
    session::{Answering, FORMAT, MOST_COUNTED, Session},
    sqlite::Sqlite,
};

/// How long a statement may take before the connection is given up.
const PATIENCE: Duration = Duration::from_secs(15);
/// The same for statements that change tables, which wait for those who use them.
const SCHEMA_PATIENCE: Duration = Duration::from_secs(60);

/// The most notes that are read to learn who was deleted lately.
const MOST_PASSED_ON: u32 = 500_000;

/// Why a connection isn't one to the server.
const POOLED: &str = "a pooler (PgBouncer, RDS Proxy, ProxySQL …) answers for the server and gives its sessions to several clients; \
     the relay's lock and the settings that rows are read with live in a session, so name the server itself in `url`";

/// Rows that were read and aren't marked yet: all that waited up to an id.
#[derive(Clone, Copy, Debug)]
pub struct RowsUnderWay {
    /// The highest id.
    pub last: i64,
    /// How many there are.
    pub count: i64,
}

/// A connection. After an error that isn't [`SourceError::Refused`] or [`SourceError::Value`] it should be dropped, and another made.
pub struct Database {
    pub(crate) session: Box<dyn Session>,
    pub(crate) config: SourceConfig,
}

impl Database {
    /// Connects, and makes sure that the connection has a session of the server's for itself before anything is set in it:
    /// that of a pooler is another client's in a moment.
    ///
    /// # Errors
    /// When the settings can't work, nobody answers in time, or a pooler, a copy or a server that was fenced does.
    pub async fn connect(config: &SourceConfig) -> Result<Self, SourceError> {
        let mut database = Self::open(config).await?;
        let answering = database.session.answering();
        if within(PATIENCE, "asking who answers", answering)
            .await?
            .is_some()
        {
            let mut beside = Self::open(config).await?;
            let itself = database.is_its_own(&mut beside).await;
            beside.close().await;
            itself?;
        }
        database.begun().await
    }

    /// A connection in whose session nothing is set.
    async fn open(config: &SourceConfig) -> Result<Self, SourceError> {
        let server = config.server()?;
        let connecting = async {
            Ok::<Box<dyn Session>, SourceError>(match server {
                Server::MySql => Box::new(MySql::connect(config).await?),
                Server::Postgres => Box::new(Postgres::connect(config).await?),
                Server::Sqlite => Box::new(Sqlite::connect(config).await?),
            })
        };
        Ok(Self {
            session: within(PATIENCE, "connecting", connecting).await?,
            config: config.clone(),
        })
    }

    async fn begun(mut self) -> Result<Self, SourceError> {
        within(PATIENCE, "setting up the session", self.session.begin()).await?;
        self.refuse_copy().await?;
        Ok(self)
    }

    /// Refuses a server that is a copy of another one or was fenced, also since it was asked last: it may show old rows, and
    /// whoever believes them takes back what has changed since.
    async fn refuse_copy(&mut self) -> Result<(), SourceError> {
        let asking = self.session.read_only();
        match within(PATIENCE, "asking the server", asking).await? {
            None => Ok(()),
            Some(why) => Err(SourceError::Refused(format!(
                "this server is no main database, for {why}: its rows may be old; name the server that is written to in `url`"
            ))),
        }
    }

    /// Another connection with the same settings; that nobody is in between is known.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn again(&self) -> impl Future<Output = Result<Self, SourceError>> + Send + use<> {
        let config = self.config.clone();
        async move { Self::open(&config).await?.begun().await }
    }

    /// The mapping that rows are read by.
    ///
    /// # Errors
    /// Those of [`Self::layout`], and when an outbox notes another column than the settings name as the id.
    pub async fn readable(&mut self) -> Result<Layout, SourceError> {
        let layout = self.layout(false).await?;
        self.refuse_another_id().await?;
        Ok(layout)
    }

    /// The mapping of the settings, as it fits the table; `all` also takes columns nobody named.
    ///
    /// # Errors
    /// When it doesn't fit, naming table and columns.
    pub async fn layout(&mut self, all: bool) -> Result<Layout, SourceError> {
        let (table, id) = (self.config.table.clone(), self.config.id.clone());
        let live = within(PATIENCE, "looking at the table", self.session.look(&table)).await?;
        let (columns, without) = (&self.config.columns, &self.config.without);
        let deleted = self.config.deleted.as_deref();
        Layout::fit(&table, &id, columns, without, deleted, all, live.as_ref())
    }

    pub(crate) async fn run(&mut self, script: &str) -> Result<(), SourceError> {
        within(
            SCHEMA_PATIENCE,
            "changing tables and triggers",
            self.session.run(script),
        )
        .await
    }

    fn table(&self) -> TableName {
        self.config.table.clone()
    }

    /// Whether this connection is now the only one that relays the outbox; it stays so while it lives.
    ///
    /// # Errors
    /// When the server can't be asked, or nobody may write to it: a copy may show old rows, and can't mark them.
    pub async fn try_lock(&mut self) -> Result<bool, SourceError> {
        let table = self.table();
        self.refuse_copy().await?;
        within(
            PATIENCE,
            "taking the relay's lock",
            self.session.try_lock(&table),
        )
        .await
    }

    /// Has the server end this connection, and with it the lock, once nothing was heard of us for `silence`.
    ///
    /// # Errors
    /// When the server can't be told.
    pub async fn end_after(&mut self, silence: Duration) -> Result<(), SourceError> {
        let telling = self.session.end_after(silence);
        within(PATIENCE, "limiting its silence", telling).await
    }

    /// Shows the server that we live, within `patience`.
    ///
    /// # Errors
    /// When it doesn't answer, the lock isn't ours any more, or nobody may write there any more.
    pub async fn keep_lock(&mut self, patience: Duration) -> Result<(), SourceError> {
        let table = self.table();
        let keeping = async {
            if let Some(why) = self.session.read_only().await? {
                return Err(SourceError::Unavailable(format!(
                    "the server can't be written to any more: {why}"
                )));
            }
            match self.session.holds_lock(&table).await? {
                true => Ok(()),
                false => Err(SourceError::Refused(format!(
                    "the relay's lock was lost while its connection lived: {POOLED}"
                ))),
            }
        };
        within(patience, "keeping the relay's lock", keeping).await
    }

    /// Makes sure that this connection and `other` each have a session of the server's for themselves.
    ///
    /// # Errors
    /// When a pooler shares or changes sessions, or the server can't be asked.
    pub async fn is_its_own(&mut self, other: &mut Self) -> Result<(), SourceError> {
        let asking = async {
            let before = self.session.answering().await?;
            let beside = other.session.answering().await?;
            let after = self.session.answering().await?;
            let number = |answering: Option<Answering>| answering.map(|of| of.number);
            let older = [before, beside, after]
                .iter()
                .flatten()
                .any(|of| of.is_older);
            let shared = before.is_some()
                && (number(before) == number(beside) || number(before) != number(after));
            match older || shared {
                true => Err(SourceError::Refused(POOLED.to_owned())),
                false => Ok(()),
            }
        };
        within(PATIENCE, "asking who answers", asking).await
    }

    /// The oldest rows of the outbox that aren't published, by id; fewer than `most` when they are large.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn unpublished(&mut self, most: u32) -> Result<Vec<OutboxRow>, SourceError> {
        within(
            PATIENCE,
            "reading the outbox",
            self.session.unpublished(i64::MIN, most),
        )
        .await
    }

    /// The same of those behind `under_way`, rows that will be marked later; none when there are others before
    /// the last of them: their transactions took their ids and committed late, and they come first.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn unpublished_behind(
        &mut self,
        under_way: RowsUnderWay,
        most: u32,
    ) -> Result<Option<Vec<OutboxRow>>, SourceError> {
        let RowsUnderWay { last, count } = under_way;
        let session = &mut self.session;
        let reading = async {
            let rows = session.unpublished(last, most).await?;
            // Asked in this order: what could come before one of these rows is committed before it.
            let before = session.unpublished_until(last).await?;
            Ok((before == count).then_some(rows))
        };
        within(PATIENCE, "reading the outbox", reading).await
    }

    /// Notes that failed, of those behind the id `after`, by id; no more than [`MOST_COUNTED`].
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn failed_notes(&mut self, mut after: i64) -> Result<Vec<OutboxRow>, SourceError> {
        let mut notes = Vec::new();
        while notes.len() < MOST_COUNTED as usize {
            let reading = self.session.failed(after, MOST_COUNTED);
            let rows = within(PATIENCE, "reading the outbox", reading).await?;
            let Some(last) = rows.last() else { break };
            after = last.id;
            notes.extend(rows.into_iter().filter(|row| row.payload.is_none()));
        }
        Ok(notes)
    }

    /// Who went by a note that was published within `span` and that nobody has approved, and how long ago, and isn't back;
    /// the last [`MOST_PASSED_ON`] notes count.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn gone_within(
        &mut self,
        span: Duration,
        approved: i64,
    ) -> Result<Vec<(String, Duration)>, SourceError> {
        let reading = self.session.passed_on(approved, span, MOST_PASSED_ON);
        let notes = within(PATIENCE, "reading the outbox", reading).await?;
        let mut known = HashSet::new();
        let newest = notes
            .into_iter()
            .filter(|(user, ..)| known.insert(user.clone()));
        let gone = newest.filter(|(_, event, _)| event == "D");
        Ok(gone
            .map(|(user, _, ago)| (user, Duration::from_secs(ago.try_into().unwrap_or(0))))
            .collect())
    }

    /// Those of `ids`, as the table spells them, of whom a row of the outbox isn't published yet.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn waiting(
        &mut self,
        layout: &Layout,
        ids: &[String],
    ) -> Result<Vec<String>, SourceError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let reading = self.session.waiting(layout, ids);
        within(PATIENCE, "reading the outbox", reading).await
    }

    /// Which outbox it is; none when it was made by an older version, which only has payloads.
    ///
    /// # Errors
    /// When it can't be asked, or only a newer program reads it.
    pub async fn about(&mut self) -> Result<Option<About>, SourceError> {
        let about = within(PATIENCE, "looking at the outbox", self.session.about()).await?;
        match about {
            Some(About { format, .. }) if format > FORMAT => Err(SourceError::Refused(format!(
                "the outbox is written in format {format}, but this program reads up to {FORMAT}: upgrade it (docs/UPGRADING.md)"
            ))),
            about => Ok(about),
        }
    }

    /// The highest id of the outbox, 0 when it is empty.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn highest(&mut self) -> Result<i64, SourceError> {
        within(PATIENCE, "reading the outbox", self.session.highest()).await
    }

    /// Approves any number of deletions in what is in the outbox now.
    ///
    /// # Errors
    /// When that can't be written down.
    pub async fn approve(&mut self) -> Result<(), SourceError> {
        within(PATIENCE, "approving deletions", self.session.approve()).await
    }

    /// Marks rows that JetStream has confirmed.
    ///
    /// # Errors
    /// When they can't be marked.
    pub async fn mark_published(&mut self, ids: &[i64]) -> Result<(), SourceError> {
        if ids.is_empty() {
            return Ok(());
        }
        within(
            PATIENCE,
            "marking rows of the outbox",
            self.session.mark_published(ids),
        )
        .await
    }

    /// Marks rows that can never be published.
    ///
    /// # Errors
    /// When they can't be marked.
    pub async fn mark_failed(&mut self, failures: &[Failure]) -> Result<(), SourceError> {
        within(
            PATIENCE,
            "marking rows of the outbox",
            self.session.mark_failed(failures),
        )
        .await
    }

    /// Removes published rows older than the retention, of the oldest `most`, but the one with the id `kept`; how many
    /// were removed.
    ///
    /// # Errors
    /// When they can't be removed.
    pub async fn prune(&mut self, kept: i64, most: u32) -> Result<u64, SourceError> {
        let retention = self.config.relay.retention;
        let pruning = self.session.prune(retention, kept, most);
        within(PATIENCE, "pruning the outbox", pruning).await
    }

    /// Whether a row of the outbox is there no more, or another one has its id.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn has_lost(&mut self, row: &Stamp) -> Result<bool, SourceError> {
        let reading = self.session.row(row.id);
        let found = within(PATIENCE, "reading the outbox", reading).await?;
        Ok(found.is_none_or(|found| found.stamp() != *row))
    }

    /// The published row with the highest id.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn last_published(&mut self) -> Result<Option<Stamp>, SourceError> {
        let reading = self.session.last_published();
        let found = within(PATIENCE, "reading the outbox", reading).await?;
        Ok(found.map(|found| found.stamp()))
    }

    /// How far the relay is behind.
    ///
    /// # Errors
    /// When the outbox can't be asked.
    pub async fn lag(&mut self) -> Result<Lag, SourceError> {
        within(PATIENCE, "looking at the outbox", self.session.lag()).await
    }

    /// Waits for word of a new row, for at most `at_most`.
    pub async fn wait(&mut self, at_most: Duration) {
        self.session.wait(at_most).await;
    }

    /// Up to `most` users behind the id `after`, by id.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn page(
        &mut self,
        layout: &Layout,
        after: Option<&str>,
        most: u32,
    ) -> Result<Vec<UserRow>, SourceError> {
        let reading = self.session.page(layout, after, most);
        match within(SCHEMA_PATIENCE, "reading users", reading).await {
            Err(SourceError::Value(_)) => {}
            read => {
                // Afterwards: what was read from a primary is true, whatever it has become since.
                let read = read.map_err(|error| error.with_grant(layout))?;
                self.refuse_copy().await?;
                self.refuse_change(layout).await?;
                return Ok(read);
            }
        }
        // One of them can't be read: who it is shows when they are asked for one by one.
        let mut ids_only = layout.clone();
        ids_only.columns.clear();
        let reading = self.session.page(&ids_only, after, most);
        let page = within(SCHEMA_PATIENCE, "reading users", reading).await?;
        let ids: Vec<String> = page.into_iter().map(|row| row.id).collect();
        let mut read: HashMap<String, UserRow> = HashMap::new();
        for row in self.users(layout, &ids).await? {
            read.insert(row.id.clone(), row);
        }
        Ok(ids.iter().filter_map(|id| read.remove(id)).collect())
    }

    /// The users with these ids, those that are there.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn users(
        &mut self,
        layout: &Layout,
        ids: &[String],
    ) -> Result<Vec<UserRow>, SourceError> {
        let mut found = Vec::new();
        let mut left = vec![ids];
        while let Some(ids) = left.pop() {
            let reading = self.session.users(layout, ids);
            match within(PATIENCE, "reading users", reading).await {
                Ok(rows) => found.extend(rows),
                // One of them can't be read, and holds nobody else back.
                Err(SourceError::Value(_)) if ids.len() > 1 => {
                    let (one, other) = ids.split_at(ids.len() / 2);
                    left.extend([other, one]);
                }
                Err(SourceError::Value(reason)) => {
                    let reason = self.blamed(layout, ids).await?.unwrap_or(reason);
                    found.extend(ids.iter().map(|id| UserRow {
                        id: id.clone(),
                        document: Err(reason.clone()),
                    }));
                }
                Err(error) => return Err(error.with_grant(layout)),
            }
        }
        self.refuse_copy().await?;
        self.refuse_change(layout).await?;
        Ok(found)
    }

    /// Refuses what was read of columns that aren't any more as the layout has them: of another type, a value is read as what it
    /// isn't.
    async fn refuse_change(&mut self, layout: &Layout) -> Result<(), SourceError> {
        let asking = self.session.columns(&layout.table);
        let now = within(PATIENCE, "looking at the table", asking).await?;
        let mapped = layout
            .columns
            .iter()
            .map(|column| (&column.name, column.kind, &column.shown));
        let id = &layout.id;
        let mut mapped = mapped.chain([(&id.name, id.kind, &id.shown)]);
        let is_there = |(name, kind, shown): &(&String, Kind, &String)| {
            now.iter().any(|live| {
                live.name == **name && live.kind == *kind && sort(&live.shown) == sort(shown)
            })
        };
        let mark = deleted_mark(&now, self.config.deleted.as_deref());
        match mapped.find(|column| !is_there(column)) {
            None if mark.is_some() != layout.deleted.is_some() => {
                Err(SourceError::Refused(format!(
                    "`{}` has become a target's table, or is none any more: it is looked at anew",
                    layout.table
                )))
            }
            None => Ok(()),
            Some((name, _, shown)) => Err(SourceError::Refused(format!(
                "column `{name}` of `{}` isn't {shown} any more: the table was changed, and is looked at anew",
                layout.table
            ))),
        }
    }

    /// Which column of a user the server can't tell, and why.
    async fn blamed(
        &mut self,
        layout: &Layout,
        id: &[String],
    ) -> Result<Option<String>, SourceError> {
        for column in &layout.columns {
            let mut alone = layout.clone();
            alone.columns = vec![column.clone()];
            let reading = self.session.users(&alone, id);
            match within(PATIENCE, "reading users", reading).await {
                Ok(_) => {}
                Err(SourceError::Value(reason)) => {
                    let (name, shown) = (&column.name, &column.shown);
                    return Ok(Some(format!("its column `{name}` ({shown}): {reason}")));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Roughly how many users there are.
    ///
    /// # Errors
    /// When the server can't be asked.
    pub async fn estimate(&mut self) -> Result<u64, SourceError> {
        let table = self.table();
        within(PATIENCE, "counting users", self.session.estimate(&table)).await
    }

    /// Ends the connection, and with it the relay's lock.
    pub async fn close(self) {
        // The server notices an end without good order, too.
        let _ = timeout(Duration::from_secs(1), self.session.close()).await;
    }
}

/// A type without its length or labels, with which nothing is read in another way.
fn sort(shown: &str) -> String {
    match (shown.find('('), shown.rfind(')')) {
        (Some(from), Some(to)) if from < to => format!("{}{}", &shown[..from], &shown[to + 1..]),
        _ => shown.to_owned(),
    }
}

pub(crate) async fn within<T>(
    patience: Duration,
    doing: &str,
    work: impl Future<Output = Result<T, SourceError>>,
) -> Result<T, SourceError> {
    let late = || {
        SourceError::Unavailable(format!(
            "{doing}: no answer within {} s",
            patience.as_secs()
        ))
    };
    timeout(patience, work)
        .await
        .unwrap_or_else(|_| Err(late()))
}
