//! What a worker counts, per target.

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
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
    /// Kept until the target, which can't be used, is back.
    pub held: Counter,
    /// Messages for one user that became one delivery.
    pub coalesced: Counter,
    /// Calls put off by the target's `rate_limit`.
    pub rate_limited: Counter,
    /// 1 while the target is served.
    pub serving: Gauge,
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
        describe();
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
            held: outcome("held"),
            coalesced: counter!("usersync_coalesced_total", "target" => target.clone()),
            rate_limited: counter!("usersync_rate_limited_total", "target" => target.clone()),
            serving: gauge!("usersync_worker_serving", "target" => target.clone()),
            breaker_state: gauge!("usersync_breaker_state", "target" => target.clone()),
            concurrency: gauge!("usersync_concurrency_limit", "target" => target.clone()),
            in_hand: gauge!("usersync_in_hand", "target" => target.clone()),
            call_seconds: histogram!("usersync_delivery_seconds", "target" => target.clone()),
            sync_seconds: histogram!("usersync_sync_latency_seconds", "target" => target),
        }
    }
}

/// What docs/METRICS.md says of each, too.
fn describe() {
    describe_counter!(
        "usersync_deliveries_total",
        "Attempts to bring a user's state to a target, by how they ended"
    );
    describe_counter!(
        "usersync_coalesced_total",
        "States that were not delivered on their own, because a newer one of the same user went in their place"
    );
    describe_counter!(
        "usersync_rate_limited_total",
        "Calls put off by the rate_limit of the target's entry"
    );
    describe_gauge!(
        "usersync_worker_serving",
        "1 while this worker serves the target, else 0"
    );
    describe_gauge!(
        "usersync_breaker_state",
        "The circuit breaker of the target in this worker: 0 closed, 1 half-open, 2 open, 3 gone"
    );
    describe_gauge!(
        "usersync_concurrency_limit",
        "Calls to the target that may be under way at once"
    );
    describe_gauge!(
        "usersync_in_hand",
        "States and repairs this worker has been handed and has not settled"
    );
    describe_histogram!(
        "usersync_delivery_seconds",
        "Processing time: one call to the target, with one or several users"
    );
    describe_histogram!(
        "usersync_sync_latency_seconds",
        "From an event's being stored to the target's having taken the state; no repairs, and nothing older than the target's consumer"
    );
}
