//! Whoever was delivered last by a worker that stops, at a target without a guard: another worker may have delivered something
//! newer before, and this one won't be there to compare.

use std::collections::HashMap;

use futures_util::stream::{self, StreamExt};
use usersync_core::{stored_state, subjects, user_id::UserId};

use crate::{freshness::Unproven, hand_back, route::Route};

/// Questions under way at once.
const AT_ONCE: usize = 64;

/// Asks for everybody to be delivered again who has a newer state than was delivered here.
pub(crate) async fn ask(route: &Route, unproven: Vec<Unproven>) {
    let delivered: HashMap<UserId, u64> = unproven
        .into_iter()
        .map(|unproven| (unproven.user_id, unproven.version))
        .collect();
    stream::iter(delivered)
        .for_each_concurrent(AT_ONCE, async |(user, version)| {
            if newest(route, &user).await == Some(version) {
                return;
            }
            if let Err(error) = hand_back::ask(route, &user).await {
                tracing::warn!(target = %route.config.name, user.id = %user, %error, "can't ask for a user to be delivered again");
            }
        })
        .await;
}

/// The version of a user's newest state, `None` when it can't be told.
async fn newest(route: &Route, user: &UserId) -> Option<u64> {
    let subject = subjects::state(user);
    let message = route.states.direct_get_last_for_subject(subject).await;
    let state = stored_state::read(user, &message.ok()?.payload);
    Some(state.ok()?.version)
}
