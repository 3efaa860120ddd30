//! The bare loop for database targets: pull, write a batch in one statement, acknowledge.

use anyhow::{Context as _, Result, bail};
use async_nats::jetstream::Message;
use clap::ValueEnum;
use futures_util::{Stream, StreamExt as _};
use serde::Deserialize;
use serde_json::Value;
use sqlx::{AssertSqlSafe, MySqlPool, PgPool, mysql::MySqlPoolOptions, postgres::PgPoolOptions};

/// Users in one statement, and statements under way: what a worker has by default.
const BATCH: usize = 256;
const STATEMENTS: usize = 4;

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Server {
    Mysql,
    Postgres,
}

impl Server {
    /// The table that both sides write to, as a worker would make it.
    pub(crate) fn table(self) -> &'static str {
        match self {
            Self::Mysql => {
                "CREATE TABLE users (id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY, \
                 data JSON NULL, email VARCHAR(320) NULL, status VARCHAR(64) NULL, username VARCHAR(320) NULL, \
                 sync_deleted BOOLEAN NOT NULL DEFAULT FALSE, sync_version BIGINT NOT NULL DEFAULT 0) \
                 DEFAULT CHARACTER SET utf8mb4"
            }
            Self::Postgres => {
                "CREATE TABLE users (id text COLLATE \"C\" PRIMARY KEY, data jsonb, email text, status text, \
                 username text, sync_deleted boolean NOT NULL DEFAULT false, sync_version bigint NOT NULL DEFAULT 0)"
            }
        }
    }
}

/// A few connections.
#[derive(Clone)]
pub(crate) enum Pool {
    Mysql(MySqlPool),
    Postgres(PgPool),
}

impl Pool {
    /// Opens them.
    ///
    /// # Errors
    /// When the server can't be reached.
    pub(crate) async fn open(server: Server, url: &str) -> Result<Self> {
        let most = u32::try_from(STATEMENTS)?;
        Ok(match server {
            Server::Mysql => Self::Mysql(
                MySqlPoolOptions::new()
                    .max_connections(most)
                    .connect(url)
                    .await?,
            ),
            Server::Postgres => Self::Postgres(
                PgPoolOptions::new()
                    .max_connections(most)
                    .connect(url)
                    .await?,
            ),
        })
    }

    /// Runs a statement.
    ///
    /// # Errors
    /// When the server refuses.
    pub(crate) async fn run(&self, statement: &'static str) -> Result<()> {
        match self {
            Self::Mysql(pool) => sqlx::raw_sql(statement).execute(pool).await.map(|_| ())?,
            Self::Postgres(pool) => sqlx::raw_sql(statement).execute(pool).await.map(|_| ())?,
        }
        Ok(())
    }

    /// How many rows hold an e-mail address.
    ///
    /// # Errors
    /// When the server refuses.
    pub(crate) async fn held(&self) -> Result<i64> {
        let count =
            "SELECT COUNT(*) FROM users WHERE email LIKE '%@example.com' AND sync_version > 0";
        Ok(match self {
            Self::Mysql(pool) => sqlx::query_scalar(count).fetch_one(pool).await?,
            Self::Postgres(pool) => sqlx::query_scalar(count).fetch_one(pool).await?,
        })
    }
}

/// As much of a state as is written.
#[derive(Deserialize)]
struct State {
    user_id: u64,
    username: Option<String>,
    email: Option<String>,
    data: Value,
    version: i64,
}

/// Writes and acknowledges until the messages end.
///
/// # Errors
/// When a message can't be had.
pub(crate) async fn drain(
    messages: impl Stream<Item = Result<Message>> + Unpin,
    server: Server,
    url: &str,
) -> Result<()> {
    let pool = Pool::open(server, url).await?;
    let work = messages
        .ready_chunks(BATCH)
        .for_each_concurrent(STATEMENTS, |batch| {
            let pool = pool.clone();
            async move {
                if let Err(error) = write(&pool, batch).await {
                    eprintln!("{error:#}");
                }
            }
        });
    work.await;
    bail!("there are no more messages")
}

async fn write(pool: &Pool, batch: Vec<Result<Message>>) -> Result<()> {
    let batch: Vec<Message> = batch.into_iter().collect::<Result<_>>()?;
    let states = batch
        .iter()
        .map(|message| serde_json::from_slice(&message.payload));
    let states: Vec<State> = states.collect::<Result<_, _>>().context("a state")?;
    match pool {
        Pool::Mysql(pool) => {
            let places = vec!["(?, ?, ?, ?, FALSE, ?)"; states.len()].join(", ");
            let statement = format!(
                "INSERT INTO users (id, username, email, data, sync_deleted, sync_version) VALUES {places} \
                 ON DUPLICATE KEY UPDATE username = VALUES(username), email = VALUES(email), data = VALUES(data), \
                 sync_deleted = FALSE, sync_version = VALUES(sync_version)"
            );
            let mut query = sqlx::query(AssertSqlSafe(statement));
            for state in &states {
                query = query.bind(state.user_id.to_string());
                query = query.bind(&state.username).bind(&state.email);
                query = query.bind(state.data.to_string()).bind(state.version);
            }
            query.execute(pool).await?;
        }
        Pool::Postgres(pool) => {
            let statement = "INSERT INTO users (id, username, email, data, sync_version) \
                 SELECT i, u, e, d::jsonb, v FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::int8[]) \
                 AS told(i, u, e, d, v) ON CONFLICT (id) DO UPDATE SET username = EXCLUDED.username, \
                 email = EXCLUDED.email, data = EXCLUDED.data, sync_version = EXCLUDED.sync_version";
            let texts =
                |text: fn(&State) -> Option<String>| states.iter().map(text).collect::<Vec<_>>();
            let query = sqlx::query(statement)
                .bind(texts(|state| Some(state.user_id.to_string())))
                .bind(texts(|state| state.username.clone()))
                .bind(texts(|state| state.email.clone()))
                .bind(texts(|state| Some(state.data.to_string())))
                .bind(states.iter().map(|state| state.version).collect::<Vec<_>>());
            query.execute(pool).await?;
        }
    }
    for message in &batch {
        message.ack().await.map_err(anyhow::Error::from_boxed)?;
    }
    Ok(())
}
