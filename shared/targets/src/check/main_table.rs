//! The table of users of a main database as a side: the same SQL as a target's, over a table nobody wrote for us.

use std::{collections::BTreeMap, time::Duration};

use secrecy::SecretString;
use url::Url;
use usersync_digest::Side;

use super::{
    Field, Unchecked,
    sql::{SqlSide, table},
    sqlite::SqliteTable,
};
use crate::{
    ConfigError, Failure,
    dialect::Dialect,
    mysql::{self, MySql},
    postgres::{self, Postgres},
    tls::Peer,
    trouble::Trouble,
    way::Way,
};

/// How long looking at the table may take.
const LOOK: Duration = Duration::from_secs(10);

/// Where the main database keeps its users. Names are in the server's own spelling.
#[derive(Clone, Debug)]
pub struct MainTable {
    /// `mysql://…`, `mariadb://…`, `postgres://…`, `postgresql://…` or `sqlite://PATH`; without a password.
    pub url: Url,
    /// The password.
    pub password: Option<SecretString>,
    /// The table; one in another schema is `schema.table`.
    pub table: String,
    /// The column of the id.
    pub id: String,
    /// What the other columns hold: column → member, as a dotted path.
    pub columns: BTreeMap<String, String>,
    /// A column that marks users who are deleted but still there: a boolean or a number that is true or not 0, or
    /// anything else that isn't NULL, such as the time of their deletion.
    pub deleted: Option<String>,
}

/// A main database that can be asked.
pub struct MainDatabase {
    table: MainTable,
    server: Server,
}

enum Server {
    MySql(MySql),
    Postgres(Postgres),
    Sqlite,
}

impl MainDatabase {
    /// Connections are opened when first needed.
    ///
    /// # Errors
    /// When the URL is none of a database.
    pub fn new(table: MainTable) -> Result<Self, ConfigError> {
        let password = table.password.clone();
        let peer = Peer::named("the main database", &table.url);
        let server = match table.url.scheme() {
            "mysql" | "mariadb" => Server::MySql(mysql::server(
                &table.url,
                password,
                LOOK,
                peer,
                Way::free(),
            )?),
            "postgres" | "postgresql" => {
                Server::Postgres(postgres::server(&table.url, password, peer, Way::free())?)
            }
            "sqlite" => Server::Sqlite,
            _ => {
                let expected = "expected mysql, mariadb, postgres, postgresql or sqlite";
                return Err(ConfigError::Url(expected.to_owned()));
            }
        };
        Ok(Self { table, server })
    }

    /// The table as the other side of a target with these fields.
    ///
    /// # Errors
    /// When a field is in no column, or the table isn't as it is said to be.
    pub async fn side(&self, fields: &[Field]) -> Result<Box<dyn Side + '_>, Unchecked> {
        match &self.server {
            Server::MySql(server) => Ok(Box::new(self.of(server, fields).await?)),
            Server::Postgres(server) => Ok(Box::new(self.of(server, fields).await?)),
            Server::Sqlite => Ok(Box::new(SqliteTable::side(&self.table, fields)?)),
        }
    }

    async fn of<'a, D: Dialect>(
        &self,
        dialect: &'a D,
        fields: &[Field],
    ) -> Result<SqlSide<'a, D>, Failure> {
        let MainTable {
            table: name,
            id,
            columns,
            deleted,
            ..
        } = &self.table;
        let look = async {
            let mut connection = dialect.connect().await?;
            if let Some(reason) = dialect.obstacle(&mut connection, name).await? {
                return Err(Trouble::misfit(Failure::new(reason)));
            }
            dialect.look(&mut connection, name).await
        };
        let live = tokio::time::timeout(LOOK, look).await;
        let live = live.unwrap_or_else(|_| Err(Trouble::late()));
        let live = live.map_err(|trouble| trouble.failure)?;
        let wrong =
            |what: String| Failure::new(format!("table `{name}` of the main database: {what}"));
        let live = live.ok_or_else(|| wrong("there is no such table".to_owned()))?;
        let table = table::<D>(&live, name, id, deleted.as_deref(), columns, fields);
        Ok(SqlSide::new(dialect, table.map_err(wrong)?))
    }
}
