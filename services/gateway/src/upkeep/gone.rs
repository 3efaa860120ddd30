//! Targets that answer "410 Gone": disabled in KV, with an alert, once.

use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt;
use jiff::Timestamp;
use usersync_core::{
    alert::{self, Alert, Kind, Runbook},
    registry::WriteError,
    subjects,
};

use crate::control::{
    Control,
    breakers::{self, Breaker},
    changes,
};

/// How workers call the state of such a breaker.
const GONE: &str = "gone";
/// How long to wait before watching again.
const AGAIN: Duration = Duration::from_secs(1);

/// Watches the breakers for ever.
pub(super) async fn follow(control: &Control, runbook: &Runbook) {
    loop {
        if let Err(error) = watch(control, runbook).await {
            let error = format!("{error:#}");
            tracing::warn!(error, bucket = subjects::BREAKERS_BUCKET, "watching again");
            tokio::time::sleep(AGAIN).await;
        }
    }
}

async fn watch(control: &Control, runbook: &Runbook) -> anyhow::Result<()> {
    let bucket = breakers::bucket(control).await?;
    let mut watch = bucket.watch_with_history(">").await?;
    loop {
        let entry = watch.next().await.context("the watch ended")??;
        let put = Timestamp::from_nanosecond(entry.created.unix_timestamp_nanos());
        let breaker = breakers::read(&entry).filter(|breaker| breaker.state == GONE);
        if let Some(breaker) = breaker {
            disable(control, &breaker, put.unwrap_or_default(), runbook).await?;
        }
    }
}

/// Disables the target unless it is, or its entry has changed since it said so.
async fn disable(
    control: &Control,
    breaker: &Breaker,
    put: Timestamp,
    runbook: &Runbook,
) -> anyhow::Result<()> {
    let registry = control.registry().await?;
    let (name, reason) = (&breaker.target, breaker.reason.as_deref());
    let said = breaker
        .since
        .as_deref()
        .and_then(|since| since.parse().ok());
    let said: Timestamp = said.unwrap_or(put);
    loop {
        let entry = registry.entry(name).await?;
        let stored = registry.stored(name.as_ref()).await?;
        let (Some(entry), Some(stored)) = (entry, stored) else {
            return Ok(());
        };
        if entry.config.as_ref().is_none_or(|config| !config.enabled) {
            return Ok(());
        }
        if entry.revision != stored.revision {
            continue;
        }
        // An operator who has enabled it again has the last word, until it says so again.
        let changed = match breaker.revision {
            Some(revision) => stored.revision != revision,
            // By two clocks: as good as it gets with a worker that doesn't say the revision.
            None => stored.time > said,
        };
        if changed {
            return Ok(());
        }
        let note = format!(
            "disabled on {said}: {} ({})",
            changes::GONE_FOR_GOOD,
            reason.unwrap_or("410 Gone")
        );
        // Before it is disabled, so that a gateway that dies in between is followed by one that does both.
        let summary = format!("{name} says that it is gone for good, and was disabled");
        let alert = Alert {
            reason: breaker.reason.clone(),
            note: Some(note.clone()),
            worker: Some(breaker.worker.clone()),
            revision: Some(stored.revision),
            ..Alert::raised(Kind::Gone, name.as_ref(), said, summary, runbook)
        };
        // Once per disabling, also where the last one isn't resolved yet.
        alert::tell(&control.jetstream, Kind::Gone, name.as_ref(), |newest| {
            let told = newest.raised().and_then(|raised| raised.revision);
            (told != alert.revision).then(|| alert.clone())
        })
        .await?;
        match changes::disable(registry, name, &entry, &stored, &note).await {
            Ok(true) => {
                tracing::error!(target = %name, reason, "the target is gone: disabled");
                return Ok(());
            }
            Ok(false) => return Ok(()),
            Err(WriteError::Conflict) => {}
            Err(WriteError::Refused(error)) => return Err(anyhow::Error::from_boxed(error)),
        }
    }
}
