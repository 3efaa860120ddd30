//! What every kind of server does for us, over one connection.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::{Stream, TryStreamExt};
use serde::{Deserialize, Serialize};

use crate::{
    Kind, Layout, Live, LiveColumn, SourceError, TableName, document::Blank, value::unpadded,
};

/// A row of the outbox that waits to be published: a note of who changed, or the payload of an event.
#[derive(Clone, Debug)]
pub struct OutboxRow {
    /// Rises with every change of one user, in the order of commits.
    pub id: i64,
    /// Whose it is, as the outbox has kept the id: [`Layout::spelled`] as rows do.
    pub user: String,
    /// What happened to the row ([`OutboxRow::change`]), or the type of the payload, such as `user.created`.
    pub event: String,
    /// The user's members as JSON, where a service has written them, or a trigger of an older version.
    pub payload: Option<Payload>,
    /// What they were before, where a trigger of an older version has written them.
    pub previous: Option<Vec<u8>>,
    /// When it was written, in unix microseconds; the same for all notes of one statement.
    pub created_us: i64,
    /// Who has written it: a connection or a transaction.
    pub tx: Option<i64>,
}

/// What tells a row of the outbox from another one that has the same id: in a database that was put back, ids come again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The row's id.
    pub id: i64,
    /// [`OutboxRow::event`].
    pub event: String,
    /// [`OutboxRow::created_us`].
    pub created_us: i64,
}

/// More than transactions can be behind each other: ids begin at the microseconds of the installation.
const FAR: i64 = 1_000_000_000_000;

impl Stamp {
    /// Whether a row has so low an id that the counter has begun anew, as a sequence does that a failover didn't bring along.
    pub fn is_far_above(&self, row: &OutboxRow) -> bool {
        row.id > 0 && row.id < self.id.saturating_sub(FAR)
    }
}

/// A payload in an outbox.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// JSON, perhaps.
    Text(Vec<u8>),
    /// Larger than any event may be.
    TooLarge,
}

/// What happened to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowChange {
    /// It came.
    Inserted,
    /// It changed.
    Updated,
    /// It went.
    Deleted,
}

impl OutboxRow {
    /// What a note says; none when it says nothing that is known. A service may write the type of an event.
    pub fn change(&self) -> Option<RowChange> {
        match self.event.as_str() {
            "I" | "user.created" => Some(RowChange::Inserted),
            "U" | "user.updated" | "user.status_changed" => Some(RowChange::Updated),
            "D" | "user.deleted" => Some(RowChange::Deleted),
            _ => None,
        }
    }

    /// What tells it from another one that has its id.
    pub fn stamp(&self) -> Stamp {
        Stamp {
            id: self.id,
            event: self.event.clone(),
            created_us: self.created_us,
        }
    }

    /// Whether both are notes of one statement.
    pub fn is_of_one_statement_with(&self, other: &Self) -> bool {
        self.tx.is_some() && self.tx == other.tx && self.created_us == other.created_us
    }

    pub(crate) fn bytes(&self) -> usize {
        let payload = match &self.payload {
            Some(Payload::Text(text)) => text.len(),
            Some(Payload::TooLarge) | None => 0,
        };
        self.user.len() + payload + self.previous.as_ref().map_or(0, Vec::len)
    }
}

/// The newest format of an outbox that this program reads. In the first, of v0.1.0, each row is an event, and nothing says
/// which format it is.
pub(crate) const FORMAT: i16 = 2;

/// Which outbox it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// A random text; one that is made anew has another.
    pub epoch: String,
    /// The first id that was not written by an older version.
    pub first: i64,
    /// Up to this id, an operator has approved any number of deletions.
    pub approved: i64,
    /// How its rows are to be read.
    pub format: i16,
}

impl Payload {
    /// Of its size and, unless it is too large, its text.
    pub(crate) fn of(size: Option<i64>, text: Option<Vec<u8>>) -> Option<Self> {
        size.map(|_| text.map_or(Self::TooLarge, Self::Text))
    }
}

/// A note that was published: who came or went, and how many seconds ago it was.
pub(crate) type PassedOn = (String, String, i64);

/// A row that can't be published, and why.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which.
    pub id: i64,
    /// Why, without any value.
    pub reason: String,
}

/// How far the relay is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Lag {
    /// Rows that wait; no more than [`MOST_COUNTED`] are counted.
    pub unpublished: u64,
    /// For how long the oldest of them has been waiting.
    pub oldest: Duration,
    /// Rows that could not be published.
    pub failed: u64,
}

impl Lag {
    /// Of what a server answers: rows that wait, microseconds, rows that failed.
    pub(crate) fn of((unpublished, oldest, failed): (i64, i64, i64)) -> Self {
        Self {
            unpublished: unpublished.unsigned_abs(),
            oldest: Duration::from_micros(oldest.try_into().unwrap_or(0)),
            failed: failed.unsigned_abs(),
        }
    }
}

/// Where counting ends, so that a long backlog doesn't make looking at it slow.
pub(crate) const MOST_COUNTED: u32 = 100_000;
/// A payload above this isn't read: no event may be so large.
pub(crate) const MOST_PAYLOAD: usize = 256 * 1024;
/// Reading ends after so many bytes, however many rows were asked for.
const MOST_READ: usize = 16 << 20;

/// A user as the table has it.
#[derive(Clone, Debug)]
pub struct UserRow {
    /// The id as a text: where the next page goes on.
    pub id: String,
    /// The mapped members as JSON, `user_id` among them; why there is none, without any value.
    pub document: Result<Vec<u8>, String>,
}

impl UserRow {
    pub(crate) fn bytes(&self) -> usize {
        self.document.as_ref().map_or(0, Vec::len)
    }
}

/// A user of what a server tells: the id, then the columns of `blank`.
pub(crate) fn user_row(id_kind: Kind, blank: &Blank, told: &[Option<&[u8]>]) -> UserRow {
    let id = told.first().copied().flatten().unwrap_or_default();
    let id = String::from_utf8_lossy(id);
    UserRow {
        id: match id_kind {
            Kind::Integer => unpadded(&id).into_owned(),
            _ => id.into_owned(),
        },
        document: blank.filled(told.iter().copied()),
    }
}

/// Reads rows as they come, until there are no more or they have more than [`MOST_READ`] bytes.
pub(crate) async fn until_much<R, T>(
    mut rows: impl Stream<Item = Result<R, sqlx::Error>> + Unpin,
    doing: &str,
    read: impl Fn(&R) -> Result<T, sqlx::Error>,
    size: impl Fn(&T) -> usize,
) -> Result<Vec<T>, SourceError> {
    let failed = |error| SourceError::of(doing, &error);
    let (mut found, mut bytes) = (Vec::new(), 0);
    while bytes <= MOST_READ
        && let Some(row) = rows.try_next().await.map_err(failed)?
    {
        let row = read(&row).map_err(failed)?;
        bytes += size(&row);
        found.push(row);
    }
    Ok(found)
}

/// The triggers and tables that are there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Installed {
    /// The columns of `user_outbox`, empty when there is no such table.
    pub outbox: Vec<String>,
    /// Our triggers; none when they can't be seen.
    pub triggers: Option<Vec<Trigger>>,
    /// Whether there is the table that says which outbox it is.
    pub about: bool,
}

/// One of our triggers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trigger {
    pub name: String,
    /// The table it is on, where that isn't the users'.
    pub elsewhere: Option<String>,
    /// Why it doesn't do anything, if so.
    pub disabled: Option<String>,
    /// Whether it notes another column than the settings name as the id.
    pub of_another_id: bool,
    /// Whether it is as this program makes it.
    pub current: bool,
}

/// Why a trigger with this text doesn't do what the settings say, if so. Rows are looked for by the column that they name:
/// by another one than the trigger notes, one user's row would be taken for another's.
pub(crate) fn notes_another_id(text: &str, id: &str) -> Option<String> {
    let (text, id) = (text.to_lowercase(), id.to_lowercase());
    let names_one = text.contains("old.") || text.contains("new.");
    let names_ours = ["old.", "new."].into_iter().any(|row| {
        let named = |quote: &str| {
            let quoted = id.replace(quote, &quote.repeat(2));
            text.contains(&format!("{row}{quote}{quoted}{quote}"))
        };
        named("`") || named("\"")
    });
    (names_one && !names_ours).then(|| {
        format!(
            "it notes another column than `{id}`: name the one with the user's id in the source's `id`, or run \
             `usersync-scheduler outbox install` for this one"
        )
    })
}

/// Which session of the server answers, where a connection has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answering {
    /// Its number.
    pub number: i64,
    /// It was there before we connected.
    pub is_older: bool,
}

/// One connection. Every method but `wait` may take as long as the server does; callers set the limit.
#[async_trait]
pub(crate) trait Session: Send {
    /// Sets what rows are to be read and written with.
    async fn begin(&mut self) -> Result<(), SourceError> {
        Ok(())
    }
    /// The table as the server describes it, `None` when it isn't there.
    async fn look(&mut self, table: &TableName) -> Result<Option<Live>, SourceError>;
    /// The table's columns as they are now.
    async fn columns(&mut self, table: &TableName) -> Result<Vec<LiveColumn>, SourceError>;
    /// Runs a script of [`Session::script`].
    async fn run(&mut self, script: &str) -> Result<(), SourceError>;
    /// What of an outbox is there for this table.
    async fn installed(&mut self, table: &TableName) -> Result<Installed, SourceError>;
    /// The script that makes or renews outbox and triggers.
    fn script(&self, layout: &Layout) -> String;
    /// The script that lets a relay see how triggers are, where it takes one.
    fn watch_script(&self, _: &TableName) -> Option<String> {
        None
    }
    /// The script that takes that back.
    fn unwatch_script(&self, _: &TableName) -> Option<String> {
        None
    }
    /// Our triggers; none when they can't be seen.
    async fn triggers(&mut self, table: &TableName) -> Result<Option<Vec<Trigger>>, SourceError>;
    /// Whether what lets a relay see the triggers runs with the rights of another account than ours.
    async fn is_watched_by_another(&mut self, _: &TableName) -> Result<bool, SourceError> {
        Ok(false)
    }
    /// Whether the account that made the triggers is gone, with whose rights they run: then every write to the table fails.
    async fn is_orphaned(&mut self, _: &TableName) -> Result<bool, SourceError> {
        Ok(false)
    }
    /// Whether the table has a column of this name; asked where notes depend on it.
    async fn has_column(&mut self, _: &TableName, _column: &str) -> Result<bool, SourceError> {
        Ok(true)
    }
    /// The script that begins a new epoch of an outbox that is there.
    fn new_epoch(&self, table: &TableName) -> String;
    /// The script that removes outbox and triggers.
    fn removal(&self, table: &TableName) -> String;

    /// Whether this connection is now the only one that relays the outbox of `table`.
    async fn try_lock(&mut self, table: &TableName) -> Result<bool, SourceError>;
    /// Has the server end this connection, and with it the lock, once nothing was heard of us for `silence`.
    async fn end_after(&mut self, _silence: Duration) -> Result<(), SourceError> {
        Ok(())
    }
    /// Whether this connection still has the lock.
    async fn holds_lock(&mut self, _: &TableName) -> Result<bool, SourceError> {
        Ok(true)
    }
    /// Which session answers; none where there are no sessions.
    async fn answering(&mut self) -> Result<Option<Answering>, SourceError> {
        Ok(None)
    }
    /// The oldest rows that aren't published, of those behind the id `after`, in the order of their ids.
    async fn unpublished(&mut self, after: i64, most: u32) -> Result<Vec<OutboxRow>, SourceError>;
    /// The oldest rows that failed, of those behind the id `after`, in the order of their ids.
    async fn failed(&mut self, after: i64, most: u32) -> Result<Vec<OutboxRow>, SourceError>;
    /// The newest notes behind the id `after` of users who came or went that were published within `span`, at most `most`.
    async fn passed_on(
        &mut self,
        after: i64,
        span: Duration,
        most: u32,
    ) -> Result<Vec<PassedOn>, SourceError>;
    /// How many aren't published, up to the id `last`.
    async fn unpublished_until(&mut self, last: i64) -> Result<i64, SourceError>;
    /// Those of `ids` of whom a row isn't published yet.
    async fn waiting(
        &mut self,
        layout: &Layout,
        ids: &[String],
    ) -> Result<Vec<String>, SourceError>;
    /// Why this server is a copy of another one or was fenced, if so: it may show old rows, and nobody can write to it.
    async fn read_only(&mut self) -> Result<Option<&'static str>, SourceError>;
    /// Which outbox it is; none of an older version.
    async fn about(&mut self) -> Result<Option<About>, SourceError>;
    /// The highest id of the outbox, 0 when it is empty.
    async fn highest(&mut self) -> Result<i64, SourceError>;
    /// Approves any number of deletions up to the highest id.
    async fn approve(&mut self) -> Result<(), SourceError>;
    /// Marks rows that are published.
    async fn mark_published(&mut self, ids: &[i64]) -> Result<(), SourceError>;
    /// Marks rows that never will be.
    async fn mark_failed(&mut self, failures: &[Failure]) -> Result<(), SourceError>;
    /// Removes published rows older than `retention`, of the oldest `most`, but the one with the id `kept`; how many were.
    async fn prune(
        &mut self,
        retention: Duration,
        kept: i64,
        most: u32,
    ) -> Result<u64, SourceError>;
    /// A row, published or not; none when it isn't there.
    async fn row(&mut self, id: i64) -> Result<Option<OutboxRow>, SourceError>;
    /// The published row with the highest id.
    async fn last_published(&mut self) -> Result<Option<OutboxRow>, SourceError>;
    /// How far the relay is behind.
    async fn lag(&mut self) -> Result<Lag, SourceError>;
    /// The reasons of the newest rows that could not be published, at most `most`.
    async fn failures(&mut self, table: &TableName, most: u32)
    -> Result<Vec<Failure>, SourceError>;
    /// Waits for word of a new row, for at most `at_most`.
    async fn wait(&mut self, at_most: Duration) {
        tokio::time::sleep(at_most).await;
    }

    /// Users behind the id `after`, by id.
    async fn page(
        &mut self,
        layout: &Layout,
        after: Option<&str>,
        most: u32,
    ) -> Result<Vec<UserRow>, SourceError>;
    /// Some users by their ids; those that aren't there are left out.
    async fn users(&mut self, layout: &Layout, ids: &[String])
    -> Result<Vec<UserRow>, SourceError>;
    /// Roughly how many users there are, for a progress bar.
    async fn estimate(&mut self, table: &TableName) -> Result<u64, SourceError>;

    /// Ends the connection in good order.
    async fn close(self: Box<Self>);
}
