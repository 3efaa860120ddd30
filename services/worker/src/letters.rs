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
use usersync_core::{
    dead_letter::{self, DeadLetter},
    follow, subjects,
    target::TargetName,
    user_id::UserId,
};

use crate::waiting::Waiting;

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
    waiting: Waiting,
    /// Whether all are known that were there when following began; until then the stream is asked.
    complete: bool,
}

#[derive(Clone, Copy, Debug)]
struct Letter {
    /// In USER_DEAD; 0 when it has to be asked for.
    seq: u64,
    version: u64,
}

impl Known {
    fn insert(&mut self, user: UserId, letter: Letter, waits_for: Vec<UserId>) {
        self.waiting.set(&user, waits_for);
        self.letters.insert(user, letter);
    }

    fn remove(&mut self, user: &UserId) {
        self.waiting.remove(user);
        self.letters.remove(user);
    }
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
        let mut fresh = Known::default();
        let mut taken = false;
        loop {
            if complete && !taken {
                let mut known = self.known();
                let before = std::mem::replace(&mut *known, std::mem::take(&mut fresh));
                for (user, letter) in before.letters.iter().filter(|(_, letter)| letter.seq == 0) {
                    if !known.letters.contains_key(user) {
                        known.insert(user.clone(), *letter, before.waiting.holders(user));
                    }
                }
                known.complete = true;
                taken = true;
            }
            let message = letters.next().await.context("the consumer ended")??;
            let Some((_, user)) = subjects::of_dead_letter(&message.subject) else {
                continue;
            };
            let Ok(info) = message.info() else { continue };
            let headers = message.headers.as_ref();
            let headers = headers.filter(|headers| !dead_letter::is_cleared(headers));
            let mut known = self.known();
            let known = match taken {
                true => &mut *known,
                false => &mut fresh,
            };
            match headers {
                Some(headers) => {
                    let letter = Letter {
                        seq: info.stream_sequence,
                        version: dead_letter::version_of(headers),
                    };
                    known.insert(user, letter, dead_letter::waits_for(headers));
                }
                None => known.remove(&user),
            }
            complete |= info.pending == 0;
        }
    }

    /// This worker has just stored one, of which the stream will tell in a moment.
    pub(crate) fn stored(&self, stored: &DeadLetter) {
        let (user, version) = (&stored.user_id, stored.version);
        let mut known = self.known();
        let letter = Letter { seq: 0, version };
        known.letters.entry(user.clone()).or_insert(letter).seq = 0;
        known.waiting.set(user, stored.waits_for.clone());
    }

    /// `user` has no letter yet, and is refused for what these have.
    pub(crate) fn waits(&self, user: &UserId, holders: &[(UserId, u64)]) {
        let holders = holders.iter().map(|(holder, _)| holder.clone());
        self.known().waiting.set(user, holders.collect());
    }

    /// `user` was delivered; says who is refused because this one had something that they are to have.
    pub(crate) fn made_room(&self, user: &UserId) -> Vec<UserId> {
        let mut known = self.known();
        if !known.letters.contains_key(user) {
            known.waiting.remove(user);
        }
        known.waiting.waiting_for(user)
    }

    /// Which of `users` have a letter.
    pub(crate) fn dead(&self, users: &[UserId]) -> Vec<UserId> {
        let known = self.known();
        let dead = users.iter().filter(|user| known.letters.contains_key(user));
        dead.cloned().collect()
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
            known.remove(user);
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
