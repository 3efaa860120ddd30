//! A real gateway publishes a full outbox, taking the events in meanwhile. The limit: a bare loop that selects,
//! publishes and marks. Then how long after its commit a change is an event, at a load that leaves the machine
//! mostly idle.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt as _;
use serde_json::Value;
use tokio::time::MissedTickBehavior;
use usersync_core::subjects;

use super::{Contest, Rate};
use crate::main_db::MainDb;
use crate::options::Options;
use crate::report::{Aim, Row};
use crate::rig::{Rig, stop};
use crate::upserts::Server;

const USERS: u64 = 10_000;
/// Changes per second in the second part.
const CHANGES: u32 = 200;
const LOOK: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) async fn run(options: &Options, name: &str, server: Server) -> Result<Vec<Row>> {
    let rig = Rig::start().await?;
    rig.twin(subjects::USER_EVENTS, "BARE_EVENTS", "bare.event")
        .await?;
    let main = MainDb::start(&rig, server, USERS).await?;
    main.install_outbox(&rig).await?;
    let rows = options.events();
    let ours = async || gateway(&rig, &main, rows).await;
    let bare = async || {
        change(&main, rows).await?;
        Ok(Rate(rows as f64 / main.bare(&rig, "relay").await?))
    };
    let contest = Contest::hold(options, name, "select+publish+update", ours, bare).await?;
    let rate = contest.row(name, "rows/s", |rate| rate.0, |rate| rate.0);
    let mut latencies = latencies(&rig, &main, options.trickle()).await?;
    latencies.sort_by(f64::total_cmp);
    let quantile = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize];
    Ok(vec![
        rate.aim(Aim::AtLeast(20_000.0)),
        Row::of(format!("{name}-p50"), "ms", &[quantile(0.5)]).aim(Aim::AtMost(20.0)),
        Row::of(format!("{name}-p99"), "ms", &[quantile(0.99)]),
    ])
}

/// Writes so many rows into the outbox, in transactions of all users.
async fn change(main: &MainDb, rows: u64) -> Result<()> {
    for round in 0..rows / USERS {
        main.run(&format!(
            "UPDATE users SET phone = CONCAT('round ', {round}, ' ', {})",
            nonce()
        ))
        .await?;
    }
    let waiting = main.waiting().await?;
    ensure!(
        u64::try_from(waiting) == Ok(rows),
        "{waiting} rows of {rows} wait"
    );
    Ok(())
}

fn nonce() -> u128 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_nanos())
}

async fn gateway(rig: &Rig, main: &MainDb, rows: u64) -> Result<Rate> {
    let stream = rig.stream(subjects::USER_EVENTS).await?;
    stream.purge().await.context("emptying USER_EVENTS")?;
    change(main, rows).await?;
    let gateway = rig.gateway_as_set()?;
    let deadline = Instant::now() + PATIENCE;
    let mut began = Instant::now();
    loop {
        let stored = rig
            .stream(subjects::USER_EVENTS)
            .await?
            .cached_info()
            .state
            .messages;
        if stored == 0 {
            began = Instant::now();
        }
        if stored >= rows && main.waiting().await? == 0 {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "{stored} of {rows}: {}",
            gateway.process().log_tail()
        );
        tokio::time::sleep(LOOK).await;
    }
    let rate = Rate(rows as f64 / began.elapsed().as_secs_f64());
    stop(gateway).await?;
    Ok(rate)
}

/// From the end of each commit to the event's being seen on NATS, in milliseconds.
async fn latencies(rig: &Rig, main: &MainDb, time: Duration) -> Result<Vec<f64>> {
    let gateway = rig.gateway_as_set()?;
    gateway.until_ready().await?;
    let mut events = rig.jetstream.client().subscribe("user.*").await?;
    let count = time.as_secs() * u64::from(CHANGES);
    let mut every = tokio::time::interval(Duration::from_secs(1) / CHANGES);
    every.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let run = nonce();
    let write = async {
        let mut committed = Vec::new();
        for number in 0..count {
            every.tick().await;
            let user = number % USERS + 1;
            main.run(&format!(
                "UPDATE users SET phone = '{run}-{number}' WHERE id = {user}"
            ))
            .await?;
            committed.push(Instant::now());
        }
        Ok::<_, anyhow::Error>(committed)
    };
    let read = async {
        let mut seen = Vec::new();
        while (seen.len() as u64) < count {
            let next = tokio::time::timeout(PATIENCE, events.next()).await?;
            let event: Value = serde_json::from_slice(&next.context("the end")?.payload)?;
            let phone = event["data"]["phone"].as_str().unwrap_or_default();
            let number = phone.strip_prefix(&format!("{run}-"));
            let number: Option<usize> = number.and_then(|number| number.parse().ok());
            seen.extend(number.map(|number| (number, Instant::now())));
        }
        Ok::<_, anyhow::Error>(seen)
    };
    let (committed, seen) = futures_util::future::try_join(write, read).await?;
    stop(gateway).await?;
    let latency = |(number, seen): (usize, Instant)| {
        seen.saturating_duration_since(committed[number])
            .as_secs_f64()
            * 1e3
    };
    Ok(seen.into_iter().map(latency).collect())
}
