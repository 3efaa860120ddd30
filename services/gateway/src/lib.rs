//! The gateway: events in over HTTP and NATS, states out.
//!
//! `intake` merges events into states, `relay` brings in those that main databases write. `control` is the control plane; `api` (HTTP) and `micro`
//! (NATS) are its doors, `access` says who may come through the first, `https` by which certificate, `command` shows what they answer,
//! `upkeep` what a gateway does for the targets by itself, `notify` tells people of alerts. Streams and
//! consumers are made here from the one definition in `usersync_core::streams`.

mod access;
mod api;
mod command;
mod control;
mod https;
mod intake;
mod micro;
mod notify;
mod problem;
mod relay;
mod settings;
mod upkeep;

use std::{io::Write, sync::Arc, time::Duration};

use anyhow::Context as _;
use async_nats::jetstream;
use futures_util::future::join3;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use usersync_core::{
    admin::{self, Health},
    buckets,
    grant::Grants,
    http, nats,
    registry::Registry,
    streams, subjects, telemetry,
};

use usersync_source::Database;
use usersync_traces::Traces;

use access::Access;
pub use access::KeyCommand;
pub use command::StatusCommand;
use control::Control;
pub use notify::NotifyCommand;
pub use settings::{Command, Flags, Settings};

/// How long requests may still take when intake has ended on shutdown.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

/// Serves until `shutdown`, then finishes what is in flight.
///
/// # Errors
/// When the address is taken, or a stream exists with an incompatible shape.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> anyhow::Result<()> {
    let listen = settings.common.listen;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("listen: can't listen on {listen}"))?;
    tracing::info!(http.address = %listener.local_addr()?, "API, health and metrics");
    let health_listener = match settings.health_listen {
        Some(listen) => Some(
            TcpListener::bind(listen)
                .await
                .with_context(|| format!("http.health_listen: can't listen on {listen}"))?,
        ),
        None => None,
    };
    let health = Health::default();
    health.down("streams", "not created yet");
    health.down("intake", "not begun yet");
    let stopped = CancellationToken::new();
    let metrics = telemetry::init_metrics(settings.common.metrics, stopped.clone())?;
    let client = nats::connect(&settings.common.nats, "usersync-gateway", &health).await?;
    let context = jetstream::context::ContextBuilder::new()
        .timeout(nats::REQUEST_TIMEOUT)
        .ack_timeout(nats::REQUEST_TIMEOUT)
        .max_ack_inflight(10_000);
    let jetstream = context.build(client.clone());
    let traces = Traces::start(settings.traces.as_ref(), "usersync-gateway")?;
    let files = upkeep::Files::read(settings.common.targets.clone())?;
    let control = Control::new(
        jetstream.clone(),
        traces.clone(),
        files,
        settings.common.egress.clone(),
        shutdown.clone(),
    );
    let access = Access::begin(&settings.http, shutdown.clone())?;
    let admin = admin::router(health.clone(), metrics);
    let router = api::router(control.clone(), Arc::new(access)).merge(admin.clone());
    let health_server =
        health_listener.map(|listener| tokio::spawn(http::serve(listener, admin, stopped.clone())));
    let http = match &settings.https {
        Some(tls) => {
            let listener = tls.listen(listener, shutdown.clone())?;
            tokio::spawn(http::serve(listener, router, shutdown.clone()))
        }
        None => tokio::spawn(http::serve(listener, router, shutdown.clone())),
    };
    let micro = micro::serve(client.clone(), control.clone(), shutdown.clone());
    let micro = tokio::spawn(micro);

    if let Some(made) = shutdown
        .run_until_cancelled(make_streams(&settings, &control, &health))
        .await
    {
        made?;
        let relay = relay::run(
            settings.sources.clone(),
            jetstream.clone(),
            health.clone(),
            shutdown.clone(),
        );
        let upkeep = upkeep::run(
            control.clone(),
            settings.clone(),
            health.clone(),
            shutdown.clone(),
        );
        let notify = notify::run(settings.notify.clone(), jetstream.clone(), shutdown.clone());
        let mut upkeep = tokio::spawn(join3(upkeep, relay, notify));
        let intake = intake::Intake::new(jetstream, health, traces.clone(), &settings);
        let intake = intake.run(shutdown.clone());
        tokio::pin!(intake);
        let panicked = "the upkeep of targets, the relay or a notifier panicked";
        tokio::select! {
            ended = &mut intake => {
                ended?;
                shutdown.cancel();
                upkeep.await.context(panicked)?;
            }
            // Before shutdown only a panic ends it: a gateway without it must not go on.
            ended = &mut upkeep => {
                shutdown.cancel();
                intake.await?;
                ended.context(panicked)?;
            }
        }
    }
    shutdown.cancel();
    control.drained().await;
    if let Err(error) = micro.await.context("the NATS service panicked")? {
        let error = format!("{error:#}");
        tracing::warn!(error, "the NATS service did not stop cleanly");
    }
    match tokio::time::timeout(LAST_REQUESTS, http).await {
        Ok(ended) => ended.context("the HTTP server panicked")?,
        Err(_) => {
            tracing::warn!("requests did not end in time; their clients must send them again")
        }
    }
    nats::flush(&client).await;
    traces.end().await;
    stopped.cancel();
    if let Some(server) = health_server {
        server.await.context("the server of health panicked")?;
    }
    Ok(())
}

/// Shows how everything stands, as the gateways that run say it.
///
/// # Errors
/// When none answers.
pub async fn status(
    command: &StatusCommand,
    settings: &Settings,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    command.run(&settings.common, shutdown).await
}

/// Sends a test to those who are told of alerts.
///
/// # Errors
/// When nobody would be told, or somebody can't be.
pub async fn notify(command: &NotifyCommand, settings: &Settings) -> anyhow::Result<()> {
    command.run(&settings.notify).await
}

/// Creates streams and consumers; waits for a server that isn't there yet.
async fn make_streams(
    settings: &Settings,
    control: &Control,
    health: &Health,
) -> anyhow::Result<()> {
    let jetstream = &control.jetstream;
    nats::until_connected(&jetstream.client()).await?;
    let mut said = false;
    while let Err(error) = jetstream.query_account().await {
        if !said {
            tracing::warn!(%error, "waiting for JetStream");
            said = true;
        }
        health.down("streams", format!("waiting for JetStream: {error}"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    streams::refuse_empty_start(jetstream).await?;
    streams::ensure(jetstream, settings.streams).await?;
    streams::ensure_consumers(jetstream).await?;
    notify::begin(jetstream, &settings.notify).await?;
    upkeep::begin(control).await?;
    health.up("streams");
    Ok(())
}

/// Tries the connection to NATS and compares the streams there, changing nothing.
///
/// # Errors
/// When NATS can't be used, or a stream exists with an incompatible shape.
pub async fn check(settings: &Settings) -> anyhow::Result<()> {
    upkeep::Files::read(settings.common.targets.clone())?;
    let jetstream = nats::check(&settings.common.nats, "usersync-gateway").await?;
    tracing::info!("NATS with JetStream answers");
    streams::refuse_empty_start(&jetstream).await?;
    for step in streams::plan(&jetstream, settings.streams).await? {
        let doing = match step {
            streams::Step::Create(_) => "would be created",
            streams::Step::Update(_) => "would be updated",
        };
        tracing::info!(stream = step.stream(), "{doing}");
    }
    for bucket in buckets::missing_buckets(&jetstream, settings.streams.replicas).await? {
        tracing::info!(bucket = bucket.bucket, "would be created");
    }
    tell_cost_of_ids(&jetstream, settings.streams.duplicate_window).await?;
    if let Some(tls) = &settings.https {
        tls.check().map_err(anyhow::Error::msg)?;
    }
    tell_ungranted(&jetstream, &settings.common.egress.secrets).await?;
    let failed = check_sources(settings).await;
    anyhow::ensure!(
        failed.is_empty(),
        "{} of the sources can't be used:\n  {}",
        failed.len(),
        failed.join("\n  ")
    );
    tracing::info!(
        targets = settings.common.catalogue.len(),
        sources = settings.sources.len(),
        "the settings are good"
    );
    Ok(())
}

/// Says what the duplicate window costs the server, as far as the events of the last days tell.
async fn tell_cost_of_ids(
    jetstream: &jetstream::Context,
    wanted: Option<Duration>,
) -> anyhow::Result<()> {
    let Ok(mut events) = jetstream.get_stream(subjects::USER_EVENTS).await else {
        return Ok(());
    };
    let info = events.info().await?;
    let window = wanted.unwrap_or(info.config.duplicate_window);
    let span = info.state.last_timestamp - info.state.first_timestamp;
    let rate = info.state.messages as f64 / span.as_seconds_f64().max(1.0);
    let ids = (rate * window.as_secs_f64()) as u64;
    tracing::info!(
        window = ?window,
        ids,
        mebibytes = ids * streams::BYTES_PER_ID / (1 << 20),
        "ids of events that NATS remembers at the mean rate of those it has (setting streams.duplicate_window)"
    );
    Ok(())
}

/// Says which targets name secrets that processes with these settings don't grant to them.
async fn tell_ungranted(jetstream: &jetstream::Context, grants: &Grants) -> anyhow::Result<()> {
    // Before the first start there is no bucket, and no target.
    let Ok(registry) = Registry::open(jetstream, usersync_targets::check).await else {
        return Ok(());
    };
    for (name, entry) in registry.entries().await? {
        let refused = entry
            .config
            .and_then(|config| grants.check_all(&config).err());
        if let Some((key, refused)) = refused {
            tracing::warn!(
                target = name,
                key,
                "the target would get nothing: {refused}"
            );
        }
    }
    Ok(())
}

/// Looks whether the outbox of every source is there, and whether the rows can be read that it is about; what is wrong
/// with those where something is.
async fn check_sources(settings: &Settings) -> Vec<String> {
    let mut failed = Vec::new();
    for (name, config) in settings.sources.iter().filter(|(_, config)| config.outbox) {
        let look = async {
            let mut database = Database::connect(config).await?;
            let layout = database.readable().await?;
            database.page(&layout, None, 1).await?;
            database.standing().await
        };
        match look.await {
            Ok(standing) if standing.is_older() => {
                tracing::warn!(source = %name, "an older version has made the outbox; renew it with `usersync-scheduler outbox install`");
            }
            Ok(standing) if standing.installed => {
                tracing::info!(source = %name, unpublished = standing.unpublished, "the outbox is there");
                for remark in standing.remarks {
                    tracing::warn!(source = %name, "{remark}");
                }
            }
            Ok(standing) if standing.is_there => failed.push(format!(
                "source {name}: changes aren't noted: {}; `usersync-scheduler outbox install` renews the outbox, by an account that may",
                standing.missing.join(", ")
            )),
            Ok(_) => failed.push(format!(
                "source {name}: its outbox isn't there; `usersync-scheduler outbox install` makes it, by an account that may"
            )),
            Err(error) => failed.push(format!("source {name}: {:#}", anyhow::Error::new(error))),
        }
    }
    failed
}

/// Prints the streams as JSON: all as an array, or the one named as an object.
///
/// # Errors
/// When no stream has that name.
pub fn print_streams(settings: &Settings, name: &str) -> anyhow::Result<()> {
    let all = streams::all(settings.streams);
    let json =
        if name.is_empty() {
            serde_json::to_string_pretty(&all)?
        } else {
            let known: Vec<_> = all.iter().map(|stream| stream.name.clone()).collect();
            let stream = all.into_iter().find(|stream| stream.name == name);
            serde_json::to_string_pretty(&stream.with_context(|| {
                format!("no stream {name}; expected one of {}", known.join(", "))
            })?)?
        };
    writeln!(std::io::stdout(), "{json}")?;
    Ok(())
}
