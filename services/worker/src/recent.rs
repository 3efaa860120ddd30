//! How deliveries went in the last minute, for those who ask: rates, and the kind of the last failure.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;
use usersync_core::dead_letter::Class;

/// What is looked back upon, in steps of [`STEP`].
const STEPS: usize = 12;
const STEP: Duration = Duration::from_secs(5);

/// Counts of the last [`STEPS`] steps, in a ring.
#[derive(Debug)]
pub(crate) struct Recent {
    began: Instant,
    /// By step modulo [`STEPS`].
    counts: [Count; STEPS],
    last_failure: Option<LastFailure>,
}

/// The attempts of one step.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    step: u64,
    succeeded: u64,
    failed: u64,
}

/// The last failure: what kind, never what was said, which may name somebody.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct LastFailure {
    pub class: Class,
    pub at: Timestamp,
}

/// Per second, over the last minute or since the target is served.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rates {
    /// Users that were tried, with or without success.
    pub attempts_per_second: f64,
    /// Those that failed.
    pub failures_per_second: f64,
}

impl Recent {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            began: now,
            counts: [Count::default(); STEPS],
            last_failure: None,
        }
    }

    /// A user was delivered, or need not be.
    pub(crate) fn succeeded(&mut self, now: Instant) {
        self.count(now).succeeded += 1;
    }

    /// A user could not be delivered.
    pub(crate) fn failed(&mut self, class: Class, now: Instant) {
        self.count(now).failed += 1;
        let at = Timestamp::now();
        self.last_failure = Some(LastFailure { class, at });
    }

    pub(crate) fn last_failure(&self) -> Option<LastFailure> {
        self.last_failure
    }

    pub(crate) fn rates(&self, now: Instant) -> Rates {
        let step = self.step(now);
        let recent = |count: &&Count| count.step + STEPS as u64 > step;
        let counts = self.counts.iter().filter(recent);
        let (succeeded, failed) = counts.fold((0, 0), |(succeeded, failed), count| {
            (succeeded + count.succeeded, failed + count.failed)
        });
        // The step under way is part of the time.
        let into_step = (now - self.began).as_secs_f64() % STEP.as_secs_f64();
        let whole = STEP.as_secs_f64() * (STEPS - 1) as f64 + into_step;
        let seconds = whole.min((now - self.began).as_secs_f64()).max(1.0);
        Rates {
            attempts_per_second: (succeeded + failed) as f64 / seconds,
            failures_per_second: failed as f64 / seconds,
        }
    }

    fn step(&self, now: Instant) -> u64 {
        (now - self.began).as_secs() / STEP.as_secs()
    }

    fn count(&mut self, now: Instant) -> &mut Count {
        let step = self.step(now);
        let count = &mut self.counts[(step % STEPS as u64) as usize];
        if count.step != step {
            *count = Count {
                step,
                ..Count::default()
            };
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_the_last_minute() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut recent = Recent::new(began);
        assert_eq!(recent.rates(began).attempts_per_second, 0.0);
        for second in 0..10 {
            recent.succeeded(at(second));
        }
        recent.failed(Class::Transient, at(9));
        let rates = recent.rates(at(10));
        assert_eq!(
            (rates.attempts_per_second, rates.failures_per_second),
            (1.1, 0.1)
        );
        assert_eq!(recent.last_failure().unwrap().class, Class::Transient);
        let rates = recent.rates(at(55));
        assert_eq!(rates.attempts_per_second, 0.2, "eleven in 55 seconds");
        assert_eq!(recent.rates(at(70)).attempts_per_second, 0.0, "forgotten");
        assert!(recent.last_failure().is_some(), "for as long as it serves");
    }
}
