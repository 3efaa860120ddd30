//! A main database over TLS by a private authority.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, MySqlConnection, PgConnection};
use usersync_core::auth::Tls;
use usersync_source::{Database, Server, SourceConfig};
use usersync_stack::{
    Authorities, Certificates, Directory, MariaDbServer, PostgresFront, PostgresServer,
};

use crate::place::{Place, noted};

const TABLE: &str = "CREATE TABLE users (id BIGINT PRIMARY KEY, username VARCHAR(50))";
const ROW: &str = "INSERT INTO users VALUES (42, 'ann')";

/// A server with TLS.
struct Secured {
    dir: Directory,
    ours: Certificates,
    others: Certificates,
    running: Running,
}

enum Running {
    MariaDb(MariaDbServer),
    Postgres(PostgresServer, PostgresFront),
}

impl Secured {
    async fn start(server: Server) -> Result<Self> {
        let Authorities { ours, others, dir } = Authorities::make()?;
        let running = match server {
            Server::MySql => {
                Running::MariaDb(MariaDbServer::start_secured(dir.path(), &ours).await?)
            }
            _ => {
                let server = PostgresServer::start(dir.path()).await?;
                let front = PostgresFront::start(server.port(), &ours).await?;
                Running::Postgres(server, front)
            }
        };
        Ok(Self {
            dir,
            ours,
            others,
            running,
        })
    }

    /// Another client's statement.
    async fn run(&self, statement: &str) -> Result<()> {
        let query = AssertSqlSafe(statement.to_owned());
        match &self.running {
            Running::MariaDb(server) => {
                let mut client = MySqlConnection::connect(&server.url_with_password()).await?;
                client.execute(query).await?;
            }
            Running::Postgres(server, _) => {
                let mut client = PgConnection::connect(&server.url_with_password()).await?;
                client.execute(query).await?;
            }
        }
        Ok(())
    }

    /// Has it show another certificate.
    async fn show(&mut self, name: &str) -> Result<()> {
        self.ours.show(name)?;
        match &mut self.running {
            Running::MariaDb(server) => server.restart().await,
            Running::Postgres(..) => Ok(()),
        }
    }

    /// Has it ask us for a certificate.
    async fn ask(&self) -> Result<()> {
        match &self.running {
            Running::MariaDb(_) => self.run("ALTER USER usersync@'%' REQUIRE X509").await,
            Running::Postgres(_, front) => {
                front.ask();
                Ok(())
            }
        }
    }

    fn config(&self, ca: PathBuf) -> Result<SourceConfig> {
        let (url, port, password) = match &self.running {
            Running::MariaDb(server) => (server.url(), server.port(), MariaDbServer::PASSWORD),
            Running::Postgres(server, front) => {
                let url = server.url();
                let url = url.replace(&server.port().to_string(), &front.port().to_string());
                (url, front.port(), PostgresServer::PASSWORD)
            }
        };
        ensure!(url.contains(&port.to_string()), "{url}");
        let secret = self.dir.path().join("password");
        std::fs::write(&secret, password)?;
        let mut config = SourceConfig::at(url.replace("127.0.0.1", "localhost").parse()?);
        let file = |path: PathBuf| format!("file:{}", path.display()).parse();
        config.secret = Some(file(secret)?);
        config.tls = Some(Tls {
            ca: Some(file(ca)?),
            ..Tls::default()
        });
        Ok(config)
    }

    /// Nobody gets through, and the error ends so.
    async fn refuses(&self, config: &SourceConfig, told: &str) -> Result<()> {
        let error = Database::connect(config)
            .await
            .err()
            .context("it was let in")?;
        let (error, port) = (error.to_string(), config.url.port().unwrap_or_default());
        let begin = format!("connecting to localhost:{port}: no TLS: ");
        ensure!(
            error.starts_with(&begin) && error.ends_with(told),
            "{error:?} is not: {told}"
        );
        Ok(())
    }
}

async fn hold(server: Server) -> Result<()> {
    let mut secured = Secured::start(server).await?;
    secured.run(TABLE).await?;
    let config = secured.config(secured.ours.ca())?;

    // All of what a relay does: triggers, rows, and word of new ones.
    let mut database = Database::connect(&config).await?;
    database.install(false).await?;
    ensure!(database.try_lock().await?, "somebody else relays");
    secured.run(ROW).await?;
    let rows = noted(&mut database).await?;
    ensure!(rows.len() == 1 && rows[0].event == "I", "{rows:?}");

    let strangers = secured.config(secured.others.ca())?;
    let told = "`tls.ca` has to hold the one that issued it";
    secured
        .refuses(&strangers, told)
        .await
        .context("another authority")?;
    secured.show("expired").await?;
    let told = "its certificate has expired: renew it at the server";
    secured.refuses(&config, told).await?;
    secured.show("wrong-host").await?;
    let told = "its certificate is another host's: the host in `url` has to be in it";
    secured.refuses(&config, told).await?;

    secured.ours.renew("spare")?;
    secured.show("spare").await?;
    secured.ask().await?;
    let nobody = Database::connect(&config)
        .await
        .err()
        .context("nobody was let in")?;
    let told = match server {
        Server::MySql => "Access denied",
        _ => "set `tls.cert` and `tls.key`",
    };
    ensure!(nobody.to_string().contains(told), "{nobody}");
    let file = |path: PathBuf| format!("file:{}", path.display()).parse();
    let mut known = config.clone();
    known.tls = Some(Tls {
        ca: Some(file(secured.ours.ca())?),
        cert: Some(file(secured.ours.cert("client"))?),
        key: Some(file(secured.ours.key("client"))?),
    });
    let mut database = Database::connect(&known).await.context("our certificate")?;
    ensure!(database.standing().await?.installed, "the outbox is gone");
    Ok(())
}

#[tokio::test]
async fn mariadb_has_to_prove_who_it_is() -> Result<()> {
    hold(Server::MySql).await
}

#[tokio::test]
async fn postgres_has_to_prove_who_it_is() -> Result<()> {
    hold(Server::Postgres).await
}

#[tokio::test]
async fn a_server_without_tls_is_told_no_password() -> Result<()> {
    let secured = Secured::start(Server::Postgres).await?;
    let Running::Postgres(server, _) = &secured.running else {
        anyhow::bail!("another server");
    };
    let mut config = secured.config(secured.ours.ca())?;
    let plain = server.url().replace("127.0.0.1", "localhost");
    config.url = plain.parse()?;
    let told = "Neither a password nor a user was sent to it";
    secured.refuses(&config, told).await
}

/// The first connection of a user shows the password to the server, which nothing hides without TLS.
#[tokio::test]
async fn mysql_that_wants_a_password_without_tls_is_explained() -> Result<()> {
    if usersync_stack::MySqlServer::is_left_out()? {
        return Ok(());
    }
    let place = Place::mysql().await?;
    let mut config = place.config("people", "uid", &[])?;
    config.url.set_query(Some("ssl-mode=disabled"));
    let said = Database::connect(&config).await.err();
    let said = said.context("it was let in")?.to_string();
    ensure!(
        said.contains("caching_sha2_password") && said.contains("set `tls = {"),
        "{said}"
    );
    Ok(())
}
