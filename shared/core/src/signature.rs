//! Who sent a request: Standard Webhooks signatures by any of several secrets, so that one can take another's place.
//!
//! https://www.standardwebhooks.com: `v1,` and the base64 of HMAC-SHA256(secret, `id.timestamp.body`), within 300 s of our
//! clock, compared in constant time.

use std::fmt;

use axum::http::HeaderMap;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use standardwebhooks::{Webhook, WebhookError};

/// The shortest secret Standard Webhooks allows, in bytes.
const MIN_SECRET_BYTES: usize = 24;
/// The most signatures looked at in one request: more than that no sender has reason to make.
const MOST_SIGNATURES: usize = 16;

/// The latest time of a signature, in unix seconds: far from now, and from what a sum overflows at.
const MOST_SECONDS: i64 = 1 << 40;
/// How far a signature's time may be from ours.
const MOST_AGE_SECONDS: i64 = 300;

/// The headers of a signed request.
pub mod header {
    /// What the sender calls the message; the same whenever it is sent again.
    pub const ID: &str = "webhook-id";
    /// When it was signed, in unix seconds.
    pub const TIMESTAMP: &str = "webhook-timestamp";
    /// The signatures, separated by spaces.
    pub const SIGNATURE: &str = "webhook-signature";
}

/// A secret that can't be used. The secret itself is not repeated.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "secret number {number} is unusable: give at least 24 random bytes in base64, with or without `whsec_` before it"
)]
pub struct InvalidSecret {
    /// Which of the secrets, counted from 1.
    pub number: usize,
}

/// Why a request isn't taken for that of somebody who knows a secret. Nothing of it is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unproven {
    /// A header is missing, there twice, or not as it should be.
    #[error("{0} is missing or malformed")]
    Header(&'static str),
    /// It was signed too long ago, or the clocks differ.
    #[error("webhook-timestamp is more than 300 s in the past")]
    TooOld,
    /// It was signed in the future: the clocks differ.
    #[error("webhook-timestamp is more than 300 s in the future")]
    TooNew,
    /// No signature is by one of the secrets.
    #[error("no signature in webhook-signature fits")]
    Signature,
}

/// The secrets that requests of one sender may be signed with.
#[derive(Clone)]
pub struct Signatures(Vec<SecretString>);

impl Signatures {
    /// Takes secrets: base64, with or without `whsec_` before it.
    ///
    /// # Errors
    /// For the first that can't be one.
    pub fn new(secrets: &[SecretString]) -> Result<Self, InvalidSecret> {
        for (index, secret) in secrets.iter().enumerate() {
            let secret = secret.expose_secret();
            let text = secret.strip_prefix("whsec_").unwrap_or(secret);
            let long_enough = text.trim_end_matches('=').len() * 3 / 4 >= MIN_SECRET_BYTES;
            if !long_enough || Webhook::new(secret).is_err() {
                return Err(InvalidSecret { number: index + 1 });
            }
        }
        Ok(Self(secrets.to_vec()))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the headers are those of a request that was signed within the last 300 seconds; by whom, only its body
    /// tells.
    ///
    /// # Errors
    /// When they aren't.
    pub fn check_headers(headers: &HeaderMap) -> Result<(), Unproven> {
        for name in [header::ID, header::TIMESTAMP, header::SIGNATURE] {
            if headers.get_all(name).iter().count() != 1 {
                return Err(Unproven::Header(name));
            }
        }
        // The library computes with any number.
        let timestamp = headers.get(header::TIMESTAMP);
        let timestamp = timestamp.and_then(|value| value.to_str().ok()?.parse::<i64>().ok());
        let timestamp = timestamp.filter(|seconds| (0..=MOST_SECONDS).contains(seconds));
        let timestamp = timestamp.ok_or(Unproven::Header(header::TIMESTAMP))?;
        match Timestamp::now().as_second() - timestamp {
            age if age > MOST_AGE_SECONDS => return Err(Unproven::TooOld),
            age if age < -MOST_AGE_SECONDS => return Err(Unproven::TooNew),
            _ => {}
        }
        let signatures = headers.get(header::SIGNATURE).map(|value| value.as_bytes());
        let spaces = signatures
            .unwrap_or_default()
            .iter()
            .filter(|byte| **byte == b' ');
        if spaces.count() >= MOST_SIGNATURES {
            return Err(Unproven::Header(header::SIGNATURE));
        }
        Ok(())
    }

    /// Which of the secrets signed the request within the last 300 seconds; all are tried.
    ///
    /// # Errors
    /// When none did.
    pub fn verify(&self, body: &[u8], headers: &HeaderMap) -> Result<usize, Unproven> {
        Self::check_headers(headers)?;
        let mut outcome = Err(Unproven::Signature);
        for (index, secret) in self.0.iter().enumerate() {
            let verified = Webhook::new(secret.expose_secret())
                .and_then(|webhook| webhook.verify(body, headers));
            match verified.map_err(Unproven::from) {
                Ok(()) => outcome = Ok(index),
                // The time is the same for all of them.
                Err(Unproven::Signature) => {}
                Err(unproven) => return Err(unproven),
            }
        }
        outcome
    }
}

impl PartialEq for Signatures {
    fn eq(&self, other: &Self) -> bool {
        let secrets = |of: &Self| -> Vec<String> {
            of.0.iter()
                .map(|secret| secret.expose_secret().to_owned())
                .collect()
        };
        secrets(self) == secrets(other)
    }
}

impl fmt::Debug for Signatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secrets", self.0.len())
    }
}

impl From<WebhookError> for Unproven {
    fn from(error: WebhookError) -> Self {
        match error {
            WebhookError::TimestampTooOldError => Self::TooOld,
            WebhookError::FutureTimestampError => Self::TooNew,
            WebhookError::InvalidTimestamp => Self::Header(header::TIMESTAMP),
            WebhookError::MissingHeader("id") | WebhookError::InvalidHeader("id") => {
                Self::Header(header::ID)
            }
            WebhookError::MissingHeader("timestamp") | WebhookError::InvalidHeader("timestamp") => {
                Self::Header(header::TIMESTAMP)
            }
            WebhookError::MissingHeader(_) | WebhookError::InvalidHeader(_) => {
                Self::Header(header::SIGNATURE)
            }
            _ => Self::Signature,
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use jiff::Timestamp;

    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const OTHER: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

    fn signed(secrets: &[&str], age: i64, body: &[u8]) -> HeaderMap {
        let at = Timestamp::now().as_second() - age;
        let signatures = secrets.iter().map(|secret| {
            let webhook = Webhook::new(secret).unwrap();
            webhook.sign("msg_1", at, body).unwrap()
        });
        let signatures = signatures.collect::<Vec<_>>().join(" ");
        let mut headers = HeaderMap::new();
        headers.insert(header::ID, HeaderValue::from_static("msg_1"));
        headers.insert(header::TIMESTAMP, HeaderValue::from(at));
        headers.insert(header::SIGNATURE, signatures.parse().unwrap());
        headers
    }

    #[test]
    fn a_time_that_is_none_is_refused_and_computed_with_nowhere() {
        let signatures = Signatures::new(&[SECRET.into()]).unwrap();
        for time in [
            "-9223372036854775808",
            "9223372036854775807",
            "9223372036854775808",
            "-1",
            "1e3",
            "",
            "now",
        ] {
            let mut headers = signed(&[SECRET], 0, b"x");
            headers.insert(header::TIMESTAMP, HeaderValue::from_str(time).unwrap());
            let refused = signatures.verify(b"x", &headers).unwrap_err();
            assert_eq!(refused, Unproven::Header(header::TIMESTAMP), "{time}");
        }
    }

    #[test]
    fn weak_secrets_are_refused_by_number_and_not_repeated() {
        assert!(Signatures::new(&[SECRET.into()]).is_ok());
        for bad in [
            "",
            "whsec_",
            "dG9vc2hvcnQ=",
            "not base64 at all, but long enough to be one",
        ] {
            let error = Signatures::new(&[SECRET.into(), bad.into()]).err().unwrap();
            assert_eq!(error, InvalidSecret { number: 2 }, "{bad}");
            assert!(bad.len() < 10 || !error.to_string().contains(bad));
        }
        let debug = format!("{:?}", Signatures::new(&[SECRET.into()]).unwrap());
        assert_eq!(debug, "1 secrets");
    }

    #[test]
    fn any_secret_will_do_and_it_is_said_which() {
        let known = Signatures::new(&[SECRET.into(), OTHER.into()]).unwrap();
        let body = br#"{"user_id":7}"#;
        for (secrets, expected) in [
            (&[SECRET][..], 0),
            (&[OTHER], 1),
            (&["whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", OTHER], 1),
        ] {
            let verified = known.verify(body, &signed(secrets, 0, body));
            assert_eq!(verified, Ok(expected));
        }
        let alone = Signatures::new(&[SECRET.into()]).unwrap();
        let refused = alone.verify(body, &signed(&[OTHER], 0, body));
        assert_eq!(refused, Err(Unproven::Signature));
        let many = vec![SECRET; MOST_SIGNATURES + 1];
        let refused = alone.verify(body, &signed(&many, 0, body));
        assert_eq!(refused, Err(Unproven::Header(header::SIGNATURE)));
    }

    #[test]
    fn what_is_old_new_changed_or_twice_is_not_proven() {
        let known = Signatures::new(&[SECRET.into()]).unwrap();
        let body = br#"{"user_id":7}"#;
        for (age, expected) in [
            (299, Ok(0)),
            (-299, Ok(0)),
            (301, Err(Unproven::TooOld)),
            (-302, Err(Unproven::TooNew)),
        ] {
            let verified = known.verify(body, &signed(&[SECRET], age, body));
            assert_eq!(verified, expected, "{age}");
        }
        let good = signed(&[SECRET], 0, body);
        let refused = known.verify(br#"{"user_id":8}"#, &good);
        assert_eq!(refused, Err(Unproven::Signature));
        for name in [header::ID, header::TIMESTAMP, header::SIGNATURE] {
            let mut without = good.clone();
            without.remove(name);
            assert_eq!(known.verify(body, &without), Err(Unproven::Header(name)));
            let mut twice = good.clone();
            twice.append(name, HeaderValue::from_static("x"));
            assert_eq!(known.verify(body, &twice), Err(Unproven::Header(name)));
        }
        let mut other = good;
        other.insert(header::ID, HeaderValue::from_static("msg_2"));
        assert_eq!(known.verify(body, &other), Err(Unproven::Signature));
    }
}
