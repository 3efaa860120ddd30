//! The flags every example service has.

use anyhow::Context as _;
use async_nats::jetstream;
use usersync_core::{admin::Health, nats, secret::SecretRef};
use usersync_publisher::Publisher;
use usersync_receiver::Senders;

/// Flags about what is around a service.
#[derive(Clone, Debug, clap::Args)]
pub struct Common {
    /// Where NATS is; several servers are separated by commas.
    #[arg(
        long,
        env = "NATS_URL",
        default_value = "nats://127.0.0.1:4222",
        hide_env_values = true
    )]
    pub nats_url: String,

    /// The user to connect to NATS as; `publisher` with this project's nats.conf.
    #[arg(long, env = "NATS_USER", requires = "nats_password")]
    nats_user: Option<String>,

    /// Where its password is: `env:NAME` or `file:PATH`.
    // Text, because clap would repeat what doesn't parse, and that may be the secret itself.
    #[arg(long, value_name = "REF", requires = "nats_user")]
    nats_password: Option<String>,

    /// What to log, as a tracing filter: `info`, `debug,async_nats=warn`.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log: String,
}

impl Common {
    /// A publisher for `service`; connects in the background, seen in `health` as `nats`.
    ///
    /// # Errors
    /// When the NATS address can't be used.
    pub async fn publisher(&self, service: &str, health: &Health) -> anyhow::Result<Publisher> {
        let password = self.nats_password.as_deref().map(str::parse).transpose();
        let settings = nats::Settings {
            url: self.nats_url.clone(),
            user: self.nats_user.clone(),
            password: password.context("--nats-password")?,
            nkey: None,
            inbox_prefix: Some("_INBOX_publisher".to_owned()),
            credentials: None,
            tls: nats::Tls::default(),
        };
        let client = nats::connect(&settings, service, health).await?;
        Ok(Publisher::new(jetstream::new(client), service))
    }
}

/// The flag of a service that is a target.
#[derive(Clone, Debug, clap::Args)]
pub struct Secrets {
    /// Where a signing secret is: `env:NAME` or `file:PATH`. Repeat it while a secret is being
    /// replaced; give none to take unsigned deliveries.
    // Text, because clap would repeat what doesn't parse, and that may be the secret itself.
    #[arg(long = "secret", value_name = "REF")]
    references: Vec<String>,
}

impl Secrets {
    /// Fetches the secrets; without any, deliveries needn't be signed.
    ///
    /// # Errors
    /// When one is no reference or can't be fetched.
    pub fn resolve(&self) -> anyhow::Result<Senders> {
        if self.references.is_empty() {
            return Ok(Senders::Unsigned);
        }
        let fetch = |(index, text): (usize, &String)| {
            let fetched = text
                .parse::<SecretRef>()
                .and_then(|reference| reference.resolve());
            fetched.with_context(|| format!("--secret number {}", index + 1))
        };
        let secrets: anyhow::Result<_> = self.references.iter().enumerate().map(fetch).collect();
        Ok(Senders::Signed(secrets?))
    }
}
