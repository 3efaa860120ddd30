//! A check of the states that loses its scheduler goes on elsewhere: nobody is left out, mended twice or counted twice.

use std::{collections::BTreeSet, time::Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use usersync_core::{check::Stage, subjects::USER_STATE, user_id::UserId};
use usersync_stack::{Process, Signal, Stack, eventually};

use super::{
    counts, ended,
    states::{add_staff, forget, once, repaired, taken_in, tamper},
};
use crate::{
    outbox::Main,
    support::{Bus, LATER},
};

/// A scheduler that knows the main database.
fn scheduler(main: &Main, stack: &Stack, name: &str) -> Result<Process> {
    main.spawn_scheduler(name, Some(&stack.nats), &[])
}

/// How many states have ever been written.
async fn written(bus: &Bus) -> Result<u64> {
    let states = bus.jetstream().get_stream(USER_STATE).await?;
    Ok(states.cached_info().state.last_sequence)
}

async fn ask(bus: &Bus, request: Value) -> Result<()> {
    let body = request.to_string().into();
    let asked = bus.jetstream().publish("user.check.gateway", body);
    asked.await?.await?;
    Ok(())
}

#[tokio::test]
async fn whoever_was_being_mended_is_mended_once_and_counted_once() -> Result<()> {
    let main = Main::postgres().await?;
    let (stack, bus) = taken_in(&main, 3_000, "every = \"0s\"\nload = 1.0").await?;
    for user in 1..=900 {
        forget(&bus, user).await?;
    }
    for user in 901..=1_200 {
        tamper(&bus, user, |state| state["email"] = json!("other")).await?;
    }
    // Reported, not mended: found again by whoever goes on.
    let orphan = json!({"user_id": 9_000, "version": 1, "username": "eve"});
    tamper(&bus, 3_000, |state| {
        state["user_id"] = orphan["user_id"].clone();
    })
    .await?;

    let before = written(&bus).await?;
    let first = scheduler(&main, &stack, "first")?;
    ask(&bus, json!({"approved": true})).await?;
    let end = Instant::now() + LATER;
    while written(&bus).await? < before + 300 {
        ensure!(Instant::now() < end, "nobody is mended");
    }
    first.kill9().await;
    let mended = written(&bus).await? - before;
    ensure!((300..1_200).contains(&mended), "{mended} were mended");

    let _second = scheduler(&main, &stack, "second")?;
    let report = ended(&bus, "gateway", None).await?;
    ensure!(
        report.stage == Stage::Done && report.users == 3_000 && report.pending == 0,
        "{report:?}"
    );
    ensure!(counts(&report) == [900, 0, 300, 1], "{report:?}");
    ensure!(repaired(&report) == 1_200, "{report:?}");
    for found in report.found.values() {
        let sample: BTreeSet<&UserId> = found.sample.iter().collect();
        ensure!(sample.len() == found.sample.len(), "{report:?}");
    }
    let writes = written(&bus).await? - before;
    ensure!(writes == 1_200, "{writes} states were written");
    forget(&bus, 9_000).await?;
    main.equals_the_states(&stack).await
}

#[tokio::test]
async fn it_goes_on_where_it_was_and_forgets_nobody_it_waited_for() -> Result<()> {
    let main = Main::postgres().await?;
    let (stack, bus) = taken_in(&main, 20, "every = \"0s\"\nwait = \"0s\"").await?;
    add_staff(&main, "wait = \"1m\"").await?;
    bus.publish_all([("user.created", json!({"user_id": 501, "username": "ann"}))])
        .await?;
    bus.until_taken_in().await?;
    // While an event waits, nobody can say whether what differs is on its way.
    let gateway = stack.gateway().process();
    gateway.freeze().await?;
    bus.publish("user.updated", json!({"user_id": 20, "data": {"more": 1}}))
        .await?;
    forget(&bus, 3).await?;
    let first = scheduler(&main, &stack, "first")?;
    ask(&bus, json!({})).await?;
    eventually(LATER, async || {
        let claim = bus.kv_get("user_checks", "gateway").await?;
        let mark = claim.unwrap_or_default()["progress"]["mark"].clone();
        let there = mark["pass"] == 1 && mark["waiting"] == json!([502]);
        ensure!(there, "not waiting for user 502: {mark}");
        Ok(())
    })
    .await?;
    first.kill9().await;

    // What it is through with it doesn't look at again.
    forget(&bus, 4).await?;
    main.run("INSERT INTO staff VALUES (503, 'late')").await?;
    gateway.signal(Signal::SIGCONT)?;
    bus.until_taken_in().await?;
    let _second = scheduler(&main, &stack, "second")?;
    let report = ended(&bus, "gateway", None).await?;
    ensure!(
        report.stage == Stage::Done && report.users == 40 && report.pending == 1,
        "{report:?}"
    );
    ensure!(
        counts(&report) == [1, 0, 0, 0] && repaired(&report) == 1,
        "{report:?}"
    );
    ensure!(bus.state(502).await?["username"] == "bob", "not mended");
    let next = once(&main, &stack, &[]).await?;
    ensure!(
        counts(&next) == [3, 0, 0, 0] && repaired(&next) == 3,
        "{next:?}"
    );
    Ok(())
}
