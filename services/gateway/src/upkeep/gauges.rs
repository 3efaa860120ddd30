//! What metrics say of the queues: read from the server every few seconds, so that a scrape asks nobody.
//!
//! Every gateway says the same, so that one of them is enough; rules take the maximum over gateways.

use std::{collections::BTreeSet, time::Duration};

use metrics::{counter, describe_counter, describe_gauge, gauge};
use tokio::time::{MissedTickBehavior, timeout};
use usersync_core::{nats::REQUEST_TIMEOUT, subjects::GATEWAY_TARGET, target::TargetName};

use crate::control::{
    Control, letters,
    standing::{Queue, Standing},
    status,
};

/// How often the server is asked.
const EVERY: Duration = Duration::from_secs(5);

/// Keeps the gauges for ever.
pub(super) async fn run(control: &Control) {
    describe();
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = BTreeSet::new();
    loop {
        every.tick().await;
        let set = timeout(4 * REQUEST_TIMEOUT, set(control, &mut known)).await;
        if let Err(error) = set.map_err(anyhow::Error::from).and_then(|set| set) {
            let error = format!("{error:#}");
            tracing::debug!(error, "the gauges of the queues stay as they are");
        }
    }
}

/// Sets every gauge; those of targets that were removed to zero.
async fn set(control: &Control, known: &mut BTreeSet<TargetName>) -> anyhow::Result<()> {
    let entries = control.registry().await?.entries().await?;
    let standing = Standing::of_all(control, entries.keys()).await?;
    gauge!("usersync_users").set(standing.users() as f64);
    gauge!("usersync_intake_pending").set(status::events_pending(control).await? as f64);
    let refused = letters::refused(control).await?;
    gauge!("usersync_dead_letters", "target" => GATEWAY_TARGET).set(refused as f64);

    let mut there = BTreeSet::new();
    for (name, entry) in entries {
        let Ok(target) = name.parse::<TargetName>() else {
            continue;
        };
        let enabled = entry.config.is_some_and(|config| config.enabled);
        gauge!("usersync_target_enabled", "target" => name.clone())
            .set(f64::from(u8::from(enabled)));
        gauge!("usersync_dead_letters", "target" => name.clone())
            .set(standing.dead_letters(&name) as f64);
        counter!("usersync_backstop_dead_letters_total", "target" => name.clone()).increment(0);
        let (live, repairs) = standing.oldest(control, &target).await?;
        queue(&target, "live", standing.live(&name).as_ref(), live);
        queue(
            &target,
            "repairs",
            standing.repairs(&name).as_ref(),
            repairs,
        );
        there.insert(target);
    }
    for target in known.difference(&there) {
        let name = target.to_string();
        gauge!("usersync_target_enabled", "target" => name.clone()).set(0);
        gauge!("usersync_dead_letters", "target" => name).set(0);
        queue(target, "live", None, Duration::ZERO);
        queue(target, "repairs", None, Duration::ZERO);
    }
    *known = there;

    let account = control.jetstream.query_account().await?;
    gauge!("usersync_nats_storage_bytes").set(account.storage as f64);
    let limit = match account.limits.max_storage {
        Some(limit) if limit > 0 => limit as f64,
        _ => f64::INFINITY,
    };
    gauge!("usersync_nats_storage_limit_bytes").set(limit);
    Ok(())
}

fn queue(target: &TargetName, name: &'static str, queue: Option<&Queue>, oldest: Duration) {
    let set = |metric: &'static str, value: f64| {
        gauge!(metric, "target" => target.to_string(), "queue" => name).set(value);
    };
    let count = |of: fn(&Queue) -> u64| queue.map_or(0, of) as f64;
    set("usersync_queue_pending", count(|queue| queue.pending));
    set(
        "usersync_queue_ack_pending",
        count(|queue| queue.ack_pending),
    );
    set(
        "usersync_queue_redelivered",
        count(|queue| queue.redelivered),
    );
    set("usersync_queue_oldest_age_seconds", oldest.as_secs_f64());
}

/// What docs/METRICS.md says of each, too.
fn describe() {
    describe_gauge!("usersync_users", "Users there are, deleted ones included");
    describe_gauge!(
        "usersync_intake_pending",
        "Events that are stored and not merged into states yet"
    );
    describe_gauge!(
        "usersync_dead_letters",
        "Users that could not be given to the target; of target gateway, events that were refused"
    );
    describe_gauge!(
        "usersync_target_enabled",
        "1 when the target is delivered to, 0 when it is paused or removed"
    );
    describe_gauge!(
        "usersync_queue_pending",
        "Users that no worker has been handed yet"
    );
    describe_gauge!(
        "usersync_queue_ack_pending",
        "Users in the hands of workers, or waiting to be tried again"
    );
    describe_gauge!(
        "usersync_queue_redelivered",
        "Those of ack_pending that were handed out more than once"
    );
    describe_gauge!(
        "usersync_queue_oldest_age_seconds",
        "For how long the oldest of them has been waiting; 0 when nobody waits"
    );
    describe_counter!(
        "usersync_backstop_dead_letters_total",
        "Dead letters the gateway stored, because a message ran out of deliveries and its worker could not say so"
    );
    describe_gauge!(
        "usersync_nats_storage_bytes",
        "What the streams of this NATS account take on disk"
    );
    describe_gauge!(
        "usersync_nats_storage_limit_bytes",
        "How much they may take; +Inf when the account has no limit, and the server's max_file_store is the only one"
    );
}
