//! What a target is to hold of users it isn't called about: where a value that must be unique changes hands, its kind asks.

use std::sync::{Mutex, PoisonError};

use async_nats::jetstream::stream::DirectGetErrorKind;
use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use usersync_core::{
    state::{State, Unreadable},
    stored_state, subjects,
    user_id::UserId,
};
use usersync_targets::{Failure, Meant, Others, Verdict};

use crate::route::Route;

/// How many states are asked for at once.
const AT_ONCE: usize = 256;

/// Everybody else, for one call; remembers who of them was written too.
pub(crate) struct Neighbours<'a> {
    route: &'a Route,
    written: Mutex<Vec<UserId>>,
}

impl<'a> Neighbours<'a> {
    pub(crate) fn new(route: &'a Route) -> Self {
        Self {
            route,
            written: Mutex::default(),
        }
    }

    /// Who was written too.
    pub(crate) fn were_written(self) -> Vec<UserId> {
        let written = self.written.into_inner();
        written.unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Others for Neighbours<'_> {
    async fn newest(&self, users: &[UserId]) -> Vec<Meant> {
        let mut asking = Vec::with_capacity(users.len());
        for user in users {
            asking.push(meant(self.route, user));
        }
        stream::iter(asking).buffered(AT_ONCE).collect().await
    }

    fn written(&self, mut users: Vec<UserId>) {
        let written = self.written.lock();
        let mut written = written.unwrap_or_else(PoisonError::into_inner);
        written.append(&mut users);
    }
}

async fn meant(route: &Route, user: &UserId) -> Meant {
    let state = match state_of(route, user).await {
        Ok(state) => state,
        Err(meant) => return meant,
    };
    let version = state.version;
    match route.rule.apply(state) {
        Verdict::Send(delivery) => Meant::Told(delivery),
        Verdict::Skip { why } => Meant::Kept(why, version),
        Verdict::Refused(failure) => Meant::Refused(failure, version),
    }
}

/// The newest state of `user`; else what is to be said of them.
async fn state_of(route: &Route, user: &UserId) -> Result<State, Meant> {
    let subject = subjects::state(user);
    let stored = route.states.direct_get_last_for_subject(subject).await;
    let stored = stored.map_err(|error| match error.kind() {
        DirectGetErrorKind::NotFound => Meant::Unknown,
        _ => Meant::Unavailable(Failure::new(format!(
            "can't read the newest state: {error}"
        ))),
    })?;
    stored_state::read(user, &stored.payload).map_err(|unreadable| {
        let failure = Failure::new(format!("can't read a state: {unreadable}"));
        match unreadable {
            Unreadable::Newer(_) => Meant::Unavailable(failure),
            Unreadable::NoState(_) | Unreadable::Beyond | Unreadable::OfAnother => {
                Meant::Refused(failure, 0)
            }
        }
    })
}

/// Whether one of `users` has a newer state than the version beside them, which was looked at; 0 if none was.
pub(crate) async fn has_changed(route: &Route, users: &[(UserId, u64)]) -> bool {
    for (user, version) in users.iter().filter(|(_, version)| *version > 0) {
        let newest = state_of(route, user).await;
        if newest.is_ok_and(|state| state.version > *version) {
            return true;
        }
    }
    false
}
