//! A backup of the main database, taken and restored as `mariadb-dump --lock-tables --routines` does: table by
//! table, rows before triggers, while everything else goes on.

use anyhow::{Context as _, Result};
use sqlx::{AssertSqlSafe, MySqlConnection, MySqlPool, Row as _};

/// Where rows are kept meanwhile.
const KEPT: &str = "backup";

/// What is needed beside the rows to make everything again.
pub(crate) struct Backup {
    tables: Vec<Table>,
    routines: Vec<Made>,
}

struct Table {
    made: Made,
    triggers: Vec<Made>,
}

/// A table, trigger or routine.
struct Made {
    kind: &'static str,
    name: String,
    sql_mode: Option<String>,
    statement: String,
}

impl Backup {
    /// Takes one of a moment; nobody writes meanwhile.
    pub(crate) async fn take(main: &MySqlPool) -> Result<Self> {
        let mut main = main.acquire().await?;
        let drop = format!("DROP DATABASE IF EXISTS {KEPT}; CREATE DATABASE {KEPT}");
        run(&mut main, &drop).await?;
        let names = column(&mut main, "SHOW TABLES", 0).await?;
        let mut locks = Vec::new();
        for name in &names {
            run(
                &mut main,
                &format!("CREATE TABLE {KEPT}.{name} LIKE {name}"),
            )
            .await?;
            locks.push(format!("{name} READ, {KEPT}.{name} WRITE"));
        }
        run(&mut main, &format!("LOCK TABLES {}", locks.join(", "))).await?;
        let mut tables = Vec::new();
        for name in names {
            let rows = format!("INSERT INTO {KEPT}.{name} SELECT * FROM {name}");
            run(&mut main, &exactly(&rows)).await?;
            let listing = format!("SHOW TRIGGERS WHERE `Table` = '{name}'");
            let mut triggers = Vec::new();
            for trigger in column(&mut main, &listing, 0).await? {
                triggers.push(Made::read(&mut main, "TRIGGER", trigger).await?);
            }
            let made = Made::read(&mut main, "TABLE", name).await?;
            tables.push(Table { made, triggers });
        }
        run(&mut main, "UNLOCK TABLES").await?;
        let mut routines = Vec::new();
        for kind in ["PROCEDURE", "FUNCTION"] {
            let listing = format!("SHOW {kind} STATUS WHERE Db = DATABASE()");
            for routine in column(&mut main, &listing, 1).await? {
                routines.push(Made::read(&mut main, kind, routine).await?);
            }
        }
        Ok(Self { tables, routines })
    }

    /// Puts everything back as it was.
    pub(crate) async fn restore(&self, main: &MySqlPool) -> Result<()> {
        let mut main = main.acquire().await?;
        for table in &self.tables {
            table.made.make(&mut main).await?;
            let name = &table.made.name;
            let rows = format!("INSERT INTO {name} SELECT * FROM {KEPT}.{name}");
            run(&mut main, &exactly(&rows)).await?;
            for trigger in &table.triggers {
                trigger.make(&mut main).await?;
            }
        }
        for routine in &self.routines {
            routine.make(&mut main).await?;
        }
        Ok(())
    }
}

impl Made {
    async fn read(main: &mut MySqlConnection, kind: &'static str, name: String) -> Result<Self> {
        let query = format!("SHOW CREATE {kind} {name}");
        let row = sqlx::raw_sql(AssertSqlSafe(query)).fetch_one(main).await?;
        // The statement of a table is the second column, those of all others come after their `sql_mode`.
        let (sql_mode, statement) = match kind {
            "TABLE" => (None, row.try_get_unchecked(1)?),
            _ => (Some(row.try_get_unchecked(1)?), row.try_get_unchecked(2)?),
        };
        Ok(Self {
            kind,
            name,
            sql_mode,
            statement,
        })
    }

    /// In the place of the one that is there.
    async fn make(&self, main: &mut MySqlConnection) -> Result<()> {
        let (kind, name) = (self.kind, &self.name);
        run(main, &format!("DROP {kind} IF EXISTS {name}")).await?;
        let mode = self.sql_mode.as_deref().unwrap_or_default();
        run(main, &format!("SET SESSION sql_mode = '{mode}'")).await?;
        run(main, &self.statement).await
    }
}

/// A statement that keeps ids as they are.
fn exactly(statement: &str) -> String {
    format!("SET SESSION sql_mode = 'NO_AUTO_VALUE_ON_ZERO'; {statement}")
}

async fn run(main: &mut MySqlConnection, statement: &str) -> Result<()> {
    let ran = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(main);
    ran.await.with_context(|| statement.to_owned())?;
    Ok(())
}

/// The texts in a column of an answer.
async fn column(main: &mut MySqlConnection, query: &str, at: usize) -> Result<Vec<String>> {
    let rows = sqlx::raw_sql(AssertSqlSafe(query.to_owned()));
    let rows = rows.fetch_all(main).await?;
    let texts = rows.iter().map(|row| Ok(row.try_get_unchecked(at)?));
    texts.collect()
}
