//! Checks who sent a delivery: Standard Webhooks signatures, with room for rotation.

use axum::http::HeaderMap;
use secrecy::{ExposeSecret, SecretString};
use standardwebhooks::{Webhook, WebhookError};

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

/// The secrets a delivery may be signed with.
pub(crate) struct Signatures(Vec<Webhook>);

impl Signatures {
    pub(crate) fn new(secrets: &[SecretString]) -> Result<Self, InvalidSecret> {
        let keys = secrets.iter().enumerate().map(|(index, secret)| {
            let secret = secret.expose_secret();
            let text = secret.strip_prefix("whsec_").unwrap_or(secret);
            let long_enough = text.trim_end_matches('=').len() * 3 / 4 >= MIN_KEY_BYTES;
            let key = Webhook::new(secret).ok().filter(|_| long_enough);
            key.ok_or(InvalidSecret { number: index + 1 })
        });
        keys.collect::<Result<_, _>>().map(Self)
    }

    /// Accepts what any of the secrets signed within the last 300 seconds; everything when
    /// there are no secrets.
    pub(crate) fn verify(&self, body: &[u8], headers: &HeaderMap) -> Result<(), WebhookError> {
        let mut outcome = Ok(());
        for key in &self.0 {
            outcome = key.verify(body, headers);
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
