//! The brake: when so many users were deleted in a main database that somebody has to look first.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// How long a deletion counts.
pub(super) const SPAN: Duration = Duration::from_secs(60 * 60);
/// So many are always passed on.
const LEAST: u64 = 100;
/// More are, up to this part of the table.
const PART: u64 = 10;

/// Who was deleted within the last hour, and isn't back.
#[derive(Debug, Default)]
pub(super) struct Brake {
    gone: HashMap<String, Instant>,
}

impl Brake {
    /// One that knows who went, and how long ago, whoever has passed it on.
    pub(super) fn of(gone: impl IntoIterator<Item = (String, Duration)>, now: Instant) -> Self {
        let gone = gone
            .into_iter()
            .map(|(user, ago)| (user, now.checked_sub(ago).unwrap_or(now)));
        Self {
            gone: gone.collect(),
        }
    }

    /// How many they are with those of `more` who aren't among them.
    pub(super) fn with(&mut self, more: &[&str], now: Instant) -> u64 {
        self.gone
            .retain(|_, when| now.duration_since(*when) <= SPAN);
        let more = more.iter().filter(|user| !self.gone.contains_key(**user));
        (self.gone.len() + more.count()) as u64
    }

    /// Whether so many need no look at the table.
    pub(super) fn is_loose(gone: u64) -> bool {
        gone <= LEAST
    }

    /// Why so many are too many while `users` are left; none when they aren't.
    pub(super) fn stops(gone: u64, users: u64) -> Option<String> {
        let most = LEAST.max((users + gone) / PART);
        (gone > most).then(|| {
            format!(
                "{gone} users were deleted within an hour, and about {users} are left: more than {most} are passed on only \
                 when somebody approves: `usersync-scheduler outbox approve`; nothing is published until then"
            )
        })
    }

    /// These users were deleted.
    pub(super) fn count(&mut self, gone: &[&str], now: Instant) {
        let gone = gone.iter().map(|user| ((*user).to_owned(), now));
        self.gone.extend(gone);
    }

    /// This one is back.
    pub(super) fn back(&mut self, user: &str) {
        self.gone.remove(user);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_table_or_a_hundred_users_pass_within_an_hour() {
        let (mut brake, now) = (Brake::default(), Instant::now());
        let names: Vec<String> = (0..101).map(|user: u32| user.to_string()).collect();
        let users: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(brake.with(&users[..100], now), 100);
        assert!(Brake::is_loose(100) && !Brake::is_loose(101));
        assert!(Brake::stops(101, 10_000).is_none());
        assert!(Brake::stops(1_000, 9_000).is_none());
        let why = Brake::stops(101, 0).unwrap();
        assert!(
            why.contains("101 users") && why.contains("outbox approve"),
            "{why}"
        );
        brake.count(&users[..100], now);
        assert_eq!(brake.with(&users, now), 101);
        assert_eq!(
            brake.with(&users[..1], now),
            100,
            "who is gone can't go again"
        );
        brake.back("7");
        assert_eq!(brake.with(&users[..1], now), 99);
        let half = Duration::from_secs(30 * 60);
        let mut taken = Brake::of(
            [("1".to_owned(), half), ("2".to_owned(), Duration::ZERO)],
            now,
        );
        assert_eq!(taken.with(&["2", "3"], now), 3);
        assert_eq!(taken.with(&[], now + half + Duration::from_secs(1)), 1);
        let later = now + SPAN + Duration::from_secs(1);
        assert_eq!(brake.with(&users[..1], later), 1, "an hour later");
    }
}
