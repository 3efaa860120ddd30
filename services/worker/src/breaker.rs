//! A circuit breaker: outage is not poison. It opens when a target fails as a whole, so that no
//! user's attempts are spent on it, and closes when one delivery has succeeded again.
//!
//! Pure: told what calls came to and what time it is, it says what may be done.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use serde::Serialize;
use tokio::time::Instant;
use usersync_core::{retry, user_id::UserId};
use usersync_targets::Outcome;

/// How a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// Calls go through.
    Closed,
    /// No calls; from time to time the target is probed.
    Open,
    /// The probe was answered: one call decides.
    HalfOpen,
    /// The target says that it is gone for good: nothing is tried until somebody resets this.
    Gone,
}

/// How many users whose delivery failed are remembered.
const MOST_REMEMBERED: usize = 20_000;

/// A user whose last delivery failed.
#[derive(Clone, Copy, Debug)]
struct Failing {
    /// How many calls had succeeded when it last did.
    successes: u64,
    /// How often it has failed after others had succeeded since its failure before.
    beside: u32,
}

/// Why it opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// The target can't be used, or fails too often.
    Failing,
    /// Nobody is accepted, as by a route that isn't there during a deployment.
    Refusing,
}

/// What one call came to, for the target as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Succeeded,
    Failed,
    Faulted,
    /// There is no doubt that nobody can be served.
    Down,
    Refused,
    Gone,
    /// The target answers; what it says is a matter among users.
    Answered,
}

/// What is to be done with the messages of one delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ruling {
    /// What its outcome asks for.
    Settle,
    /// It says nothing about the user: keep it for when the target is back.
    Hold,
}

/// One target's breaker in one worker.
#[derive(Debug)]
pub(crate) struct Breaker {
    config: retry::Breaker,
    state: State,
    cause: Cause,
    reason: String,
    /// Target faults in a row.
    faults: u32,
    /// Since when every call has failed, and for whom: a few of them.
    failing: Option<(Instant, Vec<UserId>)>,
    /// Users refused for good since the last success; the first of them, to be tried again when it was an outage.
    refused: Vec<UserId>,
    /// Calls within the window: when, and whether it failed.
    calls: VecDeque<(Instant, bool)>,
    failed_calls: u32,
    /// Calls that have succeeded.
    successes: u64,
    /// Users whose last delivery here failed.
    failed: HashMap<UserId, Failing>,
    /// When a call last succeeded.
    succeeded_at: Option<Instant>,
    /// When it opened, or a delivery last failed since.
    tried_at: Instant,
    /// When an open breaker looks again.
    probe_at: Instant,
    probe_after: Duration,
}

impl Breaker {
    pub(crate) fn new(config: retry::Breaker, now: Instant) -> Self {
        Self {
            probe_after: config.probe,
            config,
            state: State::Closed,
            cause: Cause::Failing,
            reason: String::new(),
            faults: 0,
            failing: None,
            refused: Vec::new(),
            calls: VecDeque::new(),
            failed_calls: 0,
            successes: 0,
            failed: HashMap::new(),
            succeeded_at: None,
            tried_at: now,
            probe_at: now,
        }
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// Why it isn't closed.
    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }

    /// The same in words that repeat nothing the target said; `None` while it is closed.
    pub(crate) fn outline(&self) -> Option<&'static str> {
        match (self.state, self.cause) {
            (State::Closed, _) => None,
            (State::Gone, _) => Some("the target says that it is gone"),
            (_, Cause::Refusing) => Some("the target refuses every user"),
            (_, Cause::Failing) => {
                Some("the target can't be reached, refuses the credentials, or fails for everybody")
            }
        }
    }

    /// When the target is to be probed, while open.
    pub(crate) fn probe_at(&self) -> Option<Instant> {
        (self.state == State::Open).then_some(self.probe_at)
    }

    /// Whether the user's last delivery failed, as far as is remembered.
    pub(crate) fn has_failed(&self, user: &UserId) -> bool {
        self.failed.contains_key(user)
    }

    /// Whether the user's deliveries fail again and again beside those of others that succeed: the target has trouble with this
    /// user, and works.
    pub(crate) fn is_poison(&self, user: &UserId) -> bool {
        let failing = self.failed.get(user);
        failing.is_some_and(|failing| failing.beside >= self.config.faults)
    }

    /// Whether a call has succeeded lately.
    fn works(&self, now: Instant) -> bool {
        let since = self.succeeded_at.map(|at| now.duration_since(at));
        since.is_some_and(|since| since <= self.config.window)
    }

    /// Remembers whose delivery has failed.
    fn remember_users<'a>(
        &mut self,
        outcomes: impl Iterator<Item = (&'a UserId, &'a Outcome)>,
        now: Instant,
    ) {
        let mut succeeded = false;
        for (user, outcome) in outcomes {
            match outcome {
                Outcome::Delivered { .. } | Outcome::AlreadyNewer => {
                    succeeded = true;
                    if !self.failed.is_empty() {
                        self.failed.remove(user);
                    }
                }
                Outcome::Transient(_) => {
                    if self.failed.len() >= MOST_REMEMBERED {
                        self.failed.clear();
                    }
                    let successes = self.successes;
                    let first = Failing {
                        successes,
                        beside: 0,
                    };
                    let failing = self.failed.entry(user.clone()).or_insert(first);
                    if failing.successes < successes {
                        failing.successes = successes;
                        failing.beside += 1;
                    }
                }
                // It says something else of this user.
                _ if !self.failed.is_empty() => drop(self.failed.remove(user)),
                _ => {}
            }
        }
        if succeeded {
            self.successes += 1;
            self.succeeded_at = Some(now);
        }
    }

    /// Takes note of one call: the outcome of every user in it.
    pub(crate) fn called<'a>(
        &mut self,
        outcomes: impl Iterator<Item = (&'a UserId, &'a Outcome)> + Clone,
        now: Instant,
    ) {
        let Some(call) = Call::of(outcomes.clone().map(|(_, outcome)| outcome)) else {
            return;
        };
        let is_poison = call == Call::Failed
            && self.works(now)
            && outcomes.clone().all(|(user, outcome)| {
                matches!(outcome, Outcome::Transient(_)) && self.is_poison(user)
            });
        self.remember_users(outcomes.clone(), now);
        // It says nothing of the target.
        if is_poison && self.state == State::Closed {
            return;
        }
        let reason = outcomes.clone().find_map(|(_, outcome)| match outcome {
            Outcome::Transient(failure)
            | Outcome::Permanent(failure)
            | Outcome::Fault(failure)
            | Outcome::Down(failure)
            | Outcome::Gone(failure) => Some(failure.reason.to_string()),
            Outcome::Delivered { .. } | Outcome::AlreadyNewer | Outcome::Conflict(_) => None,
        });
        let reason = reason.unwrap_or_default();
        if self.state != State::Closed {
            self.tried(call, reason, now);
            // It may have closed just now.
            if self.state == State::Closed && call == Call::Refused {
                self.refused(outcomes.map(|(user, _)| user));
            }
            return;
        }
        if call == Call::Answered {
            self.failing = None;
            return;
        }
        self.remember(call, now);
        if matches!(call, Call::Failed | Call::Faulted | Call::Down) {
            let (_, users) = self.failing.get_or_insert_with(|| (now, Vec::new()));
            for (user, _) in outcomes.clone().take(self.config.faults as usize) {
                if users.len() < self.config.faults as usize && !users.contains(user) {
                    users.push(user.clone());
                }
            }
        } else {
            self.failing = None;
        }
        match call {
            Call::Succeeded => {
                self.faults = 0;
                self.refused.clear();
            }
            Call::Failed | Call::Answered => {}
            Call::Faulted => self.faults += 1,
            Call::Down => self.faults = self.config.faults,
            Call::Refused => self.refused(outcomes.map(|(user, _)| user)),
            Call::Gone => return self.gone(reason),
        }
        let sampled = self.calls.len() as u32;
        let share = f64::from(self.failed_calls) / f64::from(sampled.max(1));
        // Few calls, each slow to fail, as those to a server that hangs: never `least` in a window. Several
        // users must be concerned, or it may be a matter of one of them.
        let hanging = self.failing.as_ref().is_some_and(|(since, users)| {
            now.duration_since(*since) >= self.config.window
                && users.len() >= self.config.faults as usize
        });
        if self.faults >= self.config.faults
            || hanging
            || (sampled >= self.config.least && share >= self.config.ratio)
        {
            self.open(Cause::Failing, reason, now);
        } else if self.refused.len() >= self.config.permanent as usize {
            self.open(Cause::Refusing, reason, now);
        }
    }

    /// What is to be done with a delivery, after its call was noted.
    pub(crate) fn ruling(&self, outcome: &Outcome) -> Ruling {
        match outcome {
            Outcome::Delivered { .. } | Outcome::AlreadyNewer => Ruling::Settle,
            _ if self.state == State::Closed => Ruling::Settle,
            _ => Ruling::Hold,
        }
    }

    /// A probe was answered: the next call decides.
    pub(crate) fn answered(&mut self) {
        if self.state == State::Open {
            self.state = State::HalfOpen;
        }
    }

    /// A probe failed. It may be wrong about what a delivery would come to, so that this puts off the call that decides
    /// for no longer than `probe_cap`.
    pub(crate) fn unanswered(&mut self, reason: String, now: Instant) {
        if self.state != State::Open {
            return;
        }
        self.again(reason, now);
        if now.duration_since(self.tried_at) >= self.config.probe_cap {
            self.state = State::HalfOpen;
        }
    }

    /// Somebody says that the target is back: one call decides; or, where it refuses everybody, that
    /// it does so rightly.
    pub(crate) fn reset(&mut self) {
        match (self.state, self.cause) {
            (State::Closed, _) => {}
            (_, Cause::Refusing) => self.close(),
            (_, Cause::Failing) => {
                self.state = State::HalfOpen;
                self.probe_after = self.config.probe;
            }
        }
    }

    /// Whom the outage made look refused; empty unless it has just closed.
    pub(crate) fn mistaken(&mut self) -> Vec<UserId> {
        match self.state {
            State::Closed if self.cause == Cause::Refusing => {
                self.cause = Cause::Failing;
                std::mem::take(&mut self.refused)
            }
            _ => Vec::new(),
        }
    }

    /// A call that ended while not closed: the one that decides, or one from before.
    fn tried(&mut self, call: Call, reason: String, now: Instant) {
        match call {
            // A call from before it said so.
            _ if self.state == State::Gone => {}
            Call::Succeeded => self.close(),
            // The target works and refuses this one user.
            Call::Refused | Call::Answered if self.cause == Cause::Failing => {
                if self.state == State::HalfOpen {
                    self.close();
                }
            }
            Call::Gone => self.gone(reason),
            Call::Failed | Call::Faulted | Call::Down | Call::Refused | Call::Answered => {
                if self.state == State::HalfOpen {
                    self.again(reason, now);
                    self.tried_at = now;
                }
            }
        }
    }

    fn open(&mut self, cause: Cause, reason: String, now: Instant) {
        self.state = State::Open;
        self.cause = cause;
        self.reason = reason;
        self.tried_at = now;
        self.probe_after = self.config.probe;
        self.probe_at = now + self.probe_after;
    }

    fn again(&mut self, reason: String, now: Instant) {
        self.state = State::Open;
        if !reason.is_empty() {
            self.reason = reason;
        }
        self.probe_after = (2 * self.probe_after).min(self.config.probe_cap);
        self.probe_at = now + self.probe_after;
    }

    fn gone(&mut self, reason: String) {
        self.state = State::Gone;
        self.cause = Cause::Failing;
        self.reason = reason;
    }

    fn refused<'a>(&mut self, users: impl Iterator<Item = &'a UserId>) {
        let room = (self.config.permanent as usize).saturating_sub(self.refused.len());
        self.refused.extend(users.take(room).cloned());
    }

    fn close(&mut self) {
        self.state = State::Closed;
        self.failing = None;
        self.reason.clear();
        self.faults = 0;
        self.calls.clear();
        self.failed_calls = 0;
        if self.cause != Cause::Refusing {
            self.refused.clear();
        }
    }

    fn remember(&mut self, call: Call, now: Instant) {
        let failed = matches!(call, Call::Failed | Call::Faulted | Call::Down);
        self.calls.push_back((now, failed));
        self.failed_calls += u32::from(failed);
        // The window is bounded in time, and in length too: a fast target fills seconds with thousands of calls.
        let longest = (50 * self.config.least as usize).min(10_000);
        while let Some((at, failed)) = self.calls.front().copied() {
            let old = now.duration_since(at) > self.config.window;
            if !old && self.calls.len() <= longest {
                break;
            }
            self.calls.pop_front();
            self.failed_calls -= u32::from(failed);
        }
    }
}

impl Call {
    /// One success shows that the target works; `None` for a call without users.
    fn of<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> Option<Self> {
        let rank = |call: &Self| match call {
            Self::Succeeded => 0,
            Self::Gone => 1,
            Self::Down => 2,
            Self::Faulted => 3,
            Self::Failed => 4,
            Self::Refused => 5,
            Self::Answered => 6,
        };
        let calls = outcomes.map(|outcome| match outcome {
            Outcome::Delivered { .. } | Outcome::AlreadyNewer => Self::Succeeded,
            Outcome::Transient(_) => Self::Failed,
            Outcome::Permanent(_) => Self::Refused,
            Outcome::Fault(_) => Self::Faulted,
            Outcome::Down(_) => Self::Down,
            Outcome::Gone(_) => Self::Gone,
            Outcome::Conflict(_) => Self::Answered,
        });
        calls.min_by_key(rank)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use usersync_targets::{Conflict, Failure};

    const OK: Outcome = Outcome::Delivered { guarded: true };

    fn fault() -> Outcome {
        Outcome::Fault(Failure::new("no connection"))
    }

    fn transient() -> Outcome {
        Outcome::Transient(Failure::new("busy"))
    }

    fn permanent() -> Outcome {
        Outcome::Permanent(Failure::new("no such route"))
    }

    struct Bench {
        breaker: Breaker,
        now: Instant,
        user: u64,
    }

    impl Bench {
        fn new() -> Self {
            let now = Instant::now();
            Self {
                breaker: Breaker::new(retry::Breaker::default(), now),
                now,
                user: 0,
            }
        }

        fn call(&mut self, outcomes: &[Outcome]) -> State {
            let users: Vec<UserId> = outcomes
                .iter()
                .map(|_| {
                    self.user += 1;
                    UserId::from(self.user)
                })
                .collect();
            self.breaker.called(users.iter().zip(outcomes), self.now);
            self.breaker.state()
        }

        /// Opens it by faults.
        fn opened() -> Self {
            let mut bench = Self::new();
            for _ in 0..3 {
                bench.call(&[fault()]);
            }
            assert_eq!(bench.breaker.state(), State::Open);
            bench
        }
    }

    impl Bench {
        /// One user's call fails, or doesn't.
        fn of(&mut self, user: u64, outcome: &Outcome) -> State {
            let user = UserId::from(user);
            self.breaker
                .called([(&user, outcome)].into_iter(), self.now);
            self.breaker.state()
        }

        /// The target is probed, and answers.
        fn half_open(&mut self) {
            self.now += Duration::from_secs(3);
            self.breaker.answered();
        }
    }

    #[test]
    fn users_who_fail_while_others_do_not_keep_it_open_no_longer() {
        let mut bench = Bench::new();
        let poison = 1..=300;
        for user in poison.clone().take(20) {
            bench.of(user, &transient());
        }
        assert_eq!(bench.breaker.state(), State::Open);
        // As long as nobody succeeds it may be an outage.
        for _ in 0..10 {
            bench.half_open();
            assert_eq!(bench.of(7, &transient()), State::Open);
        }
        for healthy in 1_001..=1_004 {
            bench.half_open();
            assert!(!bench.breaker.has_failed(&healthy.into()));
            assert_eq!(bench.of(healthy, &OK), State::Closed);
            for user in poison.clone() {
                bench.of(user, &transient());
            }
        }
        // By now each of them has failed after others' success three times.
        bench.half_open();
        assert_eq!(bench.of(1_005, &OK), State::Closed);
        for _ in 0..3 {
            for user in poison.clone() {
                assert!(bench.breaker.is_poison(&user.into()), "{user}");
                assert_eq!(bench.of(user, &transient()), State::Closed);
                assert_eq!(bench.breaker.ruling(&transient()), Ruling::Settle);
            }
        }
        // They hide no outage.
        for user in 2_000..2_020 {
            bench.of(user, &transient());
        }
        assert_eq!(bench.breaker.state(), State::Open);
        bench.half_open();
        assert_eq!(bench.of(2_000, &transient()), State::Open);
        bench.half_open();
        assert_eq!(bench.of(1, &transient()), State::Open);
        // One who has succeeded is as good as any.
        bench.of(1, &OK);
        assert!(!bench.breaker.has_failed(&1.into()));
    }

    #[test]
    fn where_nobody_succeeds_any_more_even_they_count() {
        let mut bench = Bench::new();
        for round in 0..5 {
            bench.of(1_000 + round, &OK);
            for user in 1..=30 {
                bench.of(user, &transient());
            }
            if bench.breaker.state() != State::Closed {
                bench.half_open();
            }
        }
        assert_eq!(bench.of(2_000, &OK), State::Closed);
        assert!(bench.breaker.is_poison(&1.into()));
        bench.now += Duration::from_secs(11);
        for user in 1..=30 {
            bench.of(user, &transient());
        }
        assert_eq!(bench.breaker.state(), State::Open);
        // One old failure beside others' success makes nobody poison.
        let mut bench = Bench::new();
        bench.of(1, &transient());
        for user in 10..20 {
            bench.of(user, &OK);
        }
        bench.of(1, &transient());
        assert!(!bench.breaker.is_poison(&1.into()));
    }

    #[test]
    fn whoever_fails_while_it_refuses_everybody_opens_it_again() {
        let mut bench = Bench::new();
        for user in 1..=5 {
            for healthy in 100..105 {
                bench.of(healthy, &OK);
                bench.of(user, &transient());
            }
        }
        for user in 200..220 {
            bench.of(user, &permanent());
        }
        assert_eq!(bench.breaker.state(), State::Open);
        bench.half_open();
        assert!(bench.breaker.is_poison(&1.into()));
        assert_eq!(bench.of(1, &transient()), State::Open);
    }

    #[test]
    fn faults_in_a_row_open_it_and_a_success_between_does_not() {
        let mut bench = Bench::new();
        for _ in 0..10 {
            bench.call(&[fault()]);
            bench.call(&[fault()]);
            assert_eq!(bench.call(&[OK]), State::Closed);
        }
        bench.call(&[fault()]);
        // One call is one call, however many users it carries.
        assert_eq!(
            bench.call(&[fault(), fault(), fault(), fault()]),
            State::Closed
        );
        assert_eq!(bench.call(&[fault()]), State::Open);
        assert_eq!(bench.breaker.reason(), "no connection");
    }

    #[test]
    fn one_word_that_nothing_can_be_written_opens_it_before_anybody_loses_an_attempt() {
        let mut bench = Bench::new();
        let down = Outcome::Down(Failure::new("read-only"));
        bench.call(&[OK]);
        assert_eq!(bench.call(std::slice::from_ref(&down)), State::Open);
        assert_eq!(bench.breaker.ruling(&down), Ruling::Hold);
        assert_eq!(bench.breaker.reason(), "read-only");
    }

    #[test]
    fn a_storm_of_failures_opens_it_and_a_drizzle_does_not() {
        let mut bench = Bench::new();
        for _ in 0..200 {
            bench.call(&[OK]);
            bench.call(&[OK]);
            assert_eq!(bench.call(&[transient()]), State::Closed);
        }
        let mut bench = Bench::new();
        for _ in 0..19 {
            assert_eq!(bench.call(&[transient()]), State::Closed);
        }
        assert_eq!(bench.call(&[transient()]), State::Open);
        // What failed long ago doesn't count.
        let mut bench = Bench::new();
        for _ in 0..100 {
            bench.now += Duration::from_secs(4);
            bench.call(&[OK]);
            assert_eq!(bench.call(&[transient()]), State::Closed);
        }
    }

    #[test]
    fn a_server_that_hangs_opens_it_with_few_calls_and_one_bad_user_does_not() {
        let mut bench = Bench::new();
        for call in 0..4 {
            assert_eq!(
                bench.call(&[transient(), transient()]),
                State::Closed,
                "{call}"
            );
            bench.now += Duration::from_secs(3);
        }
        assert_eq!(bench.call(&[transient()]), State::Open);
        let mut bench = Bench::new();
        for _ in 0..100 {
            bench.now += Duration::from_secs(3);
            bench.user = 6;
            assert_eq!(bench.call(&[transient()]), State::Closed);
        }
    }

    #[test]
    fn a_run_of_refusals_opens_it_and_those_refused_are_tried_again() {
        let mut bench = Bench::new();
        for _ in 0..19 {
            assert_eq!(bench.call(&[permanent()]), State::Closed);
            assert_eq!(bench.breaker.ruling(&permanent()), Ruling::Settle);
        }
        assert_eq!(bench.call(&[permanent()]), State::Open);
        assert_eq!(bench.breaker.ruling(&permanent()), Ruling::Hold);
        bench.breaker.answered();
        assert_eq!(bench.call(&[permanent()]), State::Open, "still refusing");
        bench.breaker.answered();
        assert!(bench.breaker.mistaken().is_empty());
        assert_eq!(bench.call(&[OK]), State::Closed);
        assert_eq!(bench.breaker.mistaken().len(), 20);
        assert!(bench.breaker.mistaken().is_empty());
    }

    #[test]
    fn while_open_only_successes_are_settled() {
        let bench = Bench::opened();
        for outcome in [fault(), transient(), permanent()] {
            assert_eq!(bench.breaker.ruling(&outcome), Ruling::Hold);
        }
        assert_eq!(bench.breaker.ruling(&OK), Ruling::Settle);
    }

    #[test]
    fn a_trial_decides_and_probes_come_ever_more_rarely() {
        let mut bench = Bench::opened();
        let (mut waits, mut trials) = (Vec::new(), Vec::new());
        let began = bench.now;
        while waits.len() < 8 {
            let wait = bench.breaker.probe_at().unwrap() - bench.now;
            waits.push(wait.as_millis());
            bench.now += wait;
            bench
                .breaker
                .unanswered("no connection".to_owned(), bench.now);
            if bench.breaker.state() == State::HalfOpen {
                trials.push((bench.now - began).as_millis());
                bench.call(&[fault()]);
            }
        }
        assert_eq!(waits[..3], [500, 1_000, 2_000]);
        assert!(waits[3..].iter().all(|wait| *wait == 3_000), "{waits:?}");
        // Whatever probes say, a delivery is tried within `probe_cap` after the one before.
        assert_eq!(trials[..3], [3_500, 6_500, 9_500]);
        bench.breaker.answered();
        assert_eq!(bench.breaker.probe_at(), None);
        assert_eq!(bench.call(&[transient()]), State::Open);
        bench.breaker.answered();
        // It works, and refuses one user; who counts for a run of them.
        assert_eq!(bench.call(&[permanent()]), State::Closed);
        for _ in 0..18 {
            assert_eq!(bench.call(&[permanent()]), State::Closed);
        }
        assert_eq!(bench.call(&[permanent()]), State::Open);
        bench.breaker.reset();
        assert_eq!(
            bench.breaker.state(),
            State::Closed,
            "somebody says it is right"
        );
        assert_eq!(bench.breaker.mistaken().len(), 20);
    }

    #[test]
    fn a_call_from_before_neither_hurts_nor_delays() {
        let mut bench = Bench::opened();
        let probe_at = bench.breaker.probe_at();
        bench.now += Duration::from_millis(100);
        assert_eq!(bench.call(&[fault()]), State::Open);
        assert_eq!(bench.call(&[permanent()]), State::Open);
        assert_eq!(bench.breaker.probe_at(), probe_at);
        assert_eq!(bench.call(&[OK]), State::Closed, "it works after all");
    }

    #[test]
    fn conflicts_among_users_never_open_it_and_show_that_the_target_answers() {
        let conflict = || Outcome::Conflict(Conflict::passing(Failure::new("taken")));
        let mut bench = Bench::new();
        for _ in 0..200 {
            bench.now += Duration::from_secs(1);
            assert_eq!(bench.call(&[conflict(), conflict()]), State::Closed);
        }
        assert_eq!(bench.breaker.ruling(&conflict()), Ruling::Settle);
        // They don't hide that others fail.
        for _ in 0..2 {
            assert_eq!(bench.call(&[conflict(), fault()]), State::Closed);
        }
        assert_eq!(bench.call(&[conflict(), fault()]), State::Open);
        bench.breaker.answered();
        assert_eq!(bench.call(&[conflict()]), State::Closed);
    }

    #[test]
    fn gone_stays_until_reset() {
        let mut bench = Bench::new();
        assert_eq!(
            bench.call(&[Outcome::Gone(Failure::new("410"))]),
            State::Gone
        );
        assert_eq!(bench.breaker.probe_at(), None);
        bench.breaker.answered();
        assert_eq!(bench.breaker.state(), State::Gone);
        assert_eq!(bench.call(&[OK]), State::Gone, "a call from before");
        bench.breaker.reset();
        assert_eq!(bench.breaker.state(), State::HalfOpen);
        assert_eq!(bench.call(&[OK]), State::Closed);
    }
}
