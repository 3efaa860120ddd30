//! How MySQL and MariaDB are reached, and the session that follows.

use std::{str::FromStr, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Executor, MySqlConnection,
    mysql::{MySqlConnectOptions, MySqlSslMode},
};
use url::Url;
use usersync_core::auth::Pem;

use super::errors::trouble;
use crate::{
    ConfigError,
    tls::Peer,
    trouble::Trouble,
    way::{Blocked, Way, first},
};

/// What is written is no change of the table's own, should it have an outbox. Values that don't fit are errors,
/// whatever the server's own mode; what is written is committed, and what is read is read whole. Locks are held on the
/// rows written only: gap locks, which the stricter default takes, make batches collide.
const SESSION: &str = "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO,\
    ERROR_FOR_DIVISION_BY_ZERO,NO_ZERO_DATE,NO_ZERO_IN_DATE,NO_ENGINE_SUBSTITUTION', \
    SESSION autocommit = 1, SESSION completion_type = 0, SESSION sql_safe_updates = 0, SESSION sql_big_selects = 1, \
    SESSION sql_select_limit = 18446744073709551615, SESSION unique_checks = 1, SESSION foreign_key_checks = 1, \
    SESSION innodb_lock_wait_timeout = ";
const ISOLATION: &str = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE";

/// How MySQL and MariaDB are spoken to.
pub(crate) struct MySql {
    options: MySqlConnectOptions,
    session: String,
    /// Says that we know of no outbox of the table that is written to.
    pub(super) blind: String,
    peer: Peer,
    way: Way,
}

/// The server at `url`; locks are waited for no longer than `patience`.
pub(crate) fn server(
    url: &Url,
    password: Option<SecretString>,
    patience: Duration,
    peer: Peer,
    way: Way,
) -> Result<MySql, ConfigError> {
    let mut url = url.clone();
    // The driver knows one name; changing it can't fail between names of the same sort.
    let _ = url.set_scheme("mysql");
    let options = MySqlConnectOptions::from_str(url.as_str());
    let mut options = options
        .map_err(|_| ConfigError::Url("expected mysql://USER@HOST:PORT/DATABASE".to_owned()))?;
    if url.path().len() < 2 {
        return Err(ConfigError::Url(
            "it names no database; expected mysql://USER@HOST:PORT/DATABASE".to_owned(),
        ));
    }
    if let Some(password) = password {
        options = options.password(password.expose_secret());
    }
    if peer.tls().is_some() {
        options = options.ssl_mode(MySqlSslMode::VerifyIdentity);
    }
    let patience = patience.as_secs().max(1);
    Ok(MySql {
        options: options.disable_statement_logging(),
        session: format!("{SESSION}{patience}"),
        blind: "SET @usersync_apply = 1".to_owned(),
        peer,
        way,
    })
}

impl MySql {
    /// The same for who writes to the table `name`.
    pub(super) fn writing_to(self, name: &str) -> Self {
        let table = name.rsplit('.').next().unwrap_or(name).to_lowercase();
        let table = table.replace('\\', "\\\\").replace('\'', "''");
        Self {
            blind: format!("SET @usersync_apply = 'blind {table}'"),
            ..self
        }
    }

    /// Opens a connection and its session.
    pub(super) async fn open(&self) -> Result<MySqlConnection, Trouble> {
        let mut connection = self.reach().await?;
        let session = AssertSqlSafe(self.session.as_str());
        connection.execute(session).await.map_err(trouble)?;
        let blind = AssertSqlSafe(self.blind.as_str());
        connection.execute(blind).await.map_err(trouble)?;
        connection.execute(ISOLATION).await.map_err(trouble)?;
        Ok(connection)
    }

    /// Connects to an address that was looked at; by name where the server must prove that it is that name's.
    async fn reach(&self) -> Result<MySqlConnection, Trouble> {
        let options = self.certified()?;
        let (host, port) = (options.get_host(), options.get_port());
        let trouble = |error| {
            // That names the place.
            let refusal = self.peer.sql_refusal(&error);
            let place = |trouble: Trouble| trouble.reaching(host, port, options.get_database());
            refusal.unwrap_or_else(|| place(trouble(error)))
        };
        if options.get_socket().is_some() {
            self.way.check_local().map_err(Blocked::from)?;
            return options.connect().await.map_err(trouble);
        }
        let addresses = self.way.to(host, port).await?;
        if matches!(options.get_ssl_mode(), MySqlSslMode::VerifyIdentity) {
            return options.connect().await.map_err(trouble);
        }
        let connected = first(addresses, |host| options.clone().host(host)).await;
        connected.map_err(trouble)
    }

    /// With the certificates as they are now.
    fn certified(&self) -> Result<MySqlConnectOptions, Trouble> {
        let mut options = self.options.clone();
        let Some(Pem { ca, identity }) = self.peer.pem()? else {
            return Ok(options);
        };
        if let Some(ca) = ca {
            options = options.ssl_ca_from_pem(ca);
        }
        if let Some((cert, key)) = identity {
            options = options
                .ssl_client_cert_from_pem(cert)
                .ssl_client_key_from_pem(key);
        }
        Ok(options)
    }
}
