//! The epochs of the outboxes that gateways relay: the KV bucket `user_sources`. A gateway writes the epoch of an outbox
//! there before it relays it; intake takes no event that names another one.

use anyhow::Context as _;
use async_nats::jetstream::{
    self,
    kv::{Store, UpdateErrorKind},
    stream::LastRawMessageErrorKind,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use usersync_core::{event::Event, nats::REQUEST_TIMEOUT, subjects::SOURCES_BUCKET};
use usersync_source::Stamp;

use super::key::Key;

/// How often writing is tried while others write.
const TRIES: u32 = 5;
/// Epochs that are remembered; nothing of an older one is on its way any more.
const MOST: usize = 200;

/// The epochs of one source, in the order they came.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Epochs {
    epochs: Vec<Key>,
    /// The row with the highest id of those that were published in the last epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<Stamp>,
    /// When the last epoch began because the database was put back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    put_back: Option<Timestamp>,
}

impl Epochs {
    /// Fills in what came later than the outbox that an event names; false when no gateway can have made it.
    pub(crate) fn complete(&self, event: &mut Event) -> bool {
        let Some(outbox) = &mut event.outbox else {
            return false;
        };
        let mut later = self.epochs.iter();
        let key = later.find(|key| key.name() == outbox.epoch);
        let proven =
            key.is_some_and(|key| key.proves_user(outbox.note, &event.user_id, &outbox.proof));
        if proven {
            outbox.newer = later.map(|key| key.name().to_owned()).collect();
        }
        proven
    }

    /// Makes an epoch of `outbox` the last one. Where nothing is known of any, and rows were published already (`has_past`),
    /// states may know others that were forgotten: none comes a second time.
    ///
    /// # Errors
    /// When another outbox came later.
    fn begin(&mut self, outbox: &Key, has_past: bool) -> anyhow::Result<()> {
        match self.epochs.iter().rposition(|known| known.is_of(outbox)) {
            Some(at) if at + 1 == self.epochs.len() => Ok(()),
            Some(_) => anyhow::bail!(
                "this outbox is older than the one that was relayed last, so its changes would count for nothing: \
                 a database was put back, or another one is meant; give it a new epoch with \
                 `usersync-scheduler outbox install --new-epoch`, then `usersync-scheduler load`"
            ),
            None => {
                let forgotten = self.epochs.is_empty() && has_past;
                self.epochs.push(outbox.clone());
                self.epochs.extend(forgotten.then(|| outbox.put_back()));
                (self.last, self.put_back) = (None, None);
                Ok(())
            }
        }
    }

    /// Begins another epoch of `outbox`.
    fn put_back(&mut self, outbox: &Key, now: Timestamp) {
        self.epochs.push(outbox.put_back());
        let too_many = self.epochs.len().saturating_sub(MOST);
        self.epochs.drain(..too_many);
        (self.last, self.put_back) = (None, Some(now));
    }

    /// Those of `source`, and the revision of what they were read from, 0 when there is nothing. The leader is asked:
    /// a replica may not have heard of the newest.
    pub(crate) async fn read(bucket: &Store, source: &str) -> anyhow::Result<(Self, u64)> {
        let subject = format!("$KV.{SOURCES_BUCKET}.{source}");
        let stream = &bucket.stream;
        let entry = match stream.get_last_raw_message_by_subject(&subject).await {
            Ok(entry) => entry,
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                return Ok((Self::default(), 0));
            }
            Err(error) => return Err(error).context("asking for epochs"),
        };
        // One that was deleted is empty.
        if entry.payload.is_empty() {
            return Ok((Self::default(), entry.sequence));
        }
        let epochs = serde_json::from_slice(&entry.payload);
        let epochs = epochs.with_context(|| {
            format!("{SOURCES_BUCKET} has something else than epochs at {source}")
        })?;
        Ok((epochs, entry.sequence))
    }
}

/// What a gateway has written down of the outbox that it relays.
pub(super) struct Ledger {
    jetstream: jetstream::Context,
    source: String,
    outbox: Key,
    bucket: Store,
    epochs: Epochs,
    /// Of what is in the bucket.
    revision: u64,
}

impl Ledger {
    /// Writes down that the outbox of `source` with this key is relayed.
    ///
    /// # Errors
    /// When NATS can't be asked, or an outbox that came later has been relayed.
    pub(super) async fn open(
        jetstream: &jetstream::Context,
        source: &str,
        outbox: Key,
        has_past: bool,
    ) -> anyhow::Result<Self> {
        let bucket = bucket(jetstream).await?;
        let (epochs, revision) = Epochs::read(&bucket, source).await?;
        let mut wanted = epochs.clone();
        wanted.begin(&outbox, has_past)?;
        let mut ledger = Self {
            jetstream: jetstream.clone(),
            source: source.to_owned(),
            outbox,
            bucket,
            epochs,
            revision,
        };
        if wanted != ledger.epochs {
            ledger.write(wanted).await?;
        }
        Ok(ledger)
    }

    /// The key of the epoch that events are published in.
    pub(super) fn key(&self) -> &Key {
        self.epochs.epochs.last().unwrap_or(&self.outbox)
    }

    /// The row with the highest id of those that were published in it.
    pub(super) fn last(&self) -> Option<&Stamp> {
        self.epochs.last.as_ref()
    }

    /// When it began because the database was put back, if so.
    pub(super) fn was_put_back(&self) -> Option<Timestamp> {
        self.epochs.put_back
    }

    /// Writes down that rows up to this one are published, or will be in a moment.
    ///
    /// # Errors
    /// When NATS doesn't take it, or another gateway relays.
    pub(super) async fn publishing(&mut self, row: Stamp) -> anyhow::Result<()> {
        if self.last().is_some_and(|last| last.id >= row.id) {
            return Ok(());
        }
        let mut epochs = self.epochs.clone();
        epochs.last = Some(row);
        self.write(epochs).await
    }

    /// Begins another epoch: the database was put back, and gives ids a second time.
    ///
    /// # Errors
    /// As [`Self::publishing`].
    pub(super) async fn put_back(&mut self) -> anyhow::Result<()> {
        let mut epochs = self.epochs.clone();
        epochs.put_back(&self.outbox, Timestamp::now());
        self.write(epochs).await
    }

    /// Writes it again where somebody has deleted it or the bucket.
    ///
    /// # Errors
    /// As [`Self::publishing`].
    pub(super) async fn look(&mut self) -> anyhow::Result<()> {
        self.bucket = bucket(&self.jetstream).await?;
        let (found, revision) = Epochs::read(&self.bucket, &self.source).await?;
        self.revision = revision;
        if found == self.epochs {
            return Ok(());
        }
        self.are_ours(&found, &self.epochs)?;
        self.write(self.epochs.clone()).await
    }

    /// Refuses what another gateway has written that relays another outbox, or another epoch.
    fn are_ours(&self, found: &Epochs, writing: &Epochs) -> anyhow::Result<()> {
        let ours = [&self.epochs.epochs, &writing.epochs].contains(&&found.epochs);
        anyhow::ensure!(
            found.epochs.is_empty() || ours,
            "another gateway has begun to relay {}, from another outbox",
            self.source
        );
        Ok(())
    }

    async fn write(&mut self, epochs: Epochs) -> anyhow::Result<()> {
        let value = serde_json::to_vec(&epochs)?;
        for _ in 0..TRIES {
            let writing = self
                .bucket
                .update(&self.source, value.clone().into(), self.revision);
            let written = timeout(REQUEST_TIMEOUT, writing).await;
            match written.with_context(|| format!("writing to the bucket {SOURCES_BUCKET}"))? {
                Ok(revision) => {
                    self.revision = revision;
                    self.epochs = epochs;
                    return Ok(());
                }
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                    // Deleted; or written by us, without an answer. Else another gateway has begun to relay.
                    let (found, revision) = Epochs::read(&self.bucket, &self.source).await?;
                    self.are_ours(&found, &epochs)?;
                    self.revision = revision;
                }
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("writing to the bucket {SOURCES_BUCKET}"));
                }
            }
        }
        anyhow::bail!(
            "others write {} to the bucket {SOURCES_BUCKET} all the time",
            self.source
        )
    }
}

async fn bucket(jetstream: &jetstream::Context) -> anyhow::Result<Store> {
    let bucket = jetstream.get_key_value(SOURCES_BUCKET).await;
    bucket.with_context(|| format!("opening the bucket {SOURCES_BUCKET}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use usersync_core::event::Envelope;

    use super::*;

    #[test]
    fn an_event_learns_which_epochs_came_later_if_it_is_of_a_gateway() {
        let keys = ["a", "b", "c"].map(|secret| Key::from(secret.to_owned()));
        let epochs = Epochs {
            epochs: keys.to_vec(),
            ..Epochs::default()
        };
        let event = |key: &Key, note, user: u64| {
            let said = json!({"user_id": user, "type": "user.updated", "id": "1", "outbox": {
                "epoch": key.name(), "note": note, "proof": keys[1].of_user(7, &42.into()), "owned": []}});
            let envelope = Envelope {
                timestamp: Some(Timestamp::UNIX_EPOCH),
                ..Envelope::default()
            };
            Event::parse_relayed(said.to_string().as_bytes(), envelope).unwrap()
        };
        let mut good = event(&keys[1], 7, 42);
        assert!(epochs.complete(&mut good));
        assert_eq!(good.outbox.unwrap().newer, [keys[2].name()]);
        let unknown = Key::from("x".to_owned());
        for mut forged in [
            event(&keys[1], 8, 42),
            event(&keys[1], 7, 43),
            event(&keys[2], 7, 42),
            event(&unknown, 7, 42),
        ] {
            assert!(!epochs.complete(&mut forged), "{forged:?}");
        }
    }

    #[test]
    fn an_outbox_goes_on_where_it_was_and_an_older_one_is_refused() {
        let [one, two] = ["one", "two"].map(|secret| Key::from(secret.to_owned()));
        let last = Stamp {
            id: 7,
            event: "U".to_owned(),
            created_us: 1,
        };
        let mut epochs = Epochs::default();
        epochs.begin(&one, false).unwrap();
        assert_eq!(epochs.epochs, std::slice::from_ref(&one));
        epochs = Epochs::default();
        epochs.begin(&one, true).unwrap();
        assert!(epochs.epochs[0] == one && epochs.epochs[1].is_of(&one));
        epochs.last = Some(last.clone());
        epochs.begin(&one, true).unwrap();
        assert_eq!(epochs.last, Some(last));
        epochs.put_back(&one, Timestamp::UNIX_EPOCH);
        assert_eq!(epochs.last, None);
        let again = epochs.epochs[2].clone();
        assert!(again != epochs.epochs[1] && again.is_of(&one));
        epochs.begin(&one, true).unwrap();
        assert_eq!(epochs.epochs.last(), Some(&again));
        epochs.begin(&two, true).unwrap();
        assert_eq!((epochs.put_back, epochs.epochs.len()), (None, 4));
        assert!(epochs.begin(&one, true).is_err());
        assert_eq!(epochs.epochs.last(), Some(&two));
    }
}
