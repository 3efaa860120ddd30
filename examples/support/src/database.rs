//! The SQLite file of a service.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use axum::http::StatusCode;
use sqlx::{
    Sqlite, SqlitePool, Transaction,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio_util::sync::CancellationToken;
use usersync_core::admin::Health;
use usersync_receiver::Problem;

/// How often readiness asks the database for an answer.
const PING_EVERY: Duration = Duration::from_secs(2);

/// Opens the database at `path`, makes it when it isn't there, and applies every `schema`.
///
/// # Errors
/// When the file can't be opened or a schema doesn't apply.
pub async fn open(path: &Path, schemas: &[&'static str]) -> anyhow::Result<SqlitePool> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(Duration::from_secs(5));
    let pool = SqlitePoolOptions::new()
        .max_connections(8)
        .connect_with(options)
        .await;
    let pool = pool.with_context(|| format!("can't open the database {}", path.display()))?;
    for schema in schemas {
        let applied = sqlx::raw_sql(*schema).execute(&pool).await;
        applied.with_context(|| format!("can't make the tables in {}", path.display()))?;
    }
    Ok(pool)
}

/// Starts a transaction that may write: it takes the lock at once, so that it can't fail halfway.
///
/// # Errors
/// 503 when the database can't be used.
pub async fn write(pool: &SqlitePool) -> Result<Transaction<'static, Sqlite>, Problem> {
    pool.begin_with("BEGIN IMMEDIATE")
        .await
        .map_err(unavailable)
}

/// Logs a failure of the database and makes it a 503.
pub fn unavailable(error: sqlx::Error) -> Problem {
    tracing::error!(%error, "the database failed");
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "the database is unavailable; try again",
    )
}

/// Keeps the part `database` of `health` up to date until `shutdown`.
pub async fn watch(pool: SqlitePool, health: Health, shutdown: CancellationToken) {
    let mut every = tokio::time::interval(PING_EVERY);
    while shutdown.run_until_cancelled(every.tick()).await.is_some() {
        match sqlx::query("SELECT 1").execute(&pool).await {
            Ok(_) => health.up("database"),
            Err(error) => health.down("database", error.to_string()),
        }
    }
}
