//! Everything that is broken: servers, our own processes, six copies of every user.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream;
use neo4rs::{ConfigBuilder, Graph, query};
use sqlx::{MySqlPool, PgPool, mysql::MySqlPoolOptions, postgres::PgPoolOptions};
use usersync_stack::{
    ArcadeDbServer, Certificates, Directory, Launch, MariaDbServer, NatsServer, PostgresServer,
    Routes, Service, Stack, StackBuilder, eventually, tools,
};

use crate::{
    disk::Disk,
    examples::Example,
    fault::Broker,
    names::{HOST, Names},
    proxy::Proxy,
    receiver::Receiver,
};

/// Tries again soon, for as long as a fault lasts.
const HASTY: &str = "timeout = \"3s\"\nretry = { max_deliver = 100, base = \"200ms\", factor = 1.5, cap = \"1s\" }\n\
                     breaker = { probe = \"200ms\", probe_cap = \"1s\" }";
/// What the databases hold of a user.
const COLUMNS: &str =
    "table = { columns = { username = \"username\", email = \"email\", n = \"data.n\" } }";
const TABLE: &str = "CREATE TABLE users (id BIGINT PRIMARY KEY, sync_version BIGINT NOT NULL, \
                     sync_deleted BOOLEAN NOT NULL DEFAULT FALSE, username VARCHAR(255), email VARCHAR(255), n BIGINT)";
/// The main database, and its users.
const MAIN: &str = "CREATE DATABASE main; USE main; \
                    CREATE TABLE people (uid BIGINT PRIMARY KEY, username VARCHAR(255), email VARCHAR(255), n BIGINT)";
const SOURCE: &str = "table = \"people\"\nid = \"uid\"\n\
                      columns = { username = \"username\", email = \"email\", n = \"data.n\" }\n\
                      check = { orphan = \"repair\" }\n\
                      [egress]\nallow = [\"public\", \"loopback\"]\n";
/// Notes whoever goes back to an older version.
const WATCH: &str = "CREATE TABLE regressed (id BIGINT, was BIGINT, now BIGINT);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO regressed VALUES (OLD.id, OLD.sync_version, NEW.sync_version); RETURN NEW; END $$;
    CREATE TRIGGER watch BEFORE UPDATE ON users FOR EACH ROW WHEN (NEW.sync_version < OLD.sync_version) EXECUTE FUNCTION note();";
/// What calls to `guarded` are signed with, first and later.
pub(crate) const SECRETS: [&str; 2] = [
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
];
/// Users of one round: the first half by events, the other one in the main database.
const PER_ROUND: u64 = 1_000;
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
    /// Refuses older versions, and says so; over TLS, and signed.
    pub(crate) guarded: Receiver,
    /// Takes whatever comes.
    pub(crate) plain: Receiver,
    /// What it shows, and what others would.
    pub(crate) certificates: Certificates,
    pub(crate) strangers: Certificates,
    /// In front of both.
    pub(crate) guarded_line: Proxy,
    pub(crate) plain_line: Proxy,
    /// In front of PostgreSQL.
    pub(crate) postgres_line: Proxy,
    /// Between the servers of NATS' cluster: from, to.
    pub(crate) routes: Vec<(usize, usize, Proxy)>,
    /// The first user of the round.
    pub(crate) first: u64,
    /// What NATS' store is on, where that may be filled.
    pub(crate) disk: Option<Disk>,
    /// More targets, for as long as a fault is judged.
    pub(crate) examples: Vec<Example>,
    /// The ids of events that nobody may take.
    pub(crate) forged: Vec<String>,
    /// Who says where `plain` is, where workers can be led to ask.
    pub(crate) names: Option<Names>,
    /// The settings with the main database.
    settings: PathBuf,
    directory: Directory,
}

impl World {
    pub(crate) async fn start(broker: Broker) -> Result<Self> {
        let directory = Directory::temporary()?;
        let dir = directory.path();
        let (postgres, mariadb, bolt) = tokio::try_join!(
            PostgresServer::start(dir),
            MariaDbServer::start(dir),
            ArcadeDbServer::start(dir)
        )?;
        let certificates = Certificates::make(&dir.join("tls"))?;
        let strangers = Certificates::make(&dir.join("strangers"))?;
        let guarded = Receiver::guarded(&certificates, SECRETS[0]).await?;
        let plain = Receiver::plain().await?;
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
        let names = Names::start(dir).await.ok();
        let http = |name: &str, scheme: &str, host: &str, line: &Proxy, more: &str| {
            let url = format!("{scheme}://{host}:{}/users", line.port());
            format!("[{name}]\nurl = \"{url}\"\nread_url = \"{url}/{{id}}\"\n{more}\n{HASTY}\n")
        };
        let secured = format!(
            "{}\ntls = {{ ca = \"file:{}\" }}",
            secret("guarded", SECRETS[0])?,
            certificates.ca().display()
        );
        let database = |name: &str, url: &str, secret: &str| {
            format!("[{name}]\nurl = \"{url}\"\n{secret}\n{COLUMNS}\n{HASTY}\n")
        };
        let in_mariadb = secret("shop", MariaDbServer::PASSWORD)?;
        let graph = database(
            "graph",
            &bolt.url(),
            &secret("bolt", ArcadeDbServer::PASSWORD)?,
        );
        let host = names.as_ref().map_or("127.0.0.1", |_| HOST);
        let catalogue = [
            http("guarded", "https", "127.0.0.1", &guarded_line, &secured),
            http("plain", "http", host, &plain_line, ""),
            format!("[redis-cache]\nrefill = true\n{HASTY}\n"),
            database("crm", &crm, &secret("crm", PostgresServer::PASSWORD)?),
            database("shop", &mariadb.url(), &in_mariadb),
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
        let settings = dir.join("main.toml");
        let url = in_main(&mariadb.url());
        let source = format!("[sources.main]\nurl = \"{url}\"\n{in_mariadb}\n{SOURCE}");
        fs::write(&settings, source)?;
        sqlx::raw_sql(MAIN)
            .execute(&mariadb_client(&mariadb).await?)
            .await?;
        ran(dir, &settings, "install", None, &["outbox", "install"]).await?;
        let home = dir.join("stack");
        let disk = match broker {
            Broker::Alone => Disk::mount(&home.join("nats")).ok(),
            Broker::Cluster => None,
        };
        let mut builder = builder()
            .dir(&home)
            .gateway_args(["--config".as_ref(), settings.as_os_str()]);
        if let Some(names) = &names {
            builder = builder.binaries(names.programs());
        }
        let mut lines = Vec::new();
        if broker == Broker::Cluster {
            let mut routes = Routes::direct()?;
            for (from, to) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)] {
                let line = Proxy::start(routes.port(to)).await?;
                routes.lead(from, to, line.port());
                lines.push((from, to, line));
            }
            builder = builder.nats_cluster(routes);
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
            certificates,
            strangers,
            guarded_line,
            plain_line,
            postgres_line,
            routes: lines,
            first: 1,
            disk,
            examples: Vec::new(),
            forged: Vec::new(),
            names,
            settings,
            directory,
        })
    }

    /// The first user of a round: each has users of its own, so that what is wrong can be told apart.
    pub(crate) const fn first_of(round: u64) -> u64 {
        1 + round * PER_ROUND
    }

    /// Whether the main database alone knows of a user.
    pub(crate) const fn is_of_main(user: u64) -> bool {
        (user - 1) % PER_ROUND >= PER_ROUND / 2
    }

    /// The file with the secret that calls to `guarded` are signed with.
    pub(crate) fn secret(&self) -> PathBuf {
        self.directory.path().join("guarded")
    }

    /// Does something with the main database by the scheduler, as an operator does.
    pub(crate) async fn scheduler(&self, name: &str, args: &[&str]) -> Result<()> {
        let dir = self.directory.path();
        ran(dir, &self.settings, name, Some(&self.stack.nats), args).await
    }

    /// Lets everything be looked at afterwards; where it is.
    pub(crate) fn keep(&mut self) -> &Path {
        self.directory.keep();
        self.directory.path()
    }

    /// The number of the server of NATS that leads a stream, as soon as one does.
    pub(crate) async fn leader(&self, stream: &str) -> Result<usize> {
        eventually(SOON, async || {
            let stream = self.jetstream.get_stream(stream).await?;
            let cluster = stream.cached_info().cluster.clone();
            let leader = cluster.and_then(|cluster| cluster.leader);
            let leader = leader.context("nobody leads")?;
            let number = leader.rsplit('-').next().unwrap_or_default();
            Ok(number.parse()?)
        })
        .await
    }

    /// A server of NATS by its number.
    pub(crate) fn nats(&mut self, number: usize) -> &mut NatsServer {
        match number {
            0 => &mut self.stack.nats,
            peer => &mut self.stack.nats.peers()[peer - 1],
        }
    }

    /// All of our own processes.
    pub(crate) fn services(&mut self) -> impl Iterator<Item = &mut Service> {
        let stack = &mut self.stack;
        let services = stack.gateways.iter_mut().chain(&mut stack.schedulers);
        services.chain(stack.workers.values_mut().flatten())
    }

    /// Has the gateway asked something, as an operator does; an answer that is an error is one.
    pub(crate) async fn ask(&self, subject: &'static str, body: &str) -> Result<()> {
        let client = self.jetstream.client();
        let asked = client.request(subject, body.to_owned().into()).await?;
        let headers = asked.headers.as_ref();
        let failed = headers.and_then(|headers| headers.get("Nats-Service-Error"));
        ensure!(failed.is_none(), "{subject}: {failed:?}");
        Ok(())
    }

    /// Ends the targets that were there for a while.
    pub(crate) async fn end_examples(&mut self) -> Result<()> {
        self.forged.clear();
        for example in std::mem::take(&mut self.examples) {
            example.end(self).await?;
        }
        Ok(())
    }

    /// The workers of a target.
    pub(crate) fn workers(&mut self, target: &str) -> &mut [Service] {
        let workers = self.stack.workers.get_mut(target);
        workers.map_or(&mut [], Vec::as_mut_slice)
    }

    pub(crate) async fn postgres_client(&self) -> Result<PgPool> {
        postgres_client(&self.postgres).await
    }

    pub(crate) async fn mariadb_client(&self) -> Result<MySqlPool> {
        mariadb_client(&self.mariadb).await
    }

    /// A connection to the main database, made when it is needed.
    pub(crate) fn main_client(&self) -> Result<MySqlPool> {
        let url = in_main(&self.mariadb.url_with_password());
        let pool = MySqlPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(Duration::from_secs(5));
        Ok(pool.connect_lazy(&url)?)
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

/// A URL of MariaDB with the main database instead of the targets'.
fn in_main(url: &str) -> String {
    let server = url.strip_suffix("/users").unwrap_or(url);
    format!("{server}/main")
}

fn builder() -> StackBuilder {
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
        ("OUTBOX", "2s"),
    ] {
        builder = builder.env(format!("USERSYNC_ALERTS__{alert}"), after);
    }
    builder
}

/// Runs the scheduler to its end.
async fn ran(
    dir: &Path,
    settings: &Path,
    name: &str,
    nats: Option<&NatsServer>,
    args: &[&str],
) -> Result<()> {
    let program = tools::binary("usersync-scheduler", tools::Profile::own())?;
    let mut launch = Launch::new(name, program, dir.join(format!("{name}.log"))).args(args);
    if let Some(nats) = nats {
        launch = launch.nats(nats, "scheduler");
    }
    let process = launch.arg("--config").arg(settings).spawn()?;
    let status = process.wait_exit(SOON).await?;
    ensure!(status.success(), "{}", process.log_tail());
    Ok(())
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
