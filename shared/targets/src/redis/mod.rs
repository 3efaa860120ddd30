//! Redis targets: `user:<id>` holds the projected document as JSON for a day, guarded by version.
//!
//! A batch is one call of a script, so it costs one round trip and is atomic per user. Users who are
//! to be disabled cost another: their documents are read first, and written if they are the same still.

mod document;
mod holdings;
mod key;

use std::{
    future::Future,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    RedisError, Script, TlsCertificates, aio::MultiplexedConnection,
};
use secrecy::ExposeSecret;
use usersync_core::{
    target::TargetConfig,
    user_id::{Ids, UserId},
};
use usersync_digest::Scanned;

use self::holdings::RedisHoldings;
use crate::{
    Action, ConfigError, Delivery, Failure, Holdings, Limits, Outcome, Standing, Target, Unchecked,
    password, shown, tls::Peer, trouble::Trouble, way::Way,
};

const CONCURRENCY: usize = 4;
const BATCH: usize = 128;
/// How long a document lives, and how long a deleted user's version is remembered.
const SECONDS: u32 = 86_400;

/// A target that holds documents under `user:<id>`.
pub(crate) struct RedisTarget {
    who: ConnectionInfo,
    peer: Peer,
    settings: AsyncConnectionConfig,
    /// Opened with the first call, then shared by all and kept open until it breaks.
    connection: Mutex<Option<MultiplexedConnection>>,
    script: Script,
    timeout: Duration,
    limits: Limits,
    verify: bool,
    /// How integer ids are written.
    ids: Ids,
}

/// What the script is to write for one user.
struct Entry {
    /// The version, and for a change of what is there `:` and the version held.
    version: String,
    /// Empty for a deletion.
    body: Vec<u8>,
}

impl RedisTarget {
    pub(crate) fn new(config: &TargetConfig, way: Way) -> Result<Self, ConfigError> {
        if let Some(found) = config.method.as_deref().filter(|method| *method != "SET") {
            return Err(ConfigError::Method {
                found: found.to_owned(),
                expected: "SET",
            });
        }
        let who = who(config)?;
        // What can't work is said before anybody is connected to.
        Client::open(who.clone()).map_err(unfit)?;
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(config.timeout.min(Duration::from_secs(5))))
            .set_response_timeout(Some(config.timeout))
            .set_dns_resolver(way);
        Ok(Self {
            who,
            peer: Peer::of(config),
            settings,
            connection: Mutex::new(None),
            timeout: config.timeout,
            script: Script::new(include_str!("write.lua")),
            limits: Limits::of(config, CONCURRENCY, BATCH),
            verify: config.verify,
            ids: config.ids,
        })
    }

    /// What the script says of each user.
    async fn write(&self, batch: &[Delivery]) -> Result<Vec<redis::Value>, RedisError> {
        let mut call = self.script.prepare_invoke();
        call.arg(SECONDS);
        let mut held = self.held(batch).await?.into_iter();
        for delivery in batch {
            let user_id = &delivery.user_id;
            call.key(key::document(user_id))
                .key(key::tombstone(user_id));
            let entry = match delivery.action {
                Action::Upsert => Entry::upsert(delivery, self.ids)?,
                Action::Delete => Entry::delete(delivery),
                Action::Disable => Entry::disable(delivery, held.next().flatten())?,
            };
            let mut version = entry.version;
            if let Some(user) = key::formerly_remembered(user_id) {
                version += &format!(" {}", key::tombstone(&user));
            }
            call.arg(version).arg(entry.body);
        }
        call.invoke_async(&mut self.connection().await?).await
    }

    /// The documents of those who are to be disabled, in their order.
    async fn held(&self, batch: &[Delivery]) -> Result<Vec<Option<Vec<u8>>>, RedisError> {
        let disabled = batch
            .iter()
            .filter(|delivery| delivery.action == Action::Disable);
        self.documents(disabled).await
    }

    async fn documents(
        &self,
        deliveries: impl Iterator<Item = &Delivery>,
    ) -> Result<Vec<Option<Vec<u8>>>, RedisError> {
        let mut call = redis::cmd("MGET");
        let before = call.args_iter().count();
        for delivery in deliveries {
            call.arg(key::document(&delivery.user_id));
        }
        if call.args_iter().count() == before {
            return Ok(Vec::new());
        }
        call.query_async(&mut self.connection().await?).await
    }

    /// `call`, which may begin with connecting, for as long as a call may take.
    async fn within_timeout<T>(
        &self,
        call: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, RedisError> {
        let answered = tokio::time::timeout(self.timeout, call).await;
        let answered = answered.unwrap_or_else(|_| Err(self.late()));
        let lost = |error: &RedisError| error.is_unrecoverable_error() || demoted(error).is_some();
        if answered.as_ref().is_err_and(lost) {
            self.held_connection().take();
        }
        answered.map_err(|error| self.explained(error))
    }

    /// The same error; where it is about TLS, with what is to be done.
    fn explained(&self, error: RedisError) -> RedisError {
        self.peer.refusal(&error).map_or(error, in_words)
    }

    /// No answer in time; where there is no connection yet, none to the greeting of TLS.
    fn late(&self) -> RedisError {
        match self.peer.tls() {
            Some(_) if self.held_connection().is_none() => {
                let unanswered = "it doesn't answer in time: look whether it has TLS";
                in_words(Trouble::unreachable(self.peer.none(unanswered)))
            }
            _ => late(),
        }
    }

    /// A client with the certificates as they are now.
    fn client(&self) -> Result<Client, RedisError> {
        let who = self.who.clone();
        let Some(pem) = self.peer.pem().map_err(in_words)? else {
            return Client::open(who);
        };
        let identity = |(client_cert, client_key)| ClientTlsConfig {
            client_cert,
            client_key,
        };
        let certificates = TlsCertificates {
            client_tls: pem.identity.map(identity),
            root_cert: pem.ca,
        };
        Client::build_with_tls(who, certificates)
    }

    /// The connection, opened where there is none that works.
    async fn connection(&self) -> Result<MultiplexedConnection, RedisError> {
        if let Some(connection) = &*self.held_connection() {
            return Ok(connection.clone());
        }
        let client = self.client()?;
        let opened = client.get_multiplexed_async_connection_with_config(&self.settings);
        let opened = opened.await.map_err(|error| match error.is_timeout() {
            true => self.late(),
            false => error,
        })?;
        // Others may have opened one meanwhile: the first stays.
        Ok(self.held_connection().get_or_insert(opened).clone())
    }

    fn held_connection(&self) -> MutexGuard<'_, Option<MultiplexedConnection>> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where to connect, and as whom.
fn who(config: &TargetConfig) -> Result<ConnectionInfo, ConfigError> {
    let password = password::of(config)?;
    let info = config.url.as_str().into_connection_info().map_err(unfit)?;
    let password = match &password {
        Some(password) => password.expose_secret(),
        // Without a word of who it is, a user would be taken for the default one.
        None if !config.url.username().is_empty() => "",
        None => return Ok(info),
    };
    let settings = info.redis_settings().clone().set_password(password);
    Ok(info.set_redis_settings(settings))
}

/// Trouble as an error of the driver, which says what we say.
fn in_words(trouble: Trouble) -> RedisError {
    io::Error::other(trouble.failure).into()
}

fn unfit(error: RedisError) -> ConfigError {
    ConfigError::Url(describe(&error))
}

#[async_trait]
impl Target for RedisTarget {
    async fn deliver(&self, batch: &[Delivery]) -> Vec<Outcome> {
        match self.within_timeout(self.write(batch)).await {
            Ok(answers) if answers.len() == batch.len() => {
                let outcomes: Vec<_> = answers.into_iter().map(classify).collect();
                let down = |outcome: &Outcome| matches!(outcome, Outcome::Down(_));
                if outcomes.iter().any(down) {
                    // Another server may be at its address.
                    self.held_connection().take();
                }
                outcomes
            }
            Ok(_) => vec![
                Outcome::Transient(Failure::new("Redis answered another number of users"));
                batch.len()
            ],
            Err(error) => vec![failed(&error); batch.len()],
        }
    }

    fn forgets_versions(&self) -> bool {
        true
    }

    async fn forget_version(&self, user_id: &UserId, version: u64) -> Result<(), Failure> {
        let forgetting = async {
            let script = Script::new(include_str!("forget.lua"));
            let mut call = script.key(key::document(user_id));
            call.key(key::tombstone(user_id)).arg(version);
            call.invoke_async(&mut self.connection().await?).await
        };
        let forgotten = self.within_timeout(forgetting).await;
        forgotten.map_err(|error: RedisError| Failure::new(describe(&error)))
    }

    async fn probe(&self) -> Result<(), Failure> {
        let ping = async {
            redis::cmd("PING")
                .exec_async(&mut self.connection().await?)
                .await
        };
        let answered = self.within_timeout(ping).await;
        answered.map_err(|error: RedisError| Failure::new(describe(&error)))
    }

    fn verifies(&self) -> bool {
        self.verify
    }

    async fn compare(&self, batch: &[Delivery]) -> Option<Vec<Standing>> {
        let documents = self.within_timeout(self.documents(batch.iter())).await;
        Some(match documents {
            Ok(documents) => documents
                .iter()
                .zip(batch)
                .map(|(document, delivery)| compare(document.as_deref(), delivery))
                .collect(),
            Err(error) => Standing::unknown(&failed(&error), batch.len()),
        })
    }

    async fn holdings(&self) -> Result<Box<dyn Holdings + '_>, Unchecked> {
        Ok(Box::new(Scanned(RedisHoldings { target: self })))
    }

    fn limits(&self) -> Limits {
        self.limits
    }
}

impl Entry {
    fn upsert(delivery: &Delivery, ids: Ids) -> Result<Self, RedisError> {
        let body = document::written(delivery, ids).map_err(|_| unwritable())?;
        Ok(Self {
            version: delivery.version.to_string(),
            body,
        })
    }

    fn delete(delivery: &Delivery) -> Self {
        Self {
            version: delivery.version.to_string(),
            body: Vec::new(),
        }
    }

    /// A user who isn't there is remembered like one who was deleted, so that nothing older comes.
    fn disable(delivery: &Delivery, held: Option<Vec<u8>>) -> Result<Self, RedisError> {
        let (held, body) = match held {
            // What is no document isn't a user either: it makes room as it would for an upsert.
            Some(held) => document::changed(&held, delivery).unwrap_or_default(),
            None => (0, Vec::new()),
        };
        Ok(Self {
            version: format!("{}:{held}", delivery.version),
            body,
        })
    }
}

fn unwritable() -> RedisError {
    (ErrorKind::Client, "the user can't be written as JSON").into()
}

/// Whether the document is what was told.
fn compare(document: Option<&[u8]>, delivery: &Delivery) -> Standing {
    let id = delivery.user_id.to_string();
    let document = document.filter(|held| !key::is_former_tombstone(&id, held));
    match (document.map(serde_json::from_slice), delivery.action) {
        (None, Action::Delete | Action::Disable) => Standing::Same,
        (None, Action::Upsert) => Standing::Missing,
        (Some(Ok(document)), _) => shown::compare(&document, delivery, &shown::DOCUMENT),
        (Some(Err(_)), _) => Standing::Different("what is there is no document".into()),
    }
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
            let code = String::from_utf8_lossy(code).into_owned();
            let failure = Failure {
                reason: format!("Redis refused the write: {code}").into(),
                code: Some(code.clone().into()),
                retry_after: None,
            };
            match code.as_str() {
                "WRONGTYPE" => Outcome::Permanent(failure),
                code if DEMOTED.contains(&code) => Outcome::Down(failure),
                _ => Outcome::Transient(failure),
            }
        }
        _ => Outcome::Transient(Failure::new("Redis answered something unexpected")),
    }
}

/// What a server says that takes no writes at all: a replica, one that still loads its data, a part of a cluster that is down.
const DEMOTED: [&str; 4] = ["READONLY", "MASTERDOWN", "LOADING", "CLUSTERDOWN"];

/// Which of them an error is; Redis 6 says it only within the text of a script's error.
fn demoted(error: &RedisError) -> Option<&'static str> {
    let text = error.detail().unwrap_or_default();
    let says = |code: &str| error.code() == Some(code) || text.contains(&format!("{code} "));
    DEMOTED.into_iter().find(|code| says(code))
}

/// What a failed call means for every user in it.
fn failed(error: &RedisError) -> Outcome {
    let failure = Failure {
        code: error.code().map(|code| code.to_owned().into()),
        ..Failure::new(describe(error))
    };
    if let Some(code) = demoted(error) {
        return Outcome::Down(Failure {
            code: Some(code.into()),
            ..failure
        });
    }
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
    if error.kind() == ErrorKind::AuthenticationFailed || error.code() == Some("NOAUTH") {
        return "Redis refuses the user or the password: the user stands in the url, the password is what `secret` names"
            .to_owned();
    }
    if let Some(code) = demoted(error) {
        return format!(
            "Redis takes no writes ({code}): the url has to lead to a primary that is up"
        );
    }
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
        for code in DEMOTED {
            let outcome = text(&format!("{code} You can't write"));
            assert!(matches!(outcome, Outcome::Down(_)), "{code}");
        }
        assert!(matches!(
            text("OOM command not allowed"),
            Outcome::Transient(_)
        ));
    }
}
