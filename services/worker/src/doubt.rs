//! Who was delivered lately to a target without a guard, so that they can be delivered again: a call that nobody waits
//! for any more, of a worker that has vanished, may land after theirs (ADR 42).
//!
//! Such a call was made one time-out before its worker vanished at the earliest, and lands one time-out after that at the
//! latest. Whoever was delivered between the two is delivered again when the second is over.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use tokio::time::Instant;
use usersync_core::{
    presence::{RENEWED, VANISHED},
    user_id::UserId,
};

/// How long one step is.
const STEP: Duration = Duration::from_secs(1);
/// The most users remembered.
const MOST: usize = 500_000;

/// What was delivered lately, by steps.
#[derive(Debug)]
pub(crate) struct Doubt {
    /// How long a call may be under way.
    timeout: Duration,
    most: usize,
    steps: VecDeque<Step>,
    /// Users in `steps`.
    remembered: usize,
    /// Rounds to come.
    rounds: Vec<Round>,
    /// Who is to be delivered again.
    again: VecDeque<UserId>,
}

#[derive(Debug)]
struct Step {
    began: Instant,
    users: HashSet<UserId>,
}

/// At `due`, those who were delivered after `since` are to be delivered again.
#[derive(Debug)]
struct Round {
    due: Instant,
    since: Option<Instant>,
}

impl Doubt {
    pub(crate) fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            most: MOST,
            steps: VecDeque::new(),
            remembered: 0,
            rounds: Vec::new(),
            again: VecDeque::new(),
        }
    }

    /// A user was delivered. Answers whether others had to be forgotten for that before their time.
    pub(crate) fn delivered(&mut self, user: UserId, now: Instant) -> bool {
        let current = |step: &Step| now.duration_since(step.began) < STEP;
        if !self.steps.back().is_some_and(current) {
            self.forget(now);
            let users = HashSet::new();
            self.steps.push_back(Step { began: now, users });
        }
        let step = self.steps.back_mut();
        self.remembered += usize::from(step.is_some_and(|step| step.users.insert(user)));
        let is_crowded = self.remembered > self.most;
        if is_crowded {
            self.forget_first();
        }
        is_crowded
    }

    /// How long a call may be under way from now on; those under way may take as long as before.
    pub(crate) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = self.timeout.max(timeout);
    }

    /// A user is to be delivered again as soon as there is room.
    pub(crate) fn again(&mut self, user: UserId) {
        self.again.push_back(user);
    }

    /// A worker has vanished: `noticed` now, up to [`VANISHED`] and [`RENEWED`] after it did.
    pub(crate) fn vanished(&mut self, now: Instant) {
        self.rounds.push(Round {
            due: now + self.timeout,
            since: now.checked_sub(self.timeout + VANISHED + RENEWED),
        });
    }

    /// Up to `room` users who are to be delivered again by now.
    pub(crate) fn due(&mut self, room: usize, now: Instant) -> Vec<UserId> {
        let due: Vec<Round> = self
            .rounds
            .extract_if(.., |round| round.due <= now)
            .collect();
        if let Some(since) = due.iter().map(|round| round.since).min() {
            let mut users = HashSet::new();
            let lately = |step: &&Step| since.is_none_or(|since| step.began + STEP >= since);
            for step in self.steps.iter().filter(lately) {
                users.extend(step.users.iter().cloned());
            }
            self.again.extend(users);
        }
        let room = room.min(self.again.len());
        self.again.drain(..room).collect()
    }

    /// Who is to be delivered again, now or later.
    pub(crate) fn users(&self) -> impl Iterator<Item = &UserId> {
        let steps = self.steps.iter().filter(|_| !self.rounds.is_empty());
        self.again.iter().chain(steps.flat_map(|step| &step.users))
    }

    /// Whether anybody is to be delivered again, now or later.
    pub(crate) fn is_there(&self) -> bool {
        !self.rounds.is_empty() || !self.again.is_empty()
    }

    /// Forgets what no worker can put in doubt that vanishes from now on, and no round that is to come.
    fn forget(&mut self, now: Instant) {
        let longest = 2 * self.timeout + VANISHED + RENEWED + STEP;
        let old = |step: &Step| now.duration_since(step.began) > longest;
        while self.steps.front().is_some_and(old) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        let first = self.steps.pop_front();
        self.remembered -= first.map_or(0, |step| step.users.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn user(n: u64) -> UserId {
        UserId::from(n)
    }

    fn due(doubt: &mut Doubt, now: Instant) -> Vec<UserId> {
        let mut users = doubt.due(usize::MAX, now);
        users.sort_by_key(ToString::to_string);
        users
    }

    #[test]
    fn whoever_may_have_been_overtaken_is_delivered_again_once_nothing_can_land_any_more() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut doubt = Doubt::new(TIMEOUT);
        // 15 s before it is noticed, a call could not yet be under way that still lands.
        for (n, second) in [(1, 80), (2, 86), (3, 99), (3, 100), (4, 104)] {
            doubt.delivered(user(n), at(second));
            if second == 100 {
                doubt.vanished(at(100));
            }
        }
        assert!(doubt.is_there());
        assert_eq!(due(&mut doubt, at(104)), []);
        assert_eq!(due(&mut doubt, at(105)), [user(2), user(3), user(4)]);
        assert!(!doubt.is_there());
        doubt.vanished(at(150));
        assert_eq!(due(&mut doubt, at(155)), []);
    }

    #[test]
    fn they_come_as_there_is_room() {
        let now = Instant::now();
        let mut doubt = Doubt::new(TIMEOUT);
        for n in 0..10 {
            doubt.delivered(user(n), now);
        }
        doubt.vanished(now);
        assert_eq!(doubt.due(4, now + TIMEOUT).len(), 4);
        assert!(doubt.is_there());
        assert_eq!(doubt.due(9, now + TIMEOUT).len(), 6);
        assert!(!doubt.is_there());
    }

    #[test]
    fn what_is_remembered_is_bounded_in_time_and_in_number() {
        let began = Instant::now();
        let mut doubt = Doubt::new(TIMEOUT);
        for second in 0..1_000 {
            let now = began + Duration::from_secs(second);
            assert!(!doubt.delivered(user(second), now));
        }
        assert!(doubt.remembered <= 25, "{}", doubt.remembered);
        doubt.most = 10;
        let now = began + Duration::from_secs(2_000);
        let crowded = (0..30).map(|n| doubt.delivered(user(n), now + n as u32 * STEP));
        assert!(crowded.filter(|crowded| *crowded).count() > 0);
        assert!(doubt.remembered <= 10, "{}", doubt.remembered);
    }
}
