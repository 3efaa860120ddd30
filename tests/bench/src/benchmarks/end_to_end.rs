//! From publishing an event to its arrival at an HTTP endpoint, through a real gateway and a real worker, at a
//! load that leaves the machine mostly idle. The limit: a bare loop that pulls the raw events and posts them.

use std::fmt::{self, Display, Formatter};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::message::PublishMessage;
use serde_json::json;
use tokio::time::MissedTickBehavior;
use usersync_core::subjects;

use super::Contest;
use crate::options::Options;
use crate::preload::Publisher;
use crate::report::{Aim, Row, number};
use crate::rig::{Rig, stop};
use crate::sink::{Seen, Sink};
use crate::{states, users};

/// Events per second.
const RATE: u32 = 500;
/// Each is changed once a second, so that no two changes of one become one delivery.
const USERS: u64 = RATE as u64;
/// Where the events of the bare loop go: a stream like USER_EVENTS.
const BARE_EVENTS: &str = "BARE_EVENTS";
const BARE_SUBJECT: &str = "bare.event";
const WARM_UP: Duration = Duration::from_secs(1);
const ARRIVED_WITHIN: Duration = Duration::from_secs(15);

/// The latencies of one turn, in milliseconds.
struct Latency {
    p50: f64,
    p99: f64,
}

impl Display for Latency {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "p50 {} ms, p99 {} ms",
            number(self.p50),
            number(self.p99)
        )
    }
}

pub(super) async fn run(options: &Options, name: &str) -> Result<Vec<Row>> {
    let rig = Rig::start().await?;
    rig.twin(subjects::USER_EVENTS, BARE_EVENTS, BARE_SUBJECT)
        .await?;
    let sink = Sink::start(&rig).await?;
    let url = sink.url("timed");
    let target = rig.target("bench", &url, &json!({})).await?;
    states::fill(&rig, USERS).await?;
    let gateway = rig.gateway()?;
    gateway.until_ready().await?;
    let worker = rig.worker(&target)?;
    worker.until_ready().await?;
    arrived(&sink, USERS).await.context("the back-fill")?;

    let consumer = pull::Config {
        durable_name: Some("bare".to_owned()),
        ..pull::Config::default()
    };
    let posting = ["post", "--url", &url, "--tasks", "64"];
    let _bare = states::bare_loop(&rig, "bare", BARE_EVENTS, &posting).await?;
    rig.fresh_consumer(BARE_EVENTS, consumer).await?;

    let time = options.trickle();
    let ours = async || turn(&rig, &sink, "user.updated", time).await;
    let bare = async || turn(&rig, &sink, BARE_SUBJECT, time).await;
    let contest = Contest::hold(options, name, "pull+POST", ours, bare).await?;
    stop(worker).await?;
    stop(gateway).await?;
    let row = |quantile, figure: fn(&Latency) -> f64, most| {
        let row = contest.row(format!("{name}-{quantile}"), "ms", figure, figure);
        row.aim(Aim::RatioAtMost(most))
    };
    Ok(vec![
        row("p50", |latency| latency.p50, 3.0),
        row("p99", |latency| latency.p99, 5.0),
    ])
}

/// One turn: a short trickle that wakes everything up, then the one that is measured.
async fn turn(rig: &Rig, sink: &Sink, subject: &str, time: Duration) -> Result<Latency> {
    trickle(rig, sink, subject, WARM_UP).await?;
    trickle(rig, sink, subject, time).await
}

/// Publishes [`RATE`] events per second for `time`; all must arrive.
async fn trickle(rig: &Rig, sink: &Sink, subject: &str, time: Duration) -> Result<Latency> {
    let mut publisher = Publisher::new(&rig.jetstream);
    let mut every = tokio::time::interval(Duration::from_secs(1) / RATE);
    every.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let events = time.as_secs() * u64::from(RATE);
    for number in 0..events {
        every.tick().await;
        let event = users::timed_event(number % USERS, users::unix_us())?;
        let message = PublishMessage::build().payload(event);
        publisher.publish(subject.to_owned(), message).await?;
    }
    publisher.finish().await?;
    let mut latencies = arrived(sink, events).await?.latencies_us;
    ensure!(
        latencies.len() as u64 == events,
        "{} of {events} deliveries tell when they were sent",
        latencies.len()
    );
    latencies.sort_unstable();
    let quantile = |q: f64| {
        let rank = (q * latencies.len() as f64).ceil() as usize;
        latencies[rank.saturating_sub(1)] as f64 / 1_000.0
    };
    Ok(Latency {
        p50: quantile(0.5),
        p99: quantile(0.99),
    })
}

/// Waits until so many deliveries have arrived; more or fewer is an error.
async fn arrived(sink: &Sink, deliveries: u64) -> Result<Seen> {
    let end = Instant::now() + ARRIVED_WITHIN;
    let mut all = Seen::default();
    loop {
        let seen = sink.take().await?;
        all.count += seen.count;
        all.latencies_us.extend(seen.latencies_us);
        if all.count >= deliveries || Instant::now() >= end {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(
        all.count == deliveries,
        "{} of {deliveries} deliveries arrived",
        all.count
    );
    Ok(all)
}
