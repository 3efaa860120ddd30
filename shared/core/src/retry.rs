//! When a failed delivery is tried again, and when a whole target is left alone for a while: `retry` and `breaker` of a target.

use std::time::Duration;

use jiff::fmt::serde::unsigned_duration::friendly::compact as duration;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// When a failed delivery is tried again, and how often.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// Attempts before the dead letter.
    pub max_deliver: u32,
    /// The delay after the first failure.
    #[serde(with = "duration::required")]
    #[schema(value_type = String, default = "1s")]
    pub base: Duration,
    /// What each further delay is multiplied by.
    pub factor: f64,
    /// The longest delay.
    #[serde(with = "duration::required")]
    #[schema(value_type = String, default = "20m")]
    pub cap: Duration,
    /// Codes that mean "never try this user again", whatever the kind's own table says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub permanent_status: Vec<Code>,
    /// Codes that mean "try again later", whatever the kind's own table says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub transient_status: Vec<Code>,
}

/// What a target answers a failure with: an HTTP status, an SQLSTATE, a Redis or Neo4j error code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "NumberOrText", into = "String")]
pub struct Code(String);

/// `409` and `"409"` are the same code.
#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u32),
    Text(String),
}

impl From<NumberOrText> for Code {
    fn from(code: NumberOrText) -> Self {
        match code {
            NumberOrText::Number(number) => Self(number.to_string()),
            NumberOrText::Text(text) => Self(text),
        }
    }
}

impl From<Code> for String {
    fn from(code: Code) -> Self {
        code.0
    }
}

impl PartialEq<str> for Code {
    fn eq(&self, code: &str) -> bool {
        self.0 == code
    }
}

impl Default for Retry {
    /// Eight attempts over about an hour: after 1 s, 5 s, 25 s, 2 min, 10 min and then every 20 min.
    fn default() -> Self {
        Self {
            max_deliver: 8,
            base: Duration::from_secs(1),
            factor: 5.0,
            cap: Duration::from_secs(20 * 60),
            permanent_status: Vec::new(),
            transient_status: Vec::new(),
        }
    }
}

/// When a worker stops calling a target that fails as a whole, and how it looks whether it is back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Breaker {
    /// Target faults in a row that open it.
    pub faults: u32,
    /// The share of failed calls within `window` that opens it, from `least` calls on.
    pub ratio: f64,
    /// See `ratio`.
    #[serde(with = "duration::required")]
    #[schema(value_type = String, default = "10s")]
    pub window: Duration,
    /// See `ratio`.
    pub least: u32,
    /// Users refused for good in a row, without one success, that open it.
    pub permanent: u32,
    /// After how long an open breaker first looks whether the target is back; doubles up to `probe_cap`.
    #[serde(with = "duration::required")]
    #[schema(value_type = String, default = "500ms")]
    pub probe: Duration,
    /// See `probe`.
    #[serde(with = "duration::required")]
    #[schema(value_type = String, default = "3s")]
    pub probe_cap: Duration,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            faults: 3,
            ratio: 0.5,
            window: Duration::from_secs(10),
            least: 20,
            permanent: 20,
            probe: Duration::from_millis(500),
            probe_cap: Duration::from_secs(3),
        }
    }
}

impl Retry {
    /// What is wrong, one sentence per problem, naming the key.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !(1..=100).contains(&self.max_deliver) {
            problems.push("retry.max_deliver: expected 1 to 100".to_owned());
        }
        if !(1.0..=100.0).contains(&self.factor) {
            problems.push("retry.factor: expected 1.0 to 100.0".to_owned());
        }
        if self.base.is_zero() || self.base > self.cap {
            problems.push("retry.base: expected more than 0s and at most retry.cap".to_owned());
        }
        let both = |code: &&Code| self.transient_status.contains(code);
        if let Some(code) = self.permanent_status.iter().find(both) {
            problems.push(format!(
                "retry: {} is both in permanent_status and in transient_status",
                code.0
            ));
        }
        problems
    }
}

impl Breaker {
    /// What is wrong, one sentence per problem, naming the key.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (key, count) in [
            ("faults", self.faults),
            ("least", self.least),
            ("permanent", self.permanent),
        ] {
            if !(1..=10_000).contains(&count) {
                problems.push(format!("breaker.{key}: expected 1 to 10000"));
            }
        }
        if !(0.05..=1.0).contains(&self.ratio) {
            problems.push("breaker.ratio: expected 0.05 to 1.0".to_owned());
        }
        if self.window.is_zero() || self.window > Duration::from_secs(600) {
            problems.push("breaker.window: expected more than 0s and at most 10m".to_owned());
        }
        if self.probe.is_zero() || self.probe > self.probe_cap {
            problems.push(
                "breaker.probe: expected more than 0s and at most breaker.probe_cap".to_owned(),
            );
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_numbers_or_texts() {
        let retry: Retry =
            serde_json::from_str(r#"{"permanent_status": [409, "23505", "WRONGTYPE"]}"#).unwrap();
        for code in ["409", "23505", "WRONGTYPE"] {
            assert!(
                retry.permanent_status.iter().any(|known| known == code),
                "{code}"
            );
        }
        let both = r#"{"permanent_status": [409], "transient_status": ["409"]}"#;
        let both: Retry = serde_json::from_str(both).unwrap();
        assert_eq!(both.problems().len(), 1);
    }
}
