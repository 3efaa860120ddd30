//! Several schedulers with many targets: each check is done by one of them, none twice, and none is lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use async_nats::{Subscriber, jetstream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use redis::AsyncTypedCommands as _;
use serde_json::json;
use tokio::time::{interval, timeout};
use usersync_core::{
    check::{Report, Stage},
    subjects::{CHECKER, USER_CHECK},
};
use usersync_stack::{Stack, eventually};

use super::{counts, created, queue::redis_checked};
use crate::support::{Bus, LATER};

/// As many targets as three schedulers can't do at once, each a database of one Redis server.
const TARGETS: u64 = 8;
const SCHEDULERS: usize = 3;
const USERS: u64 = 500;
/// Users whom nobody changes meanwhile.
const QUIET: u64 = 50;

fn names() -> BTreeSet<String> {
    (0..TARGETS).map(|at| format!("cache-{at}")).collect()
}

/// Targets that are checked as `check` says, and hold everybody.
async fn filled(check: &str) -> Result<(Stack, Bus)> {
    let check = check.to_owned();
    let stack = Stack::builder()
        .examples(false)
        .targets_toml(move |endpoints| {
            let port = endpoints.redis;
            let entry =
                |at| format!("[cache-{at}]\nurl = \"redis://127.0.0.1:{port}/{at}\"\n{check}\n");
            (0..TARGETS).map(entry).collect::<String>() + "[redis-cache]\nenabled = false\n"
        })
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish_all((1..=USERS).map(created)).await?;
    for name in names() {
        bus.until_settled(&name).await?;
    }
    Ok((stack, bus))
}

/// Changes users, 200 a second, for as long as it is polled.
async fn load(bus: &Bus) -> Result<()> {
    let mut every = interval(Duration::from_millis(50));
    for n in 0_u64.. {
        every.tick().await;
        let changes = (0..10).map(|_| {
            let user = fastrand::u64(QUIET + 1..=USERS);
            ("user.updated", json!({"user_id": user, "data": {"n": n}}))
        });
        bus.publish_all(changes).await?;
    }
    Ok(())
}

/// What becomes of `work` while users change.
async fn under_load<T>(bus: &Bus, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        done = work => done,
        ended = load(bus) => anyhow::bail!("nobody changes users any more: {ended:?}"),
    }
}

/// The reports of all checks from now on.
async fn reports(bus: &Bus) -> Result<Subscriber> {
    usersync_stack::subscribe(&bus.jetstream().client(), "user.check.result.*").await
}

/// The next report of a check that has ended.
async fn next(reports: &mut Subscriber) -> Result<Report> {
    loop {
        let message = timeout(LATER, reports.next()).await.context("no report")?;
        let report: Report = serde_json::from_slice(&message.context("the end")?.payload)?;
        if report.stage != Stage::Running {
            ensure!(report.stage == Stage::Done, "{report:?}");
            return Ok(report);
        }
    }
}

async fn ask(bus: &Bus, target: &str) -> Result<()> {
    let asked = bus
        .jetstream()
        .publish(format!("user.check.{target}"), "".into());
    asked.await?.await?;
    Ok(())
}

/// How many checks are under way, by the scheduler that does them.
async fn claims(bus: &Bus) -> Result<BTreeMap<String, usize>> {
    let bucket = bus.jetstream().get_key_value("user_checks").await?;
    let keys: Vec<String> = bucket.keys().await?.try_collect().await?;
    let mut claims = BTreeMap::new();
    let of_a_check = |key: &&String| !key.starts_with("pause") && !key.starts_with('=');
    for key in keys.iter().filter(of_a_check) {
        let claim = bus.kv_get("user_checks", key).await?.unwrap_or_default();
        let scheduler = claim["scheduler"].as_str().unwrap_or_default();
        *claims.entry(scheduler.to_owned()).or_default() += 1;
    }
    Ok(claims)
}

/// Waits until nothing is asked for or under way any more.
async fn until_idle(bus: &Bus) -> Result<()> {
    eventually(LATER, async || {
        let stream: jetstream::stream::Stream<()> =
            bus.jetstream().get_stream_no_info(USER_CHECK).await?;
        let info = stream.consumer_info(CHECKER).await?;
        let (waiting, in_hand) = (info.num_pending, info.num_ack_pending);
        ensure!(
            waiting == 0 && in_hand == 0,
            "{waiting} wait, {in_hand} in hand"
        );
        let claims = claims(bus).await?;
        ensure!(claims.is_empty(), "{claims:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn checks_that_are_due_at_once_are_each_done_by_one() -> Result<()> {
    let check = "check = { cron = \"*/10 * * * * *\", wait = \"1s\", load = 1.0 }";
    let (mut stack, bus) = filled(check).await?;
    let mut reports = reports(&bus).await?;
    for _ in 0..SCHEDULERS {
        stack.add_scheduler().await?;
    }
    // Three times each, by the number of the tick.
    let mut ticks: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    let mut count = 0;
    let three = async {
        while ticks.len() < names().len() || ticks.values().any(|ticks| ticks.len() < 3) {
            let report = next(&mut reports).await?;
            ensure!(report.drifted() == 0, "{report:?}");
            let tick = report.started.as_second() / 10;
            ticks.entry(report.target).or_default().push(tick);
            count += 1;
        }
        Ok(())
    };
    under_load(&bus, three).await?;
    for (target, ticks) in &ticks {
        let each_once = ticks.windows(2).all(|two| two[1] == two[0] + 1);
        ensure!(each_once, "{target} was checked at {ticks:?}");
    }
    let mut done = Vec::new();
    for scheduler in &stack.schedulers {
        let metrics = scheduler.metrics().await?;
        done.push(metrics.sum("usersync_checks_total", &[]));
    }
    ensure!(
        done.iter().all(|done| *done > 0.0),
        "done by each: {done:?}"
    );
    // The last tick may have gone on meanwhile.
    let all = done.iter().sum::<f64>() as usize;
    ensure!(
        (count..=count + names().len()).contains(&all),
        "{all} checks, {count} reports"
    );
    Ok(())
}

#[tokio::test]
async fn none_is_lost_or_done_twice_when_a_scheduler_dies() -> Result<()> {
    let check = "check = { every = \"0s\", wait = \"5s\", load = 1.0 }";
    let (mut stack, bus) = filled(check).await?;
    for _ in 0..SCHEDULERS {
        stack.add_scheduler().await?;
    }
    for at in 0..TARGETS {
        let client = redis::Client::open(format!("{}/{at}", stack.redis.url()))?;
        let mut redis = client.get_multiplexed_async_connection().await?;
        redis.set("user:7", "{\"version\":1}").await?;
    }
    let mut reports = reports(&bus).await?;
    // Held, so that every scheduler has its hands full when one of them dies.
    bus.kv_put("user_checks", "pause", "").await?;
    for name in names() {
        ask(&bus, &name).await?;
    }
    eventually(LATER, async || {
        let claims = claims(&bus).await?;
        let full = claims.len() == SCHEDULERS && claims.values().all(|count| *count == 2);
        ensure!(full, "{claims:?}");
        Ok(())
    })
    .await?;
    stack.schedulers[0].process().kill9().await;
    bus.kv_delete("user_checks", "pause").await?;

    let mut done = BTreeSet::new();
    let every_target = async {
        while done != names() {
            let report = next(&mut reports).await?;
            ensure!(counts(&report) == [0, 1, 0, 0], "{report:?}");
            ensure!(done.insert(report.target.clone()), "once more: {report:?}");
        }
        until_idle(&bus).await
    };
    under_load(&bus, every_target).await?;
    let more = timeout(Duration::ZERO, next(&mut reports)).await;
    ensure!(more.is_err(), "once more: {more:?}");
    Ok(())
}

#[tokio::test]
async fn a_second_request_waits_for_the_end_of_the_first() -> Result<()> {
    for schedulers in [1, SCHEDULERS] {
        let (_stack, bus) = redis_checked("{ every = \"0s\" }", schedulers).await?;
        let mut reports = reports(&bus).await?;
        bus.kv_put("user_checks", "pause", "").await?;
        for asked in 1..=2 {
            ask(&bus, "redis-cache").await?;
            eventually(LATER, async || {
                let handed_out = bus.handed_out(USER_CHECK, CHECKER).await?;
                ensure!(handed_out >= asked && claims(&bus).await?.len() == 1);
                Ok(())
            })
            .await?;
        }
        bus.kv_delete("user_checks", "pause").await?;
        let (first, second) = (next(&mut reports).await?, next(&mut reports).await?);
        let since = second.started.duration_since(first.started).as_secs_f64();
        ensure!(since >= first.seconds, "{first:?} and {second:?} at once");
        until_idle(&bus).await?;
    }
    Ok(())
}
