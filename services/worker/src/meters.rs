//! What a worker counts, per target.

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use usersync_core::target::TargetName;

/// Handles, made once: looking a metric up per delivery would cost more than counting it.
pub(crate) struct Meters {
    /// The target has the version.
    pub delivered: Counter,
    /// The target had a newer one.
    pub already_newer: Counter,
    /// Nothing the target sees had changed, so it was not called.
    pub unchanged: Counter,
    /// The target isn't meant to have the user.
    pub out_of_scope: Counter,
    /// A newer state was on its way.
    pub superseded: Counter,
    /// To be tried again.
    pub retried: Counter,
    /// Given up.
    pub dead_lettered: Counter,
    /// Messages for one user that became one delivery.
    pub coalesced: Counter,
    /// 0 closed, 1 half-open, 2 open, 3 gone.
    pub breaker_state: Gauge,
    /// How many calls may be under way.
    pub concurrency: Gauge,
    /// Messages in this worker's hands.
    pub in_hand: Gauge,
    /// One call to the target.
    pub call_seconds: Histogram,
    /// From the event's being stored to the target's answer.
    pub sync_seconds: Histogram,
}

impl Meters {
    pub(crate) fn new(target: &TargetName) -> Self {
        let target = target.to_string();
        let outcome = |outcome: &'static str| counter!("usersync_deliveries_total", "target" => target.clone(), "outcome" => outcome);
        Self {
            delivered: outcome("delivered"),
            already_newer: outcome("already_newer"),
            unchanged: outcome("unchanged"),
            out_of_scope: outcome("out_of_scope"),
            superseded: outcome("superseded"),
            retried: outcome("retried"),
            dead_lettered: outcome("dead_lettered"),
            coalesced: counter!("usersync_coalesced_total", "target" => target.clone()),
            breaker_state: gauge!("usersync_breaker_state", "target" => target.clone()),
            concurrency: gauge!("usersync_concurrency_limit", "target" => target.clone()),
            in_hand: gauge!("usersync_in_hand", "target" => target.clone()),
            call_seconds: histogram!("usersync_delivery_seconds", "target" => target.clone()),
            sync_seconds: histogram!("usersync_sync_latency_seconds", "target" => target),
        }
    }
}
