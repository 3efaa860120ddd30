//! Alerts without Prometheus: raised once, resolved once, whoever looks and however often.

mod kinds;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::consumer::{AckPolicy, pull};
use futures_util::TryStreamExt as _;
use serde_json::{Value, json};
use usersync_core::subjects::USER_ALERT;
use usersync_stack::{StackBuilder, eventually};

use crate::support::{Bus, LATER};

/// A user who is found wherever it must not be.
const USERNAME: &str = "zaphod";

/// Has people told after a moment rather than minutes.
pub(crate) fn hasty(stack: StackBuilder) -> StackBuilder {
    let kinds = [
        "BREAKER", "BACKLOG", "WORKER", "FAILING", "DEAD", "INTAKE", "OUTBOX", "CHECK",
    ];
    kinds.into_iter().fold(stack, |stack, kind| {
        stack.env(format!("USERSYNC_ALERTS__{kind}"), "1s")
    })
}

fn user(id: u64) -> Value {
    json!({"user_id": id, "username": USERNAME, "email": "zaphod@example.com"})
}

/// Every message about one alert, oldest first.
pub(crate) async fn history(bus: &Bus, kind: &str, target: &str) -> Result<Vec<Value>> {
    let stream = bus.jetstream().get_stream(USER_ALERT).await?;
    let consumer = stream
        .create_consumer(pull::Config {
            filter_subject: format!("user.alert.{kind}.{target}"),
            ack_policy: AckPolicy::None,
            ..pull::Config::default()
        })
        .await?;
    let pending = usize::try_from(consumer.cached_info().num_pending)?;
    if pending == 0 {
        return Ok(Vec::new());
    }
    let batch = consumer.fetch().max_messages(pending).messages().await?;
    let read = batch.try_collect::<Vec<_>>();
    let messages = tokio::time::timeout(Duration::from_secs(10), read).await?;
    let messages = messages.map_err(anyhow::Error::from_boxed)?;
    let bodies = messages.iter();
    let bodies = bodies.map(|message| Ok(serde_json::from_slice(&message.payload)?));
    bodies.collect()
}

/// Waits until an alert's messages say `statuses`, and nothing else; answers the last.
async fn until(bus: &Bus, kind: &str, target: &str, statuses: &[&str]) -> Result<Value> {
    eventually(LATER, async || {
        let history = history(bus, kind, target).await?;
        let found: Vec<_> = history.iter().map(|alert| &alert["status"]).collect();
        ensure!(found == statuses, "{kind} of {target}: {history:?}");
        history.last().cloned().context("no message")
    })
    .await
}
