//! What intake knows of its streams, kept outside of them: the KV bucket `user_epochs`.
//!
//! Each session compares the streams with it before anything is merged, and renews it every second. So a stream that was
//! deleted and made anew, restored from an older backup or replaced is noticed (ADR 32). `decide` is pure.

use async_nats::jetstream::{self, kv, stream::Info};
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use usersync_core::{
    epoch::{Epoch, Epochs, Standing},
    subjects::{EPOCHS_BUCKET, EPOCHS_KEY},
};

use super::intact::Least;

/// The key in the metadata of USER_EVENTS that names its current epoch. In that of USER_STATE it names the one in which
/// the stream was begun.
pub(super) const EPOCH: &str = "usersync-epoch";
/// The format of [`Mark`]; a newer one is refused.
const FORMAT: u32 = 1;

/// What the bucket holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    format: u32,
    /// What the sequences of USER_EVENTS count in.
    pub epochs: Epochs,
    /// How USER_EVENTS was. No state up to `states.last_seq` contains an event behind its `last_seq`.
    pub events: Extent,
    /// When USER_EVENTS stored its last event.
    pub last_event: Timestamp,
    /// How USER_STATE was.
    pub states: Extent,
    /// The nats-server that was asked; each start makes another id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Up to which event all were merged long enough ago for that to be synced (ADR 50).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged: Option<u64>,
    /// What has happened to the streams last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incident: Option<Incident>,
    /// When a user last had more events within the duplicate window than a state remembers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crowded: Option<Timestamp>,
}

/// How far a stream is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extent {
    /// When the server made it (RFC 3339).
    pub created: String,
    /// Its last sequence.
    pub last_seq: u64,
    /// How many messages it has.
    pub messages: u64,
}

/// Something that operators are told of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Incident {
    /// When it was noticed.
    pub at: Timestamp,
    /// What it was, and what follows.
    pub what: String,
}

impl Incident {
    pub(super) fn now(what: impl Into<String>) -> Self {
        Self {
            at: Timestamp::now(),
            what: what.into(),
        }
    }
}

impl Extent {
    pub(super) fn of(info: &Info) -> Self {
        Self {
            created: info.created.to_string(),
            last_seq: info.state.last_sequence,
            messages: info.state.messages,
        }
    }

    /// Whether a stream that was like this can be like `now` without anything being lost.
    pub(super) fn can_become(&self, now: &Self) -> bool {
        self.created == now.created && self.last_seq <= now.last_seq
    }
}

/// The newest event that states contain, as far as they were looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Newest {
    epoch: Option<Epoch>,
    seq: u64,
    /// When USER_EVENTS stored it, in unix microseconds.
    pub stored_us: u64,
    /// When USER_STATE stored the state that says so.
    pub told: Timestamp,
}

impl Newest {
    /// Takes in what one state contains.
    pub(super) fn see(&mut self, epoch: Option<Epoch>, seq: u64, stored_us: u64, told: Timestamp) {
        let ordinal = |epoch: &Option<Epoch>| epoch.as_ref().map_or(1, Epoch::ordinal);
        if (ordinal(&epoch), seq) > (ordinal(&self.epoch), self.seq) {
            *self = Self {
                epoch,
                seq,
                stored_us,
                told,
            };
        }
    }

    /// Whether the states that were looked at are of this epoch.
    pub(super) fn is_of(&self, epoch: &Epoch) -> bool {
        self.seq > 0
            && self
                .epoch
                .as_ref()
                .map_or(epoch.ordinal() == 1, |own| own == epoch)
    }

    pub(super) fn seq(&self) -> u64 {
        self.seq
    }

    fn ordinal(&self) -> u64 {
        self.epoch.as_ref().map_or(1, Epoch::ordinal)
    }
}

/// What was found at the begin of a session.
#[derive(Debug)]
pub(super) struct Found {
    /// The epoch that the metadata of USER_EVENTS names.
    pub named: Option<Epoch>,
    pub events: Extent,
    /// Whether other events have the sequences that known ones had: a stream that went back has grown since.
    pub is_another: bool,
    /// The newest event that states contain which the mark doesn't know of.
    pub newest: Newest,
}

/// What to go on with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// The same epochs.
    GoOn(Epochs),
    /// A new epoch, of this ordinal, from the first event on: the stream is another one.
    Anew { ordinal: u64, what: String },
    /// A new epoch behind what the stream still has of `lineage`.
    Behind {
        lineage: Epochs,
        ordinal: u64,
        what: String,
    },
}

/// Compares the streams with what was known of them.
pub(super) fn decide(known: Option<&Mark>, found: &Found) -> Decision {
    let (last, newest) = (found.events.last_seq, &found.newest);
    let Some(known) = known else {
        let epoch = found.named.clone().unwrap_or_else(|| Epoch::begin(1));
        let epochs = Epochs::beginning_with(epoch);
        return match epochs.standing(newest.epoch.as_ref(), newest.seq, last + 1) {
            Standing::After => Decision::GoOn(epochs),
            // The states were made of another stream, or of more of this one.
            Standing::Contained | Standing::Unknown => Decision::Anew {
                ordinal: epochs.current().ordinal().max(newest.ordinal()) + 1,
                what: format!(
                    "states contain events up to {}, but USER_EVENTS ends at {last}",
                    newest.seq
                ),
            },
        };
    };
    let current = known.epochs.current();
    let ordinal = current.ordinal().max(newest.ordinal()) + 1;
    // Who removes the metadata of a stream doesn't make another stream of it.
    let same = known.events.can_become(&found.events);
    let named = match &found.named {
        None if same => Some(current),
        named => named.as_ref(),
    };
    let Some(lineage) = named.and_then(|epoch| known.epochs.up_to(epoch)) else {
        let what = format!(
            "USER_EVENTS is another stream than before: it was made anew, and ends at {last}, not behind {}",
            known.events.last_seq
        );
        return Decision::Anew { ordinal, what };
    };
    let was = match newest.epoch.as_ref() == Some(current) {
        true => known.events.last_seq.max(newest.seq),
        false => known.events.last_seq,
    };
    let what = if newest.ordinal() > current.ordinal() {
        "states are of a later epoch than USER_EVENTS".to_owned()
    } else if last < was || lineage != known.epochs {
        format!("USER_EVENTS went back: it ends at {last}, and was at {was} before")
    } else if found.is_another {
        format!(
            "USER_EVENTS went back and has grown since: it ends at {last}, and its events up to {was} aren't what they were"
        )
    } else {
        return Decision::GoOn(lineage);
    };
    Decision::Behind {
        lineage,
        ordinal,
        what,
    }
}

/// The bucket with the mark.
#[derive(Clone)]
pub(crate) struct Marks(kv::Store);

impl Marks {
    pub(crate) async fn open(jetstream: &jetstream::Context) -> anyhow::Result<Self> {
        Ok(Self(jetstream.get_key_value(EPOCHS_BUCKET).await?))
    }

    /// The mark and its revision, 0 while there is none.
    pub(crate) async fn read(&self) -> anyhow::Result<(Option<Mark>, u64)> {
        let Some(entry) = self.0.entry(EPOCHS_KEY).await? else {
            return Ok((None, 0));
        };
        if entry.operation != kv::Operation::Put {
            return Ok((None, entry.revision));
        }
        let mark: Mark = serde_json::from_slice(&entry.value)?;
        anyhow::ensure!(
            mark.format <= FORMAT,
            "the bucket {EPOCHS_BUCKET} is written in format {}, but this gateway reads up to {FORMAT}: upgrade it (docs/UPGRADING.md)",
            mark.format
        );
        Ok((Some(mark), entry.revision))
    }

    /// Writes the mark, provided that nobody has since `revision`; answers the new one.
    pub(super) async fn write(&self, mark: &Mark, revision: u64) -> anyhow::Result<u64> {
        let value = Bytes::from(serde_json::to_vec(mark)?);
        Ok(self.0.update(EPOCHS_KEY, value, revision).await?)
    }
}

impl Mark {
    /// What USER_STATE has at least.
    pub(super) fn least(&self) -> Least {
        Least {
            users: self.states.messages,
            last_seq: self.states.last_seq,
        }
    }

    pub(super) fn new(epochs: Epochs, events: &Info, states: Extent) -> Self {
        Self {
            format: FORMAT,
            epochs,
            events: Extent::of(events),
            last_event: last_event(events),
            states,
            server: None,
            merged: None,
            incident: None,
            crowded: None,
        }
    }
}

/// When a stream stored its last message; 1970 where it has none.
pub(super) fn last_event(events: &Info) -> Timestamp {
    let nanos = events.state.last_timestamp.unix_timestamp_nanos();
    Timestamp::from_nanosecond(nanos)
        .unwrap_or_default()
        .max(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(created: &str, last_seq: u64) -> Extent {
        Extent {
            created: created.to_owned(),
            last_seq,
            messages: last_seq,
        }
    }

    fn mark(last_seq: u64) -> Mark {
        Mark {
            format: FORMAT,
            epochs: Epochs::beginning_with(Epoch::begin(1)),
            events: extent("monday", last_seq),
            last_event: Timestamp::UNIX_EPOCH,
            states: extent("monday", 9),
            server: None,
            merged: None,
            incident: None,
            crowded: None,
        }
    }

    fn found(named: Option<&Epoch>, events: Extent) -> Found {
        Found {
            named: named.cloned(),
            events,
            is_another: false,
            newest: Newest::default(),
        }
    }

    /// In short.
    fn decided(known: Option<&Mark>, found: &Found) -> (&'static str, u64) {
        match decide(known, found) {
            Decision::GoOn(epochs) => ("on", epochs.current().ordinal()),
            Decision::Anew { ordinal, .. } => ("anew", ordinal),
            Decision::Behind { ordinal, .. } => ("behind", ordinal),
        }
    }

    #[test]
    fn a_stream_that_goes_on_keeps_its_epoch() {
        let known = mark(100);
        let epoch = known.epochs.current().clone();
        for found in [
            found(Some(&epoch), extent("monday", 100)),
            found(Some(&epoch), extent("monday", 150)),
            // Moved by backup and restore, nothing lost.
            found(Some(&epoch), extent("friday", 100)),
            // Somebody has edited the metadata away.
            found(None, extent("monday", 100)),
        ] {
            let going_on = Decision::GoOn(known.epochs.clone());
            assert_eq!(decide(Some(&known), &found), going_on, "{found:?}");
        }
    }

    #[test]
    fn a_stream_made_anew_begins_a_new_epoch_at_its_first_event() {
        let known = mark(100);
        let other = Epoch::begin(1);
        for found in [
            found(None, extent("friday", 0)),
            // It was filled faster than we looked.
            found(None, extent("friday", 500)),
            found(None, extent("monday", 7)),
            // Another system's.
            found(Some(&other), extent("friday", 500)),
        ] {
            assert_eq!(decided(Some(&known), &found), ("anew", 2), "{found:?}");
        }
    }

    #[test]
    fn a_restored_stream_begins_a_new_epoch_behind_what_it_has() {
        let known = mark(100);
        let first = known.epochs.current().clone();
        let back = found(Some(&first), extent("monday", 80));
        assert_eq!(decided(Some(&known), &back), ("behind", 2));
        // And again, from a backup of the first epoch.
        let twice = Mark {
            epochs: known.epochs.clone().and_then(2, 81),
            ..known.clone()
        };
        for last in [70, 300] {
            let back = found(Some(&first), extent("monday", last));
            let Decision::Behind {
                lineage, ordinal, ..
            } = decide(Some(&twice), &back)
            else {
                panic!("it goes on at {last}");
            };
            assert_eq!((lineage, ordinal), (known.epochs.clone(), 3));
        }
    }

    #[test]
    fn states_stored_since_the_mark_count() {
        let known = mark(100);
        let first = known.epochs.current().clone();
        let mut found = found(Some(&first), extent("monday", 120));
        found.newest.see(Some(first), 120, 5, Timestamp::UNIX_EPOCH);
        assert_eq!(decided(Some(&known), &found), ("on", 1));
        found
            .newest
            .see(found.newest.epoch.clone(), 130, 6, Timestamp::UNIX_EPOCH);
        assert_eq!(decided(Some(&known), &found), ("behind", 2));
        found
            .newest
            .see(Some(Epoch::begin(6)), 1, 7, Timestamp::UNIX_EPOCH);
        assert_eq!(decided(Some(&known), &found), ("behind", 7));
    }

    #[test]
    fn without_a_mark_the_states_tell_whether_the_stream_went_back() {
        let mut first = found(None, extent("monday", 100));
        assert_eq!(decided(None, &first), ("on", 1));
        first.newest.see(None, 100, 5, Timestamp::UNIX_EPOCH);
        assert_eq!(decided(None, &first), ("on", 1));
        first.newest.see(None, 101, 5, Timestamp::UNIX_EPOCH);
        assert_eq!(decided(None, &first), ("anew", 2));
        let epoch = Epoch::begin(4);
        let mut lost = found(Some(&epoch), extent("monday", 100));
        lost.newest
            .see(Some(epoch.clone()), 100, 5, Timestamp::UNIX_EPOCH);
        assert_eq!(decided(None, &lost), ("on", 4));
        lost.newest
            .see(Some(Epoch::begin(5)), 7, 5, Timestamp::UNIX_EPOCH);
        assert_eq!(decided(None, &lost), ("anew", 6));
    }
}
