//! Databases as targets, all the way: made by the worker's own flag, filled from events, one bad user alone.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use sqlx::{AssertSqlSafe, PgPool, postgres::PgPoolOptions};
use usersync_core::subjects::USER_DEAD;
use usersync_stack::{Directory, Launch, PostgresServer, eventually, tools};

use crate::support::{Bus, SOON, only};

/// A PostgreSQL server and the catalogue's entry for its table `users`.
pub(crate) struct Database {
    pub(crate) server: PostgresServer,
    dir: Directory,
    pub(crate) entry: String,
}

impl Database {
    pub(crate) async fn start() -> Result<Self> {
        let dir = Directory::temporary()?;
        let server = PostgresServer::start(dir.path()).await?;
        let secret = dir.path().join("password");
        std::fs::write(&secret, PostgresServer::PASSWORD)?;
        let entry = format!(
            "[crm]\nurl = \"{}\"\nsecret = \"file:{}\"\ntimeout = \"2s\"\n\
             retry = {{ max_deliver = 100, base = \"200ms\", factor = 1.0, cap = \"200ms\" }}\n\
             breaker = {{ probe = \"100ms\", probe_cap = \"200ms\" }}\n\
             table = {{ columns = {{ username = \"username\", email = \"email\", n = \"data.n\" }} }}\n",
            server.url(),
            secret.display()
        );
        Ok(Self { server, dir, entry })
    }

    pub(crate) async fn client(&self) -> Result<PgPool> {
        let pool = PgPoolOptions::new().max_connections(1);
        let pool = pool.connect(&self.server.url_with_password()).await;
        pool.context("the test's own client")
    }

    /// Runs the worker with `--init-target crm` to its end; what it printed and logged.
    pub(crate) async fn init(&self, log: &str, more: &[&str]) -> Result<String> {
        let catalogue = self.dir.path().join("targets.toml");
        std::fs::write(&catalogue, &self.entry)?;
        let program = tools::binary("usersync-worker", tools::Profile::own())?;
        let launch = Launch::new("usersync-worker", program, self.dir.path().join(log))
            .args(["--init-target", "crm", "--targets"])
            .arg(&catalogue)
            .args(more);
        let status = launch.spawn()?.wait_exit(SOON).await?;
        let said = std::fs::read_to_string(launch.log())?;
        ensure!(status.success(), "{status}: {said}");
        Ok(said)
    }

    /// One number out of the table.
    pub(crate) async fn number(&self, what: &str) -> Result<i64> {
        let query = format!("SELECT {what} FROM users");
        let number = sqlx::query_scalar(AssertSqlSafe(query));
        Ok(number.fetch_one(&self.client().await?).await?)
    }
}

#[tokio::test]
async fn a_database_is_made_filled_and_survives_an_outage() -> Result<()> {
    let mut database = Database::start().await?;
    let shown = database.init("dry", &["--dry-run"]).await?;
    ensure!(
        shown.contains("CREATE TABLE IF NOT EXISTS \"users\""),
        "{shown}"
    );
    let client = database.client().await?;
    let tables = "SELECT COUNT(*) FROM pg_tables WHERE tablename = 'users'";
    let tables: i64 = sqlx::query_scalar(tables).fetch_one(&client).await?;
    ensure!(tables == 0, "a dry run made the table");
    database.init("init", &[]).await?;
    let again = database.init("again", &[]).await?;
    ensure!(again.contains("nothing is missing"), "{again}");
    sqlx::raw_sql("ALTER TABLE users ADD CHECK (username <> 'refused')")
        .execute(&client)
        .await?;

    let stack = only(database.entry.clone()).start().await?;
    let bus = Bus::connect(&stack).await?;
    let change = |user: u64, n: u64| {
        let name = if user == 37 {
            "refused".to_owned()
        } else {
            format!("name-{user}")
        };
        json!({"user_id": user, "username": name, "email": format!("{user}@example.com"), "data": {"n": n}})
    };
    bus.publish_all((1..=200).map(|user| ("user.created", change(user, 1))))
        .await?;
    bus.until_settled("crm").await?;
    ensure!(database.number("COUNT(*)").await? == 199);
    let letter = bus
        .dead_letter("crm", 37)
        .await?
        .context("no dead letter")?;
    ensure!(letter.header("Usersync-Class") == "permanent");
    ensure!(
        letter.header("Usersync-Status-Code") == "23514",
        "{:?}",
        letter.header("Usersync-Status-Code")
    );
    ensure!(bus.count(USER_DEAD).await? == 1);

    // Down for a while: nobody loses an attempt, and the newest comes through.
    database.server.kill9().await;
    bus.publish_all(
        (1..=200)
            .filter(|user| *user != 37)
            .map(|user| ("user.updated", change(user, 2))),
    )
    .await?;
    bus.publish("user.deleted", json!({"user_id": 1})).await?;
    eventually(SOON, async || {
        let breaker = bus
            .jetstream()
            .get_key_value("user_breakers")
            .await?
            .status()
            .await?;
        ensure!(breaker.values() > 0, "the worker hasn't noticed");
        Ok(())
    })
    .await?;
    database.server.restart().await?;
    bus.until_settled("crm").await?;
    ensure!(database.number("COUNT(*) FILTER (WHERE n = '2')").await? == 198);
    ensure!(
        database
            .number("COUNT(*) FILTER (WHERE sync_deleted AND email IS NULL)")
            .await?
            == 1
    );
    ensure!(bus.count(USER_DEAD).await? == 1);
    Ok(())
}
