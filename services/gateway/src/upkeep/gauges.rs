//! What metrics say of the queues: what a look has found, so that a scrape asks nobody.
//!
//! Every gateway says the same, so that one of them is enough; rules take the maximum over gateways.

use std::{collections::BTreeSet, time::Duration};

use async_nats::jetstream::account::Account;
use metrics::{counter, describe_counter, describe_gauge, gauge};
use usersync_core::{subjects::GATEWAY_TARGET, target::TargetName};

use crate::control::{look::Look, standing::Queue};

/// The targets whose gauges were set.
#[derive(Default)]
pub(super) struct Gauges(BTreeSet<TargetName>);

impl Gauges {
    pub(super) fn new() -> Self {
        describe();
        Self::default()
    }

    /// Sets every gauge, where streams may take `limit` bytes; those of targets that were removed to zero.
    pub(super) fn set(&mut self, look: &Look, account: &Account, limit: u64) {
        gauge!("usersync_users").set(look.standing.users() as f64);
        gauge!("usersync_intake_pending").set(look.events_pending as f64);
        gauge!("usersync_dead_letters", "target" => GATEWAY_TARGET).set(look.refused as f64);
        for target in &look.targets {
            let name = target.name.to_string();
            gauge!("usersync_target_enabled", "target" => name.clone())
                .set(f64::from(u8::from(target.enabled())));
            gauge!("usersync_dead_letters", "target" => name.clone())
                .set(look.standing.dead_letters(&name) as f64);
            counter!("usersync_backstop_dead_letters_total", "target" => name.clone()).increment(0);
            let (live, repairs) = (look.standing.live(&name), look.standing.repairs(&name));
            queue(&target.name, "live", live.as_ref(), target.oldest);
            queue(
                &target.name,
                "repairs",
                repairs.as_ref(),
                target.oldest_repair,
            );
        }
        let there = look.targets.iter().map(|target| target.name.clone());
        let there: BTreeSet<TargetName> = there.collect();
        for target in self.0.difference(&there) {
            let name = target.to_string();
            gauge!("usersync_target_enabled", "target" => name.clone()).set(0);
            gauge!("usersync_dead_letters", "target" => name).set(0);
            queue(target, "live", None, Duration::ZERO);
            queue(target, "repairs", None, Duration::ZERO);
        }
        self.0 = there;
        gauge!("usersync_nats_storage_bytes").set(account.storage as f64);
        gauge!("usersync_nats_storage_limit_bytes").set(limit as f64);
    }
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
        "How much they may take: the limit of the account, without one what the setting alerts.store_gib says"
    );
}
