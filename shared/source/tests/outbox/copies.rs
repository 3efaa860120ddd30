//! What isn't the main database itself, or shows only some of it, is refused: who believes it takes changes back.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use usersync_source::{Database, SourceConfig, SourceError};
use usersync_stack::{Directory, MySqlServer, PostgresServer};

use crate::place::Place;

const COLUMNS: [(&str, &str); 1] = [("username", "username")];
const PATIENCE: Duration = Duration::from_secs(10);

/// What connecting is refused for.
async fn refused(config: &SourceConfig) -> Result<String> {
    match Database::connect(config).await {
        Err(SourceError::Refused(reason)) => Ok(reason),
        Err(other) => anyhow::bail!("another error: {other}"),
        Ok(_) => anyhow::bail!("it is taken"),
    }
}

#[tokio::test]
async fn a_standby_of_postgres_is_refused() -> Result<()> {
    let (dir, copy) = (Directory::temporary()?, Directory::temporary()?);
    let primary = PostgresServer::start(dir.path()).await?;
    let standby = primary.standby(copy.path()).await?;
    let password = dir.path().join("password");
    std::fs::write(&password, PostgresServer::PASSWORD)?;
    let mut config = SourceConfig::at(standby.url().parse()?);
    config.secret = Some(format!("file:{}", password.display()).parse()?);
    let reason = refused(&config).await?;
    ensure!(
        reason.contains("standby") && reason.contains("`url`"),
        "{reason}"
    );
    config.url = primary.url().parse()?;
    Database::connect(&config).await?;
    Ok(())
}

#[tokio::test]
async fn a_postgres_that_was_closed_to_writers_is_refused_also_while_it_is_read() -> Result<()> {
    let place = Place::postgres().await?;
    let mut client = place.client().await?;
    client
        .run(
            "CREATE TABLE people (id bigint PRIMARY KEY, username text); INSERT INTO people VALUES (1, 'ann'); \
             CREATE ROLE reader LOGIN PASSWORD 'of-a-test'; GRANT SELECT ON people TO reader; \
             ALTER ROLE reader SET default_transaction_read_only = on",
        )
        .await?;
    let config = place.config("people", "id", &COLUMNS)?;
    let mut database = Database::connect(&config).await?;
    let layout = database.layout(false).await?;
    let ids = ["1".to_owned()];

    for (close, open) in [
        (
            "ALTER DATABASE postgres SET default_transaction_read_only = true",
            "ALTER DATABASE postgres RESET default_transaction_read_only",
        ),
        (
            "ALTER SYSTEM SET default_transaction_read_only = on",
            "ALTER SYSTEM RESET default_transaction_read_only",
        ),
    ] {
        client.run(close).await?;
        client.run("SELECT pg_reload_conf()").await?;
        usersync_stack::eventually(PATIENCE, async || {
            let error = database.users(&layout, &ids).await.err();
            let error = error.context("it is believed")?.to_string();
            ensure!(error.contains("default_transaction_read_only"), "{error}");
            Ok(())
        })
        .await?;
        let reason = refused(&config).await?;
        ensure!(
            reason.contains("default_transaction_read_only") && reason.contains("`url`"),
            "{close}: {reason}"
        );
        client
            .run("SET default_transaction_read_only = off")
            .await?;
        client.run(open).await?;
        client.run("SELECT pg_reload_conf()").await?;
        usersync_stack::eventually(PATIENCE, async || {
            ensure!(database.users(&layout, &ids).await?.len() == 1);
            Ok(())
        })
        .await?;
    }

    // Who may only read, by a setting of their own, reads a server that others write to.
    let mut reader = config.clone();
    let named = reader.url.set_username("reader");
    named.map_err(|()| anyhow::anyhow!("no user in the url"))?;
    let mut database = Database::connect(&reader).await?;
    ensure!(database.users(&layout, &ids).await?.len() == 1);
    Ok(())
}

#[tokio::test]
async fn a_read_only_mariadb_is_refused_also_while_it_is_read() -> Result<()> {
    a_copy_is_refused(
        Place::mariadb().await?,
        "CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = 1, MASTER_USER = 'nobody'; START SLAVE",
    )
    .await
}

#[tokio::test]
async fn a_read_only_mysql_is_refused_also_while_it_is_read() -> Result<()> {
    if MySqlServer::is_left_out()? {
        return Ok(());
    }
    a_copy_is_refused(
        Place::mysql().await?,
        "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = 1, SOURCE_USER = 'nobody'; START REPLICA",
    )
    .await
}

/// `follow` makes the server a replica that may be written to. The user may write to a server that is read-only.
async fn a_copy_is_refused(place: Place, follow: &str) -> Result<()> {
    let mut client = place.client().await?;
    client
        .run("CREATE TABLE people (id bigint PRIMARY KEY, username varchar(50)); INSERT INTO people VALUES (1, 'ann')")
        .await?;
    let mut config = place.config("people", "id", &COLUMNS)?;
    let mut database = Database::connect(&config).await?;
    let layout = database.layout(false).await?;
    ensure!(database.page(&layout, None, 10).await?.len() == 1);

    client.run("SET GLOBAL read_only = 1").await?;
    let reason = refused(&config).await?;
    ensure!(
        reason.contains("read_only") && reason.contains("`url`"),
        "{reason}"
    );
    let ids = ["1".to_owned()];
    for read in [
        database.page(&layout, None, 10).await,
        database.users(&layout, &ids).await,
    ] {
        let error = read.err().context("it is believed")?;
        ensure!(error.to_string().contains("read_only"), "{error}");
    }
    client.run("SET GLOBAL read_only = 0").await?;
    ensure!(database.users(&layout, &ids).await?.len() == 1);

    client.run(follow).await?;
    let reason = refused(&config).await?;
    ensure!(
        reason.contains("replicates") && reason.contains("`follows = true`"),
        "{reason}"
    );
    config.follows = true;
    Database::connect(&config).await?;
    Ok(())
}

#[tokio::test]
async fn rows_that_policies_hide_are_an_error() -> Result<()> {
    let place = Place::postgres().await?;
    let mut client = place.client().await?;
    client
        .run(
            "CREATE TABLE people (id bigint PRIMARY KEY, username text, tenant int); \
             INSERT INTO people VALUES (1, 'ann', 1), (2, 'bob', 2); \
             ALTER TABLE people ENABLE ROW LEVEL SECURITY; \
             CREATE POLICY ours ON people USING (tenant = 1); \
             CREATE ROLE reader LOGIN PASSWORD 'of-a-test'; GRANT SELECT ON people TO reader",
        )
        .await?;
    let mut config = place.config("people", "id", &COLUMNS)?;
    config
        .url
        .set_username("reader")
        .map_err(|()| anyhow::anyhow!("no user in the url"))?;
    let mut database = Database::connect(&config).await?;
    let layout = database.layout(false).await?;
    for read in [
        database.page(&layout, None, 10).await,
        database.users(&layout, &["2".to_owned()]).await,
    ] {
        let error = read.err().context("some rows are missing")?;
        ensure!(
            matches!(&error, SourceError::Refused(reason) if reason.contains("BYPASSRLS")),
            "{error:?}"
        );
    }
    client.run("ALTER ROLE reader BYPASSRLS").await?;
    let mut database = Database::connect(&config).await?;
    ensure!(database.page(&layout, None, 10).await?.len() == 2);
    Ok(())
}

/// In MariaDB JSON is a text with a check, and who may see little sees no checks.
#[tokio::test]
async fn a_column_that_may_be_json_is_refused_until_it_is_shown() -> Result<()> {
    let place = Place::mariadb().await?;
    let mut client = place.client().await?;
    client
        .run("CREATE TABLE people (id bigint PRIMARY KEY, username varchar(50), prefs JSON, note longtext); \
              INSERT INTO people VALUES (1, 'ann', '{\"a\": null, \"b\": [1]}', '[2]')")
        .await?;
    let columns = [("prefs", "data.prefs"), ("note", "data.note")];
    let mut config = place.config("people", "id", &columns)?;
    let mut root = place.root().await?;
    root.run("CREATE USER 'relay'@'%' IDENTIFIED BY 'of-a-test'; GRANT SELECT (id, username, prefs, note) ON users.people TO 'relay'@'%'")
        .await?;
    let named = config.url.set_username("relay");
    named.map_err(|()| anyhow::anyhow!("no user in the url"))?;
    let mut database = Database::connect(&config).await?;
    let refused = database.layout(false).await.err().context("it is read")?;
    let said = refused.to_string();
    ensure!(
        said.contains("`prefs`") && said.contains("SHOW VIEW"),
        "{said}"
    );
    ensure!(!said.contains("`note`"), "{said}");
    for (grant, revoke) in [
        (
            "GRANT SELECT ON users.people TO 'relay'@'%'",
            "REVOKE SELECT ON users.people FROM 'relay'@'%'; GRANT SELECT (id, username, prefs, note) ON users.people TO 'relay'@'%'",
        ),
        ("GRANT SHOW VIEW ON users.* TO 'relay'@'%'", "SELECT 1"),
    ] {
        root.run(grant).await?;
        let mut database = Database::connect(&config).await?;
        let layout = database.layout(false).await?;
        let read = database.users(&layout, &["1".to_owned()]).await?;
        let document = read[0].document.clone().map_err(anyhow::Error::msg)?;
        let document: serde_json::Value = serde_json::from_slice(&document)?;
        let data = serde_json::json!({"prefs": {"a": null, "b": [1]}, "note": "[2]"});
        ensure!(document["data"] == data, "{grant}: {document}");
        root.run(revoke).await?;
    }
    Ok(())
}
