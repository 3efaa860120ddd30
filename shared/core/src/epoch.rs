//! Which stream a sequence counts in: the epochs of USER_EVENTS (ADR 32).
//!
//! Sequences of a stream that was deleted and made anew, or restored from an older backup, begin again where others
//! have been before. An epoch is a time in which they only rose. Pure.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// One epoch, as `<ordinal>-<random>`: a later one has a higher ordinal, and nobody else has the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Epoch {
    ordinal: u64,
    random: String,
}

/// Why a text names no epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an epoch is written as NUMBER-TEXT, such as 1-9f3ac2d10b44")]
pub struct InvalidEpoch;

/// The highest ordinal that can be read. A stream isn't made anew so often, and after any that a state may have
/// ([`Epoch::is_likely`]) there is room for more.
const MOST: u64 = 1 << 62;
/// The highest that a state may have.
const MOST_LIKELY: u64 = u32::MAX as u64;

impl Epoch {
    /// A new one with this ordinal.
    pub fn begin(ordinal: u64) -> Self {
        let random = Uuid::now_v7().simple().to_string();
        Self {
            ordinal,
            random: random[random.len() - 12..].to_owned(),
        }
    }

    /// Whether a stream can have been made anew so often.
    pub fn is_likely(&self) -> bool {
        self.ordinal <= MOST_LIKELY
    }

    /// Which one it is, from 1 on.
    pub fn ordinal(&self) -> u64 {
        self.ordinal
    }
}

impl FromStr for Epoch {
    type Err = InvalidEpoch;

    fn from_str(text: &str) -> Result<Self, InvalidEpoch> {
        let (ordinal, random) = text.split_once('-').ok_or(InvalidEpoch)?;
        let ordinal: u64 = ordinal.parse().map_err(|_| InvalidEpoch)?;
        let fits =
            (1..=32).contains(&random.len()) && random.bytes().all(|b| b.is_ascii_alphanumeric());
        match fits && (1..=MOST).contains(&ordinal) {
            true => Ok(Self {
                ordinal,
                random: random.to_owned(),
            }),
            false => Err(InvalidEpoch),
        }
    }
}

impl TryFrom<String> for Epoch {
    type Error = InvalidEpoch;

    fn try_from(text: String) -> Result<Self, InvalidEpoch> {
        text.parse()
    }
}

impl From<Epoch> for String {
    fn from(epoch: Epoch) -> Self {
        epoch.to_string()
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ordinal, self.random)
    }
}

/// The epochs that the sequences of one stream belong to, oldest first; never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Span>", into = "Vec<Span>")]
pub struct Epochs(Vec<Span>);

/// An epoch and the first sequence that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    epoch: Epoch,
    from: u64,
}

/// How an event stands to a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The state contains it.
    Contained,
    /// It comes after the state.
    After,
    /// The state is of an epoch that begins after all we know: whoever asks is outdated.
    Unknown,
}

impl Epochs {
    /// A stream that begins with `epoch`.
    pub fn beginning_with(epoch: Epoch) -> Self {
        Self(vec![Span { epoch, from: 1 }])
    }

    /// The newest.
    pub fn current(&self) -> &Epoch {
        &self.0[self.0.len() - 1].epoch
    }

    /// The epoch of the event at `seq`.
    pub fn of(&self, seq: u64) -> &Epoch {
        let behind = self.0.partition_point(|span| span.from <= seq);
        &self.0[behind.saturating_sub(1)].epoch
    }

    /// Those up to `epoch`; `None` when it isn't among them.
    pub fn up_to(&self, epoch: &Epoch) -> Option<Self> {
        let last = self.0.iter().position(|span| span.epoch == *epoch)?;
        Some(Self(self.0[..=last].to_vec()))
    }

    /// The same with a new epoch, of `ordinal`, that begins at the sequence `from`.
    #[must_use]
    pub fn and_then(mut self, ordinal: u64, from: u64) -> Self {
        self.0.retain(|span| span.from < from);
        let epoch = Epoch::begin(ordinal);
        self.0.push(Span { epoch, from });
        self
    }

    /// Whether a state of `epoch` that contains events up to `event_seq` contains the event at `seq`.
    ///
    /// A state without an epoch is of the first one: it was stored before there were epochs.
    pub fn standing(&self, epoch: Option<&Epoch>, event_seq: u64, seq: u64) -> Standing {
        let of_event = self.of(seq);
        let ordinal = epoch.map_or(1, Epoch::ordinal);
        if ordinal > self.current().ordinal {
            return Standing::Unknown;
        }
        let same = epoch.map_or(of_event.ordinal == 1, |epoch| epoch == of_event);
        match (same && seq <= event_seq) || ordinal > of_event.ordinal {
            true => Standing::Contained,
            false => Standing::After,
        }
    }
}

impl TryFrom<Vec<Span>> for Epochs {
    type Error = &'static str;

    fn try_from(spans: Vec<Span>) -> Result<Self, &'static str> {
        match spans.is_empty() || spans.windows(2).any(|two| two[0].from >= two[1].from) {
            true => Err("expected epochs in the order of the sequences they begin at"),
            false => Ok(Self(spans)),
        }
    }
}

impl From<Epochs> for Vec<Span> {
    fn from(epochs: Epochs) -> Self {
        epochs.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(epochs: &Epochs, epoch: Option<&Epoch>, event_seq: u64, seq: u64) -> Standing {
        epochs.standing(epoch, event_seq, seq)
    }

    #[test]
    fn an_epoch_survives_its_own_text() {
        let epoch = Epoch::begin(7);
        assert_eq!(epoch.to_string().parse(), Ok(epoch.clone()));
        for text in [
            "",
            "7",
            "-a",
            "7-",
            "0-a",
            "x-a",
            "7-a.b",
            &format!("7-{}", "a".repeat(33)),
        ] {
            assert_eq!(text.parse::<Epoch>(), Err(InvalidEpoch), "{text}");
        }
    }

    #[test]
    fn within_an_epoch_sequences_decide() {
        let epochs = Epochs::beginning_with(Epoch::begin(1));
        let first = epochs.current().clone();
        for epoch in [Some(&first), None] {
            assert_eq!(standing(&epochs, epoch, 10, 10), Standing::Contained);
            assert_eq!(standing(&epochs, epoch, 10, 11), Standing::After);
        }
    }

    #[test]
    fn everything_in_a_stream_made_anew_comes_after_the_states_of_the_old_one() {
        let first = Epoch::begin(1);
        let second = Epochs::beginning_with(Epoch::begin(2));
        for epoch in [Some(&first), None] {
            assert_eq!(standing(&second, epoch, 1_000, 1), Standing::After);
        }
        let outdated = Epochs::beginning_with(first);
        let current = Some(second.current());
        assert_eq!(standing(&outdated, current, 1, 500), Standing::Unknown);
    }

    #[test]
    fn a_restored_stream_keeps_the_sequences_it_had() {
        // A backup made at 1200 is restored when states contain events up to 1500.
        let epochs = Epochs::beginning_with(Epoch::begin(1));
        let first = epochs.current().clone();
        let epochs = epochs.and_then(2, 1_201);
        let second = epochs.current().clone();
        assert_eq!((epochs.of(1_200), epochs.of(1_201)), (&first, &second));
        assert_eq!(
            standing(&epochs, Some(&first), 1_500, 1_200),
            Standing::Contained
        );
        assert_eq!(
            standing(&epochs, Some(&first), 1_100, 1_200),
            Standing::After
        );
        assert_eq!(
            standing(&epochs, Some(&first), 1_500, 1_201),
            Standing::After
        );
        assert_eq!(
            standing(&epochs, Some(&second), 1_210, 1_195),
            Standing::Contained
        );
        // Restored again, from a backup of before.
        let again = epochs.up_to(&first).unwrap().and_then(3, 1_101);
        assert_eq!(
            standing(&again, Some(&second), 1_300, 1_150),
            Standing::After
        );
        assert_eq!(
            standing(&again, Some(&first), 1_500, 1_100),
            Standing::Contained
        );
        assert_eq!(
            standing(&again, Some(&second), 1_300, 1_050),
            Standing::Contained
        );
        // Another system's epoch.
        assert_eq!(
            standing(&again, Some(&Epoch::begin(3)), 5_000, 1_150),
            Standing::After
        );
        assert!(epochs.up_to(&Epoch::begin(1)).is_none());
    }

    #[test]
    fn epochs_survive_their_own_json() {
        let epochs = Epochs::beginning_with(Epoch::begin(1)).and_then(2, 9);
        let json = serde_json::to_string(&epochs).unwrap();
        assert_eq!(serde_json::from_str::<Epochs>(&json).unwrap(), epochs);
        assert!(serde_json::from_str::<Epochs>("[]").is_err());
    }
}
