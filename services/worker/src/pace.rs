//! How many calls may be under way at once: as many as make the target faster, and no more.
//!
//! To begin with twice as many calls are tried, and again, until that is of no use; then now and then a few more. If
//! the rate rises with them they stay, else it goes back. Calls that take much longer than they did show a queue. The
//! median tells, so that a few slow calls, which hold only their own lanes, neither shrink nor stop anything.

use std::time::Duration;

use tokio::time::Instant;

/// What is tried first, where it is allowed.
const FIRST: usize = 64;
/// A step is decided from the calls of at least this long, and at least as many as the limit.
const STEP: Duration = Duration::from_millis(50);
/// How much more is tried to begin with: a target that takes many calls at once is not kept waiting.
const MUCH_MORE: f64 = 2.0;
/// How much more is tried once that was of no use.
const MORE: f64 = 1.25;
/// A step stays if it makes the rate rise at least this much.
const WORTH: f64 = 1.08;
/// After how long more is tried again, when it wasn't worth it: soon, for one step may have been judged in a
/// moment when the machine was busy with something else, then ever later.
const REST: Duration = Duration::from_millis(100);
/// At the latest, and after every sign of too much load.
const LONG_REST: Duration = Duration::from_secs(2);
/// A median that exceeds the best by this factor shows a queue.
const QUEUE: f64 = 3.0;
/// Medians below this many seconds are too short to tell a queue by.
const SHORT: f64 = 0.005;
/// After how long the best median is measured anew: targets change.
const RELEARN: Duration = Duration::from_secs(30);
/// The share of failures that shows too much load.
const FAILURES: f64 = 0.1;
/// Calls remembered for the median, at most.
const CALLS: usize = 4_096;

/// The concurrency of one target in one worker, between 1 and `most`.
#[derive(Debug)]
pub(crate) struct Pace {
    limit: f64,
    most: usize,
    /// By how much the next step goes up.
    more: f64,
    /// The limit and the rate before the last step up, while it is on trial.
    trial: Option<(f64, f64)>,
    /// No step up before this.
    rest_until: Instant,
    /// How long the next rest is.
    rest: Duration,
    /// The best median seen, in seconds.
    best: Option<f64>,
    /// When it was last measured anew.
    learnt: Instant,
    window: Window,
}

/// The calls since the last step.
#[derive(Debug)]
struct Window {
    since: Instant,
    calls: usize,
    failures: usize,
    /// How long they took, in seconds.
    seconds: Vec<f64>,
    /// Whether the limit was reached: else nothing is learnt from the calls.
    reached: bool,
}

impl Window {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            calls: 0,
            failures: 0,
            seconds: Vec::new(),
            reached: false,
        }
    }
}

impl Pace {
    pub(crate) fn new(most: usize, now: Instant) -> Self {
        Self {
            limit: FIRST.min(most) as f64,
            most,
            more: MUCH_MORE,
            trial: None,
            rest_until: now,
            rest: REST,
            best: None,
            learnt: now,
            window: Window::new(now),
        }
    }

    /// How many calls may be under way.
    pub(crate) fn limit(&self) -> usize {
        self.limit as usize
    }

    /// The limit keeps calls waiting.
    pub(crate) fn reached(&mut self) {
        self.window.reached = true;
    }

    /// A call has ended.
    pub(crate) fn ended(&mut self, took: Duration, failed: bool, now: Instant) {
        let window = &mut self.window;
        window.calls += 1;
        window.failures += usize::from(failed);
        // How fast a call fails tells nothing.
        if !failed && window.seconds.len() < CALLS {
            window.seconds.push(took.as_secs_f64());
        }
        if window.calls >= self.limit as usize && now.duration_since(window.since) >= STEP {
            self.step(now);
        }
    }

    fn step(&mut self, now: Instant) {
        let window = std::mem::replace(&mut self.window, Window::new(now));
        let elapsed = now.duration_since(window.since).as_secs_f64();
        let rate = window.calls as f64 / elapsed;
        let mut seconds = window.seconds;
        let middle = seconds.len() / 2;
        let median = match seconds.is_empty() {
            true => f64::INFINITY,
            false => *seconds.select_nth_unstable_by(middle, f64::total_cmp).1,
        };
        if now.duration_since(self.learnt) > RELEARN {
            self.learnt = now;
            self.best = None;
        }
        let best = self.best.map_or(median, |best| median.min(best));
        self.best = Some(best);
        // Without having reached the limit, the calls say nothing of it.
        let trial = self.trial.take().filter(|_| window.reached);
        let failing = window.failures as f64 > FAILURES * window.calls as f64;
        if failing || (median > SHORT && median > QUEUE * best) {
            self.limit = (self.limit * 0.8).max(1.0);
            self.more = MORE;
            self.rest_until = now + LONG_REST;
            return;
        }
        if let Some((before, then)) = trial {
            if rate < WORTH * then {
                self.limit = before;
                self.more = MORE;
                self.rest_until = now + self.rest;
                self.rest = (2 * self.rest).min(LONG_REST);
                return;
            }
            self.rest = REST;
        }
        if window.reached && now >= self.rest_until && self.limit() < self.most {
            self.trial = Some((self.limit, rate));
            self.limit = (self.limit * self.more + 1.0).min(self.most as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs for `seconds` against a target that answers a call within `took(limit)` seconds, one in
    /// `slow` within 2 s.
    fn run(seconds: u64, slow: usize, took: impl Fn(f64) -> f64) -> Pace {
        let mut now = Instant::now();
        let end = now + Duration::from_secs(seconds);
        let mut pace = Pace::new(1_000, now);
        let mut call = 0;
        while now < end {
            pace.reached();
            let limit = pace.limit() as f64;
            // Slow calls hold their places.
            let one = took(limit) + 2.0 / slow as f64;
            now += Duration::from_secs_f64(one / limit);
            call += 1;
            let took = if call % slow == 0 { 2.0 } else { took(limit) };
            pace.ended(Duration::from_secs_f64(took), false, now);
        }
        pace
    }

    #[test]
    fn it_grows_while_the_rate_grows_with_it() {
        assert_eq!(run(0, usize::MAX, |_| 0.020).limit(), 64);
        assert!(run(5, usize::MAX, |_| 0.020).limit() > 800);
        assert_eq!(run(1, usize::MAX, |_| 0.020).limit(), 1_000, "and soon");
    }

    #[test]
    fn a_moment_in_which_the_machine_was_busy_costs_little() {
        let start = Instant::now();
        let mut now = start;
        let mut pace = Pace::new(1_000, start);
        while now < start + Duration::from_secs(2) {
            pace.reached();
            // For a fifth of a second everything takes three times as long.
            let busy = (300..500).contains(&now.duration_since(start).as_millis());
            let share = if busy { 3.0 } else { 1.0 } / pace.limit() as f64;
            now += Duration::from_secs_f64(0.020 * share);
            pace.ended(Duration::from_millis(20), false, now);
        }
        assert!(pace.limit() > 800, "{}", pace.limit());
    }

    #[test]
    fn it_goes_back_where_more_calls_only_queue() {
        for seconds in [5, 20, 45] {
            // The target works on 100 at a time.
            let pace = run(seconds, usize::MAX, |limit| {
                0.020 * (limit / 100.0).max(1.0)
            });
            assert!((64..160).contains(&pace.limit()), "{}", pace.limit());
            // One core, kept busy by fewer than 64.
            let pace = run(seconds, usize::MAX, |limit| limit / 40_000.0);
            assert!((60..=81).contains(&pace.limit()), "{}", pace.limit());
        }
    }

    #[test]
    fn a_few_slow_calls_do_not_shrink_it() {
        let pace = run(10, 500, |_| 0.002);
        assert!(pace.limit() >= 500, "{}", pace.limit());
    }

    #[test]
    fn failures_shrink_it_and_idleness_leaves_it() {
        let start = Instant::now();
        let mut pace = Pace::new(1_000, start);
        for call in 1..=128 {
            let now = start + Duration::from_millis(call);
            pace.ended(Duration::from_millis(1), true, now);
        }
        assert!(pace.limit() < 64);
        let mut pace = Pace::new(1_000, start);
        for call in 1..=1_000 {
            let now = start + Duration::from_millis(call);
            pace.ended(Duration::from_millis(1), false, now);
        }
        assert_eq!(pace.limit(), 64, "never reached, so nothing is learnt");
        assert_eq!(Pace::new(4, start).limit(), 4);
    }
}
