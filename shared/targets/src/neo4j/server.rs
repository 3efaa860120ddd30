//! How Neo4j is reached.

use neo4rs::{ConfigBuilder, Graph};
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpStream;
use url::Url;

use super::errors::trouble;
use usersync_core::secret::SecretRef;

use crate::{ConfigError, Failure, tls::Peer, trouble::Trouble, way::Way};

/// Where Bolt is spoken, unless it is told.
const PORT: u16 = 7687;

/// A server, and who we are there.
pub(super) struct Server {
    /// Without user, path and query.
    url: Url,
    user: String,
    password: SecretString,
    database: String,
    peer: Peer,
    way: Way,
}

impl Server {
    pub(super) fn new(
        url: &Url,
        password: Option<SecretString>,
        peer: Peer,
        way: Way,
    ) -> Result<Self, ConfigError> {
        let expected = || ConfigError::Url("expected neo4j://USER@HOST:PORT/DATABASE".to_owned());
        let or_neo4j = |text: &str| match text {
            "" => "neo4j".to_owned(),
            text => text.to_owned(),
        };
        if !url.has_host() {
            return Err(expected());
        }
        let mut address = url.clone();
        address.set_username("").map_err(|()| expected())?;
        address.set_path("");
        address.set_query(None);
        Ok(Self {
            user: or_neo4j(url.username()),
            password: password.unwrap_or_default(),
            database: or_neo4j(url.path().trim_matches('/')),
            url: address,
            peer,
            way,
        })
    }

    /// Prepares one connection, to an address that was looked at; by name where the server must prove that it is
    /// that name's. The driver connects when the connection is first used.
    pub(super) async fn open(&self) -> Result<Graph, Trouble> {
        let mut url = self.url.clone();
        let addresses = self.addresses().await?;
        if !self.is_named() {
            let address = match addresses.as_slice() {
                [only] => *only,
                // The driver would take the first only, whether anybody is there or not.
                several => {
                    let connected = TcpStream::connect(several).await;
                    connected
                        .and_then(|stream| stream.peer_addr())
                        .map_err(|error| unreachable(&error))?
                }
            };
            let host = url.set_ip_host(address.ip());
            host.map_err(|()| unreachable("its URL takes no address"))?;
        }
        self.peer.pem()?;
        let mut config = ConfigBuilder::default()
            .uri(url)
            .user(self.user.as_str())
            .password(self.password.expose_secret())
            .db(self.database.as_str())
            .fetch_size(1_000)
            .max_connections(1);
        if let Some(SecretRef::File(ca)) = self.peer.tls().and_then(|tls| tls.ca.as_ref()) {
            // The driver calls the authorities that it trusts beside this machine's so.
            config = config.with_client_certificate(ca);
        }
        let config = config.build().map_err(|error| trouble(&error))?;
        Graph::connect(config)
            .await
            .map_err(|error| trouble(&error))
    }

    /// What an error of this server means.
    pub(super) fn trouble(&self, error: &neo4rs::Error) -> Trouble {
        let refusal = self.peer.refusal(error);
        refusal.unwrap_or_else(|| trouble(error))
    }

    /// Looks at the addresses again where the driver may connect by name at any time.
    pub(super) async fn check(&self) -> Result<(), Trouble> {
        if self.is_named() {
            self.addresses().await?;
        }
        Ok(())
    }

    /// Whether the driver must know the name: it checks the certificate against it.
    fn is_named(&self) -> bool {
        self.url.scheme().contains('+')
    }

    async fn addresses(&self) -> Result<Vec<std::net::SocketAddr>, Trouble> {
        let host = self.url.host_str().unwrap_or_default();
        Ok(self.way.to(host, self.url.port().unwrap_or(PORT)).await?)
    }
}

fn unreachable(why: impl std::fmt::Display) -> Trouble {
    Trouble::unreachable(Failure::new(format!("can't reach Neo4j: {why}")))
}
