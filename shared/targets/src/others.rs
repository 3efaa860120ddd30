//! What a kind may ask about users it isn't called about: the newest state of each, as the target is to hold it.
//!
//! A value that must be unique can change hands only if the row of its holder is written too, and with nothing but that
//! holder's own newest state. Where states come from is the worker's business.

use async_trait::async_trait;
use usersync_core::user_id::UserId;

use crate::{Delivery, Failure, Skip};

/// Knows the newest of every user.
#[async_trait]
pub trait Others: Send + Sync {
    /// What the target is to hold of `users` now, in their order.
    async fn newest(&self, users: &[UserId]) -> Vec<Meant>;

    /// These were written too, as they were said to be.
    fn written(&self, users: Vec<UserId>);
}

/// What a target is to hold of a user it wasn't called about.
#[derive(Clone, Debug, PartialEq)]
pub enum Meant {
    /// This.
    Told(Delivery),
    /// What it has: it isn't told of the user in this version.
    Kept(Skip, u64),
    /// Nobody has ever told of such a user.
    Unknown,
    /// The newest state, of this version, can't be told to it.
    Refused(Failure, u64),
    /// It can't be said now.
    Unavailable(Failure),
}

/// For who knows nobody else.
pub(crate) struct Nobody;

#[async_trait]
impl Others for Nobody {
    async fn newest(&self, users: &[UserId]) -> Vec<Meant> {
        let unknown = Meant::Unavailable(Failure::new("its newest state isn't known here"));
        vec![unknown; users.len()]
    }

    fn written(&self, _users: Vec<UserId>) {}
}
