//! The states there are, read once from the first to the newest.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::{
    consumer::{AckPolicy, PullConsumer, pull},
    stream::Stream,
};
use futures_util::StreamExt;
use tokio::time::timeout;
use usersync_core::{load, member::Member, state::State, subjects};

use super::{part::Parts, progress::Progress};

/// How long the server may have nothing to say.
const SILENCE: Duration = Duration::from_secs(15);
/// Messages asked for at once.
const BATCH: usize = 2_000;

/// Reads every state, in parts.
pub(super) async fn read(
    states: &Stream<()>,
    members: &[Member],
    progress: &mut Progress,
) -> anyhow::Result<Parts> {
    let info = states.get_info().await.context("asking for USER_STATE")?;
    let newest = info.state.last_sequence;
    let mut parts = Parts::of(info.state.messages)?;
    let config = pull::Config {
        ack_policy: AckPolicy::None,
        inactive_threshold: Duration::from_secs(30),
        memory_storage: true,
        num_replicas: 1,
        ..pull::Config::default()
    };
    let consumer: PullConsumer = states
        .create_consumer(config)
        .await
        .context("reading USER_STATE")?;
    let mut left = consumer.cached_info().num_pending;
    let mut messages = consumer
        .stream()
        .max_messages_per_batch(BATCH)
        .expires(Duration::from_secs(10))
        .heartbeat(Duration::from_secs(5))
        .messages()
        .await?;
    let mut read = 0;
    while left > 0 {
        let next = timeout(SILENCE, messages.next()).await;
        let message = match next {
            Ok(Some(message)) => message.context("reading USER_STATE")?,
            Ok(None) | Err(_) => {
                anyhow::bail!("USER_STATE can't be read to its end: the server went silent")
            }
        };
        let about = message.info().map_err(anyhow::Error::from_boxed)?;
        left = about.pending;
        let seq = about.stream_sequence;
        // What is newer than the beginning of the load may come without end.
        let last = seq >= newest;
        if let Some(user_id) = subjects::user_of_state(&message.subject) {
            let state: Option<State> = serde_json::from_slice(&message.payload).ok();
            let whole = state
                .as_ref()
                .filter(|state| !state.deleted && !state.partial);
            let digest = whole.map(|state| load::digest_of_state(state, members));
            let lives = state.is_some_and(|state| !state.deleted);
            parts.know(&user_id, digest, lives)?;
        }
        read += 1;
        if read % 1_000 == 0 {
            progress.states(read, info.state.messages);
        }
        if last {
            break;
        }
    }
    // The server forgets the consumer by itself; a scheduler needs no right to delete one.
    Ok(parts)
}
