//! Checks come by themselves, one scheduler does each, and a crash loses none.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use redis::AsyncTypedCommands as _;
use serde_json::json;
use usersync_core::check::Stage;
use usersync_stack::{Stack, eventually};

use super::{check, counts, created, ended};
use crate::support::{Bus, LATER};

/// Redis as the only target, checked as `check` says.
pub(super) async fn redis_checked(check: &str, schedulers: usize) -> Result<(Stack, Bus)> {
    let entry = format!("[redis-cache]\ncheck = {check}\n");
    let stack = Stack::builder()
        .examples(false)
        .targets_toml(move |_| entry)
        .schedulers(schedulers)
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    Ok((stack, bus))
}

#[tokio::test]
async fn checks_come_by_themselves_and_each_is_done_once() -> Result<()> {
    let (stack, bus) = redis_checked("{ every = \"10s\" }", 2).await?;
    bus.publish_all((1..=100).map(created)).await?;
    bus.until_settled("redis-cache").await?;
    let first = ended(&bus, "redis-cache", None).await?;
    let second = ended(&bus, "redis-cache", Some(first.started)).await?;
    ensure!(
        second.stage == Stage::Done && second.users == 100,
        "{second:?}"
    );
    let apart = second.started.duration_since(first.started).as_secs_f64();
    ensure!((8.0..14.0).contains(&apart), "{apart} s apart");
    let metrics = stack.scheduler_metrics().await?;
    let done = metrics.sum("usersync_checks_total", &[("target", "redis-cache")]);
    ensure!(
        (2.0..=4.0).contains(&done),
        "{done} checks were done, by both together"
    );
    Ok(())
}

#[tokio::test]
async fn a_schedule_follows_the_entry() -> Result<()> {
    let (_stack, bus) = redis_checked("{ every = \"1h\" }", 1).await?;
    let schedule = async || {
        let stream = bus.jetstream().get_stream_no_info("USER_CHECK").await?;
        let found = stream
            .get_last_raw_message_by_subject("user.check.schedule.redis-cache")
            .await;
        let header = |message: async_nats::jetstream::message::StreamMessage| {
            let schedule = message.headers.get("Nats-Schedule")?;
            Some(schedule.as_str().to_owned())
        };
        anyhow::Ok(found.ok().and_then(header))
    };
    let becomes = async |expected: Option<&str>| {
        eventually(LATER, async || {
            let found = schedule().await?;
            ensure!(found.as_deref() == expected, "{found:?}");
            Ok(())
        })
        .await
    };
    becomes(Some("@every 3600s")).await?;
    let entry = bus.kv_get("user_targets", "redis-cache").await?;
    let mut entry = entry.context("no entry")?;
    entry["check"] = json!({"cron": "0 0 3 * * *"});
    bus.kv_put("user_targets", "redis-cache", &entry.to_string())
        .await?;
    becomes(Some("0 0 3 * * *")).await?;
    entry["enabled"] = json!(false);
    bus.kv_put("user_targets", "redis-cache", &entry.to_string())
        .await?;
    becomes(None).await
}

#[tokio::test]
async fn versions_from_the_future_are_overruled_and_those_that_cannot_be_are_overwritten()
-> Result<()> {
    let (stack, bus) = redis_checked("{ every = \"0s\" }", 1).await?;
    bus.publish_all((1..=3).map(created)).await?;
    bus.until_settled("redis-cache").await?;
    let client = redis::Client::open(stack.redis.url())?;
    let mut redis = client.get_multiplexed_async_connection().await?;
    // Of a clock that was an hour ahead, and of nobody's clock.
    let hour = jiff::Timestamp::now().as_microsecond() + 3_600_000_000;
    for (user, version) in [(1, hour), (2, (1 << 53) - 1)] {
        let document =
            format!("{{\"version\":{version},\"user_id\":{user},\"username\":\"mallory\"}}");
        redis.set(format!("user:{user}"), document).await?;
    }
    let report = check(&bus, "redis-cache", json!({})).await?;
    ensure!(counts(&report) == [0, 0, 2, 0], "{report:?}");
    let found = report.found.values().next().context("nothing found")?;
    ensure!((found.repaired, found.unrepairable) == (2, 0), "{report:?}");
    bus.until_settled("redis-cache").await?;
    for user in [1, 2] {
        let document = redis.get(format!("user:{user}")).await?.unwrap_or_default();
        ensure!(document.contains(&format!("name-{user}")), "{document}");
    }
    ensure!(
        bus.state(1).await?["version"].as_i64() > Some(hour),
        "it is above"
    );
    ensure!(
        bus.state(2).await?["version"].as_i64() < Some(hour),
        "it was never adopted"
    );
    let again = check(&bus, "redis-cache", json!({})).await?;
    ensure!(counts(&again) == [0; 4], "{again:?}");
    Ok(())
}

#[tokio::test]
async fn a_check_that_lost_its_scheduler_is_done_by_another() -> Result<()> {
    let (mut stack, bus) = redis_checked("{ every = \"0s\" }", 1).await?;
    bus.publish_all((1..=100).map(created)).await?;
    bus.until_settled("redis-cache").await?;
    let client = redis::Client::open(stack.redis.url())?;
    let mut redis = client.get_multiplexed_async_connection().await?;
    redis.set("user:7", "{\"version\":1}").await?;
    // Held, so that it is surely under way when its scheduler dies.
    bus.kv_put("user_checks", "pause.redis-cache", "").await?;
    let subject = "user.check.redis-cache".to_owned();
    bus.jetstream().publish(subject, "".into()).await?.await?;
    eventually(LATER, async || {
        let claim = bus.kv_get("user_checks", "redis-cache").await?;
        ensure!(claim.is_some(), "not begun");
        Ok(())
    })
    .await?;
    stack.schedulers[0].process().kill9().await;
    bus.kv_delete("user_checks", "pause.redis-cache").await?;
    stack.add_scheduler().await?;
    let report = ended(&bus, "redis-cache", None).await?;
    ensure!(counts(&report) == [0, 1, 0, 0], "{report:?}");
    bus.until_settled("redis-cache").await?;
    let document = redis.get("user:7").await?.unwrap_or_default();
    ensure!(document.contains("name-7"), "{document}");
    Ok(())
}

#[tokio::test]
async fn what_is_on_its_way_is_no_drift() -> Result<()> {
    let (mut stack, bus) = redis_checked("{ every = \"0s\", wait = \"1s\" }", 1).await?;
    bus.publish_all((1..=100).map(created)).await?;
    bus.until_settled("redis-cache").await?;
    for worker in stack.workers.remove("redis-cache").context("no worker")? {
        worker.stop(Duration::from_secs(10)).await?;
    }
    let updates =
        (1..=100).map(|user| ("user.updated", json!({"user_id": user, "data": {"n": 2}})));
    bus.publish_all(updates).await?;
    bus.until_taken_in().await?;
    let report = check(&bus, "redis-cache", json!({})).await?;
    ensure!(report.drifted() == 0 && report.pending == 100, "{report:?}");
    // Of one user, or a range, as well.
    let one = check(&bus, "redis-cache", json!({"user_id": 42})).await?;
    ensure!(one.drifted() == 0 && one.pending == 1, "{one:?}");
    stack.add_worker("redis-cache").await?;
    bus.until_settled("redis-cache").await?;
    let range = check(&bus, "redis-cache", json!({"from": 1, "to": 50})).await?;
    ensure!(range.drifted() == 0 && range.pending == 0, "{range:?}");
    Ok(())
}

/// How long the test of false alarms writes: `USERSYNC_LONG=1` makes it ten minutes.
fn writing() -> Duration {
    match std::env::var_os("USERSYNC_LONG") {
        Some(_) => Duration::from_secs(600),
        None => Duration::from_secs(60),
    }
}

#[tokio::test]
async fn nothing_is_reported_while_500_users_a_second_change_and_come_5_seconds_late() -> Result<()>
{
    let late = "linger = \"5s\"\nbatch = 1000\ncheck = { every = \"0s\", wait = \"30s\" }";
    no_false_alarm(late, writing()).await
}

#[tokio::test]
async fn nothing_is_reported_while_users_come_and_go_as_fast_as_they_are_delivered() -> Result<()> {
    let prompt = "check = { every = \"0s\", wait = \"5s\", load = 1.0 }";
    no_false_alarm(prompt, writing() / 3).await
}

/// Checks Redis with these keys in its entry again and again while users change, for that long.
async fn no_false_alarm(entry: &str, length: Duration) -> Result<()> {
    let entry = format!("[redis-cache]\n{entry}\n");
    let stack = Stack::builder()
        .examples(false)
        .targets_toml(|_| entry)
        .schedulers(1)
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish_all((1..=2_000).map(created)).await?;
    bus.until_settled("redis-cache").await?;
    let end = Instant::now() + length;
    let writes = async {
        let mut every = tokio::time::interval(Duration::from_millis(20));
        let mut written = 0_u64;
        while Instant::now() < end {
            every.tick().await;
            let changes = (0..10).map(|at| {
                let user = 1 + (written + at) * 7 % 2_000;
                match (written + at) % 10 {
                    0 => ("user.deleted", json!({"user_id": user})),
                    1..=3 => created(user),
                    _ => (
                        "user.updated",
                        json!({"user_id": user, "data": {"n": written}}),
                    ),
                }
            });
            bus.publish_all(changes).await?;
            written += 10;
        }
        anyhow::Ok(written)
    };
    let checks = async {
        let mut checks = 0;
        while Instant::now() < end {
            let report = check(&bus, "redis-cache", json!({})).await?;
            ensure!(
                report.stage == Stage::Done && report.drifted() == 0,
                "{report:?}"
            );
            checks += 1;
        }
        anyhow::Ok(checks)
    };
    let (written, checks) = tokio::try_join!(writes, checks)?;
    ensure!(written >= 400 * length.as_secs(), "only {written} writes");
    ensure!(checks > 1, "{checks} checks");
    // And what is changed behind its back is still found.
    bus.until_settled("redis-cache").await?;
    let client = redis::Client::open(stack.redis.url())?;
    let mut redis = client.get_multiplexed_async_connection().await?;
    bus.publish_all([created(7)]).await?;
    bus.until_settled("redis-cache").await?;
    redis.set("user:7", "{\"version\":1}").await?;
    let report = check(&bus, "redis-cache", json!({})).await?;
    ensure!(counts(&report) == [0, 1, 0, 0], "{report:?}");
    Ok(())
}
