//! The seam between SQL targets and the servers they speak to: one file per server.

use std::{borrow::Cow, collections::HashMap, future::Future, time::Duration};

use usersync_core::target::Table;
use usersync_digest::sql::Flavour;

use crate::{
    layout::{Layout, Live, Row},
    trouble::Trouble,
    unique::{Claim, Parked},
};

/// How a server is spoken to.
pub(crate) trait Dialect: Send + Sync {
    /// One connection.
    type Connection: Send;
    /// Whose SQL digests are asked for in.
    const FLAVOUR: Flavour;

    /// The code of an error about a value that must be unique.
    const DUPLICATE: &str;

    /// Begins a transaction whose every statement sees what was committed before it. It says whether it writes beside an
    /// outbox that it looks at: the triggers of one that it knows nothing of refuse it, for it would undo what the
    /// application has done and the outbox hasn't told of.
    fn begin(&self, layout: &Layout) -> Cow<'_, str>;

    /// Ends a transaction.
    fn commit(&self) -> Cow<'_, str> {
        "COMMIT".into()
    }

    /// Undoes one.
    fn rollback(&self) -> Cow<'_, str> {
        "ROLLBACK".into()
    }

    /// Opens a connection.
    fn connect(&self) -> impl Future<Output = Result<Self::Connection, Trouble>> + Send;

    /// Whether a single statement that writes must have a transaction around it, too. Known once there is a connection.
    fn needs_transactions(&self) -> bool {
        false
    }

    /// Asks whether the server is still there.
    fn ping(
        &self,
        connection: &mut Self::Connection,
    ) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// Asks whether the table can be written to, changing nothing.
    fn writable(
        &self,
        connection: &mut Self::Connection,
        name: &str,
        table: &Table,
    ) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// Describes the table; `None` when there is none of this name.
    fn look(
        &self,
        connection: &mut Self::Connection,
        name: &str,
    ) -> impl Future<Output = Result<Option<Live>, Trouble>> + Send;

    /// Why what is read of the table isn't all that is written to it, if so: the server is a copy of another one, or
    /// hides rows.
    fn obstacle(
        &self,
        connection: &mut Self::Connection,
        name: &str,
    ) -> impl Future<Output = Result<Option<String>, Trouble>> + Send;

    /// Writes rows of one shape, ordered by id, all or none of them; says what became of each.
    fn upsert(
        &self,
        connection: &mut Self::Connection,
        layout: &Layout,
        rows: &[Row],
    ) -> impl Future<Output = Result<Vec<Fate>, Trouble>> + Send;

    /// Whether a change of one of these rows is noted in the table's outbox and not published yet.
    fn is_noted(
        &self,
        connection: &mut Self::Connection,
        layout: &Layout,
        outbox: &str,
        rows: &[Row],
    ) -> impl Future<Output = Result<bool, Trouble>> + Send;

    /// Writes the cells told and the version to rows that are there, not deleted and not newer; says what became of each. In a
    /// transaction of the caller's.
    fn update(
        &self,
        connection: &mut Self::Connection,
        layout: &Layout,
        rows: &[Row],
    ) -> impl Future<Output = Result<Vec<Fate>, Trouble>> + Send;

    /// The column of `row` whose value the server doesn't take, after it has refused one without saying which.
    fn culprit(
        &self,
        connection: &mut Self::Connection,
        layout: &Layout,
        row: &Row,
    ) -> impl Future<Output = Option<String>> + Send;

    /// Sets the version of one row to 0, provided that it is `version`.
    fn forget(
        &self,
        connection: &mut Self::Connection,
        layout: &Layout,
        id: &str,
        version: i64,
    ) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// Reads rows back, by id.
    fn read(
        &self,
        connection: &mut Self::Connection,
        layout: &Layout,
        ids: &[String],
    ) -> impl Future<Output = Result<HashMap<String, Held>, Trouble>> + Send;

    /// The same, and keeps them from changing until the transaction ends; locks them in the order of the ids. What the
    /// transaction writes is no change of the table's own.
    fn lock(
        &self,
        connection: &mut Self::Connection,
        layout: &Layout,
        ids: &[String],
    ) -> impl Future<Output = Result<HashMap<String, Held>, Trouble>> + Send;

    /// Who has what `rows` are to have and must be unique, by the server's own comparison. A row may be of any shape, and
    /// never claims what it has itself.
    fn claims(
        &self,
        connection: &mut Self::Connection,
        layout: &Layout,
        rows: &[Row],
        against: Against,
    ) -> impl Future<Output = Result<Vec<Claim>, Trouble>> + Send;

    /// Writes over cells of rows that are locked.
    fn park(
        &self,
        connection: &mut Self::Connection,
        layout: &Layout,
        rows: &[Parked],
    ) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// Runs a statement of [`Dialect::create`] or [`Dialect::add`].
    fn run(
        &self,
        connection: &mut Self::Connection,
        statement: &str,
    ) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// Prepares a connection for statements of digests, which may take `patience` each.
    fn allow(
        &self,
        connection: &mut Self::Connection,
        patience: Duration,
    ) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// What a statement of digests answers: a number of entries, and the entries.
    fn packed(
        &self,
        connection: &mut Self::Connection,
        statement: &str,
    ) -> impl Future<Output = Result<(i64, Vec<u8>), Trouble>> + Send;

    /// Tells `each` of every row of texts as it comes, which may take `patience` each.
    fn texts(
        &self,
        connection: &mut Self::Connection,
        statement: &str,
        patience: Duration,
        each: &mut (dyn FnMut(&[Option<&str>]) + Send),
    ) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// The statement that creates the table.
    fn create(&self, name: &str, table: &Table) -> String;

    /// The statements that add columns of ours to the table: the version's, the deleted mark's.
    fn add(&self, name: &str, version: Option<&str>, deleted: Option<&str>) -> Vec<String>;
}

/// Where those are looked for who have what a row claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Against {
    /// In the table as it is.
    Table,
    /// Among the rows that are to be written, as they are to be.
    Rows,
}

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Written,
    /// The server took it, and holds something else: a trigger, a rule, or a policy for rows has a say.
    Unwritten,
    /// The table holds a newer version.
    Newer,
    /// Another user's row stands in the way, through another unique key.
    InTheWay,
    /// The application has changed it, and its outbox hasn't told of it yet.
    Noted,
}

/// A row as it is held.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) version: i64,
    pub(crate) deleted: bool,
    /// One for each column of the layout, as text.
    pub(crate) cells: Vec<Option<String>>,
    /// Whether there is another row with this id, which tables that inherit may have.
    pub(crate) twice: bool,
}

/// Rows by their ids.
pub(crate) fn by_id<E>(
    rows: impl Iterator<Item = Result<(String, Held), E>>,
) -> Result<HashMap<String, Held>, E> {
    let mut held: HashMap<String, Held> = HashMap::new();
    for row in rows {
        let (id, mut row) = row?;
        row.twice = held.contains_key(&id);
        held.insert(id, row);
    }
    Ok(held)
}

impl Fate {
    /// What became of a row that the server didn't say it wrote, by what it holds now.
    pub(crate) fn unsaid(row: &Row, held: Option<&Held>) -> Self {
        match held {
            Some(held) if held.version > row.version => Self::Newer,
            _ => Self::Unwritten,
        }
    }
}
