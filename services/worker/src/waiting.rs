//! Who is refused, or has a dead letter, because somebody else has a value that must be unique: they are delivered again as
//! soon as one of those was.

use std::collections::{BTreeSet, HashMap};

use usersync_core::user_id::UserId;

/// The most users remembered.
const USERS: usize = 100_000;

/// Users who wait for others.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// For whom each of them waits.
    of: HashMap<UserId, Vec<UserId>>,
    /// Who waits for each of those.
    by: HashMap<UserId, BTreeSet<UserId>>,
}

impl Waiting {
    /// From now on `user` waits for these, and for nobody else.
    pub(crate) fn set(&mut self, user: &UserId, holders: Vec<UserId>) {
        self.remove(user);
        // Bounded: who isn't remembered is tried again, or found by a replay.
        if holders.is_empty() || self.of.len() >= USERS {
            return;
        }
        for holder in &holders {
            let waiting = self.by.entry(holder.clone()).or_default();
            waiting.insert(user.clone());
        }
        self.of.insert(user.clone(), holders);
    }

    /// From now on `user` waits for nobody.
    pub(crate) fn remove(&mut self, user: &UserId) {
        for holder in self.of.remove(user).into_iter().flatten() {
            if let Some(waiting) = self.by.get_mut(&holder) {
                waiting.remove(user);
                if waiting.is_empty() {
                    self.by.remove(&holder);
                }
            }
        }
    }

    /// Who waits for `holder`.
    pub(crate) fn waiting_for(&self, holder: &UserId) -> Vec<UserId> {
        let waiting = self.by.get(holder).into_iter().flatten();
        waiting.cloned().collect()
    }

    /// For whom `user` waits.
    pub(crate) fn holders(&self, user: &UserId) -> Vec<UserId> {
        self.of.get(user).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_found_by_whom_they_wait_for_until_they_wait_no_more() {
        let [a, b, c] = [1, 2, 3].map(UserId::from);
        let mut waiting = Waiting::default();
        waiting.set(&a, vec![b.clone(), c.clone()]);
        waiting.set(&b, vec![c.clone()]);
        assert_eq!(waiting.waiting_for(&c), [a.clone(), b.clone()]);
        waiting.set(&a, vec![b.clone()]);
        assert_eq!(waiting.waiting_for(&c), std::slice::from_ref(&b));
        assert_eq!(waiting.holders(&a), std::slice::from_ref(&b));
        waiting.remove(&a);
        waiting.remove(&b);
        assert!(waiting.by.is_empty() && waiting.of.is_empty());
    }
}
