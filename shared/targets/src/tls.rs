//! TLS to databases and Redis: whom the entry trusts, who we are, and why there is none.

use std::error::Error;

use url::Url;
use usersync_core::{
    auth::{Pem, Tls},
    target::TargetConfig,
    tls,
};

use crate::{Failure, trouble::Trouble};

/// The server of one target.
pub(crate) struct Peer {
    /// What the target is called.
    name: String,
    /// Its host and port, as the URL has them.
    at: String,
    tls: Option<Tls>,
}

impl Peer {
    /// The server of `config`.
    pub(crate) fn of(config: &TargetConfig) -> Self {
        let tls = config.tls.clone();
        Self {
            tls,
            ..Self::named(config.name.as_ref(), &config.url)
        }
    }

    /// The server at `url`, with what the URL itself says of TLS.
    pub(crate) fn named(name: &str, url: &Url) -> Self {
        let host = url.host_str().unwrap_or("this machine");
        let port = url.port().map(|port| format!(":{port}"));
        Self {
            name: name.to_owned(),
            at: host.to_owned() + &port.unwrap_or_default(),
            tls: None,
        }
    }

    /// What the entry says of TLS.
    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// The certificates as they are now, where the entry says something of TLS.
    ///
    /// # Errors
    /// When they can't be used.
    pub(crate) fn pem(&self) -> Result<Option<Pem>, Trouble> {
        let pem = self.tls.as_ref().map(Tls::pem).transpose();
        pem.map_err(|error| Trouble::unreachable(self.none(&error.to_string())))
    }

    /// An error of connecting, where it is one of TLS.
    pub(crate) fn refusal(&self, error: &(dyn Error + 'static)) -> Option<Trouble> {
        let why = tls::why(error)?;
        Some(Trouble::unreachable(self.none(&why)))
    }

    /// The same of a driver's own words: it says only so that a server has no TLS.
    pub(crate) fn sql_refusal(&self, error: &sqlx::Error) -> Option<Trouble> {
        let other = || match error {
            sqlx::Error::Tls(said) if said.to_string().contains("does not support") => {
                Some(Trouble::unreachable(self.none(tls::NONE)))
            }
            _ => None,
        };
        self.refusal(error).or_else(other)
    }

    /// There is no TLS with it.
    pub(crate) fn none(&self, why: &str) -> Failure {
        let Self { name, at, .. } = self;
        Failure::new(format!("{name}: no TLS with {at}: {why}"))
    }
}
