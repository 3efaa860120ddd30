//! The KV buckets: what each keeps, and for how long. Gateways make them.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::{self, kv};
use futures_util::TryStreamExt;

use crate::subjects;

/// How many values of an entry the bucket keeps: the last good one is looked for among them.
const HISTORY: i64 = 16;
/// The most bytes a value of a bucket may have, its key and headers included.
const MAX_VALUE: i32 = 64 * 1024;
/// After how long a breaker's entry that isn't renewed is forgotten.
pub const BREAKER_AGE: Duration = Duration::from_secs(120);
/// How long the progress of a job can be asked for.
const JOB_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// The same of a worker's entry that it renews every 2 s.
const WORKER_AGE: Duration = Duration::from_secs(60);

/// After how long what a gateway says of an outbox is forgotten: it says so every 5 s.
const RELAY_AGE: Duration = Duration::from_secs(20);

/// Every bucket, with `replicas` copies.
pub(crate) fn all(replicas: usize) -> Vec<kv::Config> {
    let bucket = |name: &str, description: &str| kv::Config {
        bucket: name.to_owned(),
        description: description.to_owned(),
        max_value_size: MAX_VALUE,
        num_replicas: replicas,
        history: 1,
        ..kv::Config::default()
    };
    let targets = kv::Config {
        history: HISTORY,
        ..bucket(
            subjects::TARGETS_BUCKET,
            "The targets: name -> entry as JSON",
        )
    };
    let breakers = kv::Config {
        // A worker that is gone leaves its entry behind; those that live renew theirs.
        max_age: BREAKER_AGE,
        ..bucket(
            subjects::BREAKERS_BUCKET,
            "Breakers that aren't closed: target.worker -> state as JSON",
        )
    };
    let checks = bucket(
        subjects::CHECKS_BUCKET,
        "Checks under way: target -> how far it is, as JSON",
    );
    let jobs = kv::Config {
        max_age: JOB_AGE,
        ..bucket(
            subjects::JOBS_BUCKET,
            "Repairs, replays and discards in bulk: job -> progress as JSON",
        )
    };
    let relays = kv::Config {
        max_age: RELAY_AGE,
        ..bucket(
            subjects::RELAYS_BUCKET,
            "Outboxes and who relays them: source.gateway -> state as JSON",
        )
    };
    let workers = kv::Config {
        max_age: WORKER_AGE,
        ..bucket(
            subjects::WORKERS_BUCKET,
            "Workers of targets without a guard: target.worker -> whether deliveries are in doubt",
        )
    };
    let epochs = bucket(
        subjects::EPOCHS_BUCKET,
        "What intake knows of USER_EVENTS and USER_STATE: epochs, how far they were",
    );
    let sources = bucket(
        subjects::SOURCES_BUCKET,
        "Outboxes and their epochs, which events may name: source -> epochs as JSON",
    );
    vec![
        targets, breakers, checks, jobs, relays, workers, epochs, sources,
    ]
}

/// The buckets that are missing.
///
/// # Errors
/// When the server can't be asked.
pub async fn missing_buckets(
    jetstream: &jetstream::Context,
    replicas: usize,
) -> anyhow::Result<Vec<kv::Config>> {
    let mut missing = all(replicas);
    let mut found = jetstream.stream_names();
    while let Some(stream) = found.try_next().await.context("asking for the buckets")? {
        missing.retain(|bucket| stream.strip_prefix("KV_") != Some(bucket.bucket.as_str()));
    }
    Ok(missing)
}

/// Buckets that several write to, each keys of its own. A put with `Nats-Rollup: all` would remove everybody's keys; what it
/// takes from `nats kv purge` there, `nats kv del` does.
const SHARED: [&str; 4] = [
    subjects::BREAKERS_BUCKET,
    subjects::CHECKS_BUCKET,
    subjects::RELAYS_BUCKET,
    subjects::WORKERS_BUCKET,
];

/// Creates the buckets that are missing, and has those that are shared refuse rollups.
///
/// # Errors
/// When the server refuses.
pub async fn ensure_buckets(jetstream: &jetstream::Context, replicas: usize) -> anyhow::Result<()> {
    for config in missing_buckets(jetstream, replicas).await? {
        let name = config.bucket.clone();
        match jetstream.create_key_value(config).await {
            Ok(_) => tracing::info!(bucket = name, "created"),
            // Another gateway was faster, and has changed it since.
            Err(_) if jetstream.get_stream(format!("KV_{name}")).await.is_ok() => {}
            Err(error) => {
                return Err(error).with_context(|| format!("creating the bucket {name}"));
            }
        }
    }
    for name in SHARED {
        let stream = jetstream.get_stream(format!("KV_{name}")).await;
        let stream = stream.with_context(|| format!("asking for the bucket {name}"))?;
        let mut config = stream.cached_info().config.clone();
        if config.allow_rollup {
            config.allow_rollup = false;
            let updated = jetstream.update_stream(&config).await;
            updated.with_context(|| format!("updating the bucket {name}"))?;
        }
    }
    Ok(())
}
