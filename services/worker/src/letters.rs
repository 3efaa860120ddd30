//! Which users of a target have a dead letter, so that a later success clears it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use async_nats::jetstream::{
    self,
    consumer::{DeliverPolicy, push},
    context::PublishErrorKind,
};
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;
use usersync_core::{dead_letter, subjects, target::TargetName, user_id::UserId};

/// How long to wait before following again.
const AGAIN: Duration = Duration::from_millis(500);

/// The dead letters of one target, followed as they come and go.
#[derive(Clone, Debug)]
pub(crate) struct Letters {
    jetstream: jetstream::Context,
    target: TargetName,
    known: Arc<Mutex<HashMap<UserId, Letter>>>,
}

#[derive(Clone, Copy, Debug)]
struct Letter {
    seq: u64,
    version: u64,
}

impl Letters {
    pub(crate) fn new(jetstream: jetstream::Context, target: TargetName) -> Self {
        Self {
            jetstream,
            target,
            known: Arc::default(),
        }
    }

    /// Follows the letters until `shutdown`.
    pub(crate) async fn follow(self, shutdown: CancellationToken) {
        let follow = async {
            loop {
                if let Err(error) = self.read().await {
                    tracing::debug!(target = %self.target, error = format!("{error:#}"), "following dead letters again");
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        shutdown.run_until_cancelled(follow).await;
    }

    async fn read(&self) -> anyhow::Result<()> {
        let stream = self.jetstream.get_stream_no_info(subjects::USER_DEAD);
        let config = push::OrderedConfig {
            deliver_subject: self.jetstream.client().new_inbox(),
            filter_subject: subjects::dead_letters_of(&self.target),
            deliver_policy: DeliverPolicy::LastPerSubject,
            headers_only: true,
            ..push::OrderedConfig::default()
        };
        let consumer = stream.await?.create_consumer(config).await?;
        let mut letters = consumer.messages().await?;
        // What was cleared meanwhile must not stay.
        self.known().clear();
        loop {
            let message = letters.next().await.context("the consumer ended")??;
            let Some((_, user)) = subjects::of_dead_letter(&message.subject) else {
                continue;
            };
            let headers = message.headers.as_ref();
            let letter = headers.filter(|headers| !dead_letter::is_cleared(headers));
            match (letter, message.info()) {
                (Some(headers), Ok(info)) => {
                    let letter = Letter {
                        seq: info.stream_sequence,
                        version: dead_letter::version_of(headers),
                    };
                    self.known().insert(user, letter);
                }
                _ => drop(self.known().remove(&user)),
            }
        }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.known().len()
    }

    /// The user has been delivered in this version: a letter about it, or an older one, is outdated.
    ///
    /// # Errors
    /// When the server can't be asked; the letter is still there then.
    pub(crate) async fn clear(&self, user: &UserId, version: u64) -> anyhow::Result<()> {
        let letter = self.known().get(user).copied();
        let Some(letter) = letter.filter(|letter| letter.version <= version) else {
            return Ok(());
        };
        let subject = subjects::dead_letter(&self.target, user);
        let clearing = dead_letter::clearing(letter.seq);
        let cleared = self.jetstream.send_publish(subject, clearing).await?.await;
        match cleared {
            Err(error) if error.kind() != PublishErrorKind::WrongLastSequence => {
                return Err(error.into());
            }
            // Another letter has come since, or somebody discarded this one.
            Ok(_) | Err(_) => {}
        }
        let mut known = self.known();
        if known.get(user).is_some_and(|known| known.seq == letter.seq) {
            known.remove(user);
        }
        Ok(())
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<UserId, Letter>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
