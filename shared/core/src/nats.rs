//! Connecting to NATS: one way for every binary, with its state visible in health and logs.

mod failures;
mod servers;
mod tls;

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context as _;
use async_nats::{
    Auth, AuthError, Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr, jetstream,
};
use jiff::Timestamp;
use secrecy::ExposeSecret;
use serde::Deserialize;

use self::failures::Failures;
pub use self::{
    servers::{OLDEST_SERVER, Server, servers, until_connected, until_too_old},
    tls::Tls,
};
use crate::{
    admin::Health, refusals::Refusals, secret::SecretRef, settings::Reader, subjects::USER_STATE,
};

/// How long one request to the server may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// What `nats.inbox_prefix` may be: our services answer to nothing else.
const INBOX_PREFIX: &str = "one token that begins with _INBOX, such as _INBOX_worker";

/// The `nats` section of the settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// One or more server URLs, separated by commas.
    pub url: String,
    /// User name, for a server that asks for one.
    pub user: Option<String>,
    /// Where the password is; read again at every connect, so that it may change meanwhile.
    pub password: Option<SecretRef>,
    /// Where the seed of an nkey is (`SU…`), instead of a user name.
    pub nkey: Option<SecretRef>,
    /// What replies are subscribed under, where it isn't the role's own: `_INBOX_worker_shop`.
    pub inbox_prefix: Option<String>,
    /// A credentials file (JWT and seed).
    pub credentials: Option<PathBuf>,
    /// Whom to trust, and who we are, for `tls://`.
    pub tls: Tls,
}

impl Settings {
    /// Reads `nats.*`.
    pub fn read(reader: &mut Reader) -> Self {
        let (url, reference) = (
            "one or more URLs such as nats://127.0.0.1:4222",
            "a reference, `env:NAME` or `file:PATH`, never the password itself",
        );
        let settings = Self {
            url: reader.get("nats.url", "nats://127.0.0.1:4222".to_owned(), url),
            user: reader.optional("nats.user", "a user name"),
            password: reader.optional("nats.password", reference),
            nkey: reader.optional("nats.nkey", reference),
            inbox_prefix: reader.optional("nats.inbox_prefix", INBOX_PREFIX),
            credentials: reader.optional("nats.credentials", "the path of a credentials file"),
            tls: Tls::read(reader),
        };
        if settings
            .servers()
            .iter()
            .any(|server| server.parse::<ServerAddr>().is_err())
        {
            reader.problem("nats.url", url);
        }
        if settings.user.is_some() != settings.password.is_some() {
            reader.report("nats.user, nats.password: expected both or none");
        }
        let ways = [
            settings.user.is_some(),
            settings.nkey.is_some(),
            settings.credentials.is_some(),
        ];
        if ways.into_iter().filter(|way| *way).count() > 1 {
            reader.report("nats.user, nats.nkey, nats.credentials: expected one of them");
        }
        for (key, secret) in [
            ("nats.password", &settings.password),
            ("nats.nkey", &settings.nkey),
        ] {
            if let Some(Err(error)) = secret.as_ref().map(SecretRef::resolve) {
                reader.report(format!("{key}: {error}"));
            }
        }
        let prefix = settings.inbox_prefix.as_deref().unwrap_or("_INBOX");
        if !prefix.starts_with("_INBOX") || prefix.contains([' ', '.', '*', '>']) {
            reader.problem("nats.inbox_prefix", INBOX_PREFIX);
        }
        let credentials = settings.credentials.as_ref();
        if credentials.is_some_and(|path| !path.is_file()) {
            reader.problem("nats.credentials", "a file that exists");
        }
        settings
    }

    async fn options(&self, name: &str) -> anyhow::Result<ConnectOptions> {
        let mut options = match (&self.user, &self.password) {
            (Some(user), Some(password)) => by_password(user.clone(), password.clone()),
            _ => ConnectOptions::new(),
        };
        options = options
            .name(name)
            .ping_interval(Duration::from_secs(10))
            .request_timeout(Some(REQUEST_TIMEOUT))
            .custom_inbox_prefix(self.inbox_prefix(name))
            .subscription_capacity(256 * 1024);
        if let Some(seed) = &self.nkey {
            let seed = seed.resolve().context("nats.nkey")?;
            options = options.nkey(seed.expose_secret().to_owned());
        }
        if let Some(path) = &self.credentials {
            let read = || format!("nats.credentials: can't read {}", path.display());
            options = options.credentials_file(path).await.with_context(read)?;
        }
        Ok(self.tls.of(&self.servers(), options))
    }

    /// One prefix per role, so that permissions can keep inboxes apart: `_INBOX_worker` for `usersync-worker`.
    fn inbox_prefix(&self, name: &str) -> String {
        let role = name.trim_start_matches("usersync-");
        let own = || format!("_INBOX_{}", role.replace('.', "_"));
        self.inbox_prefix.clone().unwrap_or_else(own)
    }

    fn servers(&self) -> Vec<String> {
        self.url
            .split(',')
            .map(|url| url.trim().to_owned())
            .collect()
    }
}

/// Connects in the background and keeps trying for ever; `health` part `nats` says how it stands, and
/// `permissions` what was refused lately.
///
/// # Errors
/// When the settings themselves are unusable: a bad URL, an unreadable file.
pub async fn connect(settings: &Settings, name: &str, health: &Health) -> anyhow::Result<Client> {
    let (seen, url) = (health.clone(), redacted(&settings.url));
    seen.down("nats", format!("connecting to {url}"));
    let refusals = Refusals::new(health.clone());
    let refused = refusals.clone();
    let failures = Failures::default();
    let failed = failures.clone();
    let known = Arc::new(OnceLock::<Client>::new());
    let connected = known.clone();
    let on_event = move |event| {
        let (seen, url, refused) = (seen.clone(), url.clone(), refused.clone());
        let (failed, connected) = (failed.clone(), connected.clone());
        async move {
            match event {
                Event::Connected => {
                    tracing::info!(nats.url = url, "connected to NATS");
                    // Another server of the cluster, perhaps.
                    match connected.get().map(servers::supported) {
                        Some(Err(error)) => {
                            tracing::error!(%error, "this NATS server won't do");
                            seen.down("nats", error.to_string());
                        }
                        _ => seen.up("nats"),
                    }
                }
                Event::Disconnected => {
                    tracing::warn!(nats.url = url, "lost NATS; reconnecting");
                    seen.down("nats", format!("reconnecting to {url}"));
                }
                Event::Closed => seen.down("nats", "closed"),
                Event::ServerError(error) => refused.saw(&error),
                Event::ClientError(error) => {
                    let error = failed.explain(&error);
                    tracing::warn!(error, "NATS client");
                    seen.down("nats", format!("connecting to {url}: {error}"));
                }
                Event::SlowConsumer(_) => {
                    tracing::warn!("NATS subscription is slow; messages will be redelivered")
                }
                Event::LameDuckMode | Event::Draining => tracing::info!(%event, "NATS"),
            }
        }
    };
    let options = settings.options(name).await?;
    let options = failures
        .of(options)
        .retry_on_initial_connect()
        .event_callback(on_event);
    let client = options.connect(settings.servers()).await;
    let client =
        client.with_context(|| format!("nats.url: can't use {}", redacted(&settings.url)))?;
    refusals.of(&client);
    // The one who makes the connection says so once.
    let _ = known.set(client.clone());
    Ok(client)
}

/// Connects once and asks JetStream for an answer: what `--check` does.
///
/// # Errors
/// When the server can't be reached, refuses us, or has no JetStream.
pub async fn check(settings: &Settings, name: &str) -> anyhow::Result<jetstream::Context> {
    let url = redacted(&settings.url);
    // What a login may not do answers no call.
    let refused = Arc::new(OnceLock::new());
    let seen = refused.clone();
    let options = settings
        .options(name)
        .await?
        .connection_timeout(REQUEST_TIMEOUT)
        .event_callback(move |event| {
            let seen = seen.clone();
            async move {
                if let Event::ServerError(error) = event {
                    // The first says enough.
                    let _ = seen.set(error.to_string());
                }
            }
        });
    let client = options.connect(settings.servers()).await;
    let client = client.map_err(|error| {
        let hint = match error.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                "who are we there? nats.user and nats.password say so (USERSYNC_NATS__USER, and \
                 USERSYNC_NATS__PASSWORD as env:NAME or file:PATH), or nats.nkey, or nats.credentials"
            }
            _ => tls::hint(&error.to_string()).unwrap_or("is nats-server running there?"),
        };
        // It tells its causes by itself.
        anyhow::anyhow!("can't connect to NATS at {url}: {error}; {hint}")
    })?;
    servers::supported(&client)?;
    let jetstream = jetstream::new(client);
    let account = jetstream.query_account().await;
    account.with_context(|| match refused.get() {
        Some(refused) => {
            let role = match name {
                "usersync-status" => "operator or viewer",
                _ => "the role of this program",
            };
            format!(
                "NATS at {url} refuses what {name} needs ({refused}): nats.user has to be {role}, see nats.conf and \
                 docs/SECURITY.md"
            )
        }
        None => format!(
            "NATS at {url} answers, but JetStream doesn't; start it with this project's nats.conf"
        ),
    })?;
    Ok(jetstream)
}

/// What the clock of the NATS server says.
///
/// # Errors
/// When it doesn't answer.
pub async fn server_time(client: &Client) -> anyhow::Result<Timestamp> {
    #[derive(Deserialize)]
    struct Told {
        ts: Timestamp,
    }
    let asked = client.request(format!("$JS.API.STREAM.INFO.{USER_STATE}"), "".into());
    let answer = tokio::time::timeout(REQUEST_TIMEOUT, asked).await;
    let answer = answer.context("asking NATS for the time took too long")??;
    let told: Told =
        serde_json::from_slice(&answer.payload).context("NATS doesn't say the time")?;
    Ok(told.ts)
}

/// Sends what is buffered, the last acknowledgements say, for at most a second.
pub async fn flush(client: &Client) {
    let flushed = tokio::time::timeout(Duration::from_secs(1), client.flush()).await;
    if !matches!(flushed, Ok(Ok(()))) {
        tracing::warn!(
            "NATS can't be reached to send the last acknowledgements; messages will come again"
        );
    }
}

/// Options that ask for the password whenever the client connects.
fn by_password(user: String, password: SecretRef) -> ConnectOptions {
    ConnectOptions::with_auth_callback(move |_nonce| {
        let (user, password) = (user.clone(), password.clone());
        async move {
            let password = password.resolve().map_err(AuthError::new)?;
            let mut auth = Auth::new();
            auth.username = Some(user);
            auth.password = Some(password.expose_secret().to_owned());
            Ok(auth)
        }
    })
}

/// `url` without user and password.
fn redacted(url: &str) -> String {
    let hide = |one: &str| match one.rsplit_once('@') {
        None => one.to_owned(),
        Some((user, host)) => match user.split_once("://") {
            Some((scheme, _)) => format!("{scheme}://…@{host}"),
            None => format!("…@{host}"),
        },
    };
    url.split(',').map(hide).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_shown_without_their_password() {
        assert_eq!(
            redacted("nats://u:p@h:1,nats://h2"),
            "nats://…@h:1,nats://h2"
        );
    }
}
