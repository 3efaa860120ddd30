//! PostgreSQL's side of the contract, also behind a pooler.

use std::time::Duration;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use serde_json::{Value, json};
use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, PgPool, Row as _,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use usersync_stack::{Directory, PgBouncerServer, PostgresServer, Signal, eventually};
use usersync_targets::Delivery;

use crate::{
    deliveries::user,
    peer::{Can, Held, Peer, connect},
};

pub(crate) struct Postgres {
    pub(crate) server: PostgresServer,
    /// What targets connect to instead.
    pooler: Option<PgBouncerServer>,
    pub(crate) dir: Directory,
}

impl Postgres {
    /// The one with pgvector.
    pub(crate) async fn start() -> Result<Self> {
        let dir = directory()?;
        let server = PostgresServer::start(dir.path()).await?;
        let pooler = None;
        Ok(Self {
            server,
            pooler,
            dir,
        })
    }

    pub(crate) async fn newest() -> Result<Self> {
        let dir = directory()?;
        let server = PostgresServer::start_newest(dir.path()).await?;
        let pooler = None;
        Ok(Self {
            server,
            pooler,
            dir,
        })
    }

    /// Both of them, or without the newest where there is none.
    pub(crate) async fn all() -> Result<Vec<Self>> {
        let mut all = vec![Self::start().await?];
        if !PostgresServer::newest_is_left_out()? {
            all.push(Self::newest().await?);
        }
        Ok(all)
    }

    /// Behind a PgBouncer that shares connections per transaction; `more` are lines of its settings.
    pub(crate) async fn behind_pgbouncer(more: &[&str]) -> Result<Self> {
        let peer = Self::start().await?;
        let pooler = PgBouncerServer::start(peer.dir.path(), &peer.server, more).await?;
        Ok(Self {
            pooler: Some(pooler),
            ..peer
        })
    }

    /// A client that isn't ours, where targets connect.
    pub(crate) async fn stranger(&self) -> Result<PgConnection> {
        let pooler = self.pooler.as_ref();
        let direct = || self.server.url_with_password();
        let url = pooler.map_or_else(direct, PgBouncerServer::url_with_password);
        let options: PgConnectOptions = url.parse()?;
        // Poolers refuse what they don't know.
        let options = options.extra_float_digits(None);
        Ok(PgConnection::connect_with(&options).await?)
    }

    /// A client that isn't ours.
    pub(crate) async fn client(&self) -> Result<PgPool> {
        let pool = PgPoolOptions::new().max_connections(1);
        pool.connect(&self.server.url_with_password())
            .await
            .context("the test's own client")
    }

    pub(crate) async fn run(&self, statement: &str) -> Result<()> {
        let client = self.client().await?;
        sqlx::raw_sql(AssertSqlSafe(statement))
            .execute(&client)
            .await?;
        Ok(())
    }
}

fn directory() -> Result<Directory> {
    let dir = Directory::temporary()?;
    std::fs::write(dir.path().join("right"), PostgresServer::PASSWORD)?;
    std::fs::write(dir.path().join("wrong"), "another password")?;
    Ok(dir)
}

#[async_trait(?Send)]
impl Peer for Postgres {
    fn can(&self) -> Can {
        Can {
            guard: true,
            keep: true,
            merge: true,
            disable: true,
            unique_email: true,
            verify: true,
        }
    }

    async fn prepare(&mut self, place: &str) -> Result<()> {
        connect(self, place, json!({}))?.init().await?;
        self.run(&format!(
            "ALTER TABLE {place} ADD UNIQUE (email), ADD CHECK (username <> 'refused')"
        ))
        .await
    }

    fn entry(&self, place: &str, right: bool) -> Value {
        let secret = self.dir.path().join(if right { "right" } else { "wrong" });
        json!({
            "url": self.pooler.as_ref().map_or_else(|| self.server.url(), PgBouncerServer::url),
            "secret": format!("file:{}", secret.display()),
            "table": {"name": place},
        })
    }

    async fn held(&mut self, place: &str, id: &str) -> Result<Option<Held>> {
        let query = format!(
            "SELECT username, email, status, data FROM {place} WHERE id = $1 AND NOT sync_deleted"
        );
        let client = self.client().await?;
        let row = sqlx::query(AssertSqlSafe(query))
            .bind(id)
            .fetch_optional(&client)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let data: Option<Value> = row.try_get(3)?;
        Ok(Some(Held {
            username: row.try_get(0)?,
            email: row.try_get(1)?,
            status: row.try_get(2)?,
            data: data.unwrap_or_default(),
        }))
    }

    async fn tamper(&mut self, place: &str, id: &str) -> Result<()> {
        self.run(&format!(
            "UPDATE {place} SET username = 'mallory' WHERE id = '{id}'"
        ))
        .await
    }

    async fn remove(&mut self, place: &str, id: &str) -> Result<()> {
        self.run(&format!("DELETE FROM {place} WHERE id = '{id}'"))
            .await
    }

    async fn refused(&mut self, _place: &str, id: &str) -> Result<Delivery> {
        Ok(user(id, 5, "refused"))
    }

    async fn kill(&mut self) -> Result<()> {
        self.server.kill9().await;
        Ok(())
    }

    async fn restart(&mut self) -> Result<()> {
        self.server.restart().await?;
        // A pooler remembers for a while that there was no server.
        eventually(Duration::from_secs(20), async || {
            let mut client = self.stranger().await?;
            client.execute("SELECT 1").await?;
            Ok(())
        })
        .await
    }

    async fn pause(&mut self, paused: bool) -> Result<()> {
        self.server.signal(if paused {
            Signal::SIGSTOP
        } else {
            Signal::SIGCONT
        })
    }
}
