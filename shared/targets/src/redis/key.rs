//! Where Redis holds a user: the key of the document, and the key that remembers a deleted user's version.
//!
//! In a Redis Cluster a script may touch keys of one slot only, so both keys of a user are in the same one. A key's slot
//! follows from what is between its first `{` and the first `}` behind that, unless that is nothing: then from all of it.

use std::borrow::Cow;

use usersync_core::user_id::UserId;

/// What keys of documents begin with; the id follows.
const DOCUMENT: &str = "user:";
/// What the key of a tombstone of before ends with, behind the key of the document.
const FORMER_TOMBSTONE: &str = ":deleted";
/// How many slots a cluster has.
pub(super) const SLOTS: u16 = 16_384;
/// What the key of a test begins with. No id has a space, so no document is there.
const PROBE: &str = "user: probe";
/// What the key of a mark begins with; likewise.
const MARK: &str = "user: mark";

/// The key of a user's document.
pub(super) fn document(user_id: &UserId) -> String {
    format!("{DOCUMENT}{user_id}")
}

/// The id in the key of a document; keys of others have none.
pub(super) fn user(key: &[u8]) -> Option<&str> {
    let id = std::str::from_utf8(key).ok()?.strip_prefix(DOCUMENT)?;
    let is_id = id
        .parse::<UserId>()
        .is_ok_and(|user| user.to_string() == id);
    is_id.then_some(id)
}

/// The key that remembers a deleted user's version. No id has a space, so no document is there.
pub(super) fn tombstone(user_id: &UserId) -> String {
    let document = document(user_id);
    let tag: Cow<'_, str> = match tag(&document) {
        // The tag of the id stays the first one.
        Some(_) => return format!("{document} deleted"),
        // The whole key can be a tag.
        None if !document.contains('}') => document.as_str().into(),
        None => tag_in(slot_of(&document)).into(),
    };
    format!("{DOCUMENT} deleted:{{{tag}}}:{user_id}")
}

/// The slot of a user's keys in a cluster.
pub(super) fn slot(user_id: &UserId) -> u16 {
    slot_of(&document(user_id))
}

/// A key in `slot` where no user is.
pub(super) fn probe(slot: u16) -> String {
    format!("{PROBE}:{{{}}}", tag_in(slot))
}

/// The key in `slot` of the mark that is lost with the rest.
pub(super) fn mark(slot: u16) -> String {
    format!("{MARK}:{{{}}}", tag_in(slot))
}

/// The user whose tombstone of before may be where the document of `user_id` belongs: that of `42:deleted` is where 42 was
/// remembered.
pub(super) fn formerly_remembered(user_id: &UserId) -> Option<UserId> {
    match user_id {
        UserId::Number(_) => None,
        UserId::Text(text) => text.strip_suffix(FORMER_TOMBSTONE)?.parse().ok(),
    }
}

/// The version that a tombstone tells.
pub(super) fn buried(tombstone: &[u8]) -> Option<u64> {
    std::str::from_utf8(tombstone).ok()?.parse().ok()
}

/// Whether `held`, where the document of user `id` belongs, is a tombstone of before: a number, which no document is.
pub(super) fn is_former_tombstone(id: &str, held: &[u8]) -> bool {
    id.ends_with(FORMER_TOMBSTONE) && held.iter().all(u8::is_ascii_digit)
}

/// What a key's slot follows from, where that is only a part of it.
fn tag(key: &str) -> Option<&str> {
    let (_, rest) = key.split_once('{')?;
    let (tag, _) = rest.split_once('}')?;
    (!tag.is_empty()).then_some(tag)
}

/// The slot of a key (cluster specification, "key distribution model").
fn slot_of(key: &str) -> u16 {
    crc16(tag(key).unwrap_or(key).as_bytes()) % SLOTS
}

/// A tag of `slot`.
fn tag_in(slot: u16) -> String {
    // One of every 16,384 texts is.
    let found = (0_u32..).map(|number| format!("{number:x}"));
    let mut found = found.filter(|text| crc16(text.as_bytes()) % SLOTS == slot);
    found.next().unwrap_or_default()
}

/// CRC-16/XMODEM, which Redis takes for slots (cluster specification, appendix A).
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| {
            let carry = crc & 0x8000 != 0;
            crc << 1 ^ if carry { 0x1021 } else { 0 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tombstone_is_in_the_slot_of_its_document_and_where_no_document_can_be() {
        // What `CLUSTER KEYSLOT` answers.
        assert_eq!((slot_of("123456789"), slot_of("foo{bar}")), (12_739, 5_061));
        let mut tombstones = std::collections::BTreeSet::new();
        for id in [
            "42",
            "042",
            "auth0|6f",
            "42:deleted",
            "a:b",
            "{",
            "}",
            "{}",
            "}{",
            "{a}",
            "{a",
            "a}",
            "{}a}",
            "a{}b",
            "{a}{b}",
            "{{a}}",
            "}a{b}",
            "}}}",
            "{{{",
            "a}b{",
            "{}{a}",
        ] {
            let user: UserId = id.parse().unwrap();
            let (document, tombstone) = (document(&user), tombstone(&user));
            assert_eq!(slot_of(&document), slot_of(&tombstone), "{id}: {tombstone}");
            assert_eq!(super::user(document.as_bytes()), Some(id));
            assert_eq!(super::user(tombstone.as_bytes()), None);
            // The rights of before are enough.
            assert!(tombstone.starts_with(DOCUMENT));
            assert!(tombstones.insert(tombstone), "{id}");
        }
    }

    #[test]
    fn a_test_finds_a_key_in_any_slot() {
        for slot in [0, 1, 5_460, 5_461, 12_739, SLOTS - 1] {
            let key = probe(slot);
            assert_eq!(slot_of(&key), slot, "{key}");
            assert_eq!(super::user(key.as_bytes()), None);
        }
    }

    #[test]
    fn whoever_is_named_like_a_tombstone_of_before_is_known() {
        let of = |id: &str| formerly_remembered(&id.parse().unwrap()).map(|user| user.to_string());
        assert_eq!(of("42:deleted").as_deref(), Some("42"));
        assert_eq!(of("a:deleted:deleted").as_deref(), Some("a:deleted"));
        assert_eq!(of("42"), None);
        assert_eq!(of(":deleted"), None);
    }
}
