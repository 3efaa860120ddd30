//! The scheduler that checks all the time, and what every check needs of it.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use async_nats::jetstream::{self, stream::Stream};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use usersync_core::{
    admin::{self, Health},
    alert::Runbook,
    check::Check,
    common::Common,
    egress::Egress,
    http, nats,
    registry::Registry,
    store::Store,
    streams, subjects, telemetry,
};
use usersync_source::{SourceConfig, SourceName};

use crate::{queue, schedules, watch};

/// The main databases.
pub(crate) type Sources = BTreeMap<SourceName, SourceConfig>;

/// How long to wait before looking for the bucket of targets again.
const AGAIN: Duration = Duration::from_millis(250);

/// One scheduler.
pub(crate) struct Scheduler {
    /// This scheduler's name in NATS.
    pub id: String,
    /// The JetStream connection.
    pub jetstream: jetstream::Context,
    /// USER_STATE.
    pub states: Stream,
    /// The targets.
    pub registry: Registry,
    /// The main databases the states are compared with.
    pub sources: Sources,
    /// Where targets may be.
    pub egress: Egress,
    /// Where people find what to do about an alert.
    pub runbook: Runbook,
    /// How everything stands.
    pub health: Health,
}

impl Scheduler {
    /// A scheduler with a name of its own.
    pub(crate) fn new(
        jetstream: jetstream::Context,
        states: Stream,
        registry: Registry,
        sources: Sources,
        common: &Common,
        health: Health,
    ) -> Self {
        // The last, random part is enough to tell schedulers apart.
        let id = uuid::Uuid::now_v7().simple().to_string();
        Self {
            id: id[id.len() - 12..].to_owned(),
            jetstream,
            states,
            registry,
            sources,
            egress: common.egress.clone(),
            runbook: common.runbook.clone(),
            health,
        }
    }
}

/// Checks until `shutdown`, then leaves what is under way to the next scheduler.
///
/// # Errors
/// When the address is taken or NATS can't be used.
pub(crate) async fn run(
    common: &Common,
    sources: Sources,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let listen = common.listen;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("listen: can't listen on {listen}"))?;
    tracing::info!(http.address = %listener.local_addr()?, "health and metrics");
    let health = Health::default();
    // Health stays reachable while checks are left.
    let served = CancellationToken::new();
    let metrics = telemetry::init_metrics(common.metrics, served.clone())?;
    let http = tokio::spawn(http::serve(
        listener,
        admin::router(health.clone(), metrics),
        served.clone(),
    ));
    let client = nats::connect(&common.nats, "usersync-scheduler", &health).await?;
    let context = jetstream::context::ContextBuilder::new()
        .timeout(nats::REQUEST_TIMEOUT)
        .ack_timeout(nats::REQUEST_TIMEOUT);
    let jetstream = context.build(client.clone());
    let opened = async {
        tokio::select! {
            error = nats::until_too_old(&client) => Err(error),
            scheduler = open(jetstream.clone(), sources, common, health) => {
                nats::until_connected(&client).await.map(|()| scheduler)
            }
        }
    };
    if let Some(scheduler) = shutdown.run_until_cancelled(opened).await {
        let scheduler = scheduler?;
        let states = states_check(&scheduler.sources).cloned();
        let entries = scheduler.registry.clone().follow(shutdown.clone());
        tokio::join!(
            Store::of_schedulers().watch(
                jetstream.clone(),
                scheduler.health.clone(),
                shutdown.clone()
            ),
            schedules::keep(jetstream, entries, states, shutdown.clone()),
            queue::run(&scheduler, shutdown.clone()),
            shutdown.run_until_cancelled(watch::run(&scheduler)),
        );
    }
    nats::flush(&client).await;
    served.cancel();
    http.await.context("the health server panicked")
}

/// Waits for what the gateway makes.
pub(crate) async fn open(
    jetstream: jetstream::Context,
    sources: Sources,
    common: &Common,
    health: Health,
) -> Scheduler {
    streams::wait_for_stream(&jetstream, subjects::USER_CHECK, &health).await;
    let states = streams::wait_for_stream(&jetstream, subjects::USER_STATE, &health).await;
    let mut said = false;
    let registry = loop {
        match Registry::open(&jetstream, usersync_targets::check).await {
            Ok(registry) => {
                health.gone(subjects::TARGETS_BUCKET);
                break registry;
            }
            Err(error) if !said => {
                health.down(subjects::TARGETS_BUCKET, format!("{error:#}"));
                tracing::warn!(error = format!("{error:#}"), "waiting for the targets");
                said = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    };
    Scheduler::new(jetstream, states, registry, sources, common, health)
}

/// When the states are checked by themselves: as the first source says that says so. One check is about all of them.
fn states_check(sources: &Sources) -> Option<&Check> {
    let mut checks = sources.values().map(|source| &source.check);
    checks.find(|check| check.schedule().is_some())
}

/// Says which targets would be checked when.
///
/// # Errors
/// When what the gateway makes is missing.
pub(crate) async fn announce(
    jetstream: &jetstream::Context,
    sources: &Sources,
) -> anyhow::Result<()> {
    for stream in [subjects::USER_STATE, subjects::USER_CHECK] {
        let found = jetstream.get_stream(stream).await;
        found.with_context(|| format!("stream {stream}; usersync-gateway creates it"))?;
    }
    let registry = Registry::open(jetstream, usersync_targets::check).await?;
    if let Some(schedule) = states_check(sources).and_then(Check::schedule) {
        tracing::info!(
            target = subjects::GATEWAY_TARGET,
            schedule,
            "would be checked"
        );
    }
    for (target, entry) in registry.entries().await? {
        if let Some(config) = entry.config.filter(|config| config.enabled) {
            let schedule = config.check.schedule();
            let schedule = schedule.as_deref().unwrap_or("only when asked to");
            tracing::info!(target, schedule, "would be checked");
        }
    }
    Ok(())
}
