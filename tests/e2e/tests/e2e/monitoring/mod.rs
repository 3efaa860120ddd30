//! What is to be seen from outside: metrics, rules and alerts, the dashboard, the status screen.

mod dashboard;
mod exposition;
mod metrics;
mod rules;
mod screen;
mod status;
mod traces;

use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::json;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use usersync_stack::{Directory, Launch, Stack, StackBuilder, eventually, tools};

use crate::support::{Bus, SOON};

/// A user who is found wherever it must not be.
const SOMEBODY: u64 = 7_654_321_098;
const USERNAME: &str = "zaphod";

/// A stack with every kind of binary, and a gateway that relays an outbox.
struct Whole {
    stack: Stack,
    main: SqlitePool,
    /// Of the main database.
    _dir: Directory,
}

impl Whole {
    /// Starts it, and lets every part of it do something.
    async fn start(customise: impl FnOnce(StackBuilder) -> StackBuilder) -> Result<Self> {
        let dir = Directory::temporary()?;
        let (settings, main) = source(dir.path()).await?;
        let builder = Stack::builder()
            .schedulers(1)
            .gateway_args(["--config".as_ref(), settings.as_os_str()]);
        let whole = Self {
            stack: customise(builder).start().await?,
            main,
            _dir: dir,
        };
        whole.work().await?;
        Ok(whole)
    }

    /// A user by an event, one by the outbox, and a check of a target.
    async fn work(&self) -> Result<()> {
        let bus = Bus::connect(&self.stack).await?;
        let user =
            json!({"user_id": SOMEBODY, "username": USERNAME, "email": "zaphod@example.com"});
        bus.publish("user.created", user).await?;
        sqlx::query("INSERT INTO people VALUES (1, 'ann', 'ann@example.com')")
            .execute(&self.main)
            .await?;
        let users = format!("{}/v1/users/1", self.stack.gateway().url());
        let client = usersync_stack::http::client();
        eventually(SOON, async || {
            let status = client.get(&users).send().await?.status();
            ensure!(status == 200, "{users}: {status}");
            Ok(())
        })
        .await?;
        bus.until_settled("unified-auth").await?;
        bus.publish("user.check.unified-auth", json!({})).await?;
        eventually(SOON, async || {
            let metrics = self.stack.scheduler_metrics().await?;
            let alike = [("target", "unified-auth"), ("result", "alike")];
            let checks = metrics.sum("usersync_checks_total", &alike);
            ensure!(checks > 0.0, "no check has ended");
            Ok(())
        })
        .await
    }
}

/// A main database with an outbox, and the settings of a gateway that relays it.
pub(crate) async fn source(dir: &Path) -> Result<(std::path::PathBuf, SqlitePool)> {
    let file = dir.join("main.db");
    let options = SqliteConnectOptions::new()
        .filename(&file)
        .create_if_missing(true);
    let pool = SqlitePool::connect_with(options).await?;
    sqlx::query("CREATE TABLE people (uid INTEGER PRIMARY KEY, username TEXT, email TEXT)")
        .execute(&pool)
        .await?;
    let settings = dir.join("usersync.toml");
    let text = format!(
        "[sources.main]\nurl = \"sqlite:{}\"\ntable = \"people\"\nid = \"uid\"\noutbox = true\n\
         [sources.main.columns]\nusername = \"username\"\nemail = \"email\"\n",
        file.display()
    );
    std::fs::write(&settings, text)?;
    let program = tools::binary("usersync-scheduler", tools::Profile::own())?;
    let install = Launch::new("install", program, dir.join("install.log"))
        .args(["outbox", "install", "--config"])
        .arg(&settings);
    let status = install.spawn()?.wait_exit(SOON).await?;
    let said = std::fs::read_to_string(install.log())?;
    ensure!(status.success(), "{status}: {said}");
    Ok((settings, pool))
}
