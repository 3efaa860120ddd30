//! What the event of a relay says of its outbox, and what a state remembers of it.
//!
//! Only a gateway's relay makes such events. The note is what puts late copies of them in their place: a relay that was
//! paused or cut off may publish what another has published long before, with an older row.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::{event::InvalidEvent, member::Member};

/// The longest epoch, in bytes.
const MAX_EPOCH: usize = 64;
/// The longest proof, in bytes.
const MAX_PROOF: usize = 64;
/// The most members that one source maps.
const MAX_OWNED: usize = 1_000;

/// The member `outbox` of an event: where it stands among the notes of its source.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outbox {
    /// The installation of the outbox whose notes are counted: a random text.
    pub epoch: String,
    /// The highest note that the event contains.
    pub note: i64,
    /// That a gateway says so of this user and this note.
    pub proof: String,
    /// The members that the source owns: they are replaced, and absent where the event says nothing of them.
    #[serde(serialize_with = "as_texts")]
    pub owned: Vec<Member>,
    /// Epochs of the same source that began later. Whoever takes the event in fills it.
    #[serde(skip)]
    pub newer: Vec<String>,
}

/// The newest note of one source that a state contains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Note {
    /// The installation of the outbox whose notes are counted.
    pub epoch: String,
    /// The note.
    pub note: i64,
}

/// By source, the newest note that a state contains.
pub type Notes = BTreeMap<String, Note>;

impl Outbox {
    /// Whether a state that has these notes of `source` contains it, or something newer.
    pub fn is_contained_in(&self, notes: &Notes, source: &str) -> bool {
        notes
            .get(source)
            .is_some_and(|known| match known.epoch == self.epoch {
                true => self.note <= known.note,
                false => self.newer.contains(&known.epoch),
            })
    }

    /// What a state that contains it remembers.
    pub fn remembered(&self) -> Note {
        Note {
            epoch: self.epoch.clone(),
            note: self.note,
        }
    }

    /// Takes the member out of an event's document.
    ///
    /// # Errors
    /// When it is there and isn't what a relay writes.
    pub(crate) fn take(members: &mut Map<String, Value>) -> Result<Option<Self>, InvalidEvent> {
        let invalid = |pointer: &'static str, reason: &'static str| {
            InvalidEvent::new(Cow::Borrowed(pointer), Cow::Borrowed(reason))
        };
        let Some(value) = members.remove("outbox") else {
            return Ok(None);
        };
        let Value::Object(mut said) = value else {
            return Err(invalid("/outbox", "must be an object"));
        };
        let epoch = match said.remove("epoch") {
            Some(Value::String(epoch)) if (1..=MAX_EPOCH).contains(&epoch.len()) => epoch,
            _ => {
                return Err(invalid(
                    "/outbox/epoch",
                    "must be a string of 1 to 64 bytes",
                ));
            }
        };
        let note = said.get("note").and_then(Value::as_i64);
        let note = note.ok_or_else(|| invalid("/outbox/note", "must be an integer"))?;
        let proof = match said.remove("proof") {
            Some(Value::String(proof)) if proof.len() <= MAX_PROOF => proof,
            _ => {
                return Err(invalid(
                    "/outbox/proof",
                    "must be a string of at most 64 bytes",
                ));
            }
        };
        let owned = match said.remove("owned") {
            Some(Value::Array(owned)) if owned.len() <= MAX_OWNED => owned,
            _ => {
                return Err(invalid(
                    "/outbox/owned",
                    "must be an array of at most 1000 members",
                ));
            }
        };
        let owned = owned.iter().map(|member| member.as_str()?.parse().ok());
        let owned = owned.collect::<Option<Vec<Member>>>();
        let owned = owned.ok_or_else(|| {
            invalid(
                "/outbox/owned",
                "must name members: username, email, status, data or data.<path>",
            )
        })?;
        Ok(Some(Self {
            epoch,
            note,
            proof,
            owned,
            newer: Vec::new(),
        }))
    }
}

fn as_texts<S: Serializer>(members: &[Member], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(members.iter().map(Member::to_string))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn outbox(epoch: &str, note: i64) -> Outbox {
        Outbox {
            epoch: epoch.to_owned(),
            note,
            proof: String::new(),
            owned: vec![Member::Email],
            newer: Vec::new(),
        }
    }

    #[test]
    fn a_note_is_contained_once_it_or_a_later_one_is_known() {
        let notes = Notes::from([("crm".to_owned(), outbox("b", 7).remembered())]);
        assert!(outbox("b", 7).is_contained_in(&notes, "crm"));
        assert!(outbox("b", 6).is_contained_in(&notes, "crm"));
        assert!(!outbox("b", 8).is_contained_in(&notes, "crm"));
        assert!(!outbox("b", 6).is_contained_in(&notes, "shop"));
        // Of another installation, its age decides, whatever the number.
        assert!(!outbox("c", 1).is_contained_in(&notes, "crm"));
        let mut old = outbox("a", 99);
        old.newer = vec!["b".to_owned(), "c".to_owned()];
        assert!(old.is_contained_in(&notes, "crm"));
    }

    #[test]
    fn what_a_relay_writes_is_read_and_nothing_else() {
        let said = json!({"outbox": {"epoch": "a", "note": 7, "proof": "", "owned": ["email"]}});
        let Value::Object(mut members) = said.clone() else {
            panic!("no object");
        };
        let read = Outbox::take(&mut members).unwrap().unwrap();
        assert_eq!(read, outbox("a", 7));
        assert_eq!(json!({ "outbox": read }), said);
        assert!(members.is_empty());
        let rows = [
            ("/outbox", json!(1)),
            (
                "/outbox/epoch",
                json!({"note": 1, "proof": "", "owned": []}),
            ),
            (
                "/outbox/epoch",
                json!({"epoch": "", "note": 1, "proof": "", "owned": []}),
            ),
            (
                "/outbox/note",
                json!({"epoch": "a", "note": 1.5, "proof": "", "owned": []}),
            ),
            (
                "/outbox/proof",
                json!({"epoch": "a", "note": 1, "owned": []}),
            ),
            (
                "/outbox/owned",
                json!({"epoch": "a", "note": 1, "proof": ""}),
            ),
            (
                "/outbox/owned",
                json!({"epoch": "a", "note": 1, "proof": "", "owned": ["user_id"]}),
            ),
        ];
        for (pointer, said) in rows {
            let mut members = Map::from_iter([("outbox".to_owned(), said.clone())]);
            let error = Outbox::take(&mut members).unwrap_err();
            assert_eq!(error.pointer, pointer, "{said}");
        }
    }
}
