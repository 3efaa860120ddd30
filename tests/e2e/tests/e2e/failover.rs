//! A failover behind one address: nobody loses an attempt, and the new primary gets everything within seconds.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use sqlx::{Connection as _, MySqlConnection, PgConnection};
use usersync_core::subjects::USER_DEAD;
use usersync_stack::{
    Directory, MariaDbServer, MySqlServer, PostgresServer, RedisServer, StackBuilder, Switch,
    eventually, free_port,
};

use crate::support::{Bus, SOON, only};

/// From the new primary's first answer to everybody's being there.
const AT_MOST: Duration = Duration::from_secs(5);

/// The target `crm` at `url`; the second attempt of anybody would be the last.
fn entry(url: &str, secret: Option<&Path>, more: &str) -> StackBuilder {
    let secret = secret.map(|path| format!("secret = \"file:{}\"\n", path.display()));
    only(format!(
        "[crm]\nurl = \"{url}\"\n{}timeout = \"2s\"\nretry = {{ max_deliver = 2, base = \"100ms\", factor = 1.0, cap = \"100ms\" }}\n{more}",
        secret.unwrap_or_default()
    ))
}

const COLUMNS: &str = "table = { columns = { username = \"username\", email = \"email\" } }\n";

async fn publish(bus: &Bus, user: u64, round: u64) -> Result<()> {
    let event = json!({"user_id": user, "username": format!("name-{round}"), "email": format!("{user}@example.com")});
    bus.publish("user.created", event).await
}

/// The breaker is open, and says why.
async fn until_open(bus: &Bus) -> Result<()> {
    eventually(SOON, async || {
        let breakers = bus.jetstream().get_key_value("user_breakers").await?;
        ensure!(
            breakers.status().await?.values() > 0,
            "the worker hasn't noticed"
        );
        Ok(())
    })
    .await
}

/// Nobody was given up, and everybody there within `AT_MOST` of `since`.
async fn until_delivered(
    bus: &Bus,
    since: Instant,
    there: impl AsyncFn() -> Result<bool>,
) -> Result<()> {
    eventually(SOON, async || {
        ensure!(there().await?, "not everybody is there");
        Ok(())
    })
    .await?;
    let took = since.elapsed();
    ensure!(took < AT_MOST, "it took {took:?}");
    ensure!(bus.count(USER_DEAD).await? == 0, "somebody was given up");
    Ok(())
}

#[tokio::test]
async fn a_standby_of_postgres_is_promoted() -> Result<()> {
    let dir = Directory::temporary()?;
    let secret = dir.path().join("password");
    std::fs::write(&secret, PostgresServer::PASSWORD)?;
    let primary = PostgresServer::start(&dir.path().join("one")).await?;
    let mut client = PgConnection::connect(&primary.url_with_password()).await?;
    sqlx::raw_sql(
        "CREATE TABLE users (id text PRIMARY KEY, username text, email text, \
         sync_deleted boolean NOT NULL DEFAULT false, sync_version bigint NOT NULL DEFAULT 0)",
    )
    .execute(&mut client)
    .await?;
    let standby = primary.standby(&dir.path().join("two")).await?;
    let switch = Switch::start(primary.port()).await?;
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", switch.port());
    let stack = entry(&url, Some(&secret), COLUMNS).start().await?;
    let bus = Bus::connect(&stack).await?;
    publish(&bus, 1, 1).await?;
    bus.until_settled("crm").await?;
    // The primary takes no more writes, and its connections stay; the address leads to the standby, which isn't promoted yet.
    sqlx::raw_sql("ALTER SYSTEM SET default_transaction_read_only = on")
        .execute(&mut client)
        .await?;
    sqlx::raw_sql("SELECT pg_reload_conf()")
        .execute(&mut client)
        .await?;
    switch.lead_to(standby.port());
    for user in 1..=3 {
        publish(&bus, user, 2).await?;
    }
    until_open(&bus).await?;
    // As long as it takes for the worker to look rarely.
    let probes = async || {
        let breaker = bus.jetstream().get_key_value("user_breakers").await?;
        Ok::<_, anyhow::Error>(breaker.status().await?.values())
    };
    let waiting = Instant::now();
    eventually(SOON, async || {
        ensure!(probes().await? > 0, "the breaker closed");
        ensure!(
            waiting.elapsed() > Duration::from_secs(8),
            "not long enough"
        );
        Ok(())
    })
    .await?;
    let mut client = PgConnection::connect(&standby.url_with_password()).await?;
    sqlx::raw_sql("SELECT pg_promote()")
        .execute(&mut client)
        .await?;
    let since = Instant::now();
    let client = tokio::sync::Mutex::new(client);
    until_delivered(&bus, since, async || {
        let there = sqlx::query_scalar("SELECT COUNT(*) FROM users WHERE username = 'name-2'");
        let there: i64 = there.fetch_one(&mut *client.lock().await).await?;
        Ok(there == 3)
    })
    .await
}

const MYSQL_TABLE: &str = "CREATE TABLE users (id varchar(64) COLLATE ascii_bin PRIMARY KEY, username varchar(100), \
     email varchar(100), sync_deleted boolean NOT NULL DEFAULT false, sync_version bigint NOT NULL DEFAULT 0)";

/// Whom `read_only` doesn't bind is no application: `app` has no such right.
async fn prepared(url: &str) -> Result<MySqlConnection> {
    let mut client = MySqlConnection::connect(url).await?;
    for statement in [
        MYSQL_TABLE,
        "CREATE USER app@'%' IDENTIFIED BY 'of-a-test'",
        "GRANT ALL ON users.* TO app@'%'",
    ] {
        sqlx::raw_sql(statement).execute(&mut client).await?;
    }
    Ok(client)
}

/// From the server at the first URL to the one at the second.
async fn demoted(old: &str, new: &str, secret: &Path) -> Result<()> {
    let mut client = prepared(old).await?;
    let following = tokio::sync::Mutex::new(prepared(new).await?);
    let port = |url: &str| reqwest::Url::parse(url).map(|url| url.port().unwrap_or_default());
    let switch = Switch::start(port(old)?).await?;
    let url = format!("mysql://app@127.0.0.1:{}/users", switch.port());
    let stack = entry(&url, Some(secret), COLUMNS).start().await?;
    let bus = Bus::connect(&stack).await?;
    publish(&bus, 1, 1).await?;
    bus.until_settled("crm").await?;
    sqlx::raw_sql("SET GLOBAL read_only = ON")
        .execute(&mut client)
        .await?;
    for user in 1..=3 {
        publish(&bus, user, 2).await?;
    }
    until_open(&bus).await?;
    switch.lead_to(port(new)?);
    until_delivered(&bus, Instant::now(), async || {
        let there = sqlx::query_scalar("SELECT COUNT(*) FROM users WHERE username = 'name-2'");
        let there: i64 = there.fetch_one(&mut *following.lock().await).await?;
        Ok(there == 3)
    })
    .await
}

#[tokio::test]
async fn a_demoted_mariadb_is_left_for_the_server_that_follows_it() -> Result<()> {
    let dir = Directory::temporary()?;
    let secret = dir.path().join("password");
    std::fs::write(&secret, MariaDbServer::PASSWORD)?;
    let old = MariaDbServer::start(&dir.path().join("one")).await?;
    let new = MariaDbServer::start(&dir.path().join("two")).await?;
    demoted(&old.url_with_password(), &new.url_with_password(), &secret).await
}

/// Only where there is one: see [`MySqlServer::is_there`].
#[tokio::test]
async fn a_demoted_mysql_is_left_for_the_server_that_follows_it() -> Result<()> {
    if MySqlServer::is_left_out()? {
        return Ok(());
    }
    let dir = Directory::temporary()?;
    let secret = dir.path().join("password");
    std::fs::write(&secret, MySqlServer::PASSWORD)?;
    let old = MySqlServer::start(&dir.path().join("one")).await?;
    let new = MySqlServer::start(&dir.path().join("two")).await?;
    demoted(&old.url_with_password(), &new.url_with_password(), &secret).await
}

#[tokio::test]
async fn a_replica_of_redis_is_left_for_the_server_that_takes_writes() -> Result<()> {
    let dir = Directory::temporary()?;
    let keep = ["--appendonly", "no"];
    let old = RedisServer::start_with(&dir.path().join("one"), free_port()?, &keep).await?;
    let new = RedisServer::start_with(&dir.path().join("two"), free_port()?, &keep).await?;
    let switch = Switch::start(old.port()).await?;
    let url = format!("redis://127.0.0.1:{}", switch.port());
    let stack = entry(&url, None, "").start().await?;
    let bus = Bus::connect(&stack).await?;
    publish(&bus, 1, 1).await?;
    bus.until_settled("crm").await?;
    let client = redis::Client::open(old.url())?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    redis::cmd("REPLICAOF")
        .arg("127.0.0.1")
        .arg(new.port())
        .exec_async(&mut connection)
        .await
        .context("REPLICAOF")?;
    for user in 1..=3 {
        publish(&bus, user, 2).await?;
    }
    until_open(&bus).await?;
    switch.lead_to(new.port());
    let since = Instant::now();
    let client = redis::Client::open(new.url())?;
    let connection = client.get_multiplexed_async_connection().await?;
    until_delivered(&bus, since, async || {
        let mut connection = connection.clone();
        let there: Vec<Option<String>> = redis::cmd("MGET")
            .arg(&["user:1", "user:2", "user:3"])
            .query_async(&mut connection)
            .await?;
        Ok(there.iter().all(|document| {
            document
                .as_ref()
                .is_some_and(|text| text.contains("name-2"))
        }))
    })
    .await
}
