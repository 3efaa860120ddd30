//! A table of users in SQLite as a side: read and hashed here, for SQLite runs in this process anyway.

use std::{str::FromStr, time::Duration};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Row as _,
    sqlite::{SqliteConnectOptions, SqliteRow},
};
use usersync_digest::{Each, Row, Scan, Scanned, SideError};

use super::{Field, MARK, main_table::MainTable};
use crate::Failure;

/// How long the database may be locked, or the next row may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The table, as texts.
pub(super) struct SqliteTable {
    options: SqliteConnectOptions,
    statement: String,
    fields: Vec<Field>,
}

/// A table of users in SQLite.
pub(super) type SqliteSide = Scanned<SqliteTable>;

impl SqliteTable {
    /// # Errors
    /// When a field is in no column.
    pub(super) fn side(main: &MainTable, fields: &[Field]) -> Result<SqliteSide, Failure> {
        let options = SqliteConnectOptions::from_str(main.url.as_str());
        let options = options.map_err(|_| Failure::new("the url doesn't suit SQLite"))?;
        let mut texts = format!("CAST({} AS TEXT)", quoted(&main.id));
        for field in fields {
            if field.path == MARK {
                texts += ", NULL";
                continue;
            }
            let column = main.columns.iter().find(|(_, path)| **path == field.path);
            let (column, _) = column.ok_or_else(|| {
                let name = &main.table;
                let path = &field.path;
                Failure::new(format!(
                    "table `{name}` of the main database: no column holds `{path}`"
                ))
            })?;
            texts += &format!(", CAST({} AS TEXT)", quoted(column));
        }
        let live = main.deleted.as_ref().map(|column| {
            // A flag, or when somebody was deleted.
            let column = quoted(column);
            format!(" WHERE {column} IS NULL OR (typeof({column}) IN ('integer', 'real') AND {column} = 0)")
        });
        Ok(Scanned(Self {
            options: options
                .read_only(true)
                .busy_timeout(PATIENCE)
                .disable_statement_logging(),
            statement: format!(
                "SELECT {texts} FROM {}{}",
                quoted(&main.table),
                live.unwrap_or_default()
            ),
            fields: fields.to_vec(),
        }))
    }

    fn take(&self, read: &SqliteRow, row: &mut Row, each: Each<'_>) -> Result<u64, sqlx::Error> {
        let Some(id) = read.try_get::<Option<&str>, _>(0)? else {
            return Ok(0);
        };
        row.begin(id);
        let mut bytes = id.len();
        for (at, field) in self.fields.iter().enumerate() {
            let text = read.try_get::<Option<&str>, _>(at + 1)?;
            bytes += text.map_or(0, str::len);
            let text = text.map(|text| field.form.of(text));
            row.field(text.as_deref().map(str::as_bytes));
        }
        each(id, row.hash());
        Ok(bytes as u64)
    }
}

#[async_trait]
impl Scan for SqliteTable {
    async fn scan(&self, each: Each<'_>) -> Result<u64, SideError> {
        // What went wrong may hold values; the table and columns are ours to look at.
        let failed = |_| SideError::new("the SQLite database can't be read");
        let mut connection = self.options.connect().await.map_err(failed)?;
        let mut rows = sqlx::query(AssertSqlSafe(self.statement.as_str())).fetch(&mut connection);
        let (mut row, mut bytes) = (Row::default(), 0);
        loop {
            let next = tokio::time::timeout(PATIENCE, rows.next()).await;
            let next =
                next.map_err(|_| SideError::new("the SQLite database did not answer in time"))?;
            match next.transpose().map_err(failed)? {
                None => return Ok(bytes),
                Some(read) => bytes += self.take(&read, &mut row, each).map_err(failed)?,
            }
        }
    }
}

/// `schema.table` is two names.
fn quoted(name: &str) -> String {
    let part = |part: &str| format!("\"{}\"", part.replace('"', "\"\""));
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}
