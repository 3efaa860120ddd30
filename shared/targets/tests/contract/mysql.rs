//! MySQL's side of the contract, on MariaDB and on MySQL itself.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use serde_json::{Value, json};
use sqlx::{
    AssertSqlSafe, MySqlPool, Row as _,
    mysql::{MySqlConnectOptions, MySqlPoolOptions},
};
use usersync_stack::{Directory, MariaDbServer, MySqlServer, Process, Signal};
use usersync_targets::{Delivery, Outcome, Standing};

use crate::{
    clauses::{is_delivered, one},
    deliveries::user,
    peer::{Can, Held, Peer, connect, open},
};

pub(crate) struct MySql {
    pub(crate) server: Server,
    pub(crate) dir: Directory,
}

pub(crate) enum Server {
    MariaDb(MariaDbServer),
    MySql(MySqlServer),
}

impl MySql {
    /// On MariaDB.
    pub(crate) async fn start() -> Result<Self> {
        let dir = directory(MariaDbServer::PASSWORD)?;
        let server = Server::MariaDb(MariaDbServer::start(dir.path()).await?);
        Ok(Self { server, dir })
    }

    /// On MySQL itself.
    pub(crate) async fn itself() -> Result<Self> {
        let dir = directory(MySqlServer::PASSWORD)?;
        let server = Server::MySql(MySqlServer::start(dir.path()).await?);
        Ok(Self { server, dir })
    }

    /// Both of them, or without MySQL where there is none.
    pub(crate) async fn all() -> Result<Vec<Self>> {
        let mut all = vec![Self::start().await?];
        if !MySqlServer::is_left_out()? {
            all.push(Self::itself().await?);
        }
        Ok(all)
    }

    /// A column that holds UUIDs there, and nothing else.
    pub(crate) fn uuid(&self, column: &str) -> String {
        match self.server {
            Server::MariaDb(_) => format!("{column} uuid"),
            Server::MySql(_) => format!("{column} char(36) CHECK (IS_UUID({column}))"),
        }
    }

    /// A client that isn't ours.
    pub(crate) async fn client(&self) -> Result<MySqlPool> {
        let pool = MySqlPoolOptions::new().max_connections(1);
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

fn directory(password: &str) -> Result<Directory> {
    let dir = Directory::temporary()?;
    std::fs::write(dir.path().join("right"), password)?;
    std::fs::write(dir.path().join("wrong"), "another password")?;
    Ok(dir)
}

impl Server {
    pub(crate) fn url(&self) -> String {
        match self {
            Self::MariaDb(server) => server.url(),
            Self::MySql(server) => server.url(),
        }
    }

    fn url_with_password(&self) -> String {
        match self {
            Self::MariaDb(server) => server.url_with_password(),
            Self::MySql(server) => server.url_with_password(),
        }
    }

    fn process(&self) -> &Process {
        match self {
            Self::MariaDb(server) => server.process(),
            Self::MySql(server) => server.process(),
        }
    }
}

#[async_trait(?Send)]
impl Peer for MySql {
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
            "url": self.server.url(),
            "secret": format!("file:{}", secret.display()),
            "table": {"name": place},
        })
    }

    async fn held(&mut self, place: &str, id: &str) -> Result<Option<Held>> {
        let query = format!(
            "SELECT username, email, status, CAST(data AS CHAR) FROM {place} WHERE id = ? AND NOT sync_deleted"
        );
        let client = self.client().await?;
        let row = sqlx::query(AssertSqlSafe(query))
            .bind(id)
            .fetch_optional(&client)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let data: Option<String> = row.try_get(3)?;
        Ok(Some(Held {
            username: row.try_get(0)?,
            email: row.try_get(1)?,
            status: row.try_get(2)?,
            data: data.map_or(Ok(Value::Null), |data| serde_json::from_str(&data))?,
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
        self.server.process().kill9().await;
        Ok(())
    }

    async fn restart(&mut self) -> Result<()> {
        match &mut self.server {
            Server::MariaDb(server) => server.restart().await,
            Server::MySql(server) => server.restart().await,
        }
    }

    async fn pause(&mut self, paused: bool) -> Result<()> {
        match paused {
            true => self.server.process().freeze().await,
            false => self.server.process().signal(Signal::SIGCONT),
        }
    }
}

/// A statement of many TLS records: none of them waits until the server has acknowledged the one before, which takes it 40 ms.
#[tokio::test]
async fn a_long_statement_is_sent_at_once() -> Result<()> {
    if MySqlServer::is_left_out()? {
        return Ok(());
    }
    let peer = MySql::itself().await?;
    let target = connect(&peer, "users", json!({"batch": 256}))?;
    target.init().await?;
    let mut fastest = Duration::MAX;
    for version in 1..=20 {
        let batch: Vec<Delivery> = (1..=256)
            .map(|id: u32| user(&id.to_string(), version, "ann"))
            .collect();
        let began = Instant::now();
        for outcome in target.deliver(&batch).await {
            is_delivered(&outcome)?;
        }
        fastest = fastest.min(began.elapsed());
    }
    ensure!(fastest < Duration::from_millis(38), "{fastest:?}");
    Ok(())
}

#[tokio::test]
async fn what_is_delivered_is_there_whatever_the_defaults_of_the_server() -> Result<()> {
    for peer in MySql::all().await? {
        for setting in [
            "autocommit = 0",
            "sql_select_limit = 1",
            "completion_type = 1",
            "sql_safe_updates = 1",
        ] {
            peer.run(&format!("SET GLOBAL {setting}; COMMIT")).await?;
        }
        peer.run("SET GLOBAL TRANSACTION READ ONLY").await?;
        let target = connect(&peer, "users", json!({}))?;
        target.init().await?;
        let all = [user("1", 5, "ann"), user("2", 5, "ben")];
        for outcome in target.deliver(&all).await {
            is_delivered(&outcome)?;
        }
        let client = peer.client().await?;
        let there: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM users")
            .fetch_one(&client)
            .await?;
        ensure!(there == 2, "{there} users are there");
        let standings = target.compare(&all).await.context("it compares")?;
        ensure!(
            standings.iter().all(|one| *one == Standing::Same),
            "{standings:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_password_that_takes_tls_is_said_to_and_an_offline_server_is_down() -> Result<()> {
    if MySqlServer::is_left_out()? {
        return Ok(());
    }
    let peer = MySql::itself().await?;
    let mut entry = peer.entry("users", true);
    entry["url"] = format!("{}?ssl-mode=DISABLED", peer.server.url()).into();
    let bare = open(entry, json!({}))?;
    match one(&*bare, user("1", 5, "ann")).await {
        Outcome::Fault(failure) => ensure!(
            failure.reason.contains("caching_sha2_password") && failure.reason.contains("`tls ="),
            "{failure}"
        ),
        other => anyhow::bail!("{other:?}"),
    }
    let socket = peer.dir.path().join("mysql/socket");
    let root = MySqlConnectOptions::new().socket(socket).username("root");
    let root = MySqlPoolOptions::new().connect_with(root).await?;
    sqlx::raw_sql("REVOKE SUPER, CONNECTION_ADMIN ON *.* FROM 'usersync'@'%'")
        .execute(&root)
        .await?;
    let target = connect(&peer, "users", json!({}))?;
    target.init().await?;
    is_delivered(&one(&*target, user("1", 5, "ann")).await)?;
    for (set, is_down) in [("ON", true), ("OFF", false)] {
        sqlx::raw_sql(AssertSqlSafe(format!("SET GLOBAL offline_mode = {set}")))
            .execute(&root)
            .await?;
        usersync_stack::eventually(Duration::from_secs(10), async || {
            let outcome = one(&*target, user("1", 6, "anna")).await;
            let said = matches!(&outcome, Outcome::Down(failure) if failure.code.is_some());
            ensure!(said == is_down, "{set}: {outcome:?}");
            ensure!(
                is_down || is_delivered(&outcome).is_ok(),
                "{set}: {outcome:?}"
            );
            Ok(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_a_login_may_not_do_and_where_is_named() -> Result<()> {
    for peer in MySql::all().await? {
        connect(&peer, "users", json!({}))?.init().await?;
        for statement in [
            "CREATE USER 'reader'@'%' IDENTIFIED BY 'of-a-test'",
            "GRANT SELECT ON users.users TO 'reader'@'%'",
        ] {
            peer.run(statement).await?;
        }
        let as_reader = |place: &str, has_password: bool| {
            let mut entry = peer.entry(place, has_password);
            entry["url"] = peer.server.url().replace("usersync@", "reader@").into();
            open(entry, json!({}))
        };
        let fault = |outcome: Outcome| match outcome {
            Outcome::Fault(failure) => Ok(failure.reason.to_string()),
            other => anyhow::bail!("{other:?}"),
        };
        let write = one(&*as_reader("users", true)?, user("1", 5, "ann")).await;
        let write = fault(write)?;
        ensure!(
            write.contains("may not do ") && write.contains("UPDATE") && write.contains("GRANT"),
            "{write}"
        );
        let made = as_reader("others", true)?.init().await;
        let made = made.err().context("it was made")?.reason.to_string();
        ensure!(made.contains("may not do CREATE there"), "{made}");
        let stranger = one(&*as_reader("users", false)?, user("1", 5, "ann")).await;
        let stranger = fault(stranger)?;
        let place = peer.server.url();
        let place = place.split('@').nth(1).unwrap_or_default();
        ensure!(
            stranger.contains("1045") && stranger.ends_with(&format!("({place})")),
            "{stranger}"
        );
    }
    Ok(())
}

/// In MariaDB JSON is a text with a check, and who has a right to the table alone sees no list of checks.
#[tokio::test]
async fn json_is_json_for_who_has_a_right_to_the_table_alone() -> Result<()> {
    for peer in MySql::all().await? {
        let setup = [
            "CREATE TABLE people (id varchar(64) COLLATE utf8mb4_bin PRIMARY KEY, username text, data JSON, \
             sync_version bigint NOT NULL DEFAULT 0, sync_deleted boolean NOT NULL DEFAULT false)",
            "CREATE USER 'worker'@'%' IDENTIFIED BY 'of-a-test'",
            "GRANT SELECT, INSERT, UPDATE ON users.people TO 'worker'@'%'",
        ];
        for statement in setup {
            peer.run(statement).await?;
        }
        let mut entry = peer.entry("people", true);
        entry["url"] = peer.server.url().replace("usersync@", "worker@").into();
        entry["table"]["columns"] = json!({"username": "username", "data": "data"});
        let target = open(entry, json!({"verify": true}))?;
        is_delivered(&one(&*target, user("1", 5, "ann")).await)?;
        let held = sqlx::query_scalar("SELECT JSON_TYPE(data) FROM people");
        let held: String = held.fetch_one(&peer.client().await?).await?;
        ensure!(held == "OBJECT", "{held}");
        // A member that is patched: the column is merged into, which only JSON is.
        let mut part = user("1", 6, "ann");
        part.partial = true;
        part.members.data = usersync_core::event::Change::Set(json!({"more": 1}));
        is_delivered(&one(&*target, part).await)?;
        let held = sqlx::query_scalar("SELECT CAST(JSON_LENGTH(data) AS SIGNED) FROM people");
        let held: i64 = held.fetch_one(&peer.client().await?).await?;
        ensure!(held == 3, "{held} members");
    }
    Ok(())
}
