//! What an event is known by: its source and its id. Equal ids of two sources are two events (ADR 28).

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

use crate::event::Event;

/// Bytes of the hash that are kept in a state: 96 bits.
const REMEMBERED: usize = 12;
/// Bytes of the hash that are in a `Nats-Msg-Id`: 128 bits.
const IN_MESSAGE_ID: usize = 16;

/// The SHA-256 of source and id, written as `<bytes of the source>:<source><id>`, or as `-<id>` without a source.
///
/// The length makes it unambiguous: both may hold any character.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventKey([u8; 32]);

impl EventKey {
    /// The key of the event `id` of `source`.
    pub fn new(source: Option<&str>, id: &str) -> Self {
        let hash = Sha256::new();
        let hash = match source {
            Some(source) => hash
                .chain_update(source.len().to_string())
                .chain_update(":")
                .chain_update(source),
            None => hash.chain_update("-"),
        };
        Self(hash.chain_update(id).finalize().into())
    }

    /// The `Nats-Msg-Id` under which the gateway and the kits publish the event: `us1-` and 22 characters.
    pub fn message_id(&self) -> String {
        format!("us1-{}", URL_SAFE_NO_PAD.encode(&self.0[..IN_MESSAGE_ID]))
    }

    /// What a state remembers of the event.
    pub(crate) fn remembered(&self) -> Remembered {
        let mut text = [0; Remembered::LENGTH];
        // It fits: four characters for every three bytes.
        let _ = URL_SAFE_NO_PAD.encode_slice(&self.0[..REMEMBERED], &mut text);
        Remembered(text)
    }
}

/// The first 96 bits of a key, in characters of base64url.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Remembered([u8; Self::LENGTH]);

impl Remembered {
    pub(crate) const LENGTH: usize = 16;

    pub(crate) fn as_str(&self) -> &str {
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Event {
    /// What this event is known by.
    pub fn key(&self) -> EventKey {
        EventKey::new(self.source.as_deref(), &self.id)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn source_and_id_are_told_apart() {
        let events = [
            (Some("/crm"), "1"),
            (Some("/shop"), "1"),
            (None, "1"),
            (Some(""), "1"),
            (Some("a:b"), "c"),
            (Some("a"), "b:c"),
            (Some("a"), ":bc"),
            (None, "4:/crm1"),
            (Some("1"), "1:1"),
        ];
        let keys = events.map(|(source, id)| EventKey::new(source, id).message_id());
        assert_eq!(keys.iter().collect::<HashSet<_>>().len(), events.len());
    }

    #[test]
    fn other_languages_come_to_the_same_message_id() {
        // printf '4:/crm1' | openssl dgst -sha256 -binary | head -c 16 | basenc --base64url
        assert_eq!(
            EventKey::new(Some("/crm"), "1").message_id(),
            "us1-1O8KykQuwCc0dMf7oezo0w"
        );
        // printf -- '-evt-A' | …
        assert_eq!(
            EventKey::new(None, "evt-A").message_id(),
            "us1-asamKgd-tDkOz5WVt61o-Q"
        );
    }
}
