//! A main database that is a copy of another one is believed by nobody: what it doesn't show yet would be taken back.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use usersync_core::check::Stage;
use usersync_stack::{Directory, Launch, NatsServer, tools};

use super::{check, states::taken_in};
use crate::{
    outbox::{Main, Server},
    support::{Bus, LATER, only},
};

/// What a scheduler says that fails.
async fn failure(main: &Main, nats: &NatsServer, settings: &str, args: &[&str]) -> Result<String> {
    let file = main.dir.path().join("standby.toml");
    std::fs::write(&file, settings)?;
    let program = tools::binary("usersync-scheduler", tools::Profile::own())?;
    let log = main.dir.path().join(format!("{}.log", args[0]));
    let launch = Launch::new("usersync-scheduler", program, &log).args(args);
    let process = launch.nats(nats, "scheduler").arg("--config").arg(&file);
    let status = process.spawn()?.wait_exit(LATER).await?;
    ensure!(!status.success(), "{} works", args[0]);
    Ok(std::fs::read_to_string(log)?)
}

#[tokio::test]
async fn a_lagging_standby_takes_nothing_back() -> Result<()> {
    let main = Main::postgres().await?;
    let (stack, bus) = taken_in(&main, 20, "every = \"0s\"").await?;
    let Server::Postgres(primary, _) = &main.server else {
        anyhow::bail!("it is PostgreSQL");
    };
    let dir = Directory::temporary()?;
    let standby = primary.standby(dir.path()).await?;
    let client = sqlx::PgPool::connect(&standby.url_with_password()).await?;
    sqlx::raw_sql("SELECT pg_wal_replay_pause()")
        .execute(&client)
        .await?;
    main.run("UPDATE people SET email = 'new@example.com' WHERE uid = 7")
        .await?;
    main.until_published().await?;
    bus.until_taken_in().await?;
    ensure!(bus.state(7_u64).await?["email"] == "new@example.com");

    let settings = std::fs::read_to_string(main.settings())?;
    let settings = settings.replace(&primary.url(), &standby.url());
    for args in [
        &["check", "--target", "gateway", "--once"][..],
        &["load"],
        &["outbox", "status"],
    ] {
        let said = failure(&main, &stack.nats, &settings, args).await?;
        ensure!(
            said.contains("standby") && said.contains("name the server that is written to"),
            "{args:?}: {said}"
        );
    }
    ensure!(bus.state(7_u64).await?["email"] == "new@example.com");
    stack.stop().await
}

#[tokio::test]
async fn a_target_that_is_read_only_or_hides_rows_is_not_checked() -> Result<()> {
    for main in [Main::mariadb().await?, Main::postgres().await?] {
        main.run("ALTER TABLE people ADD sync_version BIGINT NOT NULL DEFAULT 0, ADD sync_deleted BOOLEAN NOT NULL DEFAULT FALSE")
            .await?;
        let mut access = main.access();
        let (hide, reason) = match &main.server {
            Server::MariaDb(..) => ("SET GLOBAL read_only = 1", "read_only"),
            Server::Postgres(..) => {
                main.run(
                    "CREATE ROLE writer LOGIN PASSWORD 'of-a-test'; GRANT ALL ON people TO writer; \
                     CREATE POLICY mine ON people USING (uid <> 2)",
                )
                .await?;
                access = access.replace("postgres@", "writer@");
                ("ALTER TABLE people ENABLE ROW LEVEL SECURITY", "BYPASSRLS")
            }
        };
        let target = format!(
            "[people]\n{access}\ncheck = {{ every = \"0s\" }}\n\
             table = {{ name = \"people\", id = \"uid\", columns = {{ username = \"username\" }} }}\n"
        );
        let stack = only(target).schedulers(1).start().await?;
        let bus = Bus::connect(&stack).await?;
        for user in 1..=3 {
            bus.publish("user.created", json!({"user_id": user, "username": "ann"}))
                .await?;
        }
        bus.until_settled("people").await?;
        ensure!(check(&bus, "people", json!({})).await?.is_alike());
        main.run(hide).await?;
        let report = check(&bus, "people", json!({})).await?;
        let error = report.error.as_deref().context("it is checked")?;
        ensure!(
            report.stage == Stage::Failed && error.contains(reason),
            "{report:?}"
        );
        stack.stop().await?;
    }
    Ok(())
}
