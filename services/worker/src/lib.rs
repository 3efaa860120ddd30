//! A worker: takes states from NATS and brings them to its targets.
//!
//! `fleet` follows the targets and runs a `courier` for each: it pulls from its feeds, queues per
//! user, and lets `breaker`, `pace` and `throttle` say when the next call begins. A `parcel` carries
//! one batch: `newest` finds the states, `settle` decides what follows, `letters` clears
//! a dead letter after a later success, and `waiting` knows who can be delivered then, too. `others` is what a kind may ask
//! about users it isn't called about. `hand_back` is how a worker that stops gives up what it holds. `freshness` guards order between
//! workers, `presence` tells which of them have vanished and `doubt` who was delivered about then; `unchanged` skips what the target has. `board`, `desk`, `recent` and `results` tell people.
//! Nothing here knows HTTP, Redis or SQL; that is `usersync_targets`.

mod board;
mod breaker;
mod courier;
mod desk;
mod doubt;
mod failures;
mod fleet;
mod freshness;
mod hand_back;
mod init_target;
mod letters;
mod memory;
mod meters;
mod newest;
mod others;
mod overtaken;
mod pace;
mod parcel;
mod presence;
mod recent;
mod refill;
mod results;
mod route;
mod settings;
mod settle;
mod share;
mod task;
mod throttle;
mod unchanged;
mod waiting;

use anyhow::Context as _;
use async_nats::jetstream;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use usersync_core::{
    admin::{self, Health},
    catalogue::Catalogue,
    http, nats,
    registry::Registry,
    store::Store,
    target::TargetConfig,
    telemetry,
};
use usersync_traces::Traces;

use crate::{
    board::Board,
    fleet::{Fleet, Routes},
    presence::Crew,
    share::Share,
};

pub use init_target::init_target;
pub use settings::{Flags, Settings};

/// Serves the targets of `settings` until `shutdown`, then finishes what is in flight.
///
/// # Errors
/// When the address is taken or a target can't be set up.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> anyhow::Result<()> {
    let listen = settings.common.listen;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("listen: can't listen on {listen}"))?;
    tracing::info!(http.address = %listener.local_addr()?, "health and metrics");
    let health = Health::default();
    // Health stays reachable while the couriers drain.
    let served = CancellationToken::new();
    let metrics = telemetry::init_metrics(settings.common.metrics, served.clone())?;
    let http = tokio::spawn(http::serve(
        listener,
        admin::router(health.clone(), metrics),
        served.clone(),
    ));
    let traces = Traces::start(settings.traces.as_ref(), "usersync-worker")?;
    let client = nats::connect(&settings.common.nats, "usersync-worker", &health).await?;
    let context = jetstream::context::ContextBuilder::new()
        .timeout(nats::REQUEST_TIMEOUT)
        .ack_timeout(nats::REQUEST_TIMEOUT);
    let jetstream = context.build(client.clone());

    // The last, random part is enough to tell workers apart.
    let id = uuid::Uuid::now_v7().simple().to_string();
    let worker = id[id.len() - 12..].to_owned();
    tracing::info!(worker, "this worker's name in NATS");
    let board = Board::new(worker.clone());
    let routes = Routes::default();
    let posting = tokio::spawn(board.clone().run(jetstream.clone(), shutdown.clone()));
    let crew = Crew::new(worker.clone());
    // Its keys stay until nothing is under way.
    let drained = CancellationToken::new();
    let present = tokio::spawn(crew.clone().run(
        jetstream.clone(),
        health.clone(),
        drained.clone(),
    ));
    let storing = tokio::spawn(Store::of_worker(&worker).watch(
        jetstream.clone(),
        health.clone(),
        shutdown.clone(),
    ));
    let answering = tokio::spawn({
        let (client, names) = (client.clone(), settings.names.clone());
        let (routes, shutdown) = (routes.clone(), shutdown.clone());
        async move { desk::run(client, worker, &names, routes, shutdown).await }
    });
    let fleet = Fleet {
        jetstream,
        health,
        board,
        crew,
        share: Share::new(),
        routes,
        names: settings.names,
        egress: settings.common.egress,
        traces: traces.clone(),
    };
    tokio::select! {
        error = nats::until_too_old(&client) => return Err(error),
        () = fleet.run(shutdown) => {}
    }
    posting.await.context("the board panicked")?;
    storing.await.context("the look at the store panicked")?;
    drained.cancel();
    present.await.context("the crew panicked")?;
    if let Err(error) = answering.await.context("the desk panicked")? {
        tracing::warn!(
            error = format!("{error:#}"),
            "nobody could ask about this worker"
        );
    }
    nats::flush(&client).await;
    traces.end().await;
    served.cancel();
    http.await.context("the health server panicked")
}

/// Tries every connection and says what was found.
///
/// # Errors
/// When NATS or a target can't be used.
pub async fn check(settings: &Settings) -> anyhow::Result<()> {
    let mut failed = Vec::new();
    let mut targets = settings.catalogue.clone();
    match nats::check(&settings.common.nats, "usersync-worker").await {
        Ok(jetstream) => {
            tracing::info!("NATS with JetStream answers");
            if targets.is_none() {
                targets = Some(registered(&jetstream, &mut failed).await?);
            }
        }
        Err(error) => failed.push(format!("{error:#}")),
    }
    let targets = targets.unwrap_or_default();
    for name in &settings.names {
        if !targets.contains_key(name) {
            failed.push(format!("target {name}: there is no such target"));
        }
    }
    let served = targets.values().filter(|target| settings.serves(target));
    for target in served {
        match usersync_targets::connect(target, &settings.common.egress) {
            Ok(driver) => match driver.probe().await {
                Ok(()) => {
                    tracing::info!(target = %target.name, "the target answers");
                    if let Err(failure) = driver.probe_reading().await {
                        tracing::warn!(target = %target.name, %failure, "a check of it would fail");
                    }
                }
                Err(failure) => failed.push(format!("target {}: {failure}", target.name)),
            },
            Err(error) => failed.push(format!("target {}: {error}", target.name)),
        }
    }
    anyhow::ensure!(
        failed.is_empty(),
        "{} of the connections failed:\n  {}",
        failed.len(),
        failed.join("\n  ")
    );
    Ok(())
}

/// The targets in the bucket, with what is wrong with the others.
async fn registered(
    jetstream: &jetstream::Context,
    failed: &mut Vec<String>,
) -> anyhow::Result<Catalogue> {
    let entries = match Registry::open(jetstream, usersync_targets::check).await {
        Ok(registry) => registry.entries().await?,
        Err(error) => {
            failed.push(format!("{error:#}"));
            return Ok(Catalogue::new());
        }
    };
    let mut targets = Catalogue::new();
    for (name, entry) in entries {
        failed.extend(
            entry
                .problem
                .map(|problem| format!("target {name}: {problem}")),
        );
        if let Some(config) = entry.config {
            targets.insert(config.name.clone(), TargetConfig::clone(&config));
        }
    }
    Ok(targets)
}
