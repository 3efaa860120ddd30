//! A worker: takes states from NATS and brings them to its targets.
//!
//! `feed` pulls, `courier` runs the lanes of one target, `parcel` carries one batch, `settle`
//! decides what follows, `dead_letter` keeps what can't be delivered, `freshness` guards order
//! between workers. Nothing here knows HTTP or Redis; that is `usersync_targets`.

mod courier;
mod dead_letter;
mod feed;
mod freshness;
mod meters;
mod parcel;
mod settings;
mod settle;

use anyhow::Context as _;
use async_nats::jetstream;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use usersync_core::{
    admin::{self, Health},
    nats, telemetry,
};

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
    let metrics = telemetry::init_metrics(served.clone())?;
    let http = tokio::spawn(admin::serve(
        listener,
        admin::router(health.clone(), metrics),
        served.clone(),
    ));
    let client = nats::connect(&settings.common.nats, "usersync-worker", &health).await?;
    let context = jetstream::context::ContextBuilder::new()
        .timeout(nats::REQUEST_TIMEOUT)
        .ack_timeout(nats::REQUEST_TIMEOUT);
    let jetstream = context.build(client.clone());

    let mut couriers = JoinSet::new();
    for target in settings.targets {
        let driver = usersync_targets::connect(&target)?;
        let rule = usersync_targets::Rule::compile(&target)
            .with_context(|| format!("target {}", target.name))?;
        let courier =
            courier::Courier::new(target, rule, driver, jetstream.clone(), health.clone());
        couriers.spawn(courier.run(shutdown.clone()));
    }
    while let Some(ended) = couriers.join_next().await {
        ended.context("a courier panicked")?;
    }
    nats::flush(&client).await;
    served.cancel();
    http.await.context("the health server panicked")?
}

/// Tries every connection and says what was found.
///
/// # Errors
/// When NATS or a target can't be used.
pub async fn check(settings: &Settings) -> anyhow::Result<()> {
    let mut failed = Vec::new();
    match nats::check(&settings.common.nats, "usersync-worker").await {
        Ok(_) => tracing::info!("NATS with JetStream answers"),
        Err(error) => failed.push(format!("{error:#}")),
    }
    for target in &settings.targets {
        match usersync_targets::connect(target)?.probe().await {
            Ok(()) => tracing::info!(target = %target.name, "the target answers"),
            Err(failure) => failed.push(format!("target {}: {failure}", target.name)),
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
