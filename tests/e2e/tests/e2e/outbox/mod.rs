//! A main database of a test: MariaDB or PostgreSQL, its table of users, and gateways that relay its outbox.

#![allow(clippy::unwrap_used, reason = "a test fails where its set-up fails")]

mod echo;
mod lease;
mod load;
mod notes;
mod put_back;
mod relay;
mod repeats;
mod tls;
mod values;

pub(crate) use load::fill;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::{self, consumer::pull};
use futures_util::StreamExt as _;
use serde_json::Value;
use sqlx::{
    AssertSqlSafe, MySqlPool, PgPool, Row as _, mysql::MySqlPoolOptions, postgres::PgPoolOptions,
};
use usersync_core::{
    state::State,
    subjects::{USER_EVENTS, USER_STATE},
    user_id::UserId,
};
use usersync_stack::{
    Certificates, Directory, Launch, MariaDbServer, NatsServer, PostgresServer, Process, Stack,
    StackBuilder, eventually, tools,
};

use crate::support::{Bus, LATER, SOON};

/// With owners and rights.
fn copied(from: &Path, to: &Path) -> Result<()> {
    let mut copying = std::process::Command::new("cp");
    let status = copying.arg("-a").args([from, to]).status()?;
    ensure!(status.success(), "copying {}", from.display());
    Ok(())
}

/// The table of every test.
const PEOPLE: &str = "CREATE TABLE people (uid BIGINT PRIMARY KEY, username VARCHAR(100), email VARCHAR(100), state VARCHAR(20), city TEXT, n BIGINT)";

/// A main database.
pub(crate) struct Main {
    pub(crate) server: Server,
    pub(crate) dir: Directory,
    /// What the server shows, where it and NATS take nobody without TLS.
    pub(crate) certificates: Option<Certificates>,
}

pub(crate) enum Server {
    MariaDb(MariaDbServer, MySqlPool),
    Postgres(PostgresServer, PgPool),
}

impl Main {
    pub(crate) async fn mariadb() -> Result<Self> {
        let dir = Directory::temporary()?;
        let server = MariaDbServer::start(dir.path()).await?;
        Self::of_mariadb(dir, server, None).await
    }

    /// One that takes nobody without TLS, and a stack whose NATS doesn't either.
    pub(crate) async fn mariadb_secured() -> Result<Self> {
        let dir = Directory::temporary()?;
        let certificates = Certificates::make(&dir.path().join("tls"))?;
        let server = MariaDbServer::start_secured(dir.path(), &certificates).await?;
        Self::of_mariadb(dir, server, Some(certificates)).await
    }

    async fn of_mariadb(
        dir: Directory,
        server: MariaDbServer,
        certificates: Option<Certificates>,
    ) -> Result<Self> {
        std::fs::write(dir.path().join("password"), MariaDbServer::PASSWORD)?;
        let pool = MySqlPoolOptions::new()
            .max_connections(30)
            .acquire_timeout(SOON);
        let pool = pool.connect_lazy(&server.url_with_password())?;
        let main = Self {
            server: Server::MariaDb(server, pool),
            dir,
            certificates,
        };
        main.prepared().await
    }

    pub(crate) async fn postgres() -> Result<Self> {
        let dir = Directory::temporary()?;
        std::fs::write(dir.path().join("password"), PostgresServer::PASSWORD)?;
        let server = PostgresServer::start(dir.path()).await?;
        let pool = PgPoolOptions::new()
            .max_connections(30)
            .acquire_timeout(SOON);
        let pool = pool.connect_lazy(&server.url_with_password())?;
        let main = Self {
            server: Server::Postgres(server, pool),
            dir,
            certificates: None,
        };
        main.prepared().await
    }

    /// Makes the table and the settings file with the source `main`.
    async fn prepared(self) -> Result<Self> {
        match &self.server {
            Server::MariaDb(..) => {
                let wide = PEOPLE.replace(" TEXT", " MEDIUMTEXT");
                self.run(&format!("{wide} CHARACTER SET utf8mb4")).await?;
            }
            Server::Postgres(..) => self.run(PEOPLE).await?,
        }
        let settings = format!(
            "[sources.main]\n{}\ntable = \"people\"\nid = \"uid\"\n\
             [sources.main.columns]\nusername = \"username\"\nemail = \"email\"\nstate = \"status\"\n\
             city = \"data.city\"\nn = \"data.n\"\n",
            self.access()
        );
        std::fs::write(self.settings(), settings)?;
        Ok(self)
    }

    /// Where it is and how one is let in, as settings of a source and of a target say it.
    pub(crate) fn access(&self) -> String {
        let url = match &self.server {
            Server::MariaDb(server, _) => server.url(),
            Server::Postgres(server, _) => server.url(),
        };
        let secret = self.dir.path().join("password");
        let tls = self.certificates.as_ref().map_or_else(String::new, |of| {
            format!("\ntls = {{ ca = \"file:{}\" }}", of.ca().display())
        });
        format!(
            "url = \"{url}\"\nsecret = \"file:{}\"{tls}",
            secret.display()
        )
    }

    /// The same for a target, with a reference of its own: what a source names no target gets.
    pub(crate) fn access_of_a_target(&self) -> Result<String> {
        let password = self.dir.path().join("password");
        let copy = self.dir.path().join("password-of-a-target");
        std::fs::copy(&password, &copy)?;
        let [password, copy] = [password, copy].map(|path| path.display().to_string());
        Ok(self.access().replace(&password, &copy))
    }

    pub(crate) fn settings(&self) -> PathBuf {
        self.dir.path().join("usersync.toml")
    }

    /// A stack whose gateways know this source.
    pub(crate) async fn stack(&self, gateways: usize) -> Result<Stack> {
        let stack = self.builder(gateways).workers("redis-cache", 0);
        stack.start().await
    }

    /// The same, to be told more.
    pub(crate) fn builder(&self, gateways: usize) -> StackBuilder {
        let settings = self.settings();
        Stack::builder()
            .examples(false)
            .gateways(gateways)
            .nats_tls(self.certificates.is_some())
            .gateway_args(["--config".as_ref(), settings.as_os_str()])
    }

    /// A stack that knows nothing of it.
    pub(crate) async fn bare_stack(gateways: usize) -> Result<Stack> {
        let bare = Stack::builder().examples(false).gateways(gateways);
        bare.workers("redis-cache", 0).start().await
    }

    /// Starts the scheduler; its output is in `NAME.log`.
    pub(crate) fn spawn_scheduler(
        &self,
        name: &str,
        nats: Option<&NatsServer>,
        args: &[&str],
    ) -> Result<Process> {
        let program = tools::binary("usersync-scheduler", tools::Profile::own())?;
        let log = self.dir.path().join(format!("{name}.log"));
        let mut launch = Launch::new("usersync-scheduler", program, log).args(args);
        if let Some(nats) = nats {
            launch = launch.nats(nats, "scheduler");
        }
        launch.arg("--config").arg(self.settings()).spawn()
    }

    /// Runs the scheduler to its end; what it said.
    pub(crate) async fn scheduler(
        &self,
        name: &str,
        nats: Option<&NatsServer>,
        args: &[&str],
    ) -> Result<String> {
        let process = self.spawn_scheduler(name, nats, args)?;
        self.said(name, &process).await
    }

    /// What a scheduler that was started under `name` has said in the end.
    pub(crate) async fn said(&self, name: &str, process: &Process) -> Result<String> {
        let status = process.wait_exit(LATER).await?;
        let said = std::fs::read_to_string(self.dir.path().join(format!("{name}.log")))?;
        ensure!(status.success(), "{status}: {said}");
        Ok(said)
    }

    /// Makes the outbox, as people do.
    pub(crate) async fn install(&self) -> Result<()> {
        let said = self
            .scheduler("install", None, &["outbox", "install"])
            .await?;
        ensure!(
            said.contains("made the outbox of `people`: username=username"),
            "{said}"
        );
        Ok(())
    }

    /// Runs statements on a connection of their own.
    pub(crate) async fn run(&self, statements: &str) -> Result<()> {
        let query = sqlx::raw_sql(AssertSqlSafe(statements.to_owned()));
        match &self.server {
            Server::MariaDb(_, pool) => query.execute(pool).await.map(drop)?,
            Server::Postgres(_, pool) => query.execute(pool).await.map(drop)?,
        }
        Ok(())
    }

    /// One number.
    pub(crate) async fn number(&self, query: &str) -> Result<i64> {
        let query = AssertSqlSafe(query.to_owned());
        Ok(match &self.server {
            Server::MariaDb(_, pool) => sqlx::query_scalar(query).fetch_one(pool).await?,
            Server::Postgres(_, pool) => sqlx::query_scalar(query).fetch_one(pool).await?,
        })
    }

    /// Kills the server the hard way.
    pub(crate) async fn kill9(&self) {
        match &self.server {
            Server::MariaDb(server, _) => server.kill9().await,
            Server::Postgres(server, _) => server.kill9().await,
        }
    }

    /// Kills the server the hard way and starts it again with what it has.
    pub(crate) async fn restart(&mut self) -> Result<()> {
        match &mut self.server {
            Server::MariaDb(server, _) => server.restart().await,
            Server::Postgres(server, _) => server.restart().await,
        }
    }

    /// Where its data is.
    fn data(&self) -> PathBuf {
        self.dir.path().join(match &self.server {
            Server::MariaDb(..) => "mariadb/data",
            Server::Postgres(..) => "postgres",
        })
    }

    /// Keeps its data as it is now, for [`Self::put_back`].
    pub(crate) async fn back_up(&mut self) -> Result<()> {
        self.kill9().await;
        copied(&self.data(), &self.data().with_extension("backup"))?;
        self.restart().await
    }

    /// Makes it what it was at [`Self::back_up`].
    pub(crate) async fn put_back(&mut self) -> Result<()> {
        self.kill9().await;
        std::fs::remove_dir_all(self.data())?;
        copied(&self.data().with_extension("backup"), &self.data())?;
        self.restart().await
    }

    /// Has the server show another one of its certificates.
    pub(crate) async fn show(&mut self, name: &str) -> Result<()> {
        let certificates = self.certificates.as_ref().context("no certificates")?;
        certificates.show(name)?;
        self.restart().await
    }

    /// Has it show a good one again.
    pub(crate) async fn renew(&mut self) -> Result<()> {
        let certificates = self.certificates.as_ref().context("no certificates")?;
        certificates.renew("server")?;
        self.restart().await
    }

    /// Waits until every row of the outbox is published.
    pub(crate) async fn until_published(&self) -> Result<()> {
        eventually(LATER, async || {
            let waiting = self
                .number("SELECT COUNT(*) FROM user_outbox WHERE state = 0")
                .await?;
            ensure!(waiting == 0, "{waiting} rows wait");
            Ok(())
        })
        .await
    }

    /// Asserts that the states are the table: every user as they are there, every other one deleted.
    pub(crate) async fn equals_the_states(&self, stack: &Stack) -> Result<()> {
        self.until_published().await?;
        let bus = Bus::connect(stack).await?;
        bus.until_taken_in().await?;
        let mut states = states(&bus.jetstream).await?;
        let users = "SELECT uid, username, email, state, city, n FROM people";
        let mut users = match &self.server {
            Server::MariaDb(_, pool) => {
                let rows = sqlx::query(users).fetch_all(pool).await?;
                rows.iter()
                    .map(|row| {
                        user(
                            row.get(0),
                            row.get(1),
                            row.get(2),
                            row.get(3),
                            row.get(4),
                            row.get(5),
                        )
                    })
                    .collect()
            }
            Server::Postgres(_, pool) => {
                let rows = sqlx::query(users).fetch_all(pool).await?;
                rows.iter()
                    .map(|row| {
                        user(
                            row.get(0),
                            row.get(1),
                            row.get(2),
                            row.get(3),
                            row.get(4),
                            row.get(5),
                        )
                    })
                    .collect::<BTreeMap<_, _>>()
            }
        };
        states.retain(|_, state| !state.deleted);
        for (id, state) in &states {
            let held = (
                state.username.clone(),
                state.email.clone(),
                state.status.clone(),
                state.data["city"].clone(),
                state.data["n"].clone(),
            );
            let row = users
                .remove(id)
                .with_context(|| format!("{id} is a state, but no row"))?;
            ensure!(
                held == row && !state.partial,
                "{id}: {held:?}, in the table {row:?}"
            );
        }
        let first = users.first_key_value();
        ensure!(
            users.is_empty(),
            "{} without a state, such as {first:?}",
            users.len()
        );
        Ok(())
    }

    /// Asserts that each user's events are in the order of their notes, and that the last note of each is the state's.
    pub(crate) async fn every_user_is_told_of_in_order(&self, stack: &Stack) -> Result<()> {
        let bus = Bus::connect(stack).await?;
        let mut last: BTreeMap<String, i64> = BTreeMap::new();
        for message in messages(&bus.jetstream, USER_EVENTS).await? {
            let event: Value = serde_json::from_slice(&message.payload)?;
            let note = event["outbox"]["note"].as_i64().context("no note")?;
            let id = event["id"].as_str().context("no id")?;
            let epoch = event["outbox"]["epoch"].as_str().context("no epoch")?;
            ensure!(id.starts_with(&format!("main:{epoch}:{note}:")), "{id}");
            let user = event["user_id"].to_string();
            if let Some(before) = last.insert(user.clone(), note) {
                ensure!(before < note, "user {user}: note {note} after {before}");
            }
        }
        for (user, state) in states(&bus.jetstream).await? {
            let note = state.notes.get("main").map(|known| known.note);
            ensure!(
                note.is_some() && note == last.get(&user.to_string()).copied(),
                "{user}: {note:?}"
            );
        }
        Ok(())
    }
}

type User = (Option<String>, Option<String>, Option<String>, Value, Value);

fn user(
    id: i64,
    username: Option<String>,
    email: Option<String>,
    status: Option<String>,
    city: Option<String>,
    n: Option<i64>,
) -> (UserId, User) {
    (
        id.unsigned_abs().into(),
        (username, email, status, city.into(), n.into()),
    )
}

/// Every state.
pub(crate) async fn states(jetstream: &jetstream::Context) -> Result<BTreeMap<UserId, State>> {
    let mut states = BTreeMap::new();
    for message in messages(jetstream, USER_STATE).await? {
        let state: State = serde_json::from_slice(&message.payload)?;
        states.insert(state.user_id.clone(), state);
    }
    Ok(states)
}

async fn messages(jetstream: &jetstream::Context, stream: &str) -> Result<Vec<jetstream::Message>> {
    let stream = jetstream.get_stream(stream).await?;
    let count = stream.cached_info().state.messages;
    let config = pull::Config {
        ack_policy: jetstream::consumer::AckPolicy::None,
        inactive_threshold: Duration::from_secs(30),
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await?;
    let mut messages = consumer
        .stream()
        .max_messages_per_batch(1_000)
        .messages()
        .await?;
    let mut found = Vec::new();
    while (found.len() as u64) < count {
        let next = tokio::time::timeout(SOON, messages.next()).await?;
        found.push(next.context("the end")??);
    }
    Ok(found)
}
