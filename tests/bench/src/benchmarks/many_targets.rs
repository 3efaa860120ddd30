//! One worker, 100 targets, of which one hangs and one is down; the limit is the same worker with all of them well.

use std::fmt::{self, Display, Formatter};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use async_nats::jetstream::message::PublishMessage;
use serde_json::json;
use tokio::time::MissedTickBehavior;
use usersync_core::{streams, subjects, user_id::UserId};
use usersync_stack::{Service, free_port};

use super::Contest;
use crate::options::Options;
use crate::preload::Publisher;
use crate::report::{Aim, Row, number};
use crate::rig::{Rig, stop};
use crate::sink::Sink;
use crate::{usage, users};

/// Targets that are well in every turn.
const WELL: usize = 98;
/// States per second; each goes to every target.
const RATE: u32 = 10;
const USERS: u64 = 200;
const ARRIVED_WITHIN: Duration = Duration::from_secs(20);

/// The latency of the targets that are well, and what the worker takes.
struct Seen {
    p99: f64,
    rss_mb: f64,
}

impl Display for Seen {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "p99 {} ms, {} MB", number(self.p99), number(self.rss_mb))
    }
}

pub(super) async fn run(options: &Options, name: &str) -> Result<Vec<Row>> {
    let rig = Rig::start().await?;
    let sink = Sink::start(&rig).await?;
    for number in 0..WELL {
        register(&rig, &format!("well-{number}"), &sink.url("timed")).await?;
    }
    let down = format!("http://127.0.0.1:{}/", free_port()?);
    let (hung, well) = (sink.url("hung"), sink.url("guarded"));
    register(&rig, "hung", &well).await?;
    register(&rig, "down", &well).await?;
    let worker = rig.worker_of_all()?;
    worker.until_ready().await?;
    let turn = async |[one, other]: [&String; 2]| {
        register(&rig, "hung", one).await?;
        register(&rig, "down", other).await?;
        // The changed entries are followed, and the changed targets found out about.
        trickle(&rig, &sink, &worker, Duration::from_secs(2)).await?;
        trickle(&rig, &sink, &worker, options.trickle()).await
    };
    let sick = async || turn([&hung, &down]).await;
    let contest = Contest::hold(options, name, "all well", sick, async || {
        turn([&well, &well]).await
    });
    let contest = contest.await?;
    stop(worker).await?;
    let p99 = contest.row(
        format!("{name}-p99"),
        "ms",
        |seen| seen.p99,
        |seen| seen.p99,
    );
    let rss = contest.row(
        format!("{name}-rss"),
        "MB",
        |seen| seen.rss_mb,
        |seen| seen.rss_mb,
    );
    Ok(vec![
        p99.aim(Aim::RatioAtMost(1.5)),
        rss.aim(Aim::AtMost(128.0)),
    ])
}

async fn register(rig: &Rig, name: &str, url: &str) -> Result<()> {
    let target = rig.target(name, url, &json!({ "timeout": "5s" })).await?;
    streams::ensure_target_consumers(&rig.jetstream, &target).await
}

/// Stores [`RATE`] states per second for `time`; all must arrive at the targets that are well.
async fn trickle(rig: &Rig, sink: &Sink, worker: &Service, time: Duration) -> Result<Seen> {
    sink.take().await?;
    let mut publisher = Publisher::new(&rig.jetstream);
    let mut every = tokio::time::interval(Duration::from_secs(1) / RATE);
    every.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let states = time.as_secs() * u64::from(RATE);
    for number in 0..states {
        every.tick().await;
        let user = number % USERS;
        let state = users::timed_state(user, users::unix_us())?;
        let message = PublishMessage::build().payload(state);
        let subject = subjects::state(&UserId::from(user));
        publisher.publish(subject, message).await?;
    }
    publisher.finish().await?;
    let wanted = states as usize * WELL;
    let end = Instant::now() + ARRIVED_WITHIN;
    let mut latencies = Vec::new();
    while latencies.len() < wanted && Instant::now() < end {
        latencies.extend(sink.take().await?.latencies_us);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(
        latencies.len() == wanted,
        "{} of {wanted} deliveries arrived at the targets that are well",
        latencies.len()
    );
    latencies.sort_unstable();
    let rank = (0.99 * wanted as f64).ceil() as usize;
    Ok(Seen {
        p99: latencies[rank - 1] as f64 / 1_000.0,
        rss_mb: usage::peak_rss_mb(worker.process().pid())?,
    })
}
