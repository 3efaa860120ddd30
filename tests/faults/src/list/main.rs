//! The main database: put back to an earlier time, and robbed of more users than anybody means to delete.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use sqlx::{AssertSqlSafe, MySqlPool};
use usersync_stack::{eventually, http};

use crate::{
    backup::Backup,
    fault::{Fault, a_while},
    world::{SOON, World},
};

pub(crate) const FAULTS: &[Fault] = &[
    Fault::new(100, "many-deleted", |world, dice| {
        Box::pin(many_deleted(world, dice))
    })
    .told(&["outbox"]),
    Fault::new(101, "outbox-emptied", |world, dice| {
        Box::pin(emptied(world, dice))
    })
    .told(&["outbox"]),
    Fault::new(102, "backup-restored", |world, dice| {
        Box::pin(restored(world, dice))
    })
    .told(&["outbox"]),
];

/// A quarter of all users, by one statement; they stay until an operator says that it is meant.
async fn many_deleted(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    a_while(dice).await;
    let main = world.main_client()?;
    let (first, last) = (world.first + 550, world.first + 949);
    let users = format!(
        "INSERT INTO people SELECT seq, 'many', 'many@example.com', 1 FROM seq_{first}_to_{last}"
    );
    sqlx::raw_sql(AssertSqlSafe(users)).execute(&main).await?;
    let everybody = last - first + 1;
    until_told(world, first, last, everybody).await?;
    let deleted =
        format!("DELETE FROM people WHERE uid BETWEEN {first} AND {last} AND uid % 2 = 0");
    sqlx::raw_sql(AssertSqlSafe(deleted)).execute(&main).await?;
    until_alert(world).await?;
    until_told(world, first, last, everybody).await?;
    world.scheduler("approve", &["outbox", "approve"]).await
}

/// Until people are told that the outbox is stuck.
async fn until_alert(world: &World) -> Result<()> {
    let alerts = world.jetstream.get_stream("USER_ALERT").await?;
    eventually(SOON, async || {
        let alert = alerts
            .direct_get_last_for_subject("user.alert.outbox.main")
            .await?;
        let alert: Value = serde_json::from_slice(&alert.payload)?;
        ensure!(alert["status"] == "raised", "{alert}");
        Ok(())
    })
    .await
}

/// Until Redis holds so many of these users.
async fn until_told(world: &World, first: u64, last: u64, users: u64) -> Result<()> {
    let client = redis::Client::open(world.stack.redis.url())?;
    let connection = client.get_multiplexed_async_connection().await?;
    let keys: Vec<String> = (first..=last).map(|user| format!("user:{user}")).collect();
    eventually(SOON, async || {
        let mut connection = connection.clone();
        let there: u64 = redis::cmd("EXISTS")
            .arg(&keys)
            .query_async(&mut connection)
            .await?;
        ensure!(there == users, "{there} of {users}");
        Ok(())
    })
    .await
}

/// Its ids begin again at 1.
async fn emptied(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    a_while(dice).await;
    sqlx::raw_sql("TRUNCATE TABLE user_outbox")
        .execute(&world.main_client()?)
        .await?;
    a_while(dice).await;
    Ok(())
}

/// Users change, come and go after a backup was taken, and then it is restored. Changes count at once. An operator
/// loads everybody as they are there now, and has a check delete who came after the backup.
async fn restored(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    let main = world.main_client()?;
    let (first, last) = (world.first + 550, world.first + 559);
    let come = world.first + 600;
    let before = format!(
        "INSERT INTO people SELECT seq, 'before', 'before@example.com', 1 FROM seq_{first}_to_{last}"
    );
    run(&main, before).await?;
    until_told(world, first, last, last - first + 1).await?;
    tokio::time::sleep(Duration::from_millis(dice.u64(..500))).await;
    let backup = Backup::take(&main).await?;
    run(&main, format!("DELETE FROM people WHERE uid = {first}")).await?;
    rename(&main, first + 1, "lost").await?;
    run(&main, format!("INSERT INTO people (uid) VALUES ({come})")).await?;
    until_told(world, first, first, 0).await?;
    until_named(world, first + 1, "lost").await?;
    until_told(world, come, come, 1).await?;
    tokio::time::sleep(Duration::from_millis(dice.u64(..500))).await;
    backup.restore(&main).await?;
    rename(&main, first + 2, "since").await?;
    until_named(world, first + 2, "since").await?;
    until_alert(world).await?;
    a_while(dice).await;
    // What the database has lost stays as it was published, until somebody loads it.
    until_told(world, come, come, 1).await?;
    until_named(world, first + 1, "lost").await?;
    if dice.bool() {
        // Its outbox is older now than one that was relayed.
        backup.restore(&main).await?;
        rename(&main, first + 3, "again").await?;
        until_ready(world, false).await?;
        let anew = ["outbox", "install", "--new-epoch"];
        world.scheduler("install-anew", &anew).await?;
        until_ready(world, true).await?;
    }
    world
        .scheduler("load", &["load", "--source", "main"])
        .await?;
    // Others live by events alone.
    let [from, to] = [500, 999].map(|at| (world.first + at).to_string());
    let check = "check --target gateway --once --from".split(' ');
    let check: Vec<_> = check.chain([&*from, "--to", &to]).collect();
    world.scheduler("check-states", &check).await
}

/// Until the gateway says that it is ready, or that it isn't.
async fn until_ready(world: &World, is_ready: bool) -> Result<()> {
    let gateway = format!("{}/readyz", world.stack.gateways[0].url());
    eventually(SOON, async || {
        let asked = http::client().get(&gateway).timeout(SOON).send();
        let status = asked.await?.status();
        ensure!((status == 200) == is_ready, "{status}");
        Ok(())
    })
    .await
}

async fn run(main: &MySqlPool, statement: String) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(statement))
        .execute(main)
        .await?;
    Ok(())
}

async fn rename(main: &MySqlPool, user: u64, name: &str) -> Result<()> {
    run(
        main,
        format!("UPDATE people SET username = '{name}' WHERE uid = {user}"),
    )
    .await
}

/// Until a user has that name in Redis.
async fn until_named(world: &World, user: u64, name: &str) -> Result<()> {
    let client = redis::Client::open(world.stack.redis.url())?;
    let connection = client.get_multiplexed_async_connection().await?;
    eventually(SOON, async || {
        let mut connection = connection.clone();
        let held: Option<String> = redis::cmd("GET")
            .arg(format!("user:{user}"))
            .query_async(&mut connection)
            .await?;
        let held: Value = serde_json::from_str(&held.unwrap_or_default())?;
        ensure!(held["username"] == name, "user {user} is {held}");
        Ok(())
    })
    .await
}
