//! The seam between a worker and what it delivers to: one trait, one file per kind of target.
//!
//! A kind *classifies* what happened to each delivery; it decides nothing about retries, and
//! knows nothing of NATS. A new kind is one file and one line in [`connect`].

mod cell;
mod check;
mod connections;
mod delivery;
mod dialect;
mod http;
mod layout;
mod mysql;
mod neo4j;
mod others;
mod outcome;
mod password;
mod portions;
mod postgres;
mod redis;
mod rows;
mod rule;
mod shown;
mod sql;
mod standing;
mod table;
mod tls;
mod trouble;
mod unique;
mod way;

use std::sync::Arc;

use async_trait::async_trait;
use usersync_core::{
    egress::Egress, grant::NotGranted, refill::Mark, secret::SecretError, target::TargetConfig,
    user_id::UserId,
};

use self::way::{System, Way};

pub use check::{
    Field, Holdings, Unchecked,
    main_table::{MainDatabase, MainTable},
};
pub use delivery::{Action, Delivery};
pub use http::Webhook;
pub use others::{Meant, Others};
pub use outcome::{Conflict, Failure, Outcome, reclassify};
pub use rule::{Rule, RuleError, Skip, Verdict};
pub use standing::Standing;
pub use way::Names;

/// Something that holds a copy of the users.
#[async_trait]
pub trait Target: Send + Sync {
    /// Writes every delivery of `batch` and says what became of each, in the same order.
    ///
    /// A batch holds at most one delivery per user and at most [`Limits::batch`] deliveries.
    /// Returns within the target's timeout.
    async fn deliver(&self, batch: &[Delivery]) -> Vec<Outcome>;

    /// The same for who can be asked about `others`, whose rows may have to be written with those of the batch.
    async fn deliver_among(&self, batch: &[Delivery], _others: &dyn Others) -> Vec<Outcome> {
        self.deliver(batch).await
    }

    /// Asks whether the target answers and lets us in; where that can be told, whether a user could be written. Nothing is
    /// changed there.
    async fn probe(&self) -> Result<(), Failure>;

    /// Asks whether there is anybody who could take a delivery: only what rules that out is an error. Where a delivery
    /// is more than a probe can be, a target that refuses the one may well take the other.
    async fn answers(&self) -> Result<(), Failure> {
        self.probe().await
    }

    /// Asks whether everybody could be read, as a check does, where that takes rights of its own and can be told at
    /// once. Who can't be checked may still be written to.
    async fn probe_reading(&self) -> Result<(), Failure> {
        Ok(())
    }

    /// Whether users are to be read back after each delivery. A kind that can't refuses this when it is made.
    fn verifies(&self) -> bool {
        false
    }

    /// [`Target::compare`] as outcomes of a delivery; `None` where users aren't to be read back.
    ///
    /// `Delivered` and `AlreadyNewer` mean that the target shows what it was told (`guarded` says nothing here), a
    /// difference is `Transient`.
    async fn verify(&self, batch: &[Delivery]) -> Option<Vec<Outcome>> {
        if !self.verifies() {
            return None;
        }
        let compared = self.compare(batch).await?;
        Some(compared.into_iter().map(Outcome::from).collect())
    }

    /// Reads every user of `batch` back and says of each, in the same order, how the target stands to what it was
    /// told; `None` where users can't be read back.
    async fn compare(&self, batch: &[Delivery]) -> Option<Vec<Standing>>;

    /// Whether [`Target::forget_version`] can be done.
    fn forgets_versions(&self) -> bool {
        false
    }

    /// Where a user is held in exactly this version, which can't be, the version is forgotten: what is delivered next is
    /// taken. In any other version the user stays as it is.
    ///
    /// # Errors
    /// When the target can't do so, or not now.
    async fn forget_version(&self, _user_id: &UserId, _version: u64) -> Result<(), Failure> {
        Err(Failure::new("this kind of target keeps versions itself"))
    }

    /// Counts up the mark that is lost with everything else. A new one is made where there is none, or one that is less than
    /// was `known` before: then the target has lost something.
    ///
    /// # Errors
    /// When the target has no such mark, or not now.
    async fn mark(&self, _known: Mark) -> Result<Mark, Failure> {
        Err(Failure::new("this kind of target has no mark"))
    }

    /// What it holds of all users, for a comparison with what it is meant to hold. Nothing here keeps within the
    /// target's timeout: each question has deadlines of its own.
    ///
    /// # Errors
    /// When it can't say, or not now.
    async fn holdings(&self) -> Result<Box<dyn Holdings + '_>, Unchecked>;

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
}

/// What is said to whoever has one in front of Redis.
const SENTINEL: &str = "Redis Sentinel isn't asked where the primary is; name an address that follows the primary, such as a proxy that \
                        checks `role:master` or a name that the failover moves, with redis:// or rediss://";
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
    /// Users can't be read back.
    #[error("verify: {0}")]
    Verify(&'static str),
    /// Users can't be read there.
    #[error("read_url: expected an http or https URL with {{id}} where the user's id goes")]
    ReadUrl,
    /// The URL to read users at holds a user or a password.
    #[error(
        "read_url: a user and password in it are refused, all who see the target would see them; set headers.Authorization to a reference instead, `env:NAME` or `file:PATH`"
    )]
    ReadUrlUser,
    /// The entry names a secret that no target gets here.
    #[error("{key}: {refused}")]
    NotGranted {
        /// The key that names it.
        key: String,
        /// Why.
        refused: NotGranted,
    },
    /// A secret is not to be had.
    #[error("{key}: {error}")]
    Secret {
        /// The key that names it.
        key: String,
        /// Why.
        error: SecretError,
    },
    /// The signing secret has the wrong form. It is not repeated here.
    #[error("{0}: expected `whsec_` and 24 to 64 bytes in base64 (Standard Webhooks)")]
    SecretForm(&'static str),
    /// A certificate or a key can't be read. It is not repeated here.
    #[error("{0}: expected PEM; cert and key have to fit each other")]
    Pem(&'static str),
    /// Users are to be disabled where nothing says so.
    #[error(
        "table.columns: on_delete or on_out_of_scope is `disable`, and no column holds `status` or `data.status`"
    )]
    NoStatus,
    /// The URL doesn't suit its driver.
    #[error("url: {0}")]
    Url(String),
}

impl ConfigError {
    /// The entry's own secret is not to be had.
    fn secret(error: SecretError) -> Self {
        let key = "secret".to_owned();
        Self::Secret { key, error }
    }
}

/// Looks whether `config` fits its rule and its kind, as far as that can be said without its secrets:
/// everybody comes to the same answer.
///
/// # Errors
/// What is wrong, beginning with the key.
pub fn check(config: &TargetConfig) -> Result<(), String> {
    Rule::check(config).map_err(|error| error.to_string())?;
    let fits = match config.url.scheme() {
        // Making one reads every certificate of this machine.
        "http" | "https" => http::check(config),
        _ => {
            let secret = None;
            let bare = TargetConfig {
                secret,
                ..config.clone()
            };
            let way = Way::new(Egress::default().of(config), Arc::new(System));
            make(&bare, way).map(drop)
        }
    };
    fits.map_err(|error| error.to_string())
}

/// Makes the target that `config` describes; connections are opened when first needed, to where it may be by its
/// entry and `egress`.
///
/// # Errors
/// When the entry doesn't fit its kind: the error names the key and what is expected.
pub fn connect(config: &TargetConfig, egress: &Egress) -> Result<Box<dyn Target>, ConfigError> {
    connect_by(config, egress, Arc::new(System))
}

/// The same with others than this machine's resolver to ask for addresses.
///
/// # Errors
/// As [`connect`].
pub fn connect_by(
    config: &TargetConfig,
    egress: &Egress,
    names: Arc<dyn Names>,
) -> Result<Box<dyn Target>, ConfigError> {
    if let Err((key, refused)) = egress.secrets.admit_all(config) {
        return Err(ConfigError::NotGranted { key, refused });
    }
    make(config, Way::new(egress.of(config), names))
}

fn make(config: &TargetConfig, way: Way) -> Result<Box<dyn Target>, ConfigError> {
    match config.url.scheme() {
        "http" | "https" => Ok(Box::new(http::HttpTarget::new(config, way)?)),
        "redis" | "rediss" => Ok(Box::new(redis::RedisTarget::new(config, way)?)),
        "mysql" | "mariadb" => Ok(Box::new(mysql::target(config, way)?)),
        "postgres" | "postgresql" => Ok(Box::new(postgres::target(config, way)?)),
        "neo4j" | "neo4j+s" | "neo4j+ssc" | "bolt" | "bolt+s" | "bolt+ssc" => {
            Ok(Box::new(neo4j::Neo4jTarget::new(config, way)?))
        }
        other if other.contains("sentinel") => Err(ConfigError::Url(SENTINEL.to_owned())),
        other => Err(ConfigError::UnknownScheme(other.to_owned())),
    }
}
