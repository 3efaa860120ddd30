//! What a copy is meant to hold, as a side of a comparison: made of every state.

use async_nats::{Message, jetstream};
use async_trait::async_trait;
use usersync_digest::{Each, RowHash, Scan, SideError};

use crate::states::States;

/// All states, each with the id and the hash of what a copy is meant to hold of that user.
pub(crate) struct Meant<H> {
    jetstream: jetstream::Context,
    hash: H,
}

impl<H: Fn(&Message) -> Option<(String, RowHash)> + Send + Sync> Meant<H> {
    /// `hash` reads a state and makes the row hash; `None` for a user who isn't meant to be there, and for what can't be
    /// read: that is refused by workers too, and dead-lettered there.
    pub(crate) fn new(jetstream: jetstream::Context, hash: H) -> Self {
        Self { jetstream, hash }
    }

    async fn read(&self, each: Each<'_>) -> anyhow::Result<u64> {
        let mut states = States::open(&self.jetstream).await?;
        let mut bytes = 0;
        while let Some(page) = states.next().await? {
            for message in page {
                bytes += message.payload.len() as u64;
                if let Some((id, hash)) = (self.hash)(&message) {
                    each(&id, hash);
                }
            }
        }
        Ok(bytes)
    }
}

#[async_trait]
impl<H: Fn(&Message) -> Option<(String, RowHash)> + Send + Sync> Scan for Meant<H> {
    async fn scan(&self, each: Each<'_>) -> Result<u64, SideError> {
        let read = self.read(each).await;
        read.map_err(|error| SideError::new(format!("USER_STATE can't be read: {error:#}")))
    }
}
