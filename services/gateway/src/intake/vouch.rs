//! Whether an event that says it was relayed was: the KV bucket `user_sources` has the epochs of every outbox that a
//! gateway has relayed. Only gateways may write there, and nobody can guess an epoch.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use async_nats::jetstream;
use tokio::time::timeout;
use usersync_core::{
    event::{Event, InvalidEvent},
    nats::REQUEST_TIMEOUT,
    subjects::SOURCES_BUCKET,
};

use crate::relay::Epochs;

/// Looks up epochs, and remembers those it has found.
pub(super) struct Voucher {
    jetstream: jetstream::Context,
    known: Mutex<HashMap<String, Arc<Epochs>>>,
}

impl Voucher {
    pub(super) fn new(jetstream: jetstream::Context) -> Self {
        Self {
            jetstream,
            known: Mutex::default(),
        }
    }

    /// Forgets what it has found: while another gateway took in events, an outbox may have begun anew.
    pub(super) fn forget(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.clear();
    }

    /// Completes what an event says of its outbox; waits for as long as the bucket can't be read.
    ///
    /// # Errors
    /// When no gateway has relayed that outbox.
    pub(super) async fn complete(&self, event: &mut Event) -> Result<(), InvalidEvent> {
        if event.outbox.is_none() {
            return Ok(());
        }
        let source = event.source.clone().unwrap_or_default();
        let source = source.as_str();
        let known = self.known(source);
        if known.is_some_and(|epochs| epochs.complete(event)) {
            return Ok(());
        }
        let found = loop {
            match timeout(REQUEST_TIMEOUT, self.read(source)).await {
                Ok(Ok(found)) => break found,
                Ok(Err(error)) => {
                    tracing::warn!(%source, error = format!("{error:#}"), bucket = SOURCES_BUCKET, "can't look up an outbox; trying again");
                }
                Err(_) => {
                    tracing::warn!(%source, bucket = SOURCES_BUCKET, "no answer; trying again")
                }
            }
            tokio::time::sleep(super::PATIENCE).await;
        };
        let good = found.complete(event);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if good {
            known.insert(source.to_owned(), Arc::new(found));
            return Ok(());
        }
        let reason = "isn't what a gateway has relayed; leave `outbox` out";
        Err(InvalidEvent::new("/outbox", reason))
    }

    fn known(&self, source: &str) -> Option<Arc<Epochs>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(source).cloned()
    }

    async fn read(&self, source: &str) -> anyhow::Result<Epochs> {
        let bucket = self.jetstream.get_key_value(SOURCES_BUCKET).await;
        let bucket = bucket.context("opening the bucket")?;
        // What can be no key is in no bucket.
        if source.parse::<usersync_source::SourceName>().is_err() {
            return Ok(Epochs::default());
        }
        Ok(Epochs::read(&bucket, source).await?.0)
    }
}
