//! Signatures of calls (Standard Webhooks): one, or two while a secret is replaced.
//!
//! Made here and not by the published library, which is held against them in the tests: its SHA-256 makes no use of
//! what processors have for it, and that was most of what a signature cost.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::ExposeSecret;
use sha2::Sha256;
use usersync_core::{secret::SecretRef, target::TargetConfig};
use usersync_digest::Key;

use crate::ConfigError;

/// What calls are signed with.
pub(super) struct Signer {
    current: Hmac<Sha256>,
    previous: Option<Hmac<Sha256>>,
    /// The key of digests, which follows from the current secret.
    pub(super) key: Key,
}

impl Signer {
    /// `None` where the target has no secret.
    pub(super) fn new(config: &TargetConfig) -> Result<Option<Self>, ConfigError> {
        let Some(secret) = &config.secret else {
            return Ok(None);
        };
        let previous = config.previous_secret.as_ref();
        let previous = previous.map(|secret| octets("previous_secret", secret));
        let previous = previous.transpose()?;
        let current = octets("secret", secret)?;
        Ok(Some(Self {
            current: keyed("secret", &current)?,
            previous: previous
                .map(|previous| keyed("previous_secret", &previous))
                .transpose()?,
            key: Key::of(&current),
        }))
    }

    /// The signature by every secret, separated by spaces, as a header has them.
    pub(super) fn sign(&self, id: &str, at: i64, body: &[u8]) -> String {
        let mut signatures = self.sign_with_current(id, at, body);
        if let Some(previous) = &self.previous {
            signatures.push(' ');
            signatures += &signature(previous, id, at, body);
        }
        signatures
    }

    /// The signature by the current secret alone, for questions: the answer's key is that of the secret that signed.
    pub(super) fn sign_with_current(&self, id: &str, at: i64, body: &[u8]) -> String {
        signature(&self.current, id, at, body)
    }
}

/// `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`.
fn signature(secret: &Hmac<Sha256>, id: &str, at: i64, body: &[u8]) -> String {
    let mut mac = secret.clone();
    mac.update(format!("{id}.{at}.").as_bytes());
    mac.update(body);
    let mut signature = "v1,".to_owned();
    BASE64_STANDARD.encode_string(mac.finalize().into_bytes(), &mut signature);
    signature
}

/// What a secret stands for: it is base64, with or without `whsec_` before it.
fn octets(key: &'static str, secret: &SecretRef) -> Result<Vec<u8>, ConfigError> {
    let secret = secret.resolve().map_err(|error| ConfigError::Secret {
        key: key.to_owned(),
        error,
    })?;
    let text = secret.expose_secret();
    let text = text.strip_prefix("whsec_").unwrap_or(text);
    let octets = BASE64_STANDARD.decode(text);
    octets.map_err(|_| ConfigError::SecretForm(key))
}

fn keyed(key: &'static str, octets: &[u8]) -> Result<Hmac<Sha256>, ConfigError> {
    let keyed = Hmac::new_from_slice(octets);
    keyed.map_err(|_| ConfigError::SecretForm(key))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use reqwest::header::HeaderMap;
    use standardwebhooks::Webhook;

    use super::*;

    const SECRETS: [&str; 2] = [
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
    ];

    fn hmac(secret: &str) -> Hmac<Sha256> {
        let text = secret.strip_prefix("whsec_").unwrap_or(secret);
        Hmac::new_from_slice(&BASE64_STANDARD.decode(text).unwrap()).unwrap()
    }

    #[test]
    fn the_published_library_makes_and_takes_the_same_signatures() {
        let signer = Signer {
            current: hmac(SECRETS[0]),
            previous: Some(hmac(SECRETS[1])),
            key: Key::of(b"another"),
        };
        let (id, body) = ("task-1", r#"{"user_id":7,"username":"Zoë"}"#.as_bytes());
        let now = Timestamp::now().as_second();
        let signatures = signer.sign(id, now, body);
        let theirs = SECRETS.map(|secret| {
            let webhook = Webhook::new(secret).unwrap();
            webhook.sign(id, now, body).unwrap()
        });
        assert_eq!(signatures, theirs.join(" "));
        assert_eq!(signer.sign_with_current(id, now, body), theirs[0]);
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", id.parse().unwrap());
        headers.insert("webhook-timestamp", now.into());
        headers.insert("webhook-signature", signatures.parse().unwrap());
        for secret in SECRETS {
            Webhook::new(secret)
                .unwrap()
                .verify(body, &headers)
                .unwrap();
        }
    }
}
