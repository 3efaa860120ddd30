//! A resolver that says what an attacker wants it to.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use usersync_targets::Names;

/// Answers for `attacker.test`; what is an address in some way of writing goes to this machine's resolver.
pub(crate) struct Answers;

const FORBIDDEN: [(&str, &[&str]); 12] = [
    ("loopback", &["127.0.0.1"]),
    ("loopback6", &["::1"]),
    ("mapped", &["::ffff:127.0.0.1"]),
    ("nat64", &["64:ff9b::7f00:1"]),
    ("metadata", &["169.254.169.254"]),
    ("metadata6", &["fd00:ec2::254"]),
    ("private", &["10.0.0.1", "192.168.0.1"]),
    ("shared", &["100.64.0.1"]),
    ("unspecified", &["0.0.0.0"]),
    ("unspecified6", &["::"]),
    ("all", &["127.0.0.1", "::1", "10.0.0.1", "0.0.0.0"]),
    ("xn--bcher-kva.loopback", &["127.0.0.1"]),
];

#[async_trait]
impl Names for Answers {
    async fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let host = host.to_ascii_lowercase();
        let name = host.trim_end_matches('.').strip_suffix(".attacker.test");
        if let Some(name) = name {
            let found = FORBIDDEN.iter().find(|(known, _)| *known == name);
            let (_, answers) = found.ok_or(io::ErrorKind::NotFound)?;
            let parsed = answers.iter().map(|text| text.parse::<IpAddr>());
            let addresses = parsed.map(|address| address.map(|address| (address, port).into()));
            return addresses
                .collect::<Result<_, _>>()
                .map_err(io::Error::other);
        }
        // What else there is would be asked of the network.
        let number = |part: &str| {
            let digits = part.trim_start_matches("0x");
            !digits.is_empty() && digits.chars().all(|c| c.is_ascii_hexdigit())
        };
        let host = match host.as_str() {
            "localhost." => "localhost",
            host => host,
        };
        let local = host == "localhost" || host.split('.').all(number);
        if !local {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(tokio::net::lookup_host((host, port)).await?.collect())
    }
}

/// Answers with what may be reached when it is asked for the first, third, fifth time, and with what may not in
/// between; or with both at once.
pub(crate) struct Rebinding {
    pub(crate) allowed: IpAddr,
    pub(crate) forbidden: IpAddr,
    pub(crate) at_once: bool,
    asked: AtomicUsize,
}

impl Rebinding {
    pub(crate) fn new(allowed: IpAddr, forbidden: IpAddr, at_once: bool) -> Self {
        Self {
            allowed,
            forbidden,
            at_once,
            asked: AtomicUsize::new(0),
        }
    }
}

#[async_trait]
impl Names for Rebinding {
    async fn addresses(&self, _: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let turn = self.asked.fetch_add(1, Ordering::Relaxed);
        let answer = match (self.at_once, turn % 2) {
            (true, _) => vec![self.forbidden, self.allowed],
            (false, 0) => vec![self.allowed],
            (false, _) => vec![self.forbidden],
        };
        Ok(answer
            .into_iter()
            .map(|address| (address, port).into())
            .collect())
    }
}
