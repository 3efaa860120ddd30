//! The way to a target: names become addresses here, and every address is looked at before it is connected to.
//!
//! What was looked at is what is connected to: a name that changes its mind in between changes nothing. Where a driver
//! must be given the name, to prove who answers, docs/TARGETS.md says so.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use async_trait::async_trait;
use sqlx::ConnectOptions;
use url::{Host, Url};
use usersync_core::egress::{Reach, Refused};

use crate::{Failure, trouble::Trouble};

/// Who knows the addresses of a host.
#[async_trait]
pub trait Names: Send + Sync {
    /// Every address of `host`, with `port`.
    ///
    /// # Errors
    /// When it has none, or nobody can say.
    async fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

/// This machine's resolver.
pub(crate) struct System;

#[async_trait]
impl Names for System {
    async fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, port)).await?.collect())
    }
}

/// The way to one target.
#[derive(Clone)]
pub(crate) struct Way {
    /// Where it may lead; anywhere without.
    reach: Option<Reach>,
    names: Arc<dyn Names>,
}

/// Why there is no way to a host.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Blocked {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("{host} can't be resolved: {error}")]
    Unknown { host: String, error: io::Error },
}

impl Way {
    pub(crate) fn new(reach: Reach, names: Arc<dyn Names>) -> Self {
        let reach = Some(reach);
        Self { reach, names }
    }

    /// To where the settings of this process say, rather than an entry.
    pub(crate) fn free() -> Self {
        let names = Arc::new(System);
        Self { reach: None, names }
    }

    /// The addresses of `host` that may be connected to; at least one.
    ///
    /// # Errors
    /// When it has no address, or none that may be connected to.
    pub(crate) async fn to(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Blocked> {
        let literal = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = literal.parse::<IpAddr>() {
            self.check(address)?;
            return Ok(vec![(address, port).into()]);
        }
        let unknown = |error| Blocked::Unknown {
            host: host.to_owned(),
            error,
        };
        let mut addresses = self.names.addresses(host, port).await.map_err(unknown)?;
        let refused = |address: &SocketAddr| self.check(address.ip()).err();
        let refusal = addresses.iter().find_map(refused);
        addresses.retain(|address| refused(address).is_none());
        match (addresses.is_empty(), refusal) {
            (false, _) => Ok(addresses),
            (true, Some(refusal)) => Err(refusal.into()),
            (true, None) => Err(unknown(io::ErrorKind::NotFound.into())),
        }
    }

    /// Looks at the host of `url` where it is an address: HTTP clients resolve names only.
    ///
    /// # Errors
    /// When it may not be connected to.
    pub(crate) fn check_literal(&self, url: &Url) -> Result<(), Refused> {
        match url.host() {
            Some(Host::Ipv4(address)) => self.check(address.into()),
            Some(Host::Ipv6(address)) => self.check(address.into()),
            Some(Host::Domain(_)) | None => Ok(()),
        }
    }

    /// Looks whether a socket of this machine may be connected to.
    ///
    /// # Errors
    /// When this machine may not.
    pub(crate) fn check_local(&self) -> Result<(), Refused> {
        self.check(std::net::Ipv4Addr::LOCALHOST.into())
    }

    fn check(&self, address: IpAddr) -> Result<(), Refused> {
        let reach = self.reach.as_ref();
        reach.map_or(Ok(()), |reach| reach.check(address))
    }
}

/// Connects to the first of `addresses` that takes connections; another error than of the network is the last word.
///
/// # Errors
/// That of the last address tried.
pub(crate) async fn first<O: ConnectOptions>(
    addresses: Vec<SocketAddr>,
    options: impl Fn(&str) -> O,
) -> Result<O::Connection, sqlx::Error>
where
    O::Connection: Sized,
{
    let mut last = io::Error::from(io::ErrorKind::NotFound).into();
    for address in addresses {
        match options(&address.ip().to_string()).connect().await {
            Err(error @ sqlx::Error::Io(_)) => last = error,
            done => return done,
        }
    }
    Err(last)
}

impl From<Blocked> for Trouble {
    fn from(blocked: Blocked) -> Self {
        Self::unreachable(Failure::new(blocked.to_string()))
    }
}

impl reqwest::dns::Resolve for Way {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let way = self.clone();
        Box::pin(async move {
            // The port comes from the URL.
            let addresses = way.to(name.as_str(), 0).await?;
            Ok(Box::new(addresses.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

impl redis::io::AsyncDNSResolver for Way {
    fn resolve<'a, 'b: 'a>(
        &'a self,
        host: &'b str,
        port: u16,
    ) -> redis::RedisFuture<'a, Box<dyn Iterator<Item = SocketAddr> + Send + 'a>> {
        Box::pin(async move {
            let addresses = self.to(host, port).await.map_err(io::Error::other)?;
            Ok(Box::new(addresses.into_iter()) as Box<dyn Iterator<Item = SocketAddr> + Send>)
        })
    }
}
