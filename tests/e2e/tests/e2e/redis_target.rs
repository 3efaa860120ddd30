//! The Redis target: `user:<id>`, guarded by version, one bad key never in the way of the others.

use anyhow::{Context as _, Result, ensure};
use redis::{AsyncTypedCommands as _, aio::MultiplexedConnection};
use serde_json::{Value, json};
use usersync_core::subjects::{USER_ALERT, USER_DEAD};
use usersync_stack::{Stack, StackBuilder, eventually};

use crate::support::{Bus, LATER, SOON};

const DAY: i64 = 86_400;

/// Redis as the only target, and quick to try again.
fn redis_only() -> StackBuilder {
    let retry = "[redis-cache]\nretry = { max_deliver = 100, base = \"200ms\", factor = 1.0, cap = \"200ms\" }";
    Stack::builder()
        .examples(false)
        .targets_toml(move |_| retry.to_owned())
}

async fn connect(stack: &Stack) -> Result<MultiplexedConnection> {
    let client = redis::Client::open(stack.redis.url())?;
    Ok(client.get_multiplexed_async_connection().await?)
}

/// The document of a user, null when there is none.
async fn document(redis: &mut MultiplexedConnection, user: u64) -> Result<Value> {
    let text = redis.get(format!("user:{user}")).await?;
    Ok(text.map_or(Ok(Value::Null), |text| serde_json::from_str(&text))?)
}

fn change(user: u64, n: u64) -> Value {
    json!({"user_id": user, "username": format!("name-{user}"), "data": {"n": n}})
}

#[tokio::test]
async fn a_user_is_a_json_document_that_lives_for_a_day() -> Result<()> {
    let stack = redis_only().start().await?;
    let (bus, mut redis) = (Bus::connect(&stack).await?, connect(&stack).await?);
    let event = json!({
        "user_id": 42, "username": "ann", "email": "ann@example.com", "source": "basic-server",
        "timestamp": "2026-01-31T12:00:00Z",
        "data": {"phone": "1", "status": "active", "password_hash": "secret-hash"},
    });
    bus.publish("user.created", event).await?;
    bus.until_settled("redis-cache").await?;

    let version = bus.state(42).await?["version"].clone();
    let expected = json!({
        "version": version, "user_id": 42, "username": "ann", "email": "ann@example.com",
        "status": "active", "data": {"phone": "1", "status": "active"},
        "timestamp": "2026-01-31T12:00:00Z", "source": "basic-server",
    });
    assert_eq!(document(&mut redis, 42).await?, expected);
    let ttl: i64 = redis::cmd("TTL")
        .arg("user:42")
        .query_async(&mut redis)
        .await?;
    assert!((DAY - 60..=DAY).contains(&ttl), "{ttl}");
    Ok(())
}

#[tokio::test]
async fn a_deleted_user_is_gone_and_an_older_state_does_not_bring_it_back() -> Result<()> {
    let stack = redis_only().start().await?;
    let (bus, mut redis) = (Bus::connect(&stack).await?, connect(&stack).await?);
    bus.publish("user.created", change(7, 1)).await?;
    let older = bus.state_after_intake(7).await?;
    bus.until_settled("redis-cache").await?;
    assert_eq!(document(&mut redis, 7).await?["data"]["n"], 1);

    bus.publish("user.deleted", json!({"user_id": 7})).await?;
    bus.until_settled("redis-cache").await?;
    assert_eq!(document(&mut redis, 7).await?, Value::Null);

    bus.put_state(&older).await?;
    bus.until_settled("redis-cache").await?;
    assert_eq!(document(&mut redis, 7).await?, Value::Null);
    let metrics = stack.worker_metrics("redis-cache").await?;
    let refused = metrics.sum("usersync_deliveries_total", &[("outcome", "already_newer")]);
    assert_eq!(refused, 1.0, "it was tried");
    Ok(())
}

#[tokio::test]
async fn a_deleted_user_can_be_created_again() -> Result<()> {
    let stack = redis_only().start().await?;
    let (bus, mut redis) = (Bus::connect(&stack).await?, connect(&stack).await?);
    for (kind, n) in [
        ("user.created", 1),
        ("user.deleted", 0),
        ("user.created", 2),
    ] {
        bus.publish(kind, change(7, n)).await?;
        bus.until_settled("redis-cache").await?;
    }
    assert_eq!(document(&mut redis, 7).await?["data"]["n"], 2);
    bus.publish("user.updated", change(7, 3)).await?;
    bus.until_settled("redis-cache").await?;
    assert_eq!(document(&mut redis, 7).await?["data"]["n"], 3);
    Ok(())
}

#[tokio::test]
async fn an_older_version_never_replaces_a_newer_one() -> Result<()> {
    let stack = redis_only().start().await?;
    let (bus, mut redis) = (Bus::connect(&stack).await?, connect(&stack).await?);
    bus.publish("user.created", change(7, 1)).await?;
    let older = bus.state_after_intake(7).await?;
    bus.publish("user.updated", change(7, 2)).await?;
    let newer = bus.state_after_intake(7).await?;
    bus.until_settled("redis-cache").await?;

    bus.put_state(&older).await?;
    bus.until_settled("redis-cache").await?;
    let held = document(&mut redis, 7).await?;
    assert_eq!(
        (&held["data"]["n"], &held["version"]),
        (&json!(2), &newer["version"])
    );
    Ok(())
}

#[tokio::test]
async fn a_repair_restores_a_tampered_and_a_missing_key() -> Result<()> {
    let stack = redis_only().start().await?;
    let (bus, mut redis) = (Bus::connect(&stack).await?, connect(&stack).await?);
    bus.publish_all([
        ("user.created", change(7, 1)),
        ("user.created", change(8, 1)),
    ])
    .await?;
    bus.until_settled("redis-cache").await?;
    let (whole, other) = (
        document(&mut redis, 7).await?,
        document(&mut redis, 8).await?,
    );

    // The same version with other content: an equal version must be taken.
    let mut tampered = redis.get("user:7").await?.unwrap();
    tampered = tampered.replace("name-7", "mallory");
    redis.set("user:7", &tampered).await?;
    redis.del("user:8").await?;
    assert_eq!(document(&mut redis, 7).await?["username"], "mallory");
    bus.repair("redis-cache", 7).await?;
    bus.repair("redis-cache", 8).await?;
    bus.until_settled("redis-cache").await?;
    assert_eq!(document(&mut redis, 7).await?, whole);
    assert_eq!(document(&mut redis, 8).await?, other);
    Ok(())
}

#[tokio::test]
async fn a_key_of_the_wrong_type_stops_nobody_else() -> Result<()> {
    let mut stack = redis_only().workers("redis-cache", 0).start().await?;
    let (bus, mut redis) = (Bus::connect(&stack).await?, connect(&stack).await?);
    redis.lpush("user:7", "not a document").await?;
    // All of them wait when the worker starts, so they share a batch.
    bus.publish_all((1..=100).map(|user| ("user.created", change(user, 1))))
        .await?;
    bus.until_taken_in().await?;
    stack.add_worker("redis-cache").await?;
    bus.until_settled("redis-cache").await?;

    for user in (1..=100).filter(|user| *user != 7) {
        assert_eq!(
            document(&mut redis, user).await?["data"]["n"],
            1,
            "user {user}"
        );
    }
    assert_eq!(bus.count(USER_DEAD).await?, 1);
    let letter = bus.dead_letter("redis-cache", 7).await?.unwrap();
    assert_eq!(letter.header("Usersync-Class"), "permanent");
    let reason = letter.header("Usersync-Reason");
    assert!(reason.contains("WRONGTYPE"), "{reason:?}");
    assert_eq!(redis.llen("user:7").await?, 1, "what was there stays");
    Ok(())
}

#[tokio::test]
async fn delivery_goes_on_after_redis_was_killed() -> Result<()> {
    let mut stack = redis_only().start().await?;
    let bus = Bus::connect(&stack).await?;
    let all = |kind, n| (1..=50).map(move |user| (kind, change(user, n)));
    bus.publish_all(all("user.created", 1)).await?;
    bus.until_settled("redis-cache").await?;

    stack.redis.kill9().await;
    bus.publish_all(all("user.updated", 2)).await?;
    eventually(SOON, async || {
        let metrics = stack.worker_metrics("redis-cache").await?;
        let retried = metrics.sum("usersync_deliveries_total", &[("outcome", "retried")]);
        ensure!(retried > 0.0, "the worker hasn't noticed");
        Ok(())
    })
    .await?;
    stack.redis.restart().await?;

    bus.until_settled("redis-cache").await?;
    let mut redis = connect(&stack).await?;
    for user in 1..=50 {
        assert_eq!(
            document(&mut redis, user).await?["data"]["n"],
            2,
            "user {user}"
        );
    }
    assert_eq!(bus.count(USER_DEAD).await?, 0);
    Ok(())
}

/// The documents of all users are there.
async fn until_filled(stack: &Stack, users: u64) -> Result<()> {
    eventually(LATER, async || {
        let mut redis = connect(stack).await?;
        for user in 1..=users {
            let held = document(&mut redis, user).await?;
            ensure!(held["data"]["n"] == 1, "user {user}: {held}");
        }
        Ok(())
    })
    .await
}

/// The sequence of the newest alert that it is filled again, 0 for none.
async fn last_refill(bus: &Bus) -> Result<u64> {
    let alerts = bus.jetstream().get_stream(USER_ALERT).await?;
    let last = alerts.get_last_raw_message_by_subject("user.alert.refill.redis-cache");
    Ok(last.await.map_or(0, |alert| alert.sequence))
}

/// Waits for an alert after `before`; answers its sequence.
async fn until_told(bus: &Bus, before: u64) -> Result<u64> {
    eventually(SOON, async || {
        let last = last_refill(bus).await?;
        ensure!(last > before, "nobody was told");
        Ok(last)
    })
    .await
}

#[tokio::test]
async fn a_cache_that_has_lost_its_data_is_filled_again() -> Result<()> {
    const USERS: u64 = 200;
    let entry = "[redis-cache]\nrefill = true";
    let stack = Stack::builder().examples(false).workers("redis-cache", 2);
    let mut stack = stack
        .targets_toml(move |_| entry.to_owned())
        .start()
        .await?;
    let (bus, mut redis) = (Bus::connect(&stack).await?, connect(&stack).await?);
    bus.publish_all((1..=USERS).map(|user| ("user.created", change(user, 1))))
        .await?;
    bus.until_settled("redis-cache").await?;
    until_filled(&stack, USERS).await?;
    // A gateway has taken note of the first mark.
    eventually(SOON, async || {
        ensure!(
            bus.kv_get("user_epochs", "refill=redis-cache")
                .await?
                .is_some()
        );
        Ok(())
    })
    .await?;

    let () = redis::cmd("FLUSHALL").query_async(&mut redis).await?;
    until_filled(&stack, USERS).await?;
    let first = until_told(&bus, 0).await?;

    // While nobody serves the target.
    for worker in stack.workers.get_mut("redis-cache").context("no worker")? {
        worker.kill9().await;
    }
    let () = redis::cmd("FLUSHALL").query_async(&mut redis).await?;
    stack.workers.get_mut("redis-cache").context("no worker")?[0]
        .restart()
        .await?;
    until_filled(&stack, USERS).await?;
    let second = until_told(&bus, first).await?;

    // A worker that begins again, and one that reads another's mark, lose nothing.
    stack.workers.get_mut("redis-cache").context("no worker")?[1]
        .restart()
        .await?;
    stack.gateways[0].stop(SOON).await?;
    stack.gateways[0].restart().await?;
    let made = bus.kv_get("user_epochs", "refill=redis-cache").await?;
    let seen = async || {
        let mark = bus.kv_get("user_workers", "=refill.redis-cache").await?;
        let mark = mark.context("no mark")?;
        anyhow::Ok((
            mark["made"] == made.clone().unwrap_or_default(),
            mark["count"].as_u64().unwrap_or(0),
        ))
    };
    let (_, before) = seen().await?;
    eventually(SOON, async || {
        let (same, count) = seen().await?;
        ensure!(same && count > before + 4, "{same}, {count} after {before}");
        Ok(())
    })
    .await?;
    ensure!(last_refill(&bus).await? == second, "filled for nothing");
    Ok(())
}
