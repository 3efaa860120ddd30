//! One entry of the target catalogue: where states go, and how. Files, and later the HTTP API and KV, share it.

use std::{collections::BTreeMap, fmt, num::NonZeroU32, str::FromStr, time::Duration};

use jiff::fmt::serde::unsigned_duration::friendly::compact as duration;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::{fields::Fields, secret::SecretRef, subjects::GATEWAY_TARGET};

/// A target's name: one subject token that is also a durable consumer's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TargetName(Box<str>);

/// Why a text is no target name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a target name is 1 to 32 characters a-z 0-9 _ -, and not `{GATEWAY_TARGET}`, which is reserved"
)]
pub struct InvalidTargetName;

impl FromStr for TargetName {
    type Err = InvalidTargetName;

    fn from_str(text: &str) -> Result<Self, InvalidTargetName> {
        let permitted = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-'
        };
        let sized = (1..=32).contains(&text.len());
        if !sized || !text.bytes().all(permitted) || text == GATEWAY_TARGET {
            return Err(InvalidTargetName);
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for TargetName {
    type Error = InvalidTargetName;

    fn try_from(text: String) -> Result<Self, InvalidTargetName> {
        text.parse()
    }
}

impl From<TargetName> for String {
    fn from(name: TargetName) -> Self {
        name.0.into()
    }
}

impl AsRef<str> for TargetName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TargetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One target, as its catalogue file describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetConfig {
    /// The name workers are started with.
    pub name: TargetName,
    /// Where it is; the scheme picks the kind.
    pub url: Url,
    /// How it is written to: POST, PUT or PATCH for HTTP, SET for Redis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// A disabled target gets nothing; its consumer waits.
    #[serde(default = "enabled")]
    pub enabled: bool,
    /// How long one call may take.
    #[serde(with = "duration::required", default = "default_timeout")]
    pub timeout: Duration,
    /// How many calls may be under way at once, per worker; the kind has a default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<NonZeroU32>,
    /// How many users one call may carry; the kind has a default, and HTTP takes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<NonZeroU32>,
    /// How failures are tried again.
    #[serde(default)]
    pub retry: Retry,
    /// Which members of the user it gets.
    #[serde(default)]
    pub fields: Fields,
    /// Headers added to every HTTP call.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// The secret that signs HTTP calls (Standard Webhooks, `whsec_…`), by reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretRef>,
}

fn enabled() -> bool {
    true
}

fn default_timeout() -> Duration {
    Duration::from_secs(10)
}

/// When a failed delivery is tried again, and how often.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// Attempts before the dead letter.
    pub max_deliver: u32,
    /// The delay after the first failure.
    #[serde(with = "duration::required")]
    pub base: Duration,
    /// What each further delay is multiplied by.
    pub factor: f64,
    /// The longest delay.
    #[serde(with = "duration::required")]
    pub cap: Duration,
}

impl Default for Retry {
    /// Eight attempts over about an hour: after 1 s, 5 s, 25 s, 2 min, 10 min and then every 20 min.
    fn default() -> Self {
        Self {
            max_deliver: 8,
            base: Duration::from_secs(1),
            factor: 5.0,
            cap: Duration::from_secs(20 * 60),
        }
    }
}

impl TargetConfig {
    /// What is wrong with this entry beyond its types: one sentence per problem, naming the key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.timeout.is_zero() || self.timeout > Duration::from_secs(300) {
            problems.push("timeout: expected more than 0s and at most 5m".to_owned());
        }
        if !(1..=100).contains(&self.retry.max_deliver) {
            problems.push("retry.max_deliver: expected 1 to 100".to_owned());
        }
        if !(1.0..=100.0).contains(&self.retry.factor) {
            problems.push("retry.factor: expected 1.0 to 100.0".to_owned());
        }
        if self.retry.base.is_zero() || self.retry.base > self.retry.cap {
            problems.push("retry.base: expected more than 0s and at most retry.cap".to_owned());
        }
        let too_many = |count: Option<NonZeroU32>| count.is_some_and(|count| count.get() > 1_000);
        for (key, count) in [("concurrency", self.concurrency), ("batch", self.batch)] {
            if too_many(count) {
                problems.push(format!("{key}: expected 1 to 1000"));
            }
        }
        problems.extend(self.fields.problems());
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_are_subject_tokens_and_gateway_is_reserved() {
        for name in ["unified-auth", "a", "pg_2"] {
            assert!(name.parse::<TargetName>().is_ok());
        }
        for name in ["", "gateway", "A", "a.b", "a b", "*", &"a".repeat(33)] {
            assert_eq!(
                name.parse::<TargetName>(),
                Err(InvalidTargetName),
                "{name:?}"
            );
        }
    }

    #[test]
    fn a_target_needs_only_name_and_url() {
        let target: TargetConfig =
            serde_json::from_value(json!({"name": "t", "url": "http://localhost/x"})).unwrap();
        assert_eq!(target.problems(), Vec::<String>::new());
        assert_eq!((target.enabled, target.retry.max_deliver), (true, 8));
        let wrong = json!({"name": "t", "url": "http://localhost/x", "retry": {"max_deliver": 0, "base": "2h"},
                           "fields": {"include": ["phone"]}, "timeout": "0s", "batch": 5000});
        let wrong: TargetConfig = serde_json::from_value(wrong).unwrap();
        assert_eq!(wrong.problems().len(), 5, "{:?}", wrong.problems());
    }
}
