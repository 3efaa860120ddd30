//! A real server, clients that aren't ours, and what ours reads.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;
use sqlx::{
    AssertSqlSafe, Connection as _, MySqlConnection, PgConnection, SqliteConnection,
    mysql::MySqlConnectOptions,
};
use usersync_source::{Database, OutboxRow, Server, SourceConfig};
use usersync_stack::{Directory, MariaDbServer, MySqlServer, PostgresServer};

/// A database server.
pub(crate) struct Place {
    dir: Directory,
    running: Running,
}

enum Running {
    MariaDb(MariaDbServer),
    MySql(MySqlServer),
    Postgres(PostgresServer),
    Sqlite,
}

/// A client that isn't ours.
pub(crate) enum Client {
    MySql(MySqlConnection),
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

impl Place {
    pub(crate) async fn mariadb() -> Result<Self> {
        let dir = Directory::temporary()?;
        std::fs::write(dir.path().join("password"), MariaDbServer::PASSWORD)?;
        let running = Running::MariaDb(MariaDbServer::start(dir.path()).await?);
        Ok(Self { dir, running })
    }

    pub(crate) async fn mysql() -> Result<Self> {
        let dir = Directory::temporary()?;
        std::fs::write(dir.path().join("password"), MySqlServer::PASSWORD)?;
        let running = Running::MySql(MySqlServer::start(dir.path()).await?);
        Ok(Self { dir, running })
    }

    pub(crate) async fn postgres() -> Result<Self> {
        let dir = Directory::temporary()?;
        std::fs::write(dir.path().join("password"), PostgresServer::PASSWORD)?;
        let running = Running::Postgres(PostgresServer::start(dir.path()).await?);
        Ok(Self { dir, running })
    }

    pub(crate) async fn newest_postgres() -> Result<Self> {
        let dir = Directory::temporary()?;
        std::fs::write(dir.path().join("password"), PostgresServer::PASSWORD)?;
        let running = Running::Postgres(PostgresServer::start_newest(dir.path()).await?);
        Ok(Self { dir, running })
    }

    pub(crate) fn sqlite() -> Result<Self> {
        let dir = Directory::temporary()?;
        std::fs::write(dir.path().join("users.db"), "")?;
        Ok(Self {
            dir,
            running: Running::Sqlite,
        })
    }

    /// Where a SQLite file is.
    pub(crate) fn file(&self) -> PathBuf {
        self.dir.path().join("users.db")
    }

    pub(crate) fn server(&self) -> Server {
        match self.running {
            Running::MariaDb(_) | Running::MySql(_) => Server::MySql,
            Running::Postgres(_) => Server::Postgres,
            Running::Sqlite => Server::Sqlite,
        }
    }

    /// Whether it is MySQL itself, which differs from MariaDB in places.
    pub(crate) fn is_mysql(&self) -> bool {
        matches!(self.running, Running::MySql(_))
    }

    /// One of three texts, by server: MySQL and MariaDB, PostgreSQL, SQLite.
    pub(crate) fn pick<'a>(&self, texts: [&'a str; 3]) -> &'a str {
        match self.server() {
            Server::MySql => texts[0],
            Server::Postgres => texts[1],
            Server::Sqlite => texts[2],
        }
    }

    pub(crate) async fn client(&self) -> Result<Client> {
        Ok(match &self.running {
            Running::MariaDb(server) => {
                Client::MySql(MySqlConnection::connect(&server.url_with_password()).await?)
            }
            Running::MySql(server) => {
                Client::MySql(MySqlConnection::connect(&server.url_with_password()).await?)
            }
            Running::Postgres(server) => {
                Client::Postgres(PgConnection::connect(&server.url_with_password()).await?)
            }
            Running::Sqlite => {
                let url = format!("sqlite:{}", self.file().display());
                Client::Sqlite(SqliteConnection::connect(&url).await?)
            }
        })
    }

    /// The PostgreSQL that it is, and the folder of its files.
    pub(crate) fn postgres_server(&self) -> Result<(&PostgresServer, &std::path::Path)> {
        match &self.running {
            Running::Postgres(server) => Ok((server, self.dir.path())),
            _ => anyhow::bail!("it is no PostgreSQL"),
        }
    }

    /// Ends the PostgreSQL that it is and starts it with the settings of now.
    pub(crate) async fn restart_postgres(&mut self) -> Result<()> {
        match &mut self.running {
            Running::Postgres(server) => {
                server.kill9().await;
                server.restart().await
            }
            _ => anyhow::bail!("it is no PostgreSQL"),
        }
    }

    /// A client of MySQL or MariaDB that may do everything.
    pub(crate) async fn root(&self) -> Result<Client> {
        let home = self
            .dir
            .path()
            .join(if self.is_mysql() { "mysql" } else { "mariadb" });
        let options = MySqlConnectOptions::new()
            .socket(home.join("socket"))
            .username("root")
            .database("users");
        Ok(Client::MySql(
            MySqlConnection::connect_with(&options).await?,
        ))
    }

    /// The source for a table and its columns.
    pub(crate) fn config(
        &self,
        table: &str,
        id: &str,
        columns: &[(&str, &str)],
    ) -> Result<SourceConfig> {
        let url = match &self.running {
            Running::MariaDb(server) => server.url(),
            Running::MySql(server) => server.url(),
            Running::Postgres(server) => server.url(),
            Running::Sqlite => format!("sqlite:{}", self.file().display()),
        };
        let mut config = SourceConfig::at(url.parse()?);
        config.table = table.parse().map_err(anyhow::Error::msg)?;
        config.id = id.to_owned();
        let member = |(column, member): &(&str, &str)| Ok(((*column).to_owned(), member.parse()?));
        config.columns = columns
            .iter()
            .map(member)
            .collect::<Result<BTreeMap<_, _>>>()?;
        if self.server() != Server::Sqlite {
            let secret = format!("file:{}", self.dir.path().join("password").display());
            config.secret = Some(secret.parse()?);
        }
        Ok(config)
    }

    /// Removes the outbox and the tables of a clause.
    pub(crate) async fn clean(&self, config: &SourceConfig) -> Result<()> {
        Database::connect(config).await?.uninstall(true).await?;
        let drop = format!("DROP TABLE {}", config.table);
        self.client().await?.run(&drop).await
    }
}

impl Client {
    /// Runs statements, separated by semicolons.
    pub(crate) async fn run(&mut self, statements: &str) -> Result<()> {
        let query = sqlx::raw_sql(AssertSqlSafe(statements.to_owned()));
        match self {
            Self::MySql(connection) => query.execute(connection).await.map(drop),
            Self::Postgres(connection) => query.execute(connection).await.map(drop),
            Self::Sqlite(connection) => query.execute(connection).await.map(drop),
        }
        .with_context(|| statements.to_owned())
    }

    /// One number.
    pub(crate) async fn number(&mut self, query: &str) -> Result<i64> {
        let query = AssertSqlSafe(query.to_owned());
        Ok(match self {
            Self::MySql(connection) => sqlx::query_scalar(query).fetch_one(connection).await?,
            Self::Postgres(connection) => sqlx::query_scalar(query).fetch_one(connection).await?,
            Self::Sqlite(connection) => sqlx::query_scalar(query).fetch_one(connection).await?,
        })
    }
}

/// Reads every row of the outbox that isn't published, and marks it.
pub(crate) async fn noted(database: &mut Database) -> Result<Vec<OutboxRow>> {
    let layout = database.layout(false).await?;
    let mut rows = database.unpublished(100_000).await?;
    let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
    database.mark_published(&ids).await?;
    for row in &mut rows {
        row.user = layout.spelled(&row.user).into_owned();
    }
    Ok(rows)
}

/// What notes say, in short.
pub(crate) fn shown(rows: &[OutboxRow]) -> Vec<String> {
    rows.iter()
        .map(|row| format!("{} {}", row.event, row.user))
        .collect()
}

/// The documents of every user, by id.
pub(crate) async fn documents(database: &mut Database) -> Result<Vec<Value>> {
    let layout = database.layout(false).await?;
    let page = database.page(&layout, None, 100).await?;
    page.into_iter()
        .map(|row| {
            let document = row.document.map_err(anyhow::Error::msg)?;
            Ok(serde_json::from_slice(&document)?)
        })
        .collect()
}
