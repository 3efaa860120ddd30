//! How a Redis server is reached: as whom, by TLS or without, and what it says of itself.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
};

use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo,
    IntoConnectionInfo, RedisError, TlsCertificates, Value, aio::MultiplexedConnection,
    io::tcp::TcpSettings,
};
use secrecy::ExposeSecret;
use usersync_core::target::TargetConfig;

use super::errors::{in_words, late, unfit, unopened};
use crate::{ConfigError, password, tls::Peer, trouble::Trouble, way::Way};

/// Where one server of a target is: host and port.
pub(super) type Node = (String, u16);

/// The server that a target's URL names, and others of its cluster.
pub(super) struct Server {
    who: ConnectionInfo,
    peer: Peer,
    settings: AsyncConnectionConfig,
    /// Whether a connection was ever opened: then TLS is no reason for silence.
    answered: AtomicBool,
}

impl Server {
    pub(super) fn new(config: &TargetConfig, way: Way) -> Result<Self, ConfigError> {
        let who = who(config)?;
        // What can't work is said before anybody is connected to.
        Client::open(who.clone()).map_err(unfit)?;
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(config.timeout.min(std::time::Duration::from_secs(5))))
            .set_response_timeout(Some(config.timeout))
            .set_dns_resolver(way);
        Ok(Self {
            who,
            peer: Peer::of(config),
            settings,
            answered: AtomicBool::new(false),
        })
    }

    /// Connects to the server in the URL, or to another one of its cluster.
    pub(super) async fn open(
        &self,
        node: Option<&Node>,
    ) -> Result<MultiplexedConnection, RedisError> {
        let client = self.client(node)?;
        let opened = client.get_multiplexed_async_connection_with_config(&self.settings);
        let opened = opened.await.map_err(|error| match error.is_timeout() {
            true => self.late(),
            false => unopened(error),
        })?;
        self.answered.store(true, Ordering::Relaxed);
        Ok(opened)
    }

    /// Where the URL leads to.
    pub(super) fn node(&self) -> Node {
        match self.who.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                (host.clone(), *port)
            }
            _ => (String::new(), 0),
        }
    }

    /// The same error; where it is about TLS, with what is to be done.
    pub(super) fn explained(&self, error: RedisError) -> RedisError {
        self.peer.refusal(&error).map_or(error, in_words)
    }

    /// No answer in time; where there was no connection yet, none to the greeting of TLS.
    pub(super) fn late(&self) -> RedisError {
        match self.peer.tls() {
            Some(_) if !self.answered.load(Ordering::Relaxed) => {
                let unanswered = "it doesn't answer in time: look whether it has TLS";
                in_words(Trouble::unreachable(self.peer.none(unanswered)))
            }
            _ => late(),
        }
    }

    /// A client with the certificates as they are now.
    fn client(&self, node: Option<&Node>) -> Result<Client, RedisError> {
        let who = match node {
            Some(node) => self.who.clone().set_addr(self.address(node)),
            None => self.who.clone(),
        };
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

    /// The same way to another server.
    fn address(&self, (host, port): &Node) -> ConnectionAddr {
        let (host, port) = (host.clone(), *port);
        match self.who.addr() {
            ConnectionAddr::TcpTls {
                insecure,
                tls_params,
                ..
            } => ConnectionAddr::TcpTls {
                host,
                port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            },
            _ => ConnectionAddr::Tcp(host, port),
        }
    }
}

/// Whether the server is one of a cluster. Everybody may ask it; servers from before Redis 6 don't know the question,
/// and what stands between may not pass it on: then it is taken for one that stands alone.
pub(super) async fn is_of_a_cluster(
    connection: &mut MultiplexedConnection,
) -> Result<bool, RedisError> {
    let told = redis::cmd("HELLO").query_async(connection).await;
    let told: HashMap<String, Value> = match told {
        Ok(told) => told,
        Err(error) if error.code().is_some() || !error.is_io_error() => return Ok(false),
        Err(error) => return Err(error),
    };
    let mode = told.get("mode").cloned();
    let mode = mode.and_then(|mode| redis::from_redis_value::<String>(mode).ok());
    Ok(mode.as_deref() == Some("cluster"))
}

const NO_DATABASE: &str = "what follows the port is no number of a database: write redis://HOST:PORT/3, or leave it out for database 0";

/// Where to connect, and as whom.
fn who(config: &TargetConfig) -> Result<ConnectionInfo, ConfigError> {
    let password = password::of(config)?;
    let database = config.url.path().trim_matches('/');
    if !database.is_empty() && database.parse::<u32>().is_err() {
        return Err(ConfigError::Url(NO_DATABASE.to_owned()));
    }
    let info = config.url.as_str().into_connection_info().map_err(unfit)?;
    // Nothing waits for the acknowledgement of what was sent before.
    let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
    let password = match &password {
        Some(password) => password.expose_secret(),
        // Without a word of who it is, a user would be taken for the default one.
        None if !config.url.username().is_empty() => "",
        None => return Ok(info),
    };
    let settings = info.redis_settings().clone().set_password(password);
    Ok(info.set_redis_settings(settings))
}
