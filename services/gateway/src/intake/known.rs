//! The states kept at hand, within a bound of memory: those of users who change often stay.

use bytes::Bytes;
use quick_cache::{Weighter, sync::Cache};
use usersync_core::user_id::UserId;

/// Bytes that a state takes beside its payload.
const BESIDE: u64 = 256;
/// Bytes that one takes as a rule.
const USUAL: u64 = 1024;

/// A state as USER_STATE holds it.
#[derive(Clone)]
pub(super) struct Stored {
    /// Its sequence in USER_STATE; 0 with no payload = there is none.
    pub seq: u64,
    pub payload: Bytes,
}

/// Users' newest states as last seen by us, which may be outdated.
pub(super) type Known = Cache<UserId, Stored, Room>;

/// The memory that a state takes.
#[derive(Clone)]
pub(super) struct Room;

impl Weighter<UserId, Stored> for Room {
    fn weight(&self, _: &UserId, stored: &Stored) -> u64 {
        stored.payload.len() as u64 + BESIDE
    }
}

/// Room for states of `bytes` in all.
pub(super) fn within(bytes: u64) -> Known {
    let states = usize::try_from(bytes / USUAL).unwrap_or(usize::MAX);
    Cache::with_weighter(states, bytes, Room)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_that_have_no_room_give_way() {
        let known = within(64 * 1024);
        let large = Stored {
            seq: 1,
            payload: Bytes::from(vec![b' '; 2 * 1024]),
        };
        for user in 1..=1_000 {
            known.insert(UserId::from(user), large.clone());
        }
        assert!(known.weight() <= 64 * 1024, "{} bytes", known.weight());
        assert!(known.len() > 8, "{} states", known.len());
    }
}
