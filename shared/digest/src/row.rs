//! The row hash: one encoding of a user that every side can produce, and its first 128 bits of SHA-256.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest as _, Sha256};

/// The first 16 octets of the SHA-256, or with a key of the HMAC-SHA-256, of a [`Row`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowHash(pub [u8; 16]);

/// One user on the way to its hash: the id, then each field in an order both sides agree on.
///
/// A field is its number of octets in decimal, a colon, and the octets; NULL is a colon alone. So no two rows
/// are encoded alike.
#[derive(Clone, Debug, Default)]
pub struct Row {
    octets: Vec<u8>,
}

/// The key of hashes that are to tell nothing of the rows to those who don't have it.
#[derive(Clone)]
pub struct Key(Hmac<Sha256>);

const LABEL: &[u8] = b"usersync-digest";

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// The key that `secret` makes: one that signs as well is not used as it is.
    pub fn of(secret: &[u8]) -> Self {
        Self(keyed(&mac(&keyed(secret), LABEL)))
    }

    /// The key that a secret of Standard Webhooks makes: base64, with or without `whsec_` before it. `None` where it
    /// is none.
    pub fn of_webhook(secret: &str) -> Option<Self> {
        let secret = secret.strip_prefix("whsec_").unwrap_or(secret);
        let octets = STANDARD.decode(secret).ok()?;
        Some(Self::of(&octets))
    }
}

/// Any length of key is fine for HMAC; longer ones are hashed first (RFC 2104).
fn keyed(secret: &[u8]) -> Hmac<Sha256> {
    let mut block = [0; 64];
    if secret.len() > block.len() {
        block[..32].copy_from_slice(&Sha256::digest(secret));
    } else {
        block[..secret.len()].copy_from_slice(secret);
    }
    Hmac::new(&block.into())
}

fn mac(key: &Hmac<Sha256>, octets: &[u8]) -> [u8; 32] {
    let mut mac = key.clone();
    mac.update(octets);
    mac.finalize().into_bytes().into()
}

impl Row {
    /// A row that begins with the user's id.
    pub fn new(id: &str) -> Self {
        let mut row = Self::default();
        row.begin(id);
        row
    }

    /// Starts again with another user, in the same memory.
    pub fn begin(&mut self, id: &str) {
        self.octets.clear();
        self.field(Some(id.as_bytes()));
    }

    /// Adds the next field; `None` is NULL.
    pub fn field(&mut self, value: Option<&[u8]>) {
        if let Some(value) = value {
            self.octets
                .extend_from_slice(value.len().to_string().as_bytes());
        }
        self.octets.push(b':');
        self.octets.extend_from_slice(value.unwrap_or_default());
    }

    /// The encoding.
    pub fn octets(&self) -> &[u8] {
        &self.octets
    }

    /// Its hash.
    pub fn hash(&self) -> RowHash {
        RowHash::cut(&Sha256::digest(&self.octets).into())
    }

    /// Its hash with a key.
    pub fn keyed(&self, key: &Key) -> RowHash {
        RowHash::cut(&mac(&key.0, &self.octets))
    }
}

impl RowHash {
    fn cut(hash: &[u8; 32]) -> Self {
        let mut cut = [0; 16];
        cut.copy_from_slice(&hash[..16]);
        Self(cut)
    }

    /// Its two halves, as numbers with the first octet as the highest.
    pub fn halves(&self) -> (u64, u64) {
        let number = u128::from_be_bytes(self.0);
        ((number >> 64) as u64, number as u64)
    }
}
