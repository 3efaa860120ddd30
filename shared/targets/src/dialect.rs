//! The seam between SQL targets and the servers they speak to: one file per server.

use std::{collections::HashMap, future::Future, time::Duration};

use usersync_core::target::Table;
use usersync_digest::sql::Flavour;

use crate::{
    layout::{Layout, Live, Row},
    trouble::Trouble,
};

/// How a server is spoken to.
pub(crate) trait Dialect: Send + Sync {
    /// One connection.
    type Connection: Send;
    /// Whose SQL digests are asked for in.
    const FLAVOUR: Flavour;
    /// Begins a transaction whose every statement sees what was committed before it.
    const BEGIN: &str;

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

    /// Writes the cells told and the version to rows that are there, not deleted and not newer. In a transaction of the
    /// caller's.
    fn update(
        &self,
        connection: &mut Self::Connection,
        layout: &Layout,
        rows: &[Row],
    ) -> impl Future<Output = Result<(), Trouble>> + Send;

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

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Written,
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
