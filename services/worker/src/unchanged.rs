//! What the target was last told of whom, so that telling it the same again is skipped.
//!
//! Only as long as no other worker may have told it something else meanwhile: see `freshness`.

use std::time::{Duration, Instant};

use quick_cache::unsync::Cache;
use usersync_core::user_id::UserId;

/// Users remembered per target.
const USERS: usize = 8_192;
/// Then the target is told again: what it holds may have an end of its own, as in Redis.
const OLDEST: Duration = Duration::from_secs(60 * 60);

/// Hashes of what was delivered last.
pub(crate) struct Unchanged {
    /// `None` when nothing is to be skipped.
    told: Option<Cache<UserId, Told>>,
}

#[derive(Clone, Copy)]
struct Told {
    content: u64,
    /// The consumer sequence received when this was the newest.
    since: u64,
    at: Instant,
}

impl Unchanged {
    pub(crate) fn new(enabled: bool) -> Self {
        Self {
            told: enabled.then(|| Cache::new(USERS)),
        }
    }

    /// Whether anything is remembered at all.
    pub(crate) fn is_enabled(&self) -> bool {
        self.told.is_some()
    }

    /// Since which consumer sequence the target has had just this `content`, if no other worker has
    /// been handed anything from `alone_since` on.
    pub(crate) fn since(&self, user: &UserId, content: u64, alone_since: u64) -> Option<u64> {
        let told = self.told.as_ref()?.get(user)?;
        let same = told.content == content && told.since >= alone_since;
        (same && told.at.elapsed() < OLDEST).then_some(told.since)
    }

    /// The target has taken `content`; 0 as `since` says that this can't be relied upon.
    pub(crate) fn told(&mut self, user: &UserId, content: u64, since: u64) {
        let Some(cache) = &mut self.told else { return };
        if since == 0 {
            cache.remove(user);
        } else {
            let at = Instant::now();
            cache.insert(user.clone(), Told { content, since, at });
        }
    }

    /// What the target holds is uncertain for everybody.
    pub(crate) fn forget_all(&mut self) {
        if let Some(cache) = &mut self.told {
            cache.clear();
        }
    }

    /// What the target holds is uncertain.
    pub(crate) fn forget(&mut self, user: &UserId) {
        if let Some(cache) = &mut self.told {
            cache.remove(user);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_content_told_while_alone_is_skipped() {
        let mut unchanged = Unchanged::new(true);
        let (ann, bob) = (UserId::from(1), UserId::from(2));
        unchanged.told(&ann, 77, 5);
        assert_eq!(unchanged.since(&ann, 77, 5), Some(5));
        assert_eq!(unchanged.since(&ann, 78, 5), None, "other content");
        assert_eq!(unchanged.since(&bob, 77, 5), None, "another user");
        assert_eq!(unchanged.since(&ann, 77, 6), None, "another worker since");
        unchanged.forget(&ann);
        assert_eq!(unchanged.since(&ann, 77, 5), None);
        unchanged.told(&ann, 77, 5);
        unchanged.told(&ann, 78, 0);
        assert_eq!(unchanged.since(&ann, 78, 0), None, "told by a repair");
    }

    #[test]
    fn it_is_bounded_and_can_be_off() {
        let mut unchanged = Unchanged::new(true);
        for user in 0..50_000 {
            unchanged.told(&UserId::from(user), 1, 1);
        }
        assert!(unchanged.told.as_ref().unwrap().len() <= USERS);
        let mut off = Unchanged::new(false);
        off.told(&UserId::from(1), 1, 1);
        assert_eq!(off.since(&UserId::from(1), 1, 1), None);
    }
}
