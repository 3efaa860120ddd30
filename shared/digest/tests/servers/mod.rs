//! A MariaDB and a PostgreSQL that statements are tried on.

use anyhow::{Context as _, Result};
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection, PgConnection, Row as _};
use tokio::sync::Mutex;
use usersync_digest::{
    Digest, Entry,
    sql::{self, Flavour},
};
use usersync_stack::{Directory, MariaDbServer, PostgresServer};

pub(crate) struct Servers {
    mysql: Mutex<MySqlConnection>,
    postgres: Mutex<PgConnection>,
    _servers: (MariaDbServer, PostgresServer, Directory),
}

impl Servers {
    pub(crate) async fn start() -> Result<Self> {
        let dir = Directory::temporary()?;
        let mariadb = MariaDbServer::start(dir.path()).await?;
        let postgres = PostgresServer::start(dir.path()).await?;
        Ok(Self {
            mysql: Mutex::new(MySqlConnection::connect(&mariadb.url_with_password()).await?),
            postgres: Mutex::new(PgConnection::connect(&postgres.url_with_password()).await?),
            _servers: (mariadb, postgres, dir),
        })
    }

    /// Runs statements, one or several.
    pub(crate) async fn run(&self, flavour: Flavour, statements: &str) -> Result<()> {
        let text = sqlx::raw_sql(AssertSqlSafe(statements));
        match flavour {
            Flavour::MySql => text.execute(&mut *self.mysql.lock().await).await.map(drop),
            Flavour::Postgres => text
                .execute(&mut *self.postgres.lock().await)
                .await
                .map(drop),
        }
        .with_context(|| statements.to_owned())
    }

    /// Inserts a row, every value as text.
    pub(crate) async fn insert(
        &self,
        flavour: Flavour,
        table: &str,
        values: &[Option<String>],
    ) -> Result<()> {
        let literal = |value: &Option<String>| match value {
            None => "NULL".to_owned(),
            Some(value) => {
                let value = value.replace('\'', "''");
                match flavour {
                    Flavour::MySql => format!("'{}'", value.replace('\\', "\\\\")),
                    Flavour::Postgres => format!("'{value}'"),
                }
            }
        };
        let values: Vec<String> = values.iter().map(literal).collect();
        self.run(
            flavour,
            &format!("INSERT INTO {table} VALUES ({})", values.join(", ")),
        )
        .await
    }

    /// What a statement answers that counts and tells in one value.
    pub(crate) async fn ask(&self, flavour: Flavour, statement: &str) -> Result<(i64, Vec<u8>)> {
        let context = || statement.to_owned();
        let query = AssertSqlSafe(statement);
        let (count, octets): (i64, Option<Vec<u8>>) = match flavour {
            Flavour::MySql => {
                let query = sqlx::query(query).persistent(false);
                let row = query.fetch_one(&mut *self.mysql.lock().await).await;
                let row = row.with_context(context)?;
                (row.try_get(0)?, row.try_get(1)?)
            }
            Flavour::Postgres => {
                let query = sqlx::query(query).persistent(false);
                let row = query.fetch_one(&mut *self.postgres.lock().await).await;
                let row = row.with_context(context)?;
                (row.try_get(0)?, row.try_get(1)?)
            }
        };
        Ok((count, octets.unwrap_or_default()))
    }

    pub(crate) async fn list(&self, flavour: Flavour, statement: &str) -> Result<Vec<Entry>> {
        let (count, octets) = self.ask(flavour, statement).await?;
        Ok(sql::entries(count, &octets)?)
    }

    pub(crate) async fn digest(
        &self,
        flavour: Flavour,
        statement: &str,
        first: u64,
    ) -> Result<Vec<(u64, Digest)>> {
        let (count, octets) = self.ask(flavour, statement).await?;
        Ok(sql::digests(count, &octets, first)?)
    }
}

#[allow(dead_code, reason = "not every test reads rows")]
impl Servers {
    /// Rows of texts.
    pub(crate) async fn rows(
        &self,
        flavour: Flavour,
        statement: &str,
    ) -> Result<Vec<Vec<Option<String>>>> {
        let query = AssertSqlSafe(statement);
        Ok(match flavour {
            Flavour::MySql => {
                let rows = sqlx::query(query)
                    .fetch_all(&mut *self.mysql.lock().await)
                    .await?;
                let texts = |row: &sqlx::mysql::MySqlRow| {
                    (0..row.len()).map(|at| row.try_get(at)).collect()
                };
                rows.iter().map(texts).collect::<Result<_, _>>()?
            }
            Flavour::Postgres => {
                let rows = sqlx::query(query)
                    .fetch_all(&mut *self.postgres.lock().await)
                    .await?;
                let texts = |row: &sqlx::postgres::PgRow| {
                    (0..row.len()).map(|at| row.try_get(at)).collect()
                };
                rows.iter().map(texts).collect::<Result<_, _>>()?
            }
        })
    }
}
