//! Connecting to NATS: one way for every binary, with its state visible in health and logs.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use async_nats::{Client, ConnectOptions, Event, ServerAddr, jetstream};
use secrecy::ExposeSecret;

use crate::{admin::Health, secret::SecretRef, settings::Reader};

/// How long one request to the server may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The `nats` section of the settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// One or more server URLs, separated by commas.
    pub url: String,
    /// User name, for a server that asks for one.
    pub user: Option<String>,
    /// Where the password is.
    pub password: Option<SecretRef>,
    /// A credentials file (JWT and seed).
    pub credentials: Option<PathBuf>,
    /// A CA certificate (PEM) to trust for `tls://`.
    pub ca: Option<PathBuf>,
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
            credentials: reader.optional("nats.credentials", "the path of a credentials file"),
            ca: reader.optional("nats.ca", "the path of a CA certificate in PEM form"),
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
        if let Some(Err(error)) = settings.password.as_ref().map(SecretRef::resolve) {
            reader.report(format!("nats.password: {error}"));
        }
        for (key, path) in [
            ("nats.credentials", &settings.credentials),
            ("nats.ca", &settings.ca),
        ] {
            if path.as_ref().is_some_and(|path| !path.is_file()) {
                reader.problem(key, "a file that exists");
            }
        }
        settings
    }

    async fn options(&self, name: &str) -> anyhow::Result<ConnectOptions> {
        let mut options = ConnectOptions::new()
            .name(name)
            .ping_interval(Duration::from_secs(10))
            .request_timeout(Some(REQUEST_TIMEOUT))
            // One prefix per role, so that permissions can keep inboxes apart.
            .custom_inbox_prefix(format!("_INBOX_{}", name.replace('-', "_")))
            .subscription_capacity(256 * 1024);
        if let (Some(user), Some(password)) = (&self.user, &self.password) {
            let password = password.resolve().context("nats.password")?;
            options = options.user_and_password(user.clone(), password.expose_secret().to_owned());
        }
        if let Some(path) = &self.credentials {
            let read = || format!("nats.credentials: can't read {}", path.display());
            options = options.credentials_file(path).await.with_context(read)?;
        }
        if let Some(path) = &self.ca {
            options = options.add_root_certificates(path.clone());
        }
        Ok(options)
    }

    fn servers(&self) -> Vec<String> {
        self.url
            .split(',')
            .map(|url| url.trim().to_owned())
            .collect()
    }
}

/// Connects in the background and keeps trying for ever; `health` part `nats` says how it stands.
///
/// # Errors
/// When the settings themselves are unusable: a bad URL, an unreadable file.
pub async fn connect(settings: &Settings, name: &str, health: &Health) -> anyhow::Result<Client> {
    let (seen, url) = (health.clone(), redacted(&settings.url));
    seen.down("nats", format!("connecting to {url}"));
    let on_event = move |event| {
        let (seen, url) = (seen.clone(), url.clone());
        async move {
            match event {
                Event::Connected => {
                    tracing::info!(nats.url = url, "connected to NATS");
                    seen.up("nats");
                }
                Event::Disconnected => {
                    tracing::warn!(nats.url = url, "lost NATS; reconnecting");
                    seen.down("nats", format!("reconnecting to {url}"));
                }
                Event::Closed => seen.down("nats", "closed"),
                // The only place where a missing permission shows.
                Event::ServerError(error) => tracing::error!(%error, "NATS refused something"),
                Event::ClientError(error) => tracing::warn!(%error, "NATS client"),
                Event::SlowConsumer(_) => {
                    tracing::warn!("NATS subscription is slow; messages will be redelivered")
                }
                Event::LameDuckMode | Event::Draining => tracing::info!(%event, "NATS"),
            }
        }
    };
    let options = settings
        .options(name)
        .await?
        .retry_on_initial_connect()
        .event_callback(on_event);
    let client = options.connect(settings.servers()).await;
    client.with_context(|| format!("nats.url: can't use {}", redacted(&settings.url)))
}

/// Connects once and asks JetStream for an answer: what `--check` does.
///
/// # Errors
/// When the server can't be reached, refuses us, or has no JetStream.
pub async fn check(settings: &Settings, name: &str) -> anyhow::Result<jetstream::Context> {
    let url = redacted(&settings.url);
    let options = settings
        .options(name)
        .await?
        .connection_timeout(REQUEST_TIMEOUT);
    let client = options.connect(settings.servers()).await;
    let client = client.with_context(|| {
        format!("can't connect to NATS at {url}; is nats-server running there?")
    })?;
    let jetstream = jetstream::new(client);
    let account = jetstream.query_account().await;
    account.with_context(|| {
        format!(
            "NATS at {url} answers, but JetStream doesn't; start it with this project's nats.conf"
        )
    })?;
    Ok(jetstream)
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
