//! Signatures of calls (Standard Webhooks): one, or two while a secret is replaced.

use secrecy::ExposeSecret;
use standardwebhooks::Webhook;
use usersync_core::{secret::SecretRef, target::TargetConfig};
use usersync_digest::Key;

use crate::ConfigError;

/// What calls are signed with.
pub(super) struct Signer {
    current: Webhook,
    previous: Option<Webhook>,
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
        let previous = previous.map(|secret| webhook("previous_secret", secret));
        let (current, key) = webhook("secret", secret)?;
        Ok(Some(Self {
            current,
            previous: previous.transpose()?.map(|(webhook, _)| webhook),
            key,
        }))
    }

    /// The signature by every secret, separated by spaces, as a header has them.
    pub(super) fn sign(&self, id: &str, at: i64, body: &[u8]) -> Option<String> {
        let mut signatures = self.sign_with_current(id, at, body)?;
        if let Some(previous) = &self.previous {
            signatures.push(' ');
            signatures += &previous.sign(id, at, body).ok()?;
        }
        Some(signatures)
    }

    /// The signature by the current secret alone, for questions: the answer's key is that of the secret that signed.
    pub(super) fn sign_with_current(&self, id: &str, at: i64, body: &[u8]) -> Option<String> {
        self.current.sign(id, at, body).ok()
    }
}

fn webhook(key: &'static str, secret: &SecretRef) -> Result<(Webhook, Key), ConfigError> {
    let secret = secret.resolve().map_err(|error| ConfigError::Secret {
        key: key.to_owned(),
        error,
    })?;
    let secret = secret.expose_secret();
    let webhook = Webhook::new(secret).ok().zip(Key::of_webhook(secret));
    webhook.ok_or(ConfigError::SecretForm(key))
}
