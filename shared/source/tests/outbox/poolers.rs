//! A pooler in front of a main database, which gives a server's sessions to several clients, is found out.

use anyhow::{Context as _, Result, ensure};
use usersync_source::{Database, SourceConfig, SourceError};
use usersync_stack::PgBouncerServer;

use crate::place::Place;

/// What a relay does before it takes the lock.
async fn tried(config: &SourceConfig) -> Result<(), SourceError> {
    let mut holder = Database::connect(config).await?;
    let mut beside = holder.again().await?;
    holder.is_its_own(&mut beside).await
}

#[tokio::test]
async fn a_pooler_is_refused_by_name() -> Result<()> {
    if PgBouncerServer::is_left_out()? {
        return Ok(());
    }
    let place = Place::postgres().await?;
    place
        .client()
        .await?
        .run("CREATE TABLE people (uid BIGINT PRIMARY KEY, username TEXT)")
        .await?;
    let mut config = place.config("people", "uid", &[])?;
    tried(&config).await?;
    let ignored = "ignore_startup_parameters = extra_float_digits";
    let cases: [&[&str]; 4] = [
        &[],
        &[ignored],
        &[ignored, "max_prepared_statements = 200"],
        &[
            ignored,
            "max_prepared_statements = 200",
            "default_pool_size = 20",
        ],
    ];
    for (at, more) in cases.iter().enumerate() {
        let (server, dir) = place.postgres_server()?;
        let dir = dir.join(format!("pooler{at}"));
        std::fs::create_dir_all(&dir)?;
        let pooler = PgBouncerServer::start(&dir, server, more).await?;
        let moved = config.url.set_port(Some(pooler.port()));
        moved.map_err(|()| anyhow::anyhow!("no port"))?;
        for _ in 0..3 {
            let said = tried(&config).await.err();
            let said = said
                .with_context(|| format!("{more:?} is taken"))?
                .to_string();
            ensure!(
                said.contains("pooler") && said.contains("name the server itself in `url`"),
                "{more:?}: {said}"
            );
        }
    }
    Ok(())
}
