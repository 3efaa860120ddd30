//! When to look into an outbox again: soon while there is work, ever later while there is none.

use std::time::{Duration, Instant};

use usersync_source::OutboxConfig;

/// Of a time without work, this part is how much later the next row may be noticed.
const PART: u32 = 50;

/// The pauses of one relay.
pub(super) struct Pace {
    bounds: OutboxConfig,
    worked: Instant,
}

impl Pace {
    pub(super) fn new(bounds: OutboxConfig) -> Self {
        Self {
            bounds,
            worked: Instant::now(),
        }
    }

    /// The pause after a look that found work, or none.
    pub(super) fn after(&mut self, work: bool) -> Duration {
        if work {
            self.worked = Instant::now();
        }
        self.pause(self.worked.elapsed())
    }

    fn pause(&self, idle: Duration) -> Duration {
        (idle / PART).clamp(self.bounds.poll_min, self.bounds.poll_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_with_the_time_without_work() {
        let pace = Pace::new(OutboxConfig::default());
        let rows = [
            (0, 5),
            (400, 8),
            (5_000, 100),
            (50_000, 1_000),
            (500_000, 1_000),
        ];
        for (idle, pause) in rows {
            let idle = Duration::from_millis(idle);
            assert_eq!(pace.pause(idle), Duration::from_millis(pause), "{idle:?}");
        }
    }
}
