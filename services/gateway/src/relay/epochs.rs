//! The epochs of the outboxes that gateways relay: the KV bucket `user_sources`. A gateway writes the epoch of an outbox
//! there before it relays it; intake takes no event that names another one.

use anyhow::Context as _;
use async_nats::jetstream::{
    self,
    kv::{Store, UpdateErrorKind},
    stream::LastRawMessageErrorKind,
};
use serde::{Deserialize, Serialize};
use usersync_core::{event::Event, subjects::SOURCES_BUCKET};

use super::key::Key;

/// How often writing is tried while others write.
const TRIES: u32 = 5;

/// The epochs of one source, in the order they came.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Epochs {
    epochs: Vec<Key>,
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

/// Writes down that the outbox of `source` with this epoch is relayed.
///
/// # Errors
/// When NATS can't be asked, or an outbox that came later has been relayed.
pub(super) async fn register(
    jetstream: &jetstream::Context,
    source: &str,
    epoch: &Key,
) -> anyhow::Result<()> {
    let bucket = jetstream.get_key_value(SOURCES_BUCKET).await;
    let bucket = bucket.with_context(|| format!("opening the bucket {SOURCES_BUCKET}"))?;
    for _ in 0..TRIES {
        let (mut known, revision) = Epochs::read(&bucket, source).await?;
        match known.epochs.iter().position(|known| known == epoch) {
            Some(at) if at + 1 == known.epochs.len() => return Ok(()),
            Some(_) => anyhow::bail!(
                "this outbox is older than the one that was relayed last, so its changes would count for nothing: \
                 a database was put back, or another one is meant; give it a new epoch with \
                 `usersync-scheduler outbox install --new-epoch`, then `usersync-scheduler load`"
            ),
            None => known.epochs.push(epoch.clone()),
        }
        let value = serde_json::to_vec(&known)?;
        match bucket.update(source, value.into(), revision).await {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {}
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("writing to the bucket {SOURCES_BUCKET}"));
            }
        }
    }
    anyhow::bail!("others write {source} to the bucket {SOURCES_BUCKET} all the time")
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;
    use usersync_core::event::Envelope;

    use super::*;

    #[test]
    fn an_event_learns_which_epochs_came_later_if_it_is_of_a_gateway() {
        let keys = ["a", "b", "c"].map(|secret| Key::from(secret.to_owned()));
        let epochs = Epochs {
            epochs: keys.to_vec(),
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
}
