//! Checks who sent a delivery: Standard Webhooks signatures, with room for rotation.

use axum::http::HeaderMap;
use secrecy::{ExposeSecret, SecretString};
use standardwebhooks::{Webhook, WebhookError};
use usersync_digest::Key;

/// The shortest key Standard Webhooks allows, in bytes.
const MIN_KEY_BYTES: usize = 24;

/// A secret that can't be used. The secret itself is not repeated.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "secret number {number} is unusable: give at least 24 random bytes in base64, with or without `whsec_` before it"
)]
pub struct InvalidSecret {
    /// Which of the secrets, counted from 1.
    pub number: usize,
}

/// The secrets a delivery may be signed with, and the keys of digests that follow from them.
pub(crate) struct Signatures(Vec<(Webhook, Key)>);

impl Signatures {
    pub(crate) fn new(secrets: &[SecretString]) -> Result<Self, InvalidSecret> {
        let keys = secrets.iter().enumerate().map(|(index, secret)| {
            let secret = secret.expose_secret();
            let text = secret.strip_prefix("whsec_").unwrap_or(secret);
            let long_enough = text.trim_end_matches('=').len() * 3 / 4 >= MIN_KEY_BYTES;
            let webhook = Webhook::new(secret).ok().filter(|_| long_enough);
            let pair = webhook.zip(Key::of_webhook(secret));
            pair.ok_or(InvalidSecret { number: index + 1 })
        });
        keys.collect::<Result<_, _>>().map(Self)
    }

    /// Accepts what any of the secrets signed within the last 300 seconds, and says which key follows from that
    /// secret; everything, and no key, when there are no secrets.
    pub(crate) fn verify(
        &self,
        body: &[u8],
        headers: &HeaderMap,
    ) -> Result<Option<&Key>, WebhookError> {
        let mut outcome = Ok(None);
        for (webhook, key) in &self.0 {
            outcome = webhook.verify(body, headers).map(|()| Some(key));
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_secrets_are_refused_by_number_and_not_repeated() {
        let good = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        assert!(Signatures::new(&[good.into()]).is_ok());
        for bad in [
            "",
            "whsec_",
            "dG9vc2hvcnQ=",
            "not base64 at all, but long enough to be one",
        ] {
            let error = Signatures::new(&[good.into(), bad.into()]).err().unwrap();
            assert_eq!(error, InvalidSecret { number: 2 }, "{bad}");
            assert!(bad.len() < 10 || !error.to_string().contains(bad));
        }
    }
}
