//! What an outbox promises, on every kind of server.

mod clauses;
mod copies;
mod ids;
mod numbers;
mod place;
mod poolers;
mod reading;
mod tls;
mod triggers;
mod types;
mod values;

use std::time::Duration;

use anyhow::Result;
use place::Place;
use usersync_source::shipped;
use usersync_stack::{MySqlServer, PostgresServer, support};

const SOON: Duration = Duration::from_secs(10);

/// One suite per line: its name, the server as docs/SUPPORT.md has it, whether this machine goes without, and the server.
macro_rules! suites {
    ($($suite:ident: $server:literal, $left_out:expr, $place:expr;)+) => {
        $(
            #[tokio::test]
            async fn $suite() -> Result<()> {
                if $left_out {
                    return Ok(());
                }
                clauses::hold(&$place).await
            }
        )+

        #[test]
        fn the_page_of_supported_servers_names_what_is_run_here() -> Result<()> {
            support::page_names("shared/source", &[$(($server, "main database")),+])
        }
    };
}

suites! {
    mariadb_keeps_the_promises: "MariaDB", false, Place::mariadb().await?;
    mysql_keeps_the_promises: "MySQL", MySqlServer::is_left_out()?, Place::mysql().await?;
    postgres_keeps_the_promises: "PostgreSQL 16", false, Place::postgres().await?;
    newest_postgres_keeps_the_promises:
        "PostgreSQL 18", PostgresServer::newest_is_left_out()?, Place::newest_postgres().await?;
    sqlite_keeps_the_promises: "SQLite", false, Place::sqlite()?;
}

/// A backup that is moved to the place of the file: a relay that went on would read the old one for ever.
#[tokio::test]
async fn a_sqlite_file_that_is_replaced_is_noticed() -> Result<()> {
    let place = Place::sqlite()?;
    let (config, mut database) = clauses::people(&place).await?;
    database.keep_lock(SOON).await?;
    let file = place.file();
    std::fs::copy(&file, file.with_extension("backup"))?;
    std::fs::rename(file.with_extension("backup"), &file)?;
    let error = database.keep_lock(SOON).await.err();
    let told = error.map(|error| error.to_string()).unwrap_or_default();
    assert!(told.contains("another file has its name now"), "{told}");
    usersync_source::Database::connect(&config).await?;
    Ok(())
}

/// `UPDATE_SHIPPED=1` writes the files anew.
#[test]
fn the_shipped_files_are_what_the_scheduler_installs() -> Result<()> {
    for (folder, script) in shipped() {
        let path = format!(
            "{}/../../deploy/sql/{folder}/outbox.sql",
            env!("CARGO_MANIFEST_DIR")
        );
        if std::env::var_os("UPDATE_SHIPPED").is_some() {
            std::fs::write(&path, &script)?;
        }
        assert_eq!(std::fs::read_to_string(&path)?, script, "{path}");
    }
    Ok(())
}
