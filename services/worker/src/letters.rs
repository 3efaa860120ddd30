//! Which users of a target have a dead letter, so that a later success clears it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use async_nats::jetstream::{
    self, consumer::DeliverPolicy, context::PublishErrorKind, stream::DirectGetErrorKind,
};
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;
use usersync_core::{dead_letter, follow, subjects, target::TargetName, user_id::UserId};

/// How long to wait before following again.
const AGAIN: Duration = Duration::from_millis(500);

/// The dead letters of one target, followed as they come and go.
#[derive(Clone, Debug)]
pub(crate) struct Letters {
    jetstream: jetstream::Context,
    target: TargetName,
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    letters: HashMap<UserId, Letter>,
    /// Whether all are known that were there when following began; until then the stream is asked.
    complete: bool,
}

#[derive(Clone, Copy, Debug)]
struct Letter {
    /// In USER_DEAD; 0 when it has to be asked for.
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
        let filter = subjects::dead_letters_of(&self.target);
        let newest = DeliverPolicy::LastPerSubject;
        let followed =
            follow::messages(&self.jetstream, subjects::USER_DEAD, &filter, newest, true).await?;
        let mut complete = followed.pending == 0;
        let mut letters = followed.messages;
        // What was cleared meanwhile must not stay, and what is there not be missing for a moment.
        let mut fresh = HashMap::new();
        let mut taken = false;
        loop {
            if complete && !taken {
                let mut known = self.known();
                let stored = known.letters.drain().filter(|(_, letter)| letter.seq == 0);
                for (user, letter) in stored.collect::<Vec<_>>() {
                    fresh.entry(user).or_insert(letter);
                }
                known.letters = std::mem::take(&mut fresh);
                known.complete = true;
                taken = true;
            }
            let message = letters.next().await.context("the consumer ended")??;
            let Some((_, user)) = subjects::of_dead_letter(&message.subject) else {
                continue;
            };
            let Ok(info) = message.info() else { continue };
            let headers = message.headers.as_ref();
            let letter = headers
                .filter(|headers| !dead_letter::is_cleared(headers))
                .map(|headers| Letter {
                    seq: info.stream_sequence,
                    version: dead_letter::version_of(headers),
                });
            let mut known = self.known();
            let letters = match taken {
                true => &mut known.letters,
                false => &mut fresh,
            };
            match letter {
                Some(letter) => drop(letters.insert(user, letter)),
                None => drop(letters.remove(&user)),
            }
            complete |= info.pending == 0;
        }
    }

    /// This worker has just stored one, of which the stream will tell in a moment.
    pub(crate) fn stored(&self, user: &UserId, version: u64) {
        let mut known = self.known();
        let letter = Letter { seq: 0, version };
        known.letters.entry(user.clone()).or_insert(letter).seq = 0;
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.known().letters.len()
    }

    /// The user has been delivered in this version: a letter about it, or an older one, is outdated.
    ///
    /// # Errors
    /// When the server can't be asked; the letter is still there then.
    pub(crate) async fn clear(&self, user: &UserId, version: u64) -> anyhow::Result<()> {
        let (letter, complete) = {
            let known = self.known();
            (known.letters.get(user).copied(), known.complete)
        };
        match letter {
            None if complete => Ok(()),
            // Rare, and large: on the heap it doesn't weigh on every success.
            letter => Box::pin(self.clear_stored(user, version, letter)).await,
        }
    }

    /// Clears `letter`, or the one that the stream has.
    async fn clear_stored(
        &self,
        user: &UserId,
        version: u64,
        letter: Option<Letter>,
    ) -> anyhow::Result<()> {
        let letter = match letter {
            Some(letter) if letter.seq > 0 => Some(letter),
            Some(_) => {
                let stored = self.ask(user).await?;
                Some(stored.context("USER_DEAD doesn't show yet what was stored just now")?)
            }
            None => self.ask(user).await?,
        };
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
        let same = |known: &Letter| known.seq == letter.seq || known.seq == 0;
        if known.letters.get(user).is_some_and(same) {
            known.letters.remove(user);
        }
        Ok(())
    }

    /// The letter as the stream has it now; a replica that lags may not have it yet.
    async fn ask(&self, user: &UserId) -> anyhow::Result<Option<Letter>> {
        let subject = subjects::dead_letter(&self.target, user);
        let stream = self
            .jetstream
            .get_stream_no_info(subjects::USER_DEAD)
            .await?;
        match stream.direct_get_last_for_subject(subject).await {
            Ok(stored) if dead_letter::is_cleared(&stored.headers) => Ok(None),
            Ok(stored) => Ok(Some(Letter {
                seq: stored.sequence,
                version: dead_letter::version_of(&stored.headers),
            })),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
