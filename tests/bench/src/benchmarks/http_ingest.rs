//! A real gateway takes events over HTTP, and merges them while it does. The limit: a bare loop that publishes
//! the same events with a window of PubAcks.

use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use usersync_core::subjects;
use usersync_stack::Service;

use super::{Contest, Rate};
use crate::limits::Published;
use crate::loader;
use crate::options::Options;
use crate::report::{Aim, Row, number};
use crate::rig::{Rig, stop};
use crate::{states, usage, users};

const USERS: u64 = 5_000;
/// Where the bare loop publishes: a stream like USER_EVENTS.
const BARE_EVENTS: &str = "BARE_EVENTS";
const BARE_SUBJECT: &str = "bare.event";
/// How long merging may go on after the load.
const CATCH_UP: Duration = Duration::from_secs(120);
const PUBLISHED_WITHIN: Duration = Duration::from_secs(120);

/// What is posted.
struct Shape {
    /// Events in one body; 1 is a bare event, more an array.
    events: u64,
    /// Keep-alive connections.
    connections: usize,
    aim: f64,
}

pub(super) async fn single(options: &Options, name: &str) -> Result<Vec<Row>> {
    let shape = Shape {
        events: 1,
        connections: 64,
        aim: 15_000.0,
    };
    run(options, name, &shape).await
}

pub(super) async fn array(options: &Options, name: &str) -> Result<Vec<Row>> {
    let shape = Shape {
        events: 500,
        connections: 8,
        aim: 60_000.0,
    };
    run(options, name, &shape).await
}

/// What the gateway took in one turn, answered and merged.
struct Taken {
    rate: f64,
    cpu: f64,
}

impl Display for Taken {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (rate, cpu) = (number(self.rate), number(self.cpu));
        write!(f, "{rate}/s, {cpu} CPU s per 1,000")
    }
}

async fn run(options: &Options, name: &str, shape: &Shape) -> Result<Vec<Row>> {
    let rig = Rig::start().await?;
    rig.twin(subjects::USER_EVENTS, BARE_EVENTS, BARE_SUBJECT)
        .await?;
    states::fill(&rig, USERS).await?;
    let bodies = write_bodies(&rig, shape.events)?;
    let gateway = rig.gateway()?;
    gateway.until_ready().await?;

    let post = async || take(&rig, &gateway, &bodies, shape, options.load()).await;
    let publish = async || publish(&rig, options.events()).await;
    let contest = Contest::hold(options, name, "bare publish", post, publish).await?;
    let rss = usage::peak_rss_mb(gateway.pid())?;
    let cpu: Vec<f64> = contest.ours.iter().map(|taken| taken.cpu).collect();
    let rate = contest.row(name, "events/s", |taken| taken.rate, |rate| rate.0);
    stop(gateway).await?;
    Ok(vec![
        rate.aim(Aim::AtLeast(shape.aim)),
        Row::of(format!("{name}-cpu"), "CPU s per 1,000", &cpu),
        Row::of(format!("{name}-rss"), "MB", &[rss]),
    ])
}

/// Bodies for the loader: every user once.
fn write_bodies(rig: &Rig, events: u64) -> Result<PathBuf> {
    let mut text = String::new();
    for first in (0..USERS).step_by(usize::try_from(events)?) {
        let documents = (first..first + events)
            .map(|user| Ok(String::from_utf8(users::event(user, None)?.into())?))
            .collect::<Result<Vec<_>>>()?;
        let body = documents.join(",");
        text += &match events {
            1 => body,
            _ => format!("[{body}]"),
        };
        text.push('\n');
    }
    let path = rig.dir().join("bodies.jsonl");
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// Loads the gateway and waits until it has merged everything.
async fn take(
    rig: &Rig,
    gateway: &Service,
    bodies: &Path,
    shape: &Shape,
    time: Duration,
) -> Result<Taken> {
    let before = stored(rig).await?;
    let cpu_before = usage::cpu_seconds(gateway.pid())?;
    let url = format!("{}/v1/events", gateway.url());
    let loaded = loader::load(rig, &url, bodies, shape.connections, time).await?;
    let after = caught_up(rig).await?;
    let (answered, found) = (loaded.requests * shape.events, after - before);
    // What was under way when the load ended was stored without its answer being counted.
    let under_way = shape.connections as u64 * shape.events;
    ensure!(
        (answered..=answered + under_way).contains(&found),
        "{answered} events were answered with success, but {found} are stored"
    );
    let cpu = usage::cpu_seconds(gateway.pid())? - cpu_before;
    Ok(Taken {
        rate: answered as f64 / loaded.seconds,
        cpu: cpu * 1_000.0 / found as f64,
    })
}

/// The sequence of the last event.
async fn stored(rig: &Rig) -> Result<u64> {
    let events = rig.stream(subjects::USER_EVENTS).await?;
    Ok(events.cached_info().state.last_sequence)
}

/// Waits until intake has merged every event; the sequence of the last one.
async fn caught_up(rig: &Rig) -> Result<u64> {
    let end = Instant::now() + CATCH_UP;
    loop {
        let events = rig.stream(subjects::USER_EVENTS).await?;
        let last = events.cached_info().state.last_sequence;
        let merged = events.consumer_info(subjects::INTAKE).await?;
        let merged = merged.ack_floor.stream_sequence;
        if merged >= last {
            return Ok(last);
        }
        ensure!(
            Instant::now() < end,
            "intake has merged {merged} of {last} events after {CATCH_UP:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The bare loop; events per second.
async fn publish(rig: &Rig, events: u64) -> Result<Rate> {
    let (nats, count) = (rig.nats_url(), events.to_string());
    // Message ids must not repeat those of an earlier run.
    let run = rig
        .stream(BARE_EVENTS)
        .await?
        .cached_info()
        .state
        .last_sequence
        .to_string();
    let args = [
        "limit",
        "--nats",
        &nats,
        "publish",
        "--subject",
        BARE_SUBJECT,
    ];
    let more = ["--events", &count, "--run", &run];
    let process = rig.role("bare-publish", args.iter().chain(&more))?;
    let status = process.wait_exit(PUBLISHED_WITHIN).await?;
    let log = process.log_tail();
    ensure!(status.success(), "the bare loop ended with {status}: {log}");
    let last = log.lines().last().unwrap_or_default();
    let published: Published =
        serde_json::from_str(last).with_context(|| format!("the bare loop says {log:?}"))?;
    Ok(Rate(events as f64 / published.seconds))
}
