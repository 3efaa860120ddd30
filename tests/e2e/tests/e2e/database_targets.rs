//! Databases as targets, all the way: made by the worker's own flag, filled from events, one bad user alone.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use neo4rs::{ConfigBuilder, Graph, query};
use serde_json::json;
use sqlx::{AssertSqlSafe, PgPool, postgres::PgPoolOptions};
use usersync_core::subjects::USER_DEAD;
use usersync_stack::{ArcadeDbServer, Directory, Launch, PostgresServer, eventually, tools};

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
        init(&self.dir, &self.entry, log, more).await
    }

    /// One number out of the table.
    pub(crate) async fn number(&self, what: &str) -> Result<i64> {
        let query = format!("SELECT {what} FROM users");
        let number = sqlx::query_scalar(AssertSqlSafe(query));
        Ok(number.fetch_one(&self.client().await?).await?)
    }
}

async fn init(dir: &Directory, entry: &str, log: &str, more: &[&str]) -> Result<String> {
    let catalogue = dir.path().join("targets.toml");
    std::fs::write(&catalogue, entry)?;
    let program = tools::binary("usersync-worker", tools::Profile::own())?;
    let launch = Launch::new("usersync-worker", program, dir.path().join(log))
        .args(["--init-target", "crm", "--targets"])
        .arg(&catalogue)
        .args(more);
    let status = launch.spawn()?.wait_exit(SOON).await?;
    let said = std::fs::read_to_string(launch.log())?;
    ensure!(status.success(), "{status}: {said}");
    Ok(said)
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

/// In a graph a statement writes all of a batch or nothing: the one who can't be written must not keep the others.
#[tokio::test]
async fn one_bad_row_of_a_batch_in_a_graph_is_given_up_and_the_others_are_written_once()
-> Result<()> {
    const USERS: u64 = 100;
    const BAD: u64 = 37;
    let dir = Directory::temporary()?;
    let server = ArcadeDbServer::start(dir.path()).await?;
    let secret = dir.path().join("password");
    std::fs::write(&secret, ArcadeDbServer::PASSWORD)?;
    let entry = format!(
        "[crm]\nurl = \"{}\"\nsecret = \"file:{}\"\n\
         retry = {{ max_deliver = 3, base = \"200ms\", factor = 1.0, cap = \"200ms\" }}\n\
         table = {{ columns = {{ username = \"username\", email = \"email\", n = \"data.n\" }} }}\n",
        server.url(),
        secret.display()
    );
    init(&dir, &entry, "init", &[]).await?;
    let graph = graph(&server).await?;
    for statement in [
        "CREATE CONSTRAINT crm_email IF NOT EXISTS FOR (u:User) REQUIRE u.email IS UNIQUE",
        "CREATE (u:User {id: 1000, email: '37@example.com', sync_version: 1, sync_deleted: false})",
    ] {
        graph.run(query(statement)).await?;
    }
    let mut stack = only(entry).workers("crm", 0).start().await?;
    let bus = Bus::connect(&stack).await?;
    let user = |user: u64| {
        let email = format!("{user}@example.com");
        let event =
            json!({"user_id": user, "username": "zaphod", "email": email, "data": {"n": 1}});
        ("user.created", event)
    };
    bus.publish_all((1..=USERS).map(user)).await?;
    bus.until_taken_in().await?;
    // All of them wait, so they go in one batch.
    stack.add_worker("crm").await?;
    bus.until_settled("crm").await?;

    let mut held = BTreeMap::new();
    let nodes = "MATCH (u:User) RETURN u.id AS id, u.sync_version AS version";
    let mut rows = graph.execute(query(nodes)).await?;
    while let Some(row) = rows.next().await? {
        let (id, version): (i64, i64) = (row.get("id")?, row.get("version")?);
        ensure!(
            held.insert(id, version).is_none(),
            "user {id} has two nodes"
        );
    }
    ensure!(
        held.remove(&1_000) == Some(1),
        "somebody else was written over"
    );
    let expected = (1..=USERS).filter(|user| *user != BAD);
    ensure!(
        held.keys().copied().eq(expected.map(|user| user as i64)),
        "{held:?}"
    );
    for (id, version) in held {
        let state = bus.state(id.unsigned_abs()).await?;
        ensure!(state["version"] == version, "{id}: {version} of {state}");
    }
    let letter = bus.dead_letter("crm", BAD).await?;
    let letter = letter.context("no dead letter")?;
    let code = letter.header("Usersync-Status-Code");
    ensure!(code.ends_with("ConstraintValidationFailed"), "{code}");
    ensure!(bus.count(USER_DEAD).await? == 1);
    let metrics = stack.worker_metrics("crm").await?;
    let delivered = metrics.sum("usersync_deliveries_total", &[("outcome", "delivered")]);
    ensure!(delivered == (USERS - 1) as f64, "{delivered} deliveries");
    Ok(())
}

/// A client that isn't ours.
async fn graph(server: &ArcadeDbServer) -> Result<Graph> {
    let url = server.url().replace("root@", "");
    let (address, database) = url.rsplit_once('/').context("a database in the url")?;
    let config = ConfigBuilder::default()
        .uri(address)
        .user("root")
        .password(ArcadeDbServer::PASSWORD)
        .db(database)
        .build()?;
    Ok(Graph::connect(config).await?)
}
