//! A main database of a benchmark, and the bare loops over it: what one writes by hand to publish an outbox,
//! or to bring a table into a stream.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use async_nats::jetstream::{self, message::PublishMessage};
use serde_json::json;
use sqlx::{
    AssertSqlSafe, MySqlPool, PgPool, Row as _, mysql::MySqlPoolOptions, postgres::PgPoolOptions,
};
use usersync_stack::{Launch, PostgresServer, Process, Profile, tools};

use crate::databases::{self, MySqlLike, PASSWORD};
use crate::limits::Published;
use crate::preload::Publisher;
use crate::rig::Rig;
use crate::upserts::Server;

/// Rows in one batch of a bare loop.
const BATCH: u32 = 2_000;
/// The scheduler's own limit for what it does once.
const ONCE: Duration = Duration::from_secs(600);

/// A server with a table `users`, and our settings file for it.
pub(crate) struct MainDb {
    server: Server,
    url: String,
    bare_url: String,
    secret: String,
    pool: Pool,
    _running: Running,
}

enum Running {
    MySql { _server: MySqlLike },
    Postgres { _server: PostgresServer },
}

#[derive(Clone)]
enum Pool {
    Mysql(MySqlPool),
    Postgres(PgPool),
}

impl MainDb {
    /// Starts it with users from 1 to `users`; the newest of its kind, or the system's.
    ///
    /// # Errors
    /// When the server doesn't start or refuses.
    pub(crate) async fn start(rig: &Rig, newest: bool, server: Server, users: u64) -> Result<Self> {
        let (url, bare_url, running) = match server {
            Server::Mysql => {
                let started = MySqlLike::start(newest, rig.dir()).await?;
                let urls = (started.url_with_password(), started.url());
                (urls.0, urls.1, Running::MySql { _server: started })
            }
            Server::Postgres => {
                let started = databases::postgres(newest, rig.dir()).await?;
                let urls = (started.url_with_password(), started.url());
                (urls.0, urls.1, Running::Postgres { _server: started })
            }
        };
        let secret = rig.dir().join("password");
        std::fs::write(&secret, PASSWORD).context("writing the password")?;
        let secret = format!("file:{}", secret.display());
        let settings = format!(
            "[sources.main]\nurl = \"{bare_url}\"\nsecret = \"{secret}\"\ncheck = {{ load = 1.0 }}\ncolumns = {{ username = \"username\", \
             email = \"email\", status = \"status\", phone = \"data.phone\", updated_at = \"data.updated_at\" }}\n"
        );
        std::fs::write(rig.dir().join("usersync.toml"), settings)
            .context("writing the settings")?;
        let main = Self {
            server,
            pool: Pool::open(server, &url).await?,
            url,
            bare_url,
            secret,
            _running: running,
        };
        let (time, number) = match server {
            Server::Mysql => ("DATETIME", "1000 * a.n + b.n + 1"),
            Server::Postgres => ("TIMESTAMPTZ", "1000 * a.n + b.n + 1"),
        };
        main.run(&format!(
            "CREATE TABLE users (id BIGINT PRIMARY KEY, username VARCHAR(64), email VARCHAR(128), phone VARCHAR(32), status VARCHAR(16), updated_at {time})"
        ))
        .await?;
        let numbers = "SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < 999";
        main.run(&format!(
            "INSERT INTO users WITH RECURSIVE numbers (n) AS ({numbers}) \
             SELECT {number}, CONCAT('user', {number}), CONCAT('user', {number}, '@example.com'), CONCAT('+49 731 ', {number}), 'active', NOW() \
             FROM numbers a, numbers b WHERE {number} <= {users}"
        ))
        .await?;
        if server == Server::Postgres {
            main.run("ANALYZE users").await?;
        }
        Ok(main)
    }

    /// Where the server is, without its password.
    pub(crate) fn bare_url(&self) -> &str {
        &self.bare_url
    }

    /// A reference of its own to the same password: what a source names no target gets.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) fn secret_of_a_target(&self) -> Result<String> {
        let own = self.secret.trim_start_matches("file:");
        let copy = format!("{own}-of-a-target");
        std::fs::copy(own, &copy).context("copying the password")?;
        Ok(format!("file:{copy}"))
    }

    /// Runs a statement.
    ///
    /// # Errors
    /// When the server refuses.
    pub(crate) async fn run(&self, statement: &str) -> Result<()> {
        let query = sqlx::raw_sql(AssertSqlSafe(statement.to_owned()));
        match &self.pool {
            Pool::Mysql(pool) => query.execute(pool).await.map(drop)?,
            Pool::Postgres(pool) => query.execute(pool).await.map(drop)?,
        }
        Ok(())
    }

    /// How many rows of the outbox wait.
    ///
    /// # Errors
    /// When the server doesn't tell.
    pub(crate) async fn waiting(&self) -> Result<i64> {
        let query = "SELECT COUNT(*) FROM user_outbox WHERE state = 0";
        Ok(match &self.pool {
            Pool::Mysql(pool) => sqlx::query_scalar(query).fetch_one(pool).await?,
            Pool::Postgres(pool) => sqlx::query_scalar(query).fetch_one(pool).await?,
        })
    }

    /// Starts the scheduler with our settings file.
    ///
    /// # Errors
    /// When it isn't built or can't be started.
    pub(crate) fn scheduler(&self, rig: &Rig, name: &str, args: &[&str]) -> Result<Process> {
        let log = rig.dir().join(format!("{name}.log"));
        let program = tools::binary("usersync-scheduler", Profile::own())?;
        let launch = Launch::new(name, program, log).args(args);
        let launch = launch.nats(rig.nats(), "scheduler").arg("--config");
        launch.arg(rig.dir().join("usersync.toml")).spawn()
    }

    /// Makes the outbox.
    ///
    /// # Errors
    /// When the scheduler can't.
    pub(crate) async fn install_outbox(&self, rig: &Rig) -> Result<()> {
        let install = self.scheduler(rig, "install", &["outbox", "install"])?;
        let status = install.wait_exit(ONCE).await?;
        anyhow::ensure!(status.success(), "{status}: {}", install.log_tail());
        Ok(())
    }

    /// This program as a bare loop over it; what it needed, in seconds.
    ///
    /// # Errors
    /// When it fails.
    pub(crate) async fn bare(&self, rig: &Rig, role: &str) -> Result<f64> {
        let server = match self.server {
            Server::Mysql => "mysql",
            Server::Postgres => "postgres",
        };
        let log = rig.dir().join(format!("{role}.log"));
        let _ = std::fs::remove_file(&log);
        let args = [
            "limit",
            "--nats",
            &rig.nats_url(),
            role,
            "--server",
            server,
            "--url",
            &self.url,
        ];
        let process = rig.role(role, args)?;
        let status = process.wait_exit(ONCE).await?;
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        anyhow::ensure!(status.success(), "{status}: {said}");
        let published: Published = serde_json::from_str(said.trim())?;
        Ok(published.seconds)
    }
}

impl Pool {
    async fn open(server: Server, url: &str) -> Result<Self> {
        Ok(match server {
            Server::Mysql => Self::Mysql(
                MySqlPoolOptions::new()
                    .max_connections(2)
                    .connect(url)
                    .await?,
            ),
            Server::Postgres => {
                Self::Postgres(PgPoolOptions::new().max_connections(2).connect(url).await?)
            }
        })
    }
}

/// Select notes, select their users' rows, publish with a window of PubAcks, mark; until nothing waits.
pub(crate) async fn relay(
    jetstream: &jetstream::Context,
    server: Server,
    url: &str,
) -> Result<f64> {
    let pool = Pool::open(server, url).await?;
    let began = Instant::now();
    loop {
        let select = format!(
            "SELECT id, CAST(user_id AS CHAR(20)) FROM user_outbox WHERE state = 0 ORDER BY id LIMIT {BATCH}"
        );
        let select = AssertSqlSafe(select);
        let notes: Vec<(i64, String)> = match &pool {
            Pool::Mysql(pool) => sqlx::query_as(select).fetch_all(pool).await?,
            Pool::Postgres(pool) => sqlx::query_as(select).fetch_all(pool).await?,
        };
        if notes.is_empty() {
            return Ok(began.elapsed().as_secs_f64());
        }
        let (ids, users): (Vec<i64>, Vec<String>) = notes.into_iter().unzip();
        let select = format!(
            "SELECT id, username, email, phone, status, CAST(updated_at AS CHAR(30)) FROM users WHERE id IN ({})",
            users.join(",")
        );
        let select = AssertSqlSafe(select);
        let rows: Vec<(i64, [Option<String>; 5])> = match &pool {
            Pool::Mysql(pool) => {
                let rows = sqlx::query(select)
                    .persistent(false)
                    .fetch_all(pool)
                    .await?;
                rows.iter()
                    .map(|row| (row.get(0), std::array::from_fn(|at| row.get(at + 1))))
                    .collect()
            }
            Pool::Postgres(pool) => {
                let rows = sqlx::query(select)
                    .persistent(false)
                    .fetch_all(pool)
                    .await?;
                rows.iter()
                    .map(|row| (row.get(0), std::array::from_fn(|at| row.get(at + 1))))
                    .collect()
            }
        };
        let mut publisher = Publisher::new(jetstream);
        for (note, (id, [username, email, phone, status, updated_at])) in ids.iter().zip(rows) {
            let user = json!({"user_id": id, "username": username, "email": email,
                "data": {"phone": phone, "status": status, "updated_at": updated_at}});
            let message = PublishMessage::build()
                .payload(user.to_string().into())
                .message_id(format!("bare-{note}"));
            publisher.publish("bare.event".to_owned(), message).await?;
        }
        publisher.finish().await?;
        match &pool {
            Pool::Mysql(pool) => {
                let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
                let mark = format!(
                    "UPDATE user_outbox SET state = 1, published_at = NOW(6) WHERE id IN ({})",
                    ids.join(",")
                );
                sqlx::raw_sql(AssertSqlSafe(mark)).execute(pool).await?;
            }
            Pool::Postgres(pool) => {
                let mark =
                    "UPDATE user_outbox SET state = 1, published_at = now() WHERE id = ANY($1)";
                sqlx::query(mark).bind(ids).execute(pool).await?;
            }
        }
    }
}

/// Read the table in pages, publish each row as JSON with a window of PubAcks.
pub(crate) async fn load(jetstream: &jetstream::Context, server: Server, url: &str) -> Result<f64> {
    let pool = Pool::open(server, url).await?;
    let began = Instant::now();
    let mut publisher = Publisher::new(jetstream);
    let mut after = 0;
    loop {
        let select = format!(
            "SELECT id, username, email, phone, status, CAST(updated_at AS CHAR(30)) FROM users WHERE id > {after} ORDER BY id LIMIT {BATCH}"
        );
        let select = AssertSqlSafe(select);
        let mut rows: VecDeque<(i64, [Option<String>; 5])> = match &pool {
            Pool::Mysql(pool) => {
                let rows = sqlx::query(select).fetch_all(pool).await?;
                rows.iter()
                    .map(|row| (row.get(0), std::array::from_fn(|at| row.get(at + 1))))
                    .collect()
            }
            Pool::Postgres(pool) => {
                let rows = sqlx::query(select).fetch_all(pool).await?;
                rows.iter()
                    .map(|row| (row.get(0), std::array::from_fn(|at| row.get(at + 1))))
                    .collect()
            }
        };
        let Some((last, _)) = rows.back() else { break };
        after = *last;
        while let Some((id, [username, email, phone, status, updated_at])) = rows.pop_front() {
            let user = json!({"user_id": id, "username": username, "email": email, "status": status,
                "data": {"phone": phone, "status": status, "updated_at": updated_at}});
            let message = PublishMessage::build().payload(user.to_string().into());
            publisher
                .publish(format!("bare.state.{id}"), message)
                .await?;
        }
    }
    publisher.finish().await?;
    Ok(began.elapsed().as_secs_f64())
}
