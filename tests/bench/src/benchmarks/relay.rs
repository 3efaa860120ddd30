//! A real gateway publishes a full outbox, while nobody takes the events in: what a bare loop does that selects
//! notes and rows, publishes and marks, the limit. Then the same while it takes them in. Then how long after its commit a change is
//! an event, at a load that leaves the machine mostly idle.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_nats::datetime;
use futures_util::StreamExt as _;
use jiff::Timestamp;
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
const LOOK: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(120);

/// One turn of ours, in rows per second.
#[derive(Clone, Copy)]
struct Relayed {
    alone: f64,
    taking_in: f64,
}

impl std::fmt::Display for Relayed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}, taking in {}",
            Rate(self.alone),
            Rate(self.taking_in)
        )
    }
}

pub(super) async fn run(options: &Options, name: &str, server: Server) -> Result<Vec<Row>> {
    let rig = Rig::start().await?;
    rig.twin(subjects::USER_EVENTS, "BARE_EVENTS", "bare.event")
        .await?;
    let main = MainDb::start(&rig, options.newest, server, USERS).await?;
    main.install_outbox(&rig).await?;
    let rows = options.events();
    let ours = async || {
        // Taking in comes first: without a state, intake begins with nothing but the first event.
        let taking_in = gateway(&rig, &main, rows, true).await?;
        let alone = gateway(&rig, &main, rows, false).await?;
        Ok(Relayed { alone, taking_in })
    };
    let bare = async || {
        change(&main, rows).await?;
        Ok(Rate(rows as f64 / main.bare(&rig, "relay").await?))
    };
    let contest = Contest::hold(options, name, "notes+rows+publish+update", ours, bare).await?;
    let rate = contest.row(name, "rows/s", |ours| ours.alone, |bare| bare.0);
    let taking_in: Vec<f64> = contest.ours.iter().map(|ours| ours.taking_in).collect();
    let mut latencies = latencies(&rig, &main, options.trickle()).await?;
    latencies.sort_by(f64::total_cmp);
    let quantile = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize];
    Ok(vec![
        rate.aim(Aim::AtLeast(20_000.0)).aim(Aim::RatioAtLeast(0.7)),
        Row::of(format!("{name}-taking-in"), "rows/s", &taking_in),
        Row::of(format!("{name}-p50"), "ms", &[quantile(0.5)]).aim(Aim::AtMost(10.0)),
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

/// Rows per second, until all are stored as events and marked.
async fn gateway(rig: &Rig, main: &MainDb, rows: u64, taking_in: bool) -> Result<f64> {
    let stream = rig.stream(subjects::USER_EVENTS).await?;
    stream.purge().await.context("emptying USER_EVENTS")?;
    if taking_in {
        stream.resume_consumer(subjects::INTAKE).await?;
    } else {
        let until = Timestamp::now() + 2 * PATIENCE;
        let until =
            datetime::from_nanos(until.as_nanosecond()).map_err(anyhow::Error::from_boxed)?;
        stream.pause_consumer(subjects::INTAKE, until).await?;
    }
    change(main, rows).await?;
    let gateway = rig.gateway_as_set()?;
    let deadline = Instant::now() + PATIENCE;
    let mut began = Instant::now();
    let mut before = 0;
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
        // Several notes of a user may be one event.
        if stored > 0 && stored == before && main.waiting().await? == 0 {
            break;
        }
        before = stored;
        ensure!(
            Instant::now() < deadline,
            "{stored} of {rows}: {}",
            gateway.process().log_tail()
        );
        tokio::time::sleep(LOOK).await;
    }
    let rate = rows as f64 / began.elapsed().as_secs_f64();
    stop(gateway).await?;
    Ok(rate)
}

/// From the end of each commit to the event's being seen on NATS, in milliseconds.
async fn latencies(rig: &Rig, main: &MainDb, time: Duration) -> Result<Vec<f64>> {
    let stream = rig.stream(subjects::USER_EVENTS).await?;
    // Intake has nothing to catch up with.
    stream.purge().await.context("emptying USER_EVENTS")?;
    stream.resume_consumer(subjects::INTAKE).await?;
    let gateway = rig.gateway_as_set()?;
    gateway.until_ready().await?;
    let mut events = usersync_stack::subscribe(&rig.jetstream.client(), "user.*").await?;
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
