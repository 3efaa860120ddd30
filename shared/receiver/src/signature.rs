//! Checks who sent a delivery, and finds the key of digests that follows from the secret it is signed with.

use axum::http::HeaderMap;
use secrecy::{ExposeSecret, SecretString};
use usersync_core::signature::{InvalidSecret, Signatures, Unproven};
use usersync_digest::Key;

/// The secrets a delivery may be signed with, and the keys of digests that follow from them.
pub(crate) struct Proof {
    signatures: Signatures,
    keys: Vec<Key>,
}

impl Proof {
    pub(crate) fn new(secrets: &[SecretString]) -> Result<Self, InvalidSecret> {
        let signatures = Signatures::new(secrets)?;
        let keys = secrets.iter().enumerate().map(|(index, secret)| {
            Key::of_webhook(secret.expose_secret()).ok_or(InvalidSecret { number: index + 1 })
        });
        Ok(Self {
            signatures,
            keys: keys.collect::<Result<_, _>>()?,
        })
    }

    /// Accepts what any of the secrets signed within the last 300 seconds, and says which key follows from that
    /// secret; everything, and no key, when there are no secrets.
    pub(crate) fn verify(
        &self,
        body: &[u8],
        headers: &HeaderMap,
    ) -> Result<Option<&Key>, Unproven> {
        if self.signatures.is_empty() {
            return Ok(None);
        }
        let index = self.signatures.verify(body, headers)?;
        Ok(self.keys.get(index))
    }
}
