//! What rules, signatures, TLS, metrics and the delivery log cost: the same worker with them, and as the limit without.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::consumer::{OrderedPullConsumer, pull::OrderedConfig};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::time::timeout;
use usersync_core::subjects;
use usersync_stack::{Certificates, RedisServer, free_port};

use super::Contest;
use crate::options::Options;
use crate::report::{Aim, Row};
use crate::rig::Rig;
use crate::sink::Sink;
use crate::states::States;

/// Of what the worker does without, at least this is left.
const LEFT: f64 = 0.85;
/// The delivery log takes at most the rest.
const LEFT_BESIDE_LOG: f64 = 0.9;

/// Signature and TLS take at most a quarter more of the CPU.
const SECURE_CPU: f64 = 1.25;

/// Metrics, and traces that are switched off, take at most this much more.
const OBSERVED_CPU: f64 = 1.05;

/// How long a line of the log may take to its stream.
const LOGGED_WITHIN: Duration = Duration::from_secs(5);

/// A filter that everybody passes, and a projection.
fn rules() -> Value {
    json!({
        "filter": "user.email != '' && user.status != 'banned'",
        "fields": { "exclude": ["data.password_hash"], "mask": { "data.phone": "last4" } },
    })
}

/// Filter, projection, mask and signature over HTTP, to an endpoint that guards by version.
pub(super) async fn http(options: &Options, name: &str) -> Result<Vec<Row>> {
    let rig = Rig::start().await?;
    let sink = Sink::start(&rig).await?;
    let (url, users) = (sink.url("guarded"), options.events());
    let mut settings = rules();
    settings["secret"] = secret(&rig)?;
    let plain = States::of(&rig, users, &url, json!({})).await?;
    let ruled = plain.for_another("ruled", &url, settings).await?;
    let run = async |states: &States<'_>| {
        let drained = states.worker().await?;
        sink.expect(users, "the worker").await?;
        Ok(drained)
    };
    let ours = async || run(&ruled).await;
    let contest = Contest::hold(options, name, "without rules", ours, async || {
        run(&plain).await
    });
    let [rate, cpu, _] = contest.await?.rows(name, "deliveries/s");
    Ok(vec![rate.aim(Aim::RatioAtLeast(LEFT)), cpu])
}

/// A reference to a secret that signs.
fn secret(rig: &Rig) -> Result<Value> {
    let file = rig.dir().join("secret");
    std::fs::write(&file, "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")?;
    Ok(json!(format!("file:{}", file.display())))
}

/// Signature and TLS, to an endpoint that guards by version.
pub(super) async fn secure(options: &Options, name: &str) -> Result<Vec<Row>> {
    let rig = Rig::start().await?;
    let certificates = Certificates::make(&rig.dir().join("tls"))?;
    let (bare, safe) = (
        Sink::start(&rig).await?,
        Sink::start_tls(&rig, &certificates).await?,
    );
    let users = options.events();
    let plain = States::of(&rig, users, &bare.url("guarded"), json!({})).await?;
    let settings = json!({
        "secret": secret(&rig)?,
        "tls": { "ca": format!("file:{}", certificates.ca().display()) },
    });
    let secured = plain
        .for_another("secured", &safe.url("guarded"), settings)
        .await?;
    let run = async |states: &States<'_>, sink: &Sink| {
        let drained = states.worker().await?;
        sink.expect(users, "the worker").await?;
        Ok(drained)
    };
    let ours = async || run(&secured, &safe).await;
    let contest = Contest::hold(options, name, "plain, unsigned", ours, async || {
        run(&plain, &bare).await
    });
    let [rate, cpu, _] = contest.await?.rows(name, "deliveries/s");
    Ok(vec![rate, cpu.aim(Aim::RatioAtMost(SECURE_CPU))])
}

/// Metrics and logs, and traces that are switched off, over HTTP.
pub(super) async fn observed(options: &Options, name: &str) -> Result<Vec<Row>> {
    let rig = Rig::start().await?;
    let sink = Sink::start(&rig).await?;
    let (url, users) = (sink.url("guarded"), options.events());
    let states = States::of(&rig, users, &url, json!({})).await?;
    let ours = async || {
        let drained = states.worker().await?;
        sink.expect(users, "the worker").await?;
        Ok(drained)
    };
    let contest = Contest::hold(options, name, "unobserved", ours, async || {
        let drained = states.unobserved_worker().await?;
        sink.expect(users, "the unobserved worker").await?;
        Ok(drained)
    });
    let [rate, cpu, _] = contest.await?.rows(name, "deliveries/s");
    Ok(vec![rate, cpu.aim(Aim::RatioAtMost(OBSERVED_CPU))])
}

/// Filter, projection and mask to Redis.
pub(super) async fn redis(options: &Options, name: &str) -> Result<Vec<Row>> {
    let rig = Rig::start().await?;
    let nothing_on_disk = ["--appendonly", "no"];
    let redis = RedisServer::start_with(rig.dir(), free_port()?, &nothing_on_disk).await?;
    let client = redis::Client::open(redis.url()).context("the URL of Redis")?;
    let connection = client.get_multiplexed_async_connection().await;
    let connection = connection.context("connecting to Redis")?;
    let (url, users) = (redis.url(), options.events());
    let plain = States::of(&rig, users, &url, json!({})).await?;
    let ruled = plain.for_another("ruled", &url, rules()).await?;
    let run = async |states: &States<'_>| {
        let drained = states.worker().await?;
        let mut connection = connection.clone();
        let held: u64 = redis::cmd("DBSIZE").query_async(&mut connection).await?;
        ensure!(held == users, "Redis holds {held} of {users} users");
        redis::cmd("FLUSHALL").exec_async(&mut connection).await?;
        Ok(drained)
    };
    let ours = async || run(&ruled).await;
    let contest = Contest::hold(options, name, "without rules", ours, async || {
        run(&plain).await
    });
    let [rate, cpu, _] = contest.await?.rows(name, "deliveries/s");
    Ok(vec![rate.aim(Aim::RatioAtLeast(LEFT)), cpu])
}

/// The delivery log, over HTTP.
pub(super) async fn log(options: &Options, name: &str) -> Result<Vec<Row>> {
    let rig = Rig::start().await?;
    let sink = Sink::start(&rig).await?;
    let (url, users) = (sink.url("guarded"), options.events());
    let logged = States::of(&rig, users, &url, json!({})).await?;
    let silent = logged
        .for_another("silent", &url, json!({ "results": false }))
        .await?;
    let run = async |states: &States<'_>| {
        let drained = states.worker().await?;
        sink.expect(users, "the worker").await?;
        Ok(drained)
    };
    let ours = async || {
        let drained = run(&logged).await?;
        expect_lines(&rig, users).await?;
        Ok(drained)
    };
    let contest = Contest::hold(options, name, "without a log", ours, async || {
        run(&silent).await
    });
    let [rate, ..] = contest.await?.rows(name, "deliveries/s");
    Ok(vec![rate.aim(Aim::RatioAtLeast(LEFT_BESIDE_LOG))])
}

/// Makes sure that the delivery log tells of `deliveries`, and empties it.
async fn expect_lines(rig: &Rig, deliveries: u64) -> Result<()> {
    let stream = rig.stream(subjects::USER_RESULT).await?;
    let consumer: OrderedPullConsumer = stream.create_consumer(OrderedConfig::default()).await?;
    let mut messages = consumer.messages().await?;
    let mut lines = 0;
    while lines < deliveries {
        let message = timeout(LOGGED_WITHIN, messages.next()).await;
        let message = message.with_context(|| format!("the log has {lines} of {deliveries} lines"));
        let message = message?.context("the log ended")??;
        lines += message
            .payload
            .iter()
            .filter(|byte| **byte == b'\n')
            .count() as u64;
    }
    ensure!(
        lines == deliveries,
        "the log has {lines} lines of {deliveries} deliveries"
    );
    stream.purge().await.context("emptying the log")?;
    Ok(())
}
