//! Circuit breakers: which aren't closed, and how an operator closes them.

use async_nats::jetstream::kv;
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use usersync_core::{nats::REQUEST_TIMEOUT, subjects::BREAKERS_BUCKET, target::TargetName};

use super::{Control, Count, nats};
use crate::problem::Problem;

/// A breaker that isn't closed.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Breaker {
    /// The target it guards.
    pub target: TargetName,
    /// The worker it is in.
    pub worker: String,
    /// `open`, `half-open` or `gone`.
    pub state: String,
    /// Since when (RFC 3339).
    pub since: Option<String>,
    /// Why it opened.
    pub reason: Option<String>,
    /// The revision of the target's entry by which it was served then.
    pub revision: Option<u64>,
}

/// What a worker puts into the bucket.
#[derive(Deserialize)]
struct Value {
    state: String,
    since: Option<String>,
    reason: Option<String>,
    revision: Option<u64>,
}

/// Which breakers.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct List {
    /// Only those of this target.
    #[param(value_type = Option<String>)]
    pub target: Option<TargetName>,
}

/// Which breakers to close.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reset {
    pub target: TargetName,
    /// Only this worker's; without it those of all workers.
    #[serde(default)]
    pub worker: Option<String>,
}

/// The breakers that aren't closed.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Breakers {
    /// Sorted by target and worker.
    pub breakers: Vec<Breaker>,
}

pub(crate) async fn list(control: &Control, list: List) -> Result<Breakers, Problem> {
    let mut breakers = all(control).await?;
    if let Some(target) = list.target {
        breakers.retain(|breaker| breaker.target == target);
    }
    Ok(Breakers { breakers })
}

/// Has workers try their target at once.
pub(crate) async fn reset(control: &Control, reset: Reset) -> Result<Count, Problem> {
    control.config(&reset.target).await?;
    let mut open = all(control).await?;
    open.retain(|breaker| breaker.target == reset.target);
    let store = bucket(control).await?;
    if let Some(worker) = &reset.worker {
        open.retain(|breaker| breaker.worker == *worker);
        let [breaker] = open.as_slice() else {
            let detail = format!("worker {worker} has no open breaker for {}", reset.target);
            return Err(Problem::not_found(detail));
        };
        let key = usersync_core::subjects::breaker(&breaker.target, &breaker.worker);
        store.delete(key).await.map_err(nats)?;
    } else {
        let told = store.put(&reset.target, "reset".into()).await;
        told.map_err(nats)?;
    }
    Ok(Count {
        matched: open.len() as u64,
        dry_run: false,
    })
}

/// Every breaker that isn't closed.
pub(super) async fn all(control: &Control) -> anyhow::Result<Vec<Breaker>> {
    let store = bucket(control).await?;
    let keys: Vec<String> =
        tokio::time::timeout(REQUEST_TIMEOUT, store.keys().await?.try_collect()).await??;
    let mut breakers = Vec::new();
    for key in keys {
        if let Some(entry) = store.entry(&key).await? {
            breakers.extend(read(&entry));
        }
    }
    breakers.sort_by(|a, b| (&a.target, &a.worker).cmp(&(&b.target, &b.worker)));
    Ok(breakers)
}

/// A worker's entry; `None` for everything else.
pub(crate) fn read(entry: &kv::Entry) -> Option<Breaker> {
    if entry.operation != kv::Operation::Put {
        return None;
    }
    let (target, worker) = entry.key.split_once('.')?;
    let value: Value = serde_json::from_slice(&entry.value).ok()?;
    Some(Breaker {
        target: target.parse().ok()?,
        worker: worker.to_owned(),
        state: value.state,
        since: value.since,
        reason: value.reason,
        revision: value.revision,
    })
}

/// The bucket of breakers.
pub(crate) async fn bucket(control: &Control) -> anyhow::Result<kv::Store> {
    Ok(control.jetstream.get_key_value(BREAKERS_BUCKET).await?)
}
