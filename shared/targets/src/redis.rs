//! Redis targets: `user:<id>` holds the projected document as JSON for a day, guarded by version.
//!
//! A batch is one call of a script, so it costs one round trip and is atomic per user.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use redis::{
    Client, ErrorKind, RedisError, Script,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use serde::Serialize;
use tokio::sync::OnceCell;
use usersync_core::{fields::Members, target::TargetConfig, user_id::UserId};

use crate::{Action, ConfigError, Delivery, Failure, Limits, Outcome, Target};

const CONCURRENCY: usize = 4;
const BATCH: usize = 128;
/// How long a document lives, and how long a deleted user's version is remembered.
const SECONDS: u32 = 86_400;

/// A target that holds documents under `user:<id>`.
pub(crate) struct RedisTarget {
    client: Client,
    patience: ConnectionManagerConfig,
    /// Opened with the first call, then shared by all and kept open.
    connection: OnceCell<ConnectionManager>,
    script: Script,
    timeout: Duration,
    limits: Limits,
}

/// The document of one user. `version` must stay first: the script reads it from the head.
#[derive(Serialize)]
struct Document<'a> {
    version: u64,
    user_id: &'a UserId,
    #[serde(flatten)]
    members: &'a Members,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
    timestamp: Timestamp,
    source: Option<&'a str>,
}

impl RedisTarget {
    pub(crate) fn new(config: &TargetConfig) -> Result<Self, ConfigError> {
        if let Some(found) = config.method.as_deref().filter(|method| *method != "SET") {
            return Err(ConfigError::Method {
                found: found.to_owned(),
                expected: "SET",
            });
        }
        let client = Client::open(config.url.as_str())
            .map_err(|error| ConfigError::Url(describe(&error)))?;
        let patience = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(config.timeout.min(Duration::from_secs(5))))
            .set_response_timeout(Some(config.timeout))
            .set_max_delay(Duration::from_secs(1));
        Ok(Self {
            client,
            patience,
            connection: OnceCell::new(),
            timeout: config.timeout,
            script: Script::new(include_str!("redis.lua")),
            limits: Limits::of(config, CONCURRENCY, BATCH),
        })
    }

    async fn write(&self, batch: &[Delivery]) -> Result<Vec<redis::Value>, RedisError> {
        let mut call = self.script.prepare_invoke();
        call.arg(SECONDS);
        for delivery in batch {
            call.key(format!("user:{}", delivery.user_id))
                .key(format!("user:{}:deleted", delivery.user_id));
            call.arg(delivery.version).arg(document(delivery)?);
        }
        // The driver's own retries of connecting count too.
        let answered = tokio::time::timeout(self.timeout, async {
            call.invoke_async(&mut self.connection().await?).await
        });
        answered.await.unwrap_or_else(|_| Err(late()))
    }

    async fn connection(&self) -> Result<ConnectionManager, RedisError> {
        let open = async || {
            ConnectionManager::new_lazy_with_config(self.client.clone(), self.patience.clone())
        };
        self.connection.get_or_try_init(open).await.cloned()
    }
}

#[async_trait]
impl Target for RedisTarget {
    async fn deliver(&self, batch: &[Delivery]) -> Vec<Outcome> {
        match self.write(batch).await {
            Ok(answers) if answers.len() == batch.len() => {
                answers.into_iter().map(classify).collect()
            }
            Ok(_) => vec![
                Outcome::Transient(Failure::new("Redis answered another number of users"));
                batch.len()
            ],
            Err(error) => vec![failed(&error); batch.len()],
        }
    }

    async fn probe(&self) -> Result<(), Failure> {
        let ping = async {
            redis::cmd("PING")
                .exec_async(&mut self.connection().await?)
                .await
        };
        let answered = tokio::time::timeout(self.timeout, ping)
            .await
            .unwrap_or_else(|_| Err(late()));
        answered.map_err(|error: RedisError| Failure::new(describe(&error)))
    }

    fn limits(&self) -> Limits {
        self.limits
    }
}

/// The JSON to store, empty for a deleted user.
fn document(delivery: &Delivery) -> Result<Vec<u8>, RedisError> {
    if delivery.action == Action::Delete {
        return Ok(Vec::new());
    }
    let document = Document {
        version: delivery.version,
        user_id: &delivery.user_id,
        members: &delivery.members,
        partial: delivery.partial,
        timestamp: delivery.timestamp,
        source: delivery.source.as_deref(),
    };
    serde_json::to_vec(&document)
        .map_err(|_| (ErrorKind::Client, "the user can't be written as JSON").into())
}

/// The error of a call that took too long.
fn late() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}

/// What the script says of one user.
fn classify(answer: redis::Value) -> Outcome {
    match answer {
        redis::Value::Int(0) => Outcome::Delivered { guarded: true },
        redis::Value::Int(_) => Outcome::AlreadyNewer,
        redis::Value::BulkString(text) => {
            // The code is the first word: what follows may name keys.
            let code = text.split(|byte| *byte == b' ').next().unwrap_or_default();
            let failure = Failure::new(format!(
                "Redis refused the write: {}",
                String::from_utf8_lossy(code)
            ));
            if code == b"WRONGTYPE" {
                Outcome::Permanent(failure)
            } else {
                Outcome::Transient(failure)
            }
        }
        _ => Outcome::Transient(Failure::new("Redis answered something unexpected")),
    }
}

/// What a failed call means for every user in it.
fn failed(error: &RedisError) -> Outcome {
    let failure = Failure::new(describe(error));
    match error.code() {
        // It lets nobody like us in.
        Some("NOAUTH" | "WRONGPASS" | "NOPERM") => Outcome::Fault(failure),
        // It answers, so it is there: loading, busy, out of memory.
        Some(_) => Outcome::Transient(failure),
        None if error.is_timeout() => Outcome::Transient(failure),
        None => Outcome::Fault(failure),
    }
}

/// An error by its kind and code; its detail may hold data.
fn describe(error: &RedisError) -> String {
    match error.code() {
        Some(code) => format!("Redis refused: {code}"),
        None if error.is_timeout() => "Redis did not answer in time".to_owned(),
        None if error.is_io_error() => format!("can't reach Redis: {error}"),
        None => format!("Redis: {:?}", error.kind()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_classified_as_documented() {
        assert_eq!(
            classify(redis::Value::Int(0)),
            Outcome::Delivered { guarded: true }
        );
        assert_eq!(
            classify(redis::Value::Int(1_700_000_000_000_001)),
            Outcome::AlreadyNewer
        );
        let text = |text: &str| classify(redis::Value::BulkString(text.as_bytes().to_vec()));
        assert!(matches!(
            text("WRONGTYPE Operation against a key"),
            Outcome::Permanent(_)
        ));
        assert!(matches!(
            text("OOM command not allowed"),
            Outcome::Transient(_)
        ));
    }
}
