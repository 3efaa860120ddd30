//! The main database: put back to an earlier time, and robbed of more users than anybody means to delete.

use anyhow::{Result, ensure};
use serde_json::Value;
use sqlx::AssertSqlSafe;
use usersync_stack::eventually;

use crate::{
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
