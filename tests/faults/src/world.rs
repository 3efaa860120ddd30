//! Everything that is broken: servers, our own processes, six copies of every user.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream;
use neo4rs::{ConfigBuilder, Graph, query};
use sqlx::{MySqlPool, PgPool, mysql::MySqlPoolOptions, postgres::PgPoolOptions};
use usersync_stack::{
    ArcadeDbServer, Directory, Launch, MariaDbServer, PostgresServer, Service, Stack, tools,
};

use crate::{proxy::Proxy, receiver::Receiver};

/// Tries again soon, for as long as a fault lasts.
const HASTY: &str = "timeout = \"3s\"\nretry = { max_deliver = 100, base = \"200ms\", factor = 1.5, cap = \"1s\" }\n\
                     breaker = { probe = \"200ms\", probe_cap = \"1s\" }";
/// What the databases hold of a user.
const COLUMNS: &str =
    "table = { columns = { username = \"username\", email = \"email\", n = \"data.n\" } }";
const TABLE: &str = "CREATE TABLE users (id BIGINT PRIMARY KEY, sync_version BIGINT NOT NULL, \
                     sync_deleted BOOLEAN NOT NULL DEFAULT FALSE, username VARCHAR(255), email VARCHAR(255), n BIGINT)";
/// Notes whoever goes back to an older version.
const WATCH: &str = "CREATE TABLE regressed (id BIGINT, was BIGINT, now BIGINT);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO regressed VALUES (OLD.id, OLD.sync_version, NEW.sync_version); RETURN NEW; END $$;
    CREATE TRIGGER watch BEFORE UPDATE ON users FOR EACH ROW WHEN (NEW.sync_version < OLD.sync_version) EXECUTE FUNCTION note();";
/// How long one thing may take to come back.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// The targets, in the order they are reported.
pub(crate) const TARGETS: [&str; 6] = ["guarded", "plain", "redis-cache", "crm", "shop", "graph"];

pub(crate) struct World {
    pub(crate) stack: Stack,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) postgres: PostgresServer,
    pub(crate) mariadb: MariaDbServer,
    pub(crate) bolt: ArcadeDbServer,
    /// Refuses older versions, and says so.
    pub(crate) guarded: Receiver,
    /// Takes whatever comes.
    pub(crate) plain: Receiver,
    /// In front of both.
    pub(crate) guarded_line: Proxy,
    pub(crate) plain_line: Proxy,
    /// In front of PostgreSQL.
    pub(crate) postgres_line: Proxy,
    _directory: Directory,
}

impl World {
    pub(crate) async fn start() -> Result<Self> {
        let directory = Directory::temporary()?;
        let dir = directory.path();
        let (postgres, mariadb, bolt) = tokio::try_join!(
            PostgresServer::start(dir),
            MariaDbServer::start(dir),
            ArcadeDbServer::start(dir)
        )?;
        let (guarded, plain) = (Receiver::start(true).await?, Receiver::start(false).await?);
        let guarded_line = Proxy::start(guarded.port()).await?;
        let plain_line = Proxy::start(plain.port()).await?;
        let port = |url: &str| -> Result<u16> {
            let address = url.rsplit('/').nth(1).context("an address")?;
            Ok(address.rsplit(':').next().context("a port")?.parse()?)
        };
        let postgres_port = port(&postgres.url())?;
        let postgres_line = Proxy::start(postgres_port).await?;
        let crm = postgres.url().replace(
            &format!(":{postgres_port}/"),
            &format!(":{}/", postgres_line.port()),
        );
        let secret = |name: &str, text: &str| -> Result<String> {
            let file = dir.join(name);
            fs::write(&file, text)?;
            Ok(format!("secret = \"file:{}\"", file.display()))
        };
        let http = |name: &str, line: &Proxy| {
            format!(
                "[{name}]\nurl = \"http://127.0.0.1:{}/users\"\n{HASTY}\n",
                line.port()
            )
        };
        let database = |name: &str, url: &str, secret: &str| {
            format!("[{name}]\nurl = \"{url}\"\n{secret}\n{COLUMNS}\n{HASTY}\n")
        };
        let graph = database(
            "graph",
            &bolt.url(),
            &secret("bolt", ArcadeDbServer::PASSWORD)?,
        );
        let catalogue = [
            http("guarded", &guarded_line),
            http("plain", &plain_line),
            format!("[redis-cache]\nrefill = true\n{HASTY}\n"),
            database("crm", &crm, &secret("crm", PostgresServer::PASSWORD)?),
            database(
                "shop",
                &mariadb.url(),
                &secret("shop", MariaDbServer::PASSWORD)?,
            ),
            graph.clone(),
        ];
        let catalogue = catalogue.join("\n");
        sqlx::raw_sql(TABLE)
            .execute(&postgres_client(&postgres).await?)
            .await?;
        sqlx::raw_sql(WATCH)
            .execute(&postgres_client(&postgres).await?)
            .await?;
        sqlx::raw_sql(TABLE)
            .execute(&mariadb_client(&mariadb).await?)
            .await?;
        make_constraint(dir, &graph).await?;
        let mut builder = Stack::builder().examples(false).schedulers(1);
        for target in TARGETS {
            builder = builder.workers(target, 2);
        }
        for (alert, after) in [
            ("BREAKER", "2s"),
            ("BACKLOG", "20s"),
            ("WORKER", "5s"),
            ("FAILING", "5s"),
            ("DEAD", "1s"),
        ] {
            builder = builder.env(format!("USERSYNC_ALERTS__{alert}"), after);
        }
        let stack = builder.targets_toml(move |_| catalogue).start().await?;
        let jetstream = jetstream::new(stack.nats.connect().await?);
        Ok(Self {
            stack,
            jetstream,
            postgres,
            mariadb,
            bolt,
            guarded,
            plain,
            guarded_line,
            plain_line,
            postgres_line,
            _directory: directory,
        })
    }

    /// The workers of a target.
    pub(crate) fn workers(&mut self, target: &str) -> &mut [Service] {
        let workers = self.stack.workers.get_mut(target);
        workers.map_or(&mut [], Vec::as_mut_slice)
    }

    /// Where logs and data are.
    pub(crate) fn dir(&self) -> &Path {
        self.stack.dir()
    }

    pub(crate) async fn postgres_client(&self) -> Result<PgPool> {
        postgres_client(&self.postgres).await
    }

    pub(crate) async fn mariadb_client(&self) -> Result<MySqlPool> {
        mariadb_client(&self.mariadb).await
    }

    pub(crate) async fn graph_client(&self) -> Result<Graph> {
        let url = self.bolt.url().replace("root@", "");
        let (address, database) = url.rsplit_once('/').context("a database in the url")?;
        let config = ConfigBuilder::default()
            .uri(address)
            .user("root")
            .password(ArcadeDbServer::PASSWORD)
            .db(database)
            .build()?;
        Ok(Graph::connect(config).await?)
    }
}

async fn postgres_client(server: &PostgresServer) -> Result<PgPool> {
    let pool = PgPoolOptions::new().max_connections(1);
    Ok(pool.connect(&server.url_with_password()).await?)
}

async fn mariadb_client(server: &MariaDbServer) -> Result<MySqlPool> {
    let pool = MySqlPoolOptions::new().max_connections(1);
    Ok(pool.connect(&server.url_with_password()).await?)
}

/// What keeps two nodes of one user away, as users make it.
async fn make_constraint(dir: &Path, entry: &str) -> Result<()> {
    let catalogue = dir.join("graph.toml");
    fs::write(&catalogue, entry)?;
    let program = tools::binary("usersync-worker", tools::Profile::own())?;
    let launch = Launch::new("init", program, dir.join("init.log"))
        .args(["--init-target", "graph", "--targets"])
        .arg(&catalogue);
    let process = launch.spawn()?;
    let status = process.wait_exit(SOON).await?;
    ensure!(status.success(), "{}", process.log_tail());
    Ok(())
}

/// One number by Bolt.
pub(crate) async fn ask_graph(graph: &Graph, statement: &str) -> Result<Vec<neo4rs::Row>> {
    let mut rows = graph.execute(query(statement)).await?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().await? {
        found.push(row);
    }
    Ok(found)
}
