//! What an outbox promises, on every kind of server.

mod clauses;
mod ids;
mod numbers;
mod place;
mod reading;
mod tls;
mod triggers;
mod types;
mod values;

use anyhow::Result;
use place::Place;
use usersync_source::{Server, shipped};
use usersync_stack::MySqlServer;

#[tokio::test]
async fn mariadb_keeps_the_promises() -> Result<()> {
    clauses::hold(&Place::mariadb().await?).await
}

/// Only where there is one: see [`MySqlServer::is_there`].
#[tokio::test]
async fn mysql_keeps_the_promises() -> Result<()> {
    match MySqlServer::is_there() {
        true => clauses::hold(&Place::mysql().await?).await,
        false => Ok(()),
    }
}

#[tokio::test]
async fn postgres_keeps_the_promises() -> Result<()> {
    clauses::hold(&Place::postgres().await?).await
}

#[tokio::test]
async fn sqlite_keeps_the_promises() -> Result<()> {
    clauses::hold(&Place::sqlite()?).await
}

/// `UPDATE_SHIPPED=1` writes the files anew.
#[test]
fn the_shipped_files_are_what_the_scheduler_installs() -> Result<()> {
    for (server, folder) in [
        (Server::MySql, "mysql"),
        (Server::Postgres, "postgres"),
        (Server::Sqlite, "sqlite"),
    ] {
        let path = format!(
            "{}/../../deploy/sql/{folder}/outbox.sql",
            env!("CARGO_MANIFEST_DIR")
        );
        if std::env::var_os("UPDATE_SHIPPED").is_some() {
            std::fs::write(&path, shipped(server))?;
        }
        assert_eq!(std::fs::read_to_string(&path)?, shipped(server), "{path}");
    }
    Ok(())
}
