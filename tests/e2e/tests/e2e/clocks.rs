//! Clocks that are an hour off: order is stream order, so nothing but the times in logs is wrong; and who signs with
//! such a clock is told so, and loses nothing.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use usersync_core::subjects::USER_DEAD;
use usersync_stack::{Stack, eventually};

use crate::support::{Bus, Recorder, SOON, answer, only};

const USERS: u64 = 50;

/// Publishes change number `n` of every user, by HTTP and by NATS in turns.
async fn change(stack: &Stack, bus: &Bus, n: u64) -> Result<()> {
    let kind = if n == 0 {
        "user.created"
    } else {
        "user.updated"
    };
    for user in 1..=USERS {
        let event = json!({"user_id": user, "data": {"n": n}});
        if user % 2 == 0 {
            bus.publish(kind, event).await?;
            continue;
        }
        let mut event = event;
        event["type"] = json!(kind);
        let url = format!("{}/v1/events", stack.gateway().url());
        let sent = usersync_stack::http::client().post(&url).json(&event);
        let status = sent.send().await?.status();
        ensure!(status == 202, "{url}: {status}");
    }
    Ok(())
}

/// Every user has change `n`, and never went back on the way there.
fn all_have(recorder: &Recorder, n: u64) -> Result<()> {
    for user in 1..=USERS {
        let calls = recorder.calls_for(user);
        let last = calls.last().context("nothing delivered")?;
        ensure!(
            last.n() == n,
            "user {user} has change {} instead of {n}",
            last.n()
        );
        for pair in calls.windows(2) {
            let (before, after) = (pair[0].version(), pair[1].version());
            ensure!(
                before < after,
                "user {user}: version {after} after {before}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn clocks_an_hour_off_change_neither_order_nor_outcome() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(204)).await?;
    let mut stack = only(recorder.target("audit", ""))
        .clock("usersync-gateway", "+1h")
        .clock("usersync-worker", "-1h")
        .workers("audit", 1)
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    change(&stack, &bus, 0).await?;
    change(&stack, &bus, 1).await?;
    bus.until_settled("audit").await?;
    all_have(&recorder, 1)?;

    // Both clocks are set, the wrong way.
    stack.set_clock("usersync-gateway", "-1h");
    stack.set_clock("usersync-worker", "+1h");
    stack.gateways.clear();
    stack.workers.clear();
    stack.add_gateway().await?;
    stack.add_worker("audit").await?;
    change(&stack, &bus, 2).await?;
    change(&stack, &bus, 3).await?;
    bus.until_settled("audit").await?;
    all_have(&recorder, 3)?;
    assert_eq!(bus.count(USER_DEAD).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_signer_with_a_wrong_clock_is_told_so_and_loses_nothing() -> Result<()> {
    for offset in ["-1h", "+1h"] {
        let mut stack = Stack::builder()
            .clock("usersync-worker", offset)
            .workers("user-service", 1)
            .start()
            .await?;
        let bus = Bus::connect(&stack).await?;
        for user in 1..=20 {
            let event = json!({"user_id": user, "username": format!("user-{user}"), "email": format!("{user}@example.com")});
            bus.publish("user.created", event).await?;
        }
        eventually(SOON, async || {
            let metrics = stack.worker_metrics("user-service").await?;
            let state = metrics.sum("usersync_breaker_state", &[("target", "user-service")]);
            ensure!(state >= 1.0, "the breaker is closed");
            let log = stack.workers["user-service"][0].process().log_tail();
            ensure!(log.contains("401"), "{log}");
            Ok(())
        })
        .await?;

        stack.set_clock("usersync-worker", "+0");
        stack.workers.clear();
        stack.add_worker("user-service").await?;
        bus.until_settled("user-service").await?;
        let client = usersync_stack::http::client();
        for user in 1..=20 {
            let url = format!(
                "{}/api/v1/users/{user}",
                stack.examples["user-service"].url()
            );
            let status = client.get(&url).send().await?.status();
            ensure!(status == 200, "{url}: {status}");
        }
        assert_eq!(bus.count(USER_DEAD).await?, 0, "{offset}");
    }
    Ok(())
}
