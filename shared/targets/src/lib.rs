//! The seam between a worker and what it delivers to: one trait, one file per kind of target.
//!
//! A kind *classifies* what happened to each delivery; it decides nothing about retries, and
//! knows nothing of NATS. A new kind is one file and one line in [`connect`].

mod cell;
mod connections;
mod delivery;
mod http;
mod layout;
mod mysql;
mod outcome;
mod postgres;
mod redis;
mod sql;
mod table;

use async_trait::async_trait;
use usersync_core::{secret::SecretError, target::TargetConfig};

pub use delivery::{Action, Delivery};
pub use outcome::{Failure, Outcome};

/// Something that holds a copy of the users.
#[async_trait]
pub trait Target: Send + Sync {
    /// Writes every delivery of `batch` and says what became of each, in the same order.
    ///
    /// A batch holds at most one delivery per user and at most [`Limits::batch`] deliveries.
    /// Returns within the target's timeout.
    async fn deliver(&self, batch: &[Delivery]) -> Vec<Outcome>;

    /// Asks whether the target answers and lets us in, changing nothing there.
    async fn probe(&self) -> Result<(), Failure>;

    /// How much it takes at once.
    fn limits(&self) -> Limits;

    /// The statements that would make what is missing to hold users; none when nothing is.
    async fn ddl(&self) -> Result<Vec<String>, Failure> {
        Err(Failure::new(NOTHING_TO_MAKE))
    }

    /// Runs them.
    async fn init(&self) -> Result<(), Failure> {
        Err(Failure::new(NOTHING_TO_MAKE))
    }

    /// Reads every user of `batch` back. Delivered means that the target holds exactly what was delivered, or
    /// something newer; transient that it doesn't, with the member that differs. `None`: this kind can't tell.
    async fn verify(&self, _batch: &[Delivery]) -> Option<Vec<Outcome>> {
        None
    }
}

const NOTHING_TO_MAKE: &str =
    "this kind of target has nothing to be made; tables and constraints have";

/// How much a target takes at once from one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Calls under way at the same time.
    pub concurrency: usize,
    /// Users in one call.
    pub batch: usize,
}

impl Limits {
    /// What `config` asks for, with a kind's defaults.
    fn of(config: &TargetConfig, concurrency: usize, batch: usize) -> Self {
        let or = |value: Option<std::num::NonZeroU32>, default| {
            value.map_or(default, |value| value.get() as usize)
        };
        Self {
            concurrency: or(config.concurrency, concurrency),
            batch: or(config.batch, batch),
        }
    }
}

/// Why a catalogue entry can't become a target.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No kind has this scheme.
    #[error(
        "url: `{0}` is no kind of target; expected http, https, redis, rediss, mysql, mariadb, postgres, postgresql, neo4j or bolt"
    )]
    UnknownScheme(String),
    /// The kind doesn't know the method.
    #[error("method: `{found}` doesn't fit the url; expected {expected}")]
    Method {
        /// As configured.
        found: String,
        /// What the kind takes.
        expected: &'static str,
    },
    /// A header can't be sent.
    #[error("headers: `{0}` is no valid header")]
    Header(String),
    /// The kind can't carry several users in one call.
    #[error("batch: an HTTP target takes one user per call; expected 1")]
    Batch,
    /// The signing secret is not to be had.
    #[error("secret: {0}")]
    Secret(#[from] SecretError),
    /// The signing secret has the wrong form. It is not repeated here.
    #[error("secret: expected `whsec_` and 24 to 64 bytes in base64 (Standard Webhooks)")]
    SecretForm,
    /// Users are to be disabled where nothing says so.
    #[error(
        "table.columns: on_delete or on_out_of_scope is `disable`, and no column holds `status` or `data.status`"
    )]
    NoStatus,
    /// The URL doesn't suit its driver.
    #[error("url: {0}")]
    Url(String),
}

/// Makes the target that `config` describes; connections are opened when first needed.
///
/// # Errors
/// When the entry doesn't fit its kind: the error names the key and what is expected.
pub fn connect(config: &TargetConfig) -> Result<Box<dyn Target>, ConfigError> {
    match config.url.scheme() {
        "http" | "https" => Ok(Box::new(http::HttpTarget::new(config)?)),
        "redis" | "rediss" => Ok(Box::new(redis::RedisTarget::new(config)?)),
        "mysql" | "mariadb" => Ok(Box::new(mysql::target(config)?)),
        "postgres" | "postgresql" => Ok(Box::new(postgres::target(config)?)),
        other => Err(ConfigError::UnknownScheme(other.to_owned())),
    }
}
