//! The states as a side of a comparison: what a target is meant to hold, read from one end of USER_STATE to the other.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_nats::jetstream::{
    consumer::{
        AckPolicy, DeliverPolicy, PullConsumer,
        pull::{self, Stream as Pulled},
    },
    stream::Stream,
};
use async_trait::async_trait;
use futures_util::StreamExt;
use tokio::time::timeout;
use usersync_core::{nats::REQUEST_TIMEOUT, state::State, subjects};
use usersync_digest::{Each, RowHash, Scan, SideError};

/// States asked for at once.
const BATCH: usize = 2_000;
/// How long one request for states lasts.
const EXPIRES: Duration = Duration::from_secs(10);
/// How long the server keeps the consumer of a scan that is never finished.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// How long the next state may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Everything that is in USER_STATE when it is opened. What is written meanwhile may be missed: whoever asks
/// looks again, user by user, at what makes a difference.
pub(crate) struct Reader {
    states: Pulled,
    /// Where it ends, in the stream.
    last: u64,
    /// The number of the next message, in the order they are handed out.
    next: u64,
    /// Whether there is nothing more.
    ended: bool,
    /// How much has been read.
    bytes: u64,
}

impl Reader {
    /// Opens a reader at the first state.
    ///
    /// # Errors
    /// When the server refuses, or doesn't answer.
    pub(crate) async fn open(stream: &Stream) -> anyhow::Result<Self> {
        let opening = async {
            let last = stream.get_info().await?.state.last_sequence;
            let consumer: PullConsumer = stream
                .create_consumer(pull::Config {
                    filter_subject: subjects::STATES.to_owned(),
                    deliver_policy: DeliverPolicy::All,
                    ack_policy: AckPolicy::None,
                    memory_storage: true,
                    num_replicas: 1,
                    inactive_threshold: FORGOTTEN,
                    ..pull::Config::default()
                })
                .await?;
            let pulling = consumer
                .stream()
                .max_messages_per_batch(BATCH)
                .expires(EXPIRES)
                .heartbeat(EXPIRES / 4);
            Ok(Self {
                ended: consumer.cached_info().num_pending == 0,
                states: pulling.messages().await?,
                last,
                next: 1,
                bytes: 0,
            })
        };
        let opened = timeout(2 * REQUEST_TIMEOUT, opening).await;
        opened.context("USER_STATE can't be opened in time")?
    }

    /// The next state; `None` after the last.
    ///
    /// # Errors
    /// When some got lost on the way, or the server doesn't go on.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<State>> {
        while !self.ended {
            let next = timeout(PATIENCE, self.states.next()).await;
            let next = next.context("the next state did not come in time")?;
            let message = next.context("the states ended early")??;
            let info = message.info().map_err(anyhow::Error::from_boxed)?;
            // Without acknowledgements nothing comes again.
            ensure!(
                info.consumer_sequence == self.next,
                "some states got lost on the way"
            );
            self.next += 1;
            self.ended = info.pending == 0 || info.stream_sequence >= self.last;
            if info.stream_sequence > self.last {
                break;
            }
            self.bytes += message.payload.len() as u64;
            // What can't be read is refused by workers too, and dead-lettered there.
            if let Ok(state) = serde_json::from_slice(&message.payload) {
                return Ok(Some(state));
            }
        }
        Ok(None)
    }
}

/// All states, each with the hash of what a copy is meant to hold of that user.
pub(crate) struct States<H> {
    stream: Stream,
    hash: H,
}

impl<H: Fn(State) -> Option<RowHash> + Send + Sync> States<H> {
    /// `hash` makes the row hash of a state; `None` for a user who isn't meant to be there.
    pub(crate) fn new(stream: Stream, hash: H) -> Self {
        Self { stream, hash }
    }

    async fn read(&self, each: Each<'_>) -> anyhow::Result<u64> {
        let mut reader = Reader::open(&self.stream).await?;
        while let Some(state) = reader.next().await? {
            let id = state.user_id.to_string();
            if let Some(hash) = (self.hash)(state) {
                each(&id, hash);
            }
        }
        Ok(reader.bytes)
    }
}

#[async_trait]
impl<H: Fn(State) -> Option<RowHash> + Send + Sync> Scan for States<H> {
    async fn scan(&self, each: Each<'_>) -> Result<u64, SideError> {
        let read = self.read(each).await;
        read.map_err(|error| SideError::new(format!("USER_STATE can't be read: {error:#}")))
    }
}
