//! Differences of every class at every kind of target are found, told apart, and repaired.

use anyhow::{Context as _, Result, ensure};
use neo4rs::{ConfigBuilder, Graph, query};
use redis::AsyncTypedCommands as _;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection, PgConnection, SqliteConnection};
use usersync_core::check::{Class, Stage};
use usersync_stack::{
    ArcadeDbServer, Directory, Launch, MariaDbServer, PostgresServer, Stack, eventually, tools,
};

use super::{check, counts, created};
use crate::support::{Bus, SOON, only};

/// Users of a test, and how many of them differ in each way.
const USERS: u64 = 6_000;
const EACH: u64 = 1_000;

/// Everybody is there, and the target is through with them.
async fn filled(bus: &Bus, target: &str) -> Result<()> {
    bus.publish_all((1..=USERS).map(created)).await?;
    bus.until_settled(target).await
}

/// A check finds what was done to the target, has it repaired, and the next one finds nothing.
async fn finds_and_repairs(bus: &Bus, target: &str, expected: [u64; 4]) -> Result<()> {
    let looked = check(bus, target, json!({"dry_run": true})).await?;
    ensure!(looked.stage == Stage::Done, "{looked:?}");
    ensure!(counts(&looked) == expected, "{looked:?}");
    ensure!(looked.found.values().all(|found| found.repaired == 0));

    // More than a hundred users, so it asks.
    let braked = check(bus, target, json!({})).await?;
    ensure!(braked.stage == Stage::Braked, "{braked:?}");
    ensure!(
        braked
            .error
            .as_ref()
            .is_some_and(|error| error.contains("usersync.check.approve"))
    );

    let repaired = check(bus, target, json!({"approved": true})).await?;
    ensure!(repaired.stage == Stage::Done, "{repaired:?}");
    bus.until_settled(target).await?;
    let again = check(bus, target, json!({})).await?;
    ensure!(
        again.stage == Stage::Done && again.users >= USERS - EACH,
        "{again:?}"
    );
    // The alert says what is so now, and is the one that was raised.
    if expected[3] > 0 {
        // It is told after the report.
        eventually(SOON, async || {
            let told = crate::alerts::history(bus, "drift", target).await?;
            let (first, last) = (told.first(), told.last());
            let (first, last) = (first.context("no alert")?, last.context("no alert")?);
            ensure!(
                first["id"] == last["id"] && first["updated"].is_null(),
                "{told:?}"
            );
            ensure!(
                last["stage"] == "done" && last["updated"].is_string(),
                "{told:?}"
            );
            ensure!(last["found"] == json!({"orphan": expected[3]}), "{told:?}");
            Ok(())
        })
        .await?;
    }
    // Orphans are reported and left alone unless the target's policy says otherwise.
    ensure!(counts(&again) == [0, 0, 0, expected[3]], "{again:?}");
    Ok(())
}

/// The catalogue's entry of a database, and the table made by the worker's own flag.
async fn table(dir: &Directory, url: &str, password: &str) -> Result<String> {
    let secret = dir.path().join("password");
    std::fs::write(&secret, password)?;
    let entry = format!(
        "[crm]\nurl = \"{url}\"\nsecret = \"file:{}\"\ncheck = {{ every = \"0s\" }}\n\
         table = {{ columns = {{ username = \"username\", email = \"email\", n = \"data.n\" }} }}\n",
        secret.display()
    );
    let catalogue = dir.path().join("targets.toml");
    std::fs::write(&catalogue, &entry)?;
    let program = tools::binary("usersync-worker", tools::Profile::own())?;
    let launch = Launch::new("usersync-worker", program, dir.path().join("init"))
        .args(["--init-target", "crm", "--targets"])
        .arg(&catalogue);
    let status = launch.spawn()?.wait_exit(SOON).await?;
    ensure!(
        status.success(),
        "{}",
        std::fs::read_to_string(launch.log())?
    );
    Ok(entry)
}

/// What is done to a table: a thousand users missing, stale, tampered with, and a thousand nobody has heard of.
fn harm(text: &str) -> Vec<String> {
    let id = |from: u64| {
        let to = from + EACH - 1;
        format!("CAST(id AS {text}) BETWEEN {from} AND {to}")
    };
    let mut harm = vec![
        format!("DELETE FROM users WHERE {}", id(1)),
        format!(
            "UPDATE users SET sync_version = sync_version - 1, n = '0' WHERE {}",
            id(1 + EACH)
        ),
        format!(
            "UPDATE users SET email = 'mallory@example.com' WHERE {}",
            id(1 + 2 * EACH)
        ),
    ];
    let orphans = (0..EACH).map(|n| format!("('{}', 'who', FALSE, 1)", 1_000_000 + n));
    harm.push(format!(
        "INSERT INTO users (id, username, sync_deleted, sync_version) VALUES {}",
        orphans.collect::<Vec<_>>().join(", ")
    ));
    harm
}

#[tokio::test]
async fn in_postgres() -> Result<()> {
    let dir = Directory::temporary()?;
    let server = PostgresServer::start(dir.path()).await?;
    let entry = table(&dir, &server.url(), PostgresServer::PASSWORD).await?;
    let stack = only(entry).schedulers(1).start().await?;
    let bus = Bus::connect(&stack).await?;
    filled(&bus, "crm").await?;
    let mut client = PgConnection::connect(&server.url_with_password()).await?;
    for statement in harm("BIGINT") {
        sqlx::query(AssertSqlSafe(statement))
            .execute(&mut client)
            .await?;
    }
    finds_and_repairs(&bus, "crm", [EACH; 4]).await
}

#[tokio::test]
async fn in_mariadb() -> Result<()> {
    let dir = Directory::temporary()?;
    let server = MariaDbServer::start(dir.path()).await?;
    let entry = table(&dir, &server.url(), MariaDbServer::PASSWORD).await?;
    let stack = only(entry).schedulers(1).start().await?;
    let bus = Bus::connect(&stack).await?;
    filled(&bus, "crm").await?;
    let mut client = MySqlConnection::connect(&server.url_with_password()).await?;
    for statement in harm("UNSIGNED") {
        sqlx::query(AssertSqlSafe(statement))
            .execute(&mut client)
            .await?;
    }
    finds_and_repairs(&bus, "crm", [EACH; 4]).await
}

#[tokio::test]
async fn in_redis_where_a_key_that_is_gone_is_no_drift() -> Result<()> {
    let stack = Stack::builder()
        .examples(false)
        .targets_toml(|_| "[redis-cache]\ncheck = { every = \"0s\" }\n".to_owned())
        .schedulers(1)
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    filled(&bus, "redis-cache").await?;
    let client = redis::Client::open(stack.redis.url())?;
    let mut redis = client.get_multiplexed_async_connection().await?;
    for n in 0..EACH {
        redis.del(format!("user:{}", 1 + n)).await?;
        let stale = format!("user:{}", 1 + EACH + n);
        let document = redis.get(&stale).await?.unwrap_or_default();
        let mut document: serde_json::Value = serde_json::from_str(&document)?;
        document["version"] = json!(1);
        document["email"] = json!("old@example.com");
        // The version stays first, as it is written.
        redis.set(&stale, document.to_string()).await?;
        let tampered = format!("user:{}", 1 + 2 * EACH + n);
        let document = redis.get(&tampered).await?.unwrap_or_default();
        redis
            .set(
                &tampered,
                document.replace("@example.com", "@mallory.example"),
            )
            .await?;
        let orphan = format!("user:{}", 1_000_000 + n);
        redis
            .set(
                orphan,
                format!(
                    "{{\"version\":1,\"user_id\":{},\"username\":\"who\"}}",
                    1_000_000 + n
                ),
            )
            .await?;
    }
    finds_and_repairs(&bus, "redis-cache", [0, EACH, EACH, EACH]).await
}

#[tokio::test]
async fn at_an_http_service_that_answers_digests() -> Result<()> {
    let stack = Stack::builder()
        .targets_toml(|_| {
            "[user-service]\ncheck = { every = \"0s\" }\n\
             [unified-auth]\nenabled = false\n[redis-cache]\nenabled = false\n"
                .to_owned()
        })
        .schedulers(1)
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    filled(&bus, "user-service").await?;
    let url = format!("sqlite://{}/user-service.db", stack.dir().display());
    let mut client = SqliteConnection::connect(&url).await?;
    let id = |from: u64| {
        let to = from + EACH - 1;
        format!("CAST(user_id AS INTEGER) BETWEEN {from} AND {to}")
    };
    for statement in [
        format!("DELETE FROM users WHERE {}", id(1)),
        format!(
            "UPDATE users SET version = version - 1, email = 'old@example.com' WHERE {}",
            id(1 + EACH)
        ),
        format!(
            "UPDATE users SET username = 'mallory' WHERE {}",
            id(1 + 2 * EACH)
        ),
        format!(
            "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {}) \
             INSERT INTO users SELECT CAST(1000000 + i AS TEXT), 'who', NULL, NULL, 0, 1 FROM n",
            EACH - 1
        ),
    ] {
        sqlx::query(AssertSqlSafe(statement))
            .execute(&mut client)
            .await?;
    }
    // Hashes don't say which version they are of.
    finds_and_repairs(&bus, "user-service", [EACH, 0, 2 * EACH, EACH]).await
}

#[tokio::test]
async fn in_a_graph() -> Result<()> {
    let dir = Directory::temporary()?;
    let server = ArcadeDbServer::start(dir.path()).await?;
    let url = server.url();
    let entry = table(&dir, &url, ArcadeDbServer::PASSWORD).await?;
    let stack = only(entry).schedulers(1).start().await?;
    let bus = Bus::connect(&stack).await?;
    filled(&bus, "crm").await?;
    let (_, place) = url.split_once('@').context("a user in the url")?;
    let (address, database) = place.split_once('/').context("a database in the url")?;
    let config = ConfigBuilder::default()
        .uri(format!("bolt://{address}"))
        .user("root")
        .password(ArcadeDbServer::PASSWORD)
        .db(database)
        .build()?;
    let graph = Graph::connect(config).await?;
    let ids = |from: u64| -> Vec<i64> { (from..from + EACH).map(|id| id as i64).collect() };
    for (statement, from) in [
        ("UNWIND $ids AS id MATCH (u:User {id: id}) DELETE u", 1),
        (
            "UNWIND $ids AS id MATCH (u:User {id: id}) SET u.sync_version = u.sync_version - 1, u.n = 0",
            1 + EACH,
        ),
        (
            "UNWIND $ids AS id MATCH (u:User {id: id}) SET u.email = 'mallory@example.com'",
            1 + 2 * EACH,
        ),
        (
            "UNWIND $ids AS id CREATE (u:User {id: id, username: 'who', sync_version: 1, sync_deleted: false})",
            1_000_000,
        ),
    ] {
        graph.run(query(statement).param("ids", ids(from))).await?;
    }
    finds_and_repairs(&bus, "crm", [EACH; 4]).await
}

/// No delivery can name such a row, so the report does.
#[tokio::test]
async fn an_orphan_whose_id_nobody_can_have_is_named() -> Result<()> {
    let dir = Directory::temporary()?;
    let server = MariaDbServer::start(dir.path()).await?;
    let entry = table(&dir, &server.url(), MariaDbServer::PASSWORD).await?;
    let entry = entry.replace("every = \"0s\"", "every = \"0s\", orphan = \"repair\"");
    let stack = only(entry).schedulers(1).start().await?;
    let bus = Bus::connect(&stack).await?;
    let mut client = MySqlConnection::connect(&server.url_with_password()).await?;
    let odd = "INSERT INTO users (id, username, sync_deleted, sync_version) VALUES ('zz top', 'who', FALSE, 1)";
    sqlx::query(odd).execute(&mut client).await?;
    let report = check(&bus, "crm", json!({})).await?;
    let found = &report.found[&Class::Orphan];
    ensure!(
        (found.users, found.unrepairable) == (1, 1) && found.sample == ["zz?top".parse()?],
        "{report:?}"
    );
    Ok(())
}
