//! How many calls may be under way at once: as many as make the target faster, and no more.
//!
//! Calls that take no longer although more of them are under way show room; calls that take longer
//! show a queue. The median is compared with the best seen, so that a few slow calls, which hold only
//! their own lanes, neither shrink nor stop anything.

use std::time::Duration;

use tokio::time::Instant;

/// What is tried first, where it is allowed.
const FIRST: usize = 64;
/// The fewest calls from which a step is decided.
const LEAST_CALLS: usize = 32;
/// A median that exceeds the best by this factor shows a queue.
const QUEUE: f64 = 1.5;
/// Differences below this many seconds are noise.
const NOISE: f64 = 0.001;
/// After how long the best median is measured anew, at half the concurrency: targets change.
const RELEARN: Duration = Duration::from_secs(30);
/// The share of failures that shows too much load.
const FAILURES: f64 = 0.1;

/// The concurrency of one target in one worker, between 1 and `most`.
#[derive(Debug)]
pub(crate) struct Pace {
    limit: f64,
    most: usize,
    /// The best median seen, in seconds.
    best: Option<f64>,
    /// When it was last measured anew.
    learnt: Instant,
    /// Since the last step, in seconds.
    seconds: Vec<f64>,
    failures: usize,
    /// Whether the limit was reached since the last step: else nothing is learnt from the calls.
    reached: bool,
}

impl Pace {
    pub(crate) fn new(most: usize, now: Instant) -> Self {
        Self {
            limit: FIRST.min(most) as f64,
            most,
            best: None,
            learnt: now,
            seconds: Vec::new(),
            failures: 0,
            reached: false,
        }
    }

    /// How many calls may be under way.
    pub(crate) fn limit(&self) -> usize {
        self.limit as usize
    }

    /// The limit keeps calls waiting.
    pub(crate) fn reached(&mut self) {
        self.reached = true;
    }

    /// A call has ended.
    pub(crate) fn ended(&mut self, took: Duration, failed: bool, now: Instant) {
        self.seconds.push(took.as_secs_f64());
        self.failures += usize::from(failed);
        if self.seconds.len() >= LEAST_CALLS.max(self.limit()) {
            self.step(now);
        }
    }

    fn step(&mut self, now: Instant) {
        let calls = self.seconds.len();
        let (_, median, _) = self
            .seconds
            .select_nth_unstable_by(calls / 2, f64::total_cmp);
        let median = *median;
        let best = self.best.map_or(median, |best| median.min(best));
        self.best = Some(best);
        let failing = self.failures as f64 > FAILURES * calls as f64;
        if failing || median > 2.0 * QUEUE * best + NOISE {
            self.limit = (self.limit * 0.8).max(1.0);
        } else if self.reached && median <= QUEUE * best + NOISE {
            self.limit = (self.limit * 1.25 + 1.0).min(self.most as f64);
        }
        if now.duration_since(self.learnt) > RELEARN {
            self.learnt = now;
            self.best = None;
            self.limit = (self.limit / 2.0).max(1.0);
        }
        self.seconds.clear();
        self.failures = 0;
        self.reached = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `steps` full windows, one a second, against a target that answers within `took(limit, call)`.
    fn run(steps: usize, took: impl Fn(usize, usize) -> f64) -> Pace {
        let mut now = Instant::now();
        let mut pace = Pace::new(1_000, now);
        for _ in 0..steps {
            now += Duration::from_secs(1);
            let limit = pace.limit();
            pace.reached();
            for call in 0..LEAST_CALLS.max(limit) {
                pace.ended(Duration::from_secs_f64(took(limit, call)), false, now);
            }
        }
        pace
    }

    #[test]
    fn it_grows_to_its_bound_while_calls_take_no_longer() {
        assert_eq!(run(0, |_, _| 0.020).limit(), 64);
        assert_eq!(run(25, |_, _| 0.020).limit(), 1_000);
    }

    #[test]
    fn it_stops_where_calls_begin_to_queue_and_stays_there() {
        // The target works on 100 at a time.
        for steps in [25, 28, 55, 85, 400] {
            let pace = run(steps, |limit, _| 0.020 * (limit as f64 / 100.0).max(1.0));
            assert!(
                (70..250).contains(&pace.limit()),
                "{steps}: {}",
                pace.limit()
            );
        }
    }

    #[test]
    fn a_few_slow_calls_do_not_shrink_it() {
        let pace = run(25, |_, call| if call % 50 == 0 { 2.0 } else { 0.001 });
        assert_eq!(pace.limit(), 1_000);
    }

    #[test]
    fn failures_shrink_it_and_idleness_leaves_it() {
        let now = Instant::now();
        let mut pace = Pace::new(1_000, now);
        for _ in 0..64 {
            pace.ended(Duration::from_millis(1), true, now);
        }
        assert!(pace.limit() < 64);
        let mut pace = Pace::new(1_000, now);
        for _ in 0..1_000 {
            pace.ended(Duration::from_millis(1), false, now);
        }
        assert_eq!(pace.limit(), 64, "never reached, so nothing is learnt");
        assert_eq!(Pace::new(4, now).limit(), 4);
    }
}
