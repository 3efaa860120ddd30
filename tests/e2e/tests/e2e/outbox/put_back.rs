//! A main database that is put back to an earlier time gives the ids of its notes a second time: what changes from then on
//! counts all the same, and people are told.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use usersync_core::{
    state::State,
    subjects::{INTAKE, USER_STATE},
};
use usersync_stack::{Stack, eventually};

use super::Main;
use crate::support::{Bus, LATER};

const USERS: i64 = 20;

#[tokio::test]
async fn changes_after_a_restored_backup_count_in_mariadb() -> Result<()> {
    restored(Main::mariadb().await?).await
}

#[tokio::test]
async fn changes_after_a_restored_backup_count_in_postgres() -> Result<()> {
    restored(Main::postgres().await?).await
}

#[tokio::test]
async fn changes_after_the_outbox_was_emptied_count_in_mariadb() -> Result<()> {
    emptied(Main::mariadb().await?, "TRUNCATE TABLE user_outbox").await
}

#[tokio::test]
async fn changes_after_the_outbox_was_emptied_count_in_postgres() -> Result<()> {
    let statement = "TRUNCATE TABLE user_outbox RESTART IDENTITY";
    emptied(Main::postgres().await?, statement).await
}

/// As after a failover by logical replication, which brings rows along and no sequences.
#[tokio::test]
async fn changes_after_a_sequence_was_lost_count_in_postgres() -> Result<()> {
    let statement = "ALTER TABLE user_outbox ALTER COLUMN id RESTART WITH 1";
    emptied(Main::postgres().await?, statement).await
}

/// What a relay of before has published isn't merged yet, so the state still says what the row says again: that isn't known.
#[tokio::test]
async fn a_row_that_went_there_and_back_across_a_restart_is_told() -> Result<()> {
    let main = Main::mariadb().await?;
    let mut stack = filled(&main).await?;
    let bus = Bus::connect(&stack).await?;
    let pause = async |until: Value| {
        let body = json!({ "pause_until": until }).to_string();
        let subject = format!("$JS.API.CONSUMER.PAUSE.USER_EVENTS.{INTAKE}");
        let answer = bus.jetstream.client().request(subject, body.into()).await?;
        let answer: Value = serde_json::from_slice(&answer.payload)?;
        ensure!(answer["error"].is_null(), "{answer}");
        anyhow::Ok(())
    };
    let hour = jiff::Timestamp::now().checked_add(jiff::Span::new().hours(1))?;
    pause(json!(hour)).await?;
    main.run("UPDATE people SET n = 7 WHERE uid = 1").await?;
    main.until_published().await?;
    stack.gateways[0].restart().await?;
    main.run("UPDATE people SET n = 0 WHERE uid = 1").await?;
    main.until_published().await?;
    pause(Value::Null).await?;
    main.equals_the_states(&stack).await
}

async fn filled(main: &Main) -> Result<Stack> {
    main.install().await?;
    let stack = main.stack(1).await?;
    for user in 1..=USERS {
        main.run(&format!(
            "INSERT INTO people (uid, username, n) VALUES ({user}, 'u{user}', 0)"
        ))
        .await?;
    }
    main.equals_the_states(&stack).await?;
    Ok(stack)
}

async fn restored(mut main: Main) -> Result<()> {
    let stack = filled(&main).await?;
    main.back_up().await?;
    for n in 1..=10 {
        main.run(&format!("UPDATE people SET n = {n}")).await?;
    }
    main.equals_the_states(&stack).await?;

    main.put_back().await?;
    // Fewer notes than were published since the backup: each has an id that has been.
    main.run("UPDATE people SET n = 100 WHERE uid <= 10")
        .await?;
    all_have(&stack, 1..=10, 100).await?;
    is_told(&stack).await?;
    // Nobody has said anything of these: they are as they were published, until all are.
    all_have(&stack, 11..=USERS, 10).await?;
    main.scheduler("load", Some(&stack.nats), &["load", "--source", "main"])
        .await?;
    main.equals_the_states(&stack).await?;
    // And again, from the same backup.
    main.run("UPDATE people SET n = 101").await?;
    main.equals_the_states(&stack).await?;
    main.put_back().await?;
    main.run("UPDATE people SET n = 102 WHERE uid <= 10")
        .await?;
    all_have(&stack, 1..=10, 102).await
}

async fn emptied(main: Main, statement: &str) -> Result<()> {
    let stack = filled(&main).await?;
    main.run(statement).await?;
    main.run("UPDATE people SET n = 1").await?;
    all_have(&stack, 1..=USERS, 1).await?;
    main.run("UPDATE people SET n = 2").await?;
    main.equals_the_states(&stack).await?;
    is_told(&stack).await
}

async fn all_have(stack: &Stack, users: impl Iterator<Item = i64> + Clone, n: i64) -> Result<()> {
    let bus = Bus::connect(stack).await?;
    let states = bus.jetstream.get_stream(USER_STATE).await?;
    eventually(LATER, async || {
        for user in users.clone() {
            let subject = format!("user.state.{user}");
            let state = states.direct_get_last_for_subject(&subject).await?;
            let state: State = serde_json::from_slice(&state.payload)?;
            let held = state.data.get("n").and_then(Value::as_i64);
            ensure!(held == Some(n), "{user} has {held:?} instead of {n}");
        }
        Ok(())
    })
    .await
}

/// The alert that says so, and what is to be done.
async fn is_told(stack: &Stack) -> Result<()> {
    let bus = Bus::connect(stack).await?;
    let alerts = bus.jetstream.get_stream("USER_ALERT").await?;
    eventually(LATER, async || {
        let alert = alerts
            .direct_get_last_for_subject("user.alert.outbox.main")
            .await;
        let alert: Value = serde_json::from_slice(&alert.context("no alert")?.payload)?;
        let summary = alert["summary"].as_str().unwrap_or_default();
        ensure!(
            alert["status"] == "raised" && summary.contains("put back") && summary.contains("load"),
            "{alert}"
        );
        Ok(())
    })
    .await
}
