//! Whether a target with `refill` has lost what it was told: looked at every few seconds, and told to the gateways, which
//! have it filled again (ADR 43).

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use async_nats::jetstream::kv;
use futures_util::StreamExt;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use usersync_core::{follow, nats::REQUEST_TIMEOUT, refill::Mark, subjects};

use crate::route::Route;

/// How often.
const EVERY: Duration = Duration::from_secs(5);

/// Looks until `stop`.
pub(crate) async fn watch(route: Arc<Route>, stop: CancellationToken) {
    if !route.config.refill {
        return;
    }
    let target = &route.config.name;
    let mut known = None;
    let looking = async {
        loop {
            if let Err(error) = look(&route, &mut known).await {
                tracing::debug!(%target, error = format!("{error:#}"), "can't look at the mark; trying again");
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    stop.run_until_cancelled(looking).await;
}

/// Looks once. What was seen before this worker began is in the bucket.
async fn look(route: &Route, known: &mut Option<Mark>) -> anyhow::Result<()> {
    let target = &route.config.name;
    let key = subjects::refill_mark(target);
    let bucket = route.jetstream.get_key_value(subjects::WORKERS_BUCKET);
    let bucket = timeout(REQUEST_TIMEOUT, bucket).await??;
    let before = match *known {
        Some(before) => before,
        None => timeout(REQUEST_TIMEOUT, said(route, &bucket, &key)).await??,
    };
    let mark = route.driver.mark(before).await;
    let mark = mark.map_err(|failure| anyhow::anyhow!("{failure}"))?;
    if before.made != 0 && before.made < mark.made {
        tracing::warn!(%target, "the target has lost what it was told");
    }
    let value = serde_json::to_vec(&mark)?;
    timeout(REQUEST_TIMEOUT, bucket.put(key, value.into())).await??;
    *known = Some(mark);
    Ok(())
}

/// What a worker of this target has said last.
async fn said(route: &Route, bucket: &kv::Store, key: &str) -> anyhow::Result<Mark> {
    // Whatever else there is comes first, and the newest of each key once.
    let status = bucket.status().await?;
    if status.values() == 0 {
        return Ok(Mark::default());
    }
    let mut changes = follow::bucket(&route.jetstream, bucket, None).await?;
    let mut mark = Mark::default();
    loop {
        let change = changes.next().await.context("the bucket's end")??;
        if change.key == key {
            let value = change.value.as_deref().unwrap_or_default();
            mark = serde_json::from_slice(value).unwrap_or_default();
        }
        if change.pending == 0 {
            return Ok(mark);
        }
    }
}
