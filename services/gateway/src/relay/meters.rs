//! What a relay counts, per source.

use std::time::Duration;

use jiff::Timestamp;
use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use usersync_source::{Lag, SourceName};

use super::window::Window;

/// Handles, made once.
pub(super) struct Meters {
    /// Whether this gateway relays.
    active: Gauge,
    published: Counter,
    silent: Counter,
    failed: Counter,
    unpublished: Gauge,
    oldest: Gauge,
    rows_failed: Gauge,
    /// From the row's being written to its event's being confirmed.
    seconds: Histogram,
}

impl Meters {
    pub(super) fn new(source: &SourceName) -> Self {
        describe();
        let source = source.to_string();
        let rows = |result: &'static str| counter!("usersync_outbox_rows_total", "source" => source.clone(), "result" => result);
        let meters = Self {
            active: gauge!("usersync_outbox_active", "source" => source.clone()),
            published: rows("published"),
            silent: rows("silent"),
            failed: rows("failed"),
            unpublished: gauge!("usersync_outbox_unpublished", "source" => source.clone()),
            oldest: gauge!("usersync_outbox_oldest_seconds", "source" => source.clone()),
            rows_failed: gauge!("usersync_outbox_failed", "source" => source.clone()),
            seconds: histogram!("usersync_outbox_latency_seconds", "source" => source),
        };
        meters.idle();
        meters
    }

    pub(super) fn active(&self) {
        self.active.set(1.0);
    }

    /// Another gateway may relay now, and then it knows how things are.
    pub(super) fn idle(&self) {
        for gauge in [
            &self.active,
            &self.unpublished,
            &self.oldest,
            &self.rows_failed,
        ] {
            gauge.set(0.0);
        }
    }

    pub(super) fn window(&self, window: &Window) {
        self.published.increment(window.published.len() as u64);
        self.silent.increment(window.silent.len() as u64);
        self.failed.increment(window.failed.len() as u64);
        let now = Timestamp::now().as_microsecond();
        for created in &window.created_us {
            let micros = u64::try_from(now.saturating_sub(*created)).unwrap_or_default();
            self.seconds.record(Duration::from_micros(micros));
        }
    }

    pub(super) fn lag(&self, lag: Lag) {
        self.unpublished.set(lag.unpublished as f64);
        self.oldest.set(lag.oldest.as_secs_f64());
        self.rows_failed.set(lag.failed as f64);
    }
}

/// What docs/METRICS.md says of each, too.
fn describe() {
    describe_gauge!(
        "usersync_outbox_active",
        "1 in the gateway that relays this outbox, 0 in those that stand by"
    );
    describe_counter!(
        "usersync_outbox_rows_total",
        "Rows of the outbox that were published as events, silent because nothing is to be said of them, or failed because they make no event"
    );
    describe_gauge!(
        "usersync_outbox_unpublished",
        "Rows that wait to be published, in the gateway that relays"
    );
    describe_gauge!(
        "usersync_outbox_oldest_seconds",
        "Outbox lag: for how long the oldest of them has been waiting, in the gateway that relays"
    );
    describe_gauge!(
        "usersync_outbox_failed",
        "Rows in the outbox that make no event and wait for somebody to look, in the gateway that relays"
    );
    describe_histogram!(
        "usersync_outbox_latency_seconds",
        "From a row's being written to its event's being stored"
    );
}
