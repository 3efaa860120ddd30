//! The database servers of a run: the system's MariaDB and PostgreSQL, or the newest MySQL and PostgreSQL.

use std::path::Path;

use anyhow::Result;
use usersync_stack::{MariaDbServer, MySqlServer, PostgresServer};

/// The password of all of them.
pub(crate) const PASSWORD: &str = PostgresServer::PASSWORD;

/// A server that speaks MySQL's protocol.
pub(crate) enum MySqlLike {
    MariaDb(MariaDbServer),
    MySql(MySqlServer),
}

impl MySqlLike {
    /// MariaDB, or the newest MySQL, with its data in `dir`.
    ///
    /// # Errors
    /// When it isn't there or doesn't start.
    pub(crate) async fn start(newest: bool, dir: &Path) -> Result<Self> {
        Ok(match newest {
            false => Self::MariaDb(MariaDbServer::start(dir).await?),
            true => Self::MySql(MySqlServer::start(dir).await?),
        })
    }

    /// Where it is, without the password.
    pub(crate) fn url(&self) -> String {
        match self {
            Self::MariaDb(server) => server.url(),
            Self::MySql(server) => server.url(),
        }
    }

    pub(crate) fn url_with_password(&self) -> String {
        match self {
            Self::MariaDb(server) => server.url_with_password(),
            Self::MySql(server) => server.url_with_password(),
        }
    }
}

/// The system's PostgreSQL, or the newest, with its data in `dir`.
///
/// # Errors
/// When it isn't there or doesn't start.
pub(crate) async fn postgres(newest: bool, dir: &Path) -> Result<PostgresServer> {
    match newest {
        false => PostgresServer::start(dir).await,
        true => PostgresServer::start_newest(dir).await,
    }
}
