//! Real servers of every kind with TLS, and without.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _};
use usersync_stack::{
    ArcadeDbServer, Certificates, MariaDbServer, PostgresFront, PostgresServer, RedisServer,
    free_port,
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Redis,
    MySql,
    Postgres,
    Neo4j,
}

enum Process {
    Redis(RedisServer),
    MySql(MariaDbServer),
    /// With TLS in front, where it has some.
    Postgres(PostgresServer, Option<PostgresFront>),
    Neo4j(ArcadeDbServer),
}

pub(crate) struct Server {
    process: Process,
    secret: PathBuf,
    /// Where clients with TLS come in.
    pub(crate) port: u16,
}

impl Kind {
    pub(crate) fn password(self) -> &'static str {
        match self {
            Self::Redis => "of-a-test-client",
            Self::MySql => MariaDbServer::PASSWORD,
            Self::Postgres => PostgresServer::PASSWORD,
            Self::Neo4j => ArcadeDbServer::PASSWORD,
        }
    }

    pub(crate) fn user(self) -> &'static str {
        match self {
            Self::Redis => "sync",
            Self::MySql => "usersync",
            Self::Postgres => "postgres",
            Self::Neo4j => "root",
        }
    }

    /// The URL of a target that wants TLS when it has `tls`.
    pub(crate) fn url(self, user: &str, host: &str, port: u16) -> String {
        let (scheme, database) = match self {
            Self::Redis => ("rediss", "0"),
            Self::MySql => ("mysql", "users"),
            Self::Postgres => ("postgres", "postgres"),
            Self::Neo4j => ("bolt+s", "userdata"),
        };
        format!("{scheme}://{user}@{host}:{port}/{database}")
    }
}

impl Server {
    /// With TLS by `server.pem`; it asks for no certificates yet.
    pub(crate) async fn secured(kind: Kind, dir: &Path, tls: &Certificates) -> Result<Self> {
        let mut at = None;
        let process = match kind {
            Kind::Redis => {
                let user = user_of_redis();
                let args: Vec<_> = user.iter().map(String::as_str).collect();
                let server = RedisServer::start_secured(dir, tls, &args).await?;
                at = server.tls_port();
                Process::Redis(server)
            }
            Kind::MySql => Process::MySql(MariaDbServer::start_secured(dir, tls).await?),
            Kind::Postgres => {
                let server = PostgresServer::start(dir).await?;
                let front = PostgresFront::start(server.port(), tls).await?;
                at = Some(front.port());
                Process::Postgres(server, Some(front))
            }
            Kind::Neo4j => Process::Neo4j(ArcadeDbServer::start_secured(dir, tls).await?),
        };
        Self::of(kind, process, dir, at)
    }

    /// Without TLS.
    pub(crate) async fn plain(kind: Kind, dir: &Path) -> Result<Self> {
        let process = match kind {
            Kind::Redis => {
                let user = user_of_redis();
                let args: Vec<_> = user.iter().map(String::as_str).collect();
                Process::Redis(RedisServer::start_with(dir, free_port()?, &args).await?)
            }
            Kind::MySql => {
                let args = ["--skip-ssl".to_owned()];
                Process::MySql(MariaDbServer::start_with(dir, &args).await?)
            }
            Kind::Postgres => Process::Postgres(PostgresServer::start(dir).await?, None),
            Kind::Neo4j => Process::Neo4j(ArcadeDbServer::start(dir).await?),
        };
        Self::of(kind, process, dir, None)
    }

    fn of(kind: Kind, process: Process, dir: &Path, at: Option<u16>) -> Result<Self> {
        let secret = dir.join("secret");
        std::fs::write(&secret, kind.password())?;
        let port = at.unwrap_or(match &process {
            Process::Redis(server) => server.port(),
            Process::MySql(server) => server.port(),
            Process::Postgres(server, _) => server.port(),
            Process::Neo4j(server) => server.port(),
        });
        Ok(Self {
            process,
            secret,
            port,
        })
    }

    /// The password of every user, by reference.
    pub(crate) fn secret(&self) -> Value {
        json!(format!("file:{}", self.secret.display()))
    }

    /// Has it show `server.pem` as it is now.
    pub(crate) async fn renew(&mut self, dir: &Path, tls: &Certificates) -> Result<()> {
        match &mut self.process {
            Process::Redis(server) => server.restart().await,
            Process::MySql(server) => server.restart().await,
            Process::Postgres(..) => Ok(()),
            Process::Neo4j(server) => {
                server.kill9().await;
                *server = ArcadeDbServer::start_secured(dir, tls).await?;
                self.port = server.port();
                Ok(())
            }
        }
    }

    /// Has it ask for certificates.
    pub(crate) async fn ask(&self) -> Result<()> {
        match &self.process {
            Process::Redis(server) => {
                let client = redis::Client::open(server.url())?;
                let mut client = client.get_multiplexed_async_connection().await?;
                let mut set = redis::cmd("CONFIG");
                let set = set.arg("SET").arg("tls-auth-clients").arg("yes");
                let set: String = set.query_async(&mut client).await?;
                ensure!(set == "OK", "{set}");
            }
            Process::MySql(server) => {
                let options: sqlx::mysql::MySqlConnectOptions =
                    server.url_with_password().parse()?;
                let mut admin = options.connect().await?;
                admin
                    .execute("ALTER USER usersync@'%' REQUIRE X509")
                    .await?;
                admin.close().await?;
            }
            Process::Postgres(_, front) => front.iter().for_each(PostgresFront::ask),
            // Its Bolt never does.
            Process::Neo4j(_) => {}
        }
        Ok(())
    }
}

/// The arguments that make it, beside the default one, which the test comes as.
fn user_of_redis() -> Vec<String> {
    let password = format!(">{}", Kind::Redis.password());
    let user = ["--user", Kind::Redis.user(), "on", "~user:*", &password];
    let rights = ["+@read", "+@write", "+@scripting", "+ping"];
    [user.as_slice(), &rights]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect()
}
