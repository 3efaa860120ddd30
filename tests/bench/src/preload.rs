//! Fills a stream: windowed publishes, every one of them confirmed.

use std::collections::VecDeque;

use anyhow::{Context, Result};
use async_nats::jetstream::{self, context::PublishAckFuture, message::PublishMessage};

use crate::rig::WINDOW;

/// Publishes with [`WINDOW`] PubAcks outstanding; none is dropped.
pub(crate) struct Publisher {
    jetstream: jetstream::Context,
    acks: VecDeque<PublishAckFuture>,
}

impl Publisher {
    pub(crate) fn new(jetstream: &jetstream::Context) -> Self {
        Self {
            jetstream: jetstream.clone(),
            acks: VecDeque::with_capacity(WINDOW),
        }
    }

    /// Publishes one message, after waiting for the oldest PubAck when the window is full.
    ///
    /// # Errors
    /// When the message can't be sent, or an older one was not stored.
    pub(crate) async fn publish(&mut self, subject: String, message: PublishMessage) -> Result<()> {
        if self.acks.len() >= WINDOW {
            self.confirm_one().await?;
        }
        let sent = self.jetstream.send_publish(subject, message).await;
        self.acks.push_back(sent.context("publishing")?);
        Ok(())
    }

    /// Waits for every PubAck.
    ///
    /// # Errors
    /// When a message was not stored.
    pub(crate) async fn finish(mut self) -> Result<()> {
        while !self.acks.is_empty() {
            self.confirm_one().await?;
        }
        Ok(())
    }

    async fn confirm_one(&mut self) -> Result<()> {
        let Some(ack) = self.acks.pop_front() else {
            return Ok(());
        };
        let ack = ack.await.context("a publish was not confirmed")?;
        anyhow::ensure!(!ack.duplicate, "the stream took a message for a duplicate");
        Ok(())
    }
}

/// Publishes `messages` and waits until the stream has all of them.
///
/// # Errors
/// As [`Publisher`].
pub(crate) async fn publish_all(
    jetstream: &jetstream::Context,
    messages: impl Iterator<Item = Result<(String, PublishMessage)>>,
) -> Result<()> {
    let mut publisher = Publisher::new(jetstream);
    for message in messages {
        let (subject, message) = message?;
        publisher.publish(subject, message).await?;
    }
    publisher.finish().await
}
