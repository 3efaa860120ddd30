//! A pooler in front of a main database, which gives a server's sessions to several clients, is found out.

use anyhow::{Context as _, Result, ensure};
use sqlx::{ConnectOptions as _, Connection as _, Row as _, postgres::PgConnectOptions};
use usersync_source::Database;
use usersync_stack::PgBouncerServer;

use crate::place::Place;

#[tokio::test]
async fn a_pooler_is_refused_by_name_and_its_sessions_are_left_alone() -> Result<()> {
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
    Database::connect(&config).await?;
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
            let said = Database::connect(&config).await.err();
            let said = said
                .with_context(|| format!("{more:?} is taken"))?
                .to_string();
            ensure!(
                said.contains("pooler") && said.contains("name the server itself in `url`"),
                "{more:?}: {said}"
            );
        }
        let mut other = config.url.clone();
        let password = other.set_password(Some(usersync_stack::PostgresServer::PASSWORD));
        password.map_err(|()| anyhow::anyhow!("no password"))?;
        let options: PgConnectOptions = other.as_str().parse()?;
        let mut other = options.extra_float_digits(None).connect().await?;
        let set = sqlx::raw_sql("SELECT current_setting('row_security')");
        let set: String = set.fetch_one(&mut other).await?.try_get(0)?;
        ensure!(set == "on", "{more:?}: row_security is {set} for others");
        other.close().await?;
    }
    Ok(())
}
