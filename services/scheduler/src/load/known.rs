//! What is to be known of the states there are, read once from the first to the newest.

use async_nats::jetstream;
use usersync_core::{load::digest_of_state, member::Member, stored_state, subjects};

use super::{part::Parts, progress::Progress};
use crate::states::States;

/// Reads every state, in parts.
pub(super) async fn read(
    jetstream: &jetstream::Context,
    members: &[Member],
    progress: &mut Progress,
) -> anyhow::Result<Parts> {
    let mut states = States::open(jetstream).await?;
    let mut parts = Parts::of(states.count())?;
    let mut read = 0;
    while let Some(page) = states.next().await? {
        read += page.len() as u64;
        for message in page {
            let Some(user_id) = subjects::user_of_state(&message.subject) else {
                continue;
            };
            let state = stored_state::read(&user_id, &message.payload).ok();
            let living = state.filter(|state| !state.deleted);
            let whole = living.as_ref().filter(|state| !state.partial);
            let digest = whole.map(|state| digest_of_state(state, members));
            parts.know(&user_id, digest, living.is_some())?;
        }
        progress.states(read, states.count());
    }
    // The server forgets the consumer by itself; a scheduler needs no right to delete one.
    Ok(parts)
}
