//! What a worker counts, per target.

use metrics::{Counter, Histogram, counter, histogram};
use usersync_core::target::TargetName;

/// Handles, made once: looking a metric up per delivery would cost more than counting it.
pub(crate) struct Meters {
    /// The target has the version.
    pub delivered: Counter,
    /// The target had a newer one.
    pub already_newer: Counter,
    /// Not called: the target isn't meant to hear of it.
    pub out_of_scope: Counter,
    /// To be tried again.
    pub retried: Counter,
    /// Given up.
    pub dead_lettered: Counter,
    /// Messages for one user that became one delivery.
    pub coalesced: Counter,
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
            out_of_scope: outcome("out_of_scope"),
            retried: outcome("retried"),
            dead_lettered: outcome("dead_lettered"),
            coalesced: counter!("usersync_coalesced_total", "target" => target.clone()),
            call_seconds: histogram!("usersync_delivery_seconds", "target" => target.clone()),
            sync_seconds: histogram!("usersync_sync_latency_seconds", "target" => target),
        }
    }
}
