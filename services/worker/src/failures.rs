//! Who could not be delivered lately, as far as this worker has seen: for dead letters and for those who ask.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use serde::Serialize;
use usersync_core::user_id::UserId;
use usersync_targets::Failure;

/// The most users remembered.
const USERS: usize = 10_000;

/// One user's failing delivery.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Failing {
    /// The version that could not be delivered.
    pub version: u64,
    /// How often it was tried.
    pub attempts: u32,
    /// What the target said last.
    pub error: String,
    /// When it first failed here.
    pub first_failure: Timestamp,
    /// When it last failed.
    pub last_failure: Timestamp,
    /// When it is tried again.
    pub next_attempt: Timestamp,
}

/// Everyone whose last delivery failed.
#[derive(Debug, Default)]
pub(crate) struct Failures(HashMap<UserId, Failing>);

impl Failures {
    /// Takes note of a failure; says when this version first failed.
    pub(crate) fn failed(
        &mut self,
        user: &UserId,
        version: u64,
        attempts: u32,
        failure: &Failure,
        again: Duration,
    ) -> Timestamp {
        let now = Timestamp::now();
        let next = now.checked_add(again).unwrap_or(now);
        let first_failure = match self.0.get(user) {
            Some(known) if known.version == version => known.first_failure,
            _ => now,
        };
        if self.0.len() >= USERS && !self.0.contains_key(user) {
            // Those whose next attempt is past were tried by another worker.
            self.0.retain(|_, failing| failing.next_attempt > now);
            if self.0.len() >= USERS {
                return first_failure;
            }
        }
        let failing = Failing {
            version,
            attempts,
            error: failure.to_string(),
            first_failure,
            last_failure: now,
            next_attempt: next,
        };
        self.0.insert(user.clone(), failing);
        first_failure
    }

    /// The target has the user, or the delivery was given up.
    pub(crate) fn ended(&mut self, user: &UserId) {
        self.0.remove(user);
    }

    pub(crate) fn of(&self, user: &UserId) -> Option<&Failing> {
        self.0.get(user)
    }

    /// How many users fail.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_of_a_version_is_remembered() {
        let mut failures = Failures::default();
        let (ann, again) = (UserId::from(1), Duration::from_secs(60));
        let busy = Failure::new("busy");
        let first = failures.failed(&ann, 7, 1, &busy, again);
        assert_eq!(failures.failed(&ann, 7, 2, &busy, again), first);
        assert_eq!(failures.of(&ann).unwrap().attempts, 2);
        assert!(failures.failed(&ann, 8, 1, &busy, again) >= first);
        assert_eq!(failures.of(&ann).unwrap().version, 8);
        failures.ended(&ann);
        assert_eq!(failures.of(&ann), None);
    }

    #[test]
    fn it_is_bounded_and_drops_what_is_past() {
        let mut failures = Failures::default();
        for user in 0..2 * USERS as u64 {
            failures.failed(&user.into(), 1, 1, &Failure::new("busy"), Duration::ZERO);
        }
        assert!(failures.len() <= USERS);
        assert!(failures.of(&(2 * USERS as u64 - 1).into()).is_some());
    }
}
