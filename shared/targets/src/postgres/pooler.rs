//! A pooler between us and PostgreSQL, which lends a connection to the server for one transaction (ADR 34).
//!
//! Two statements outside of a transaction may reach two servers' connections there, and other clients' statements are on
//! each. So every statement belongs to a transaction, none has a name, and no setting outlives its transaction.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, Executor, PgConnection, Row as _, SqlSafeStr,
    postgres::{PgArguments, PgConnectOptions},
    query::{Query, QueryScalar},
};
use url::Url;

use super::{Postgres, errors::trouble};
use crate::trouble::Trouble;

/// A setting that nothing reads: a server takes it from who connects, and a pooler refuses it or keeps it to itself.
const MARK: &str = "usersync.direct";
/// How it is asked for.
const IS_MARKED: &str = "SELECT current_setting('usersync.direct', true) IS NOT DISTINCT FROM 'on'";
/// What poolers answer to settings that they don't know.
const REFUSALS: [&str; 2] = ["08P01", "0A000"];
/// An option of the url that says that statements have no place to be kept.
const KEEPS_NONE: (&str, &str) = ("statement-cache-capacity", "0");

/// What is known of the way to the server.
pub(super) struct Pooler {
    is_there: AtomicBool,
    /// How long statements may take that read all of a table, in milliseconds.
    patience: AtomicU64,
}

impl Pooler {
    /// Nothing is known but what `url` says.
    pub(super) fn of(url: &Url) -> Self {
        let mut options = url.query_pairs();
        let is_there = options.any(|(key, value)| (&*key, &*value) == KEEPS_NONE);
        Self {
            is_there: AtomicBool::new(is_there),
            patience: AtomicU64::new(0),
        }
    }

    pub(super) fn is_there(&self) -> bool {
        self.is_there.load(Ordering::Relaxed)
    }

    fn found(&self) {
        if !self.is_there.swap(true, Ordering::Relaxed) {
            tracing::info!(
                "PostgreSQL is behind a pooler: every statement has a transaction of its own"
            );
        }
    }
}

impl Postgres {
    /// Connects, and finds out whether there is a pooler.
    pub(super) async fn open(&self) -> Result<PgConnection, Trouble> {
        let options = self.certified()?;
        if !self.pooler.is_there() {
            match self.reach(marked(options.clone())).await {
                Ok(mut connection) => {
                    if !is_marked(&mut connection).await? {
                        self.pooler.found();
                    }
                    return Ok(connection);
                }
                Err(trouble) if !is_refusal(&trouble) => return Err(trouble),
                Err(_) => {
                    let connection = self.reach(bare(options)).await?;
                    self.pooler.found();
                    return Ok(connection);
                }
            }
        }
        self.reach(bare(options)).await
    }

    /// A statement, which the server keeps for the next time where that can be the same server.
    pub(super) fn query<'q>(
        &self,
        statement: impl SqlSafeStr,
    ) -> Query<'q, sqlx::Postgres, PgArguments> {
        sqlx::query(statement).persistent(!self.pooler.is_there())
    }

    /// The same for one column.
    pub(super) fn scalar<'q, T>(
        &self,
        statement: impl SqlSafeStr,
    ) -> QueryScalar<'q, sqlx::Postgres, T, PgArguments>
    where
        (T,): for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow>,
    {
        sqlx::query_scalar(statement).persistent(!self.pooler.is_there())
    }

    /// Does `work`, which only reads, in one transaction where that is needed.
    pub(super) async fn reading<T>(
        &self,
        connection: &mut PgConnection,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        if !self.pooler.is_there() {
            return work(connection).await;
        }
        // How numbers are written is otherwise told when a connection is opened.
        let mut begin = "BEGIN READ ONLY; SET LOCAL extra_float_digits = 2".to_owned();
        let patience = self.pooler.patience.load(Ordering::Relaxed);
        if patience > 0 {
            begin += &format!("; {}", limits("SET LOCAL", patience));
        }
        let begun = connection.execute(AssertSqlSafe(begin)).await;
        begun.map_err(trouble)?;
        let done = work(connection).await;
        match &done {
            Ok(_) => connection.execute("COMMIT").await.map_err(trouble)?,
            Err(failed) if failed.lost => return done,
            Err(_) => connection.execute("ROLLBACK").await.map_err(trouble)?,
        };
        done
    }

    /// Sets how long the statements may take that follow.
    pub(super) async fn limit(
        &self,
        connection: &mut PgConnection,
        patience: Duration,
    ) -> Result<(), Trouble> {
        let milliseconds = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        if self.pooler.is_there() {
            self.pooler.patience.store(milliseconds, Ordering::Relaxed);
            return Ok(());
        }
        let limits = limits("SET", milliseconds);
        let done = connection.execute(AssertSqlSafe(limits)).await;
        done.map(drop).map_err(trouble)
    }
}

/// Compiling a statement that takes a few milliseconds would take a hundred.
fn limits(set: &str, milliseconds: u64) -> String {
    format!("{set} statement_timeout = {milliseconds}; {set} jit = off")
}

/// Bearing the mark.
fn marked(options: PgConnectOptions) -> PgConnectOptions {
    options.options([(MARK, "on")])
}

/// Without anything that a pooler could refuse.
fn bare(options: PgConnectOptions) -> PgConnectOptions {
    options.extra_float_digits(None)
}

async fn is_marked(connection: &mut PgConnection) -> Result<bool, Trouble> {
    let row = connection.fetch_one(IS_MARKED).await.map_err(trouble)?;
    row.try_get(0).map_err(trouble)
}

fn is_refusal(trouble: &Trouble) -> bool {
    let code = trouble.failure.code.as_deref();
    code.is_some_and(|code| REFUSALS.contains(&code))
}
