//! One caller of the gateway at ten times the rate that it may, and another who keeps to it: how long the other's
//! events take to be stored. The limit: the same caller alone.

use std::fmt::{self, Display, Formatter};
use std::pin::pin;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use clap::Args;
use futures_util::{StreamExt as _, stream};
use reqwest::{Client, StatusCode, header};
use tokio::time::{MissedTickBehavior, interval};
use usersync_stack::{Profile, http, tools};

use super::Contest;
use crate::options::Options;
use crate::report::{Aim, Row, median, number};
use crate::rig::{Rig, stop};
use crate::users;

/// Requests per second that each caller may make.
const LIMIT: u32 = 200;
/// How many times as many the loud one makes.
const LOUD: u32 = 10;
/// Requests per second of the quiet one.
const QUIET: u32 = 100;
/// Requests of the loud one under way at once.
const AT_ONCE: usize = 64;

/// Be the loud caller until killed.
#[derive(Debug, Args)]
pub(crate) struct ShoutArgs {
    /// Where to post.
    #[arg(long)]
    url: String,
    /// The API key.
    #[arg(long)]
    key: String,
}

/// A caller: its key, and where its events go.
struct Caller {
    client: Client,
    url: String,
    key: String,
}

/// Milliseconds.
struct Millis(f64);

impl Display for Millis {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", number(self.0))
    }
}

pub(super) async fn run(options: &Options, name: &str) -> Result<Vec<Row>> {
    let rig = Rig::start().await?;
    let (loud, quiet) = (new_key("loud")?, new_key("quiet")?);
    let keys = rig.dir().join("keys.toml");
    std::fs::write(&keys, loud.1 + &quiet.1)?;
    let settings = rig.dir().join("usersync.toml");
    let text = format!(
        "[http]\nkeys_file = \"{}\"\nlimit.requests = {LIMIT}\n",
        keys.display()
    );
    std::fs::write(&settings, text)?;
    let gateway = rig.gateway_as_set()?;
    gateway.until_ready().await?;
    let url = format!("{}/v1/events", gateway.url());
    let quiet = Caller {
        client: http::client(),
        url: url.clone(),
        key: quiet.0,
    };
    let loud = ["shout", "--url", &url, "--key", &loud.0];

    let alone = async || quiet.p99(options.load()).await;
    let beside = async || {
        // In a process of its own: what it costs to be loud isn't the quiet one's.
        let shouting = rig.role("shout", loud)?;
        let p99 = quiet.p99(options.load()).await?;
        let log = shouting.log_tail();
        ensure!(shouting.is_running(), "the loud caller fell silent: {log}");
        Ok(p99)
    };
    let contest = Contest::hold(options, name, "alone", beside, alone).await?;
    let refused = gateway.metrics().await?.sum(
        "usersync_http_limited_total",
        &[("caller", "loud"), ("limit", "requests")],
    );
    ensure!(refused > 0.0, "the loud caller was never refused");
    stop(gateway).await?;
    let turns = contest.ours.iter().zip(&contest.limit);
    let added: Vec<f64> = turns.map(|(beside, alone)| beside.0 - alone.0).collect();
    let p99 = contest.row(format!("{name}-p99"), "ms", |ms| ms.0, |ms| ms.0);
    let added = Row::of(format!("{name}-added"), "ms", &added);
    // At most half as much again, or 5 ms more: one of the two has an aim.
    let halves = contest.ours.iter().zip(&contest.limit);
    let ratios: Vec<f64> = halves.map(|(beside, alone)| beside.0 / alone.0).collect();
    Ok(match median(&ratios) <= 1.5 {
        true => vec![p99.aim(Aim::RatioAtMost(1.5)), added],
        false => vec![p99, added.aim(Aim::AtMost(5.0))],
    })
}

/// A key that may publish, and its entry.
fn new_key(name: &str) -> Result<(String, String)> {
    let gateway = tools::binary("usersync-gateway", Profile::own())?;
    let output = Command::new(gateway)
        .args(["key", "new", "--scope", "publish", "--name", name])
        .output()
        .context("running usersync-gateway key new")?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(output.status.success(), "{said}");
    let key = said.lines().last().context("no key")?.to_owned();
    Ok((key, String::from_utf8(output.stdout)?))
}

impl Caller {
    async fn post(&self, body: Bytes) -> Result<StatusCode> {
        let request = self
            .client
            .post(&self.url)
            .bearer_auth(&self.key)
            .header(header::CONTENT_TYPE, "application/json");
        let answer = request
            .body(body)
            .send()
            .await
            .context("posting an event")?;
        let status = answer.status();
        answer.bytes().await.context("reading an answer")?;
        Ok(status)
    }

    /// Milliseconds within which 99 of 100 events are stored, sent one after the other for `time`.
    async fn p99(&self, time: Duration) -> Result<Millis> {
        let mut ticks = interval(Duration::from_secs(1) / QUIET);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut times, began) = (Vec::new(), Instant::now());
        while began.elapsed() < time {
            ticks.tick().await;
            let body = users::event(times.len() as u64, None)?;
            let started = Instant::now();
            let status = self.post(body).await?;
            times.push(started.elapsed());
            ensure!(status == StatusCode::ACCEPTED, "the quiet caller: {status}");
        }
        times.sort_unstable();
        let rank = (0.99 * times.len() as f64).ceil() as usize;
        Ok(Millis(times[rank - 1].as_secs_f64() * 1_000.0))
    }
}

/// Posts for ever, and takes a refusal for an answer.
pub(crate) async fn shout(args: ShoutArgs) -> Result<()> {
    let caller = Caller {
        client: http::client(),
        url: args.url,
        key: args.key,
    };
    let body = users::event(0, None)?;
    let ticks = interval(Duration::from_secs(1) / (LOUD * LIMIT));
    let answers = stream::unfold(ticks, async |mut ticks| Some((ticks.tick().await, ticks)))
        .map(|_| caller.post(body.clone()))
        .buffer_unordered(AT_ONCE);
    let mut answers = pin!(answers);
    while let Some(status) = answers.next().await {
        match status? {
            StatusCode::ACCEPTED | StatusCode::TOO_MANY_REQUESTS => {}
            status => bail!("the loud caller: {status}"),
        }
    }
    Ok(())
}
