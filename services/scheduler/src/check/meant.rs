//! What a copy is meant to hold, as a side of a comparison: made of every state.

use std::sync::{Arc, Mutex, PoisonError};

use async_nats::{Message, jetstream};
use async_trait::async_trait;
use usersync_core::{check::LeftOut, user_id::UserId};
use usersync_digest::{Each, RowHash, Scan, SideError};

use crate::states::States;

/// All states, each with the id and the hash of what a copy is meant to hold of that user.
pub(crate) struct Meant<H> {
    jetstream: jetstream::Context,
    hash: H,
    refused: Arc<Mutex<LeftOut>>,
}

/// What a state comes to.
pub(crate) enum Told {
    /// The id and the hash of what is meant to be there.
    There(String, RowHash),
    /// The user isn't meant to be there.
    Nobody,
    /// The copy can't be told of this user, for this reason: workers refuse the state too, and dead letters say so.
    Refused(UserId, String),
}

impl<H: Fn(&Message) -> Told + Send + Sync> Meant<H> {
    /// `hash` reads a state and makes the row hash; `refused` is told of whoever it refuses, by each reading anew.
    pub(crate) fn new(
        jetstream: jetstream::Context,
        refused: Arc<Mutex<LeftOut>>,
        hash: H,
    ) -> Self {
        Self {
            jetstream,
            hash,
            refused,
        }
    }

    async fn read(&self, each: Each<'_>) -> anyhow::Result<u64> {
        let mut states = States::open(&self.jetstream).await?;
        let (mut bytes, mut refused) = (0, LeftOut::default());
        while let Some(page) = states.next().await? {
            for message in page {
                bytes += message.payload.len() as u64;
                match (self.hash)(&message) {
                    Told::There(id, hash) => each(&id, hash),
                    Told::Nobody => {}
                    Told::Refused(user, reason) => refused.note(&user, Some(&reason)),
                }
            }
        }
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = refused;
        Ok(bytes)
    }
}

#[async_trait]
impl<H: Fn(&Message) -> Told + Send + Sync> Scan for Meant<H> {
    async fn scan(&self, each: Each<'_>) -> Result<u64, SideError> {
        let read = self.read(each).await;
        read.map_err(|error| SideError::new(format!("USER_STATE can't be read: {error:#}")))
    }
}
