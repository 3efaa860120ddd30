//! What metrics say of notices.

use metrics::{Counter, counter, describe_counter};

use super::channel::NAMES;

/// The counters of one channel.
pub(super) struct Meters {
    pub(super) sent: Counter,
    pub(super) failed: Counter,
    pub(super) refused: Counter,
}

impl Meters {
    pub(super) fn of(channel: &'static str) -> Self {
        let of =
            |result| counter!("usersync_notices_total", "channel" => channel, "result" => result);
        Self {
            sent: of("sent"),
            failed: of("failed"),
            refused: of("refused"),
        }
    }
}

/// Says what is counted, also of a channel that the settings don't have.
pub(super) fn begin() {
    // What docs/METRICS.md says, too.
    describe_counter!(
        "usersync_notices_total",
        "Messages about alerts that a channel has taken, that failed and are tried again, or that it refused for good"
    );
    for channel in NAMES {
        let meters = Meters::of(channel);
        [meters.sent, meters.failed, meters.refused]
            .iter()
            .for_each(|counter| counter.increment(0));
    }
}
