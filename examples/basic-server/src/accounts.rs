//! The table of users and the statements on it. Knows neither HTTP routes nor NATS.

use axum::http::StatusCode;
use serde::Serialize;
use sqlx::{FromRow, SqliteConnection, SqlitePool};
use usersync_example_support::database::unavailable;
use usersync_receiver::Problem;

/// The table. Ids are never used again, not even after a deletion.
pub(crate) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS users (
        id            INTEGER PRIMARY KEY AUTOINCREMENT,
        username      TEXT NOT NULL UNIQUE,
        email         TEXT NOT NULL UNIQUE,
        password_hash TEXT NOT NULL,
        phone         TEXT,
        status        TEXT NOT NULL
    ) STRICT;
";

/// One user. Its JSON is what the API shows: everything but the hash.
#[derive(Clone, Debug, PartialEq, FromRow, Serialize)]
pub(crate) struct Account {
    pub(crate) id: i64,
    pub(crate) username: String,
    pub(crate) email: String,
    #[serde(skip)]
    pub(crate) password_hash: String,
    pub(crate) phone: Option<String>,
    pub(crate) status: String,
}

/// Adds an account, whose `id` is not looked at; gives it back with its id.
pub(crate) async fn insert(
    change: &mut SqliteConnection,
    account: &Account,
) -> Result<Account, Problem> {
    sqlx::query_as("INSERT INTO users (username, email, password_hash, phone, status) VALUES (?, ?, ?, ?, ?) RETURNING *")
        .bind(&account.username)
        .bind(&account.email)
        .bind(&account.password_hash)
        .bind(&account.phone)
        .bind(&account.status)
        .fetch_one(change)
        .await
        .map_err(taken_or_unavailable)
}

/// Writes every member of an account.
pub(crate) async fn update(
    change: &mut SqliteConnection,
    account: &Account,
) -> Result<(), Problem> {
    sqlx::query("UPDATE users SET username = ?, email = ?, password_hash = ?, phone = ?, status = ? WHERE id = ?")
        .bind(&account.username)
        .bind(&account.email)
        .bind(&account.password_hash)
        .bind(&account.phone)
        .bind(&account.status)
        .bind(account.id)
        .execute(change)
        .await
        .map_err(taken_or_unavailable)?;
    Ok(())
}

/// Removes an account; says whether it was there.
pub(crate) async fn delete(change: &mut SqliteConnection, id: i64) -> Result<bool, Problem> {
    let deleted = sqlx::query("DELETE FROM users WHERE id = ?")
        .bind(id)
        .execute(change)
        .await;
    Ok(deleted.map_err(unavailable)?.rows_affected() > 0)
}

/// One account, read inside a transaction.
pub(crate) async fn get(
    change: &mut SqliteConnection,
    id: i64,
) -> Result<Option<Account>, Problem> {
    let found = sqlx::query_as("SELECT * FROM users WHERE id = ?")
        .bind(id)
        .fetch_optional(change)
        .await;
    found.map_err(unavailable)
}

/// The account with a log-in name.
pub(crate) async fn with_name(
    pool: &SqlitePool,
    username: &str,
) -> Result<Option<Account>, Problem> {
    let found = sqlx::query_as("SELECT * FROM users WHERE username = ?")
        .bind(username)
        .fetch_optional(pool)
        .await;
    found.map_err(unavailable)
}

/// At most `limit` accounts behind the id `after`, ids ascending.
pub(crate) async fn list(
    pool: &SqlitePool,
    after: i64,
    limit: u32,
) -> Result<Vec<Account>, Problem> {
    let found = sqlx::query_as("SELECT * FROM users WHERE id > ? ORDER BY id LIMIT ?")
        .bind(after)
        .bind(limit)
        .fetch_all(pool)
        .await;
    found.map_err(unavailable)
}

fn taken_or_unavailable(error: sqlx::Error) -> Problem {
    match error.as_database_error() {
        Some(refusal) if refusal.is_unique_violation() => {
            let member = if refusal.message().ends_with("email") {
                "email"
            } else {
                "username"
            };
            Problem::new(
                StatusCode::CONFLICT,
                format!("another user has this {member}"),
            )
        }
        _ => unavailable(error),
    }
}
