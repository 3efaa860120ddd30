//! What gateways alone know of an outbox: its epoch, as the database and the bucket `user_sources` have it. Events show
//! what is made of it: a name, and proofs that nobody else can make.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use usersync_core::user_id::UserId;
use uuid::Uuid;

/// Bytes of a name, and of a proof: 96 bits.
const LENGTH: usize = 12;

/// The key of one outbox.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub(crate) struct Key {
    secret: String,
    name: String,
}

impl Key {
    /// What events and states call the outbox.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The key of another epoch of the outbox, which begins because its database was put back.
    pub(super) fn put_back(&self) -> Self {
        Self::from(format!("{}~{}", self.secret, Uuid::now_v7().simple()))
    }

    /// Whether it is `outbox`, or [`Self::put_back`] of it.
    pub(super) fn is_of(&self, outbox: &Self) -> bool {
        let rest = self.secret.strip_prefix(&outbox.secret);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('~'))
    }

    /// Proves that a gateway has given an event the number of this note.
    pub(super) fn of_note(&self, note: i64) -> String {
        self.proof(&format!("note {note}"))
    }

    /// Proves that a gateway says so of this user.
    pub(super) fn of_user(&self, note: i64, user: &UserId) -> String {
        self.proof(&format!("note {note} of {user}"))
    }

    /// Whether it is the proof of [`Self::of_note`], in a time that doesn't depend on it.
    pub(super) fn proves_note(&self, note: i64, proof: &str) -> bool {
        self.proves(&format!("note {note}"), proof)
    }

    /// The same of [`Self::of_user`].
    pub(super) fn proves_user(&self, note: i64, user: &UserId, proof: &str) -> bool {
        self.proves(&format!("note {note} of {user}"), proof)
    }

    fn proof(&self, said: &str) -> String {
        let proof = self.mac(said).finalize().into_bytes();
        URL_SAFE_NO_PAD.encode(&proof[..LENGTH])
    }

    fn proves(&self, said: &str, proof: &str) -> bool {
        let proof = URL_SAFE_NO_PAD.decode(proof).unwrap_or_default();
        proof.len() == LENGTH && self.mac(said).verify_truncated_left(&proof).is_ok()
    }

    fn mac(&self, said: &str) -> Hmac<Sha256> {
        // It takes keys of any length.
        let mut mac = match Hmac::<Sha256>::new_from_slice(self.secret.as_bytes()) {
            Ok(mac) => mac,
            Err(never) => unreachable!("{never}"),
        };
        mac.update(said.as_bytes());
        mac
    }
}

impl From<String> for Key {
    fn from(secret: String) -> Self {
        let name = Sha256::digest(format!("the name of {secret}"));
        Self {
            name: URL_SAFE_NO_PAD.encode(&name[..LENGTH]),
            secret,
        }
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.secret
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Key").field(&self.name).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_of_one_outbox_one_note_and_one_user() {
        let (key, other) = (Key::from("e1".to_owned()), Key::from("e2".to_owned()));
        let (ann, bob) = (UserId::from(1), UserId::from(2));
        let proof = key.of_user(7, &ann);
        assert!(key.proves_user(7, &ann, &proof));
        assert!(!key.proves_user(8, &ann, &proof) && !key.proves_user(7, &bob, &proof));
        assert!(!other.proves_user(7, &ann, &proof) && !key.proves_note(7, &proof));
        assert!(key.proves_note(7, &key.of_note(7)) && !key.proves_note(8, &key.of_note(7)));
        for none in ["", "AAAA", &proof[1..], "?"] {
            assert!(!key.proves_user(7, &ann, none), "{none}");
        }
        assert_ne!(key.name(), other.name());
        let again = key.put_back();
        assert!(again.is_of(&key) && key.is_of(&key) && !key.is_of(&again) && !other.is_of(&key));
        assert!(!again.proves_user(7, &ann, &proof));
        assert!(!key.name().contains("e1") && !format!("{key:?}").contains("e1"));
    }
}
