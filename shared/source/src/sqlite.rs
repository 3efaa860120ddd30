//! A SQLite file as a main database.

mod sql;

use std::{
    fs::{File, OpenOptions, TryLockError},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, Row, SqliteConnection,
    query::Query,
    sqlite::{SqliteArguments, SqliteConnectOptions, SqliteRow},
};

use crate::{
    About, Failure, Kind, Lag, Layout, Live, LiveColumn, OutboxRow, Payload, SourceConfig,
    SourceError, TableName, UserRow,
    layout::{ABOUT, OUTBOX},
    session::{
        Installed, MOST_COUNTED, MOST_PAYLOAD, PassedOn, Session, Trigger, notes_another_id,
        until_much,
    },
};
pub(crate) use sql::{TRIGGERS, script};
use sql::{list, name_quoted, select};

/// Milliseconds are what SQLite keeps of the clock.
const NOW: &str = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')";
/// When a row was written, in unix microseconds.
const CREATED_US: &str = "MAX(0, MIN(COALESCE(CAST((julianday(created_at) - 2440587.5) * 86400000 AS INTEGER), 0), 253370764800000)) * 1000";
/// How long a statement waits for whoever writes.
const BUSY: Duration = Duration::from_secs(5);

/// One connection.
pub(crate) struct Sqlite {
    connection: SqliteConnection,
    /// The last id that a page had.
    last: Option<Last>,
    path: PathBuf,
    /// The column with the user's id, as the settings name it.
    id: String,
    /// Device and number of the file.
    file: (u64, u64),
    /// Held while this process relays.
    lock: Option<File>,
}

impl Sqlite {
    /// Opens the file, which must be there.
    pub(crate) async fn connect(config: &SourceConfig) -> Result<Self, SourceError> {
        let path = config.path();
        if config.table.schema.is_some() {
            let text = "table: a SQLite file has no schemas; expected the table's name alone";
            return Err(SourceError::Config(text.to_owned()));
        }
        let file = file_at(&path)?;
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .busy_timeout(BUSY)
            .disable_statement_logging();
        let opening = format!("opening {}", path.display());
        let connection = options.connect().await;
        Ok(Self {
            connection: connection.map_err(|error| SourceError::of(&opening, &error))?,
            last: None,
            path,
            id: config.id.clone(),
            file,
            lock: None,
        })
    }

    /// The first `most` rows that fulfil a condition on an id.
    async fn rows(
        &mut self,
        condition: &str,
        id: i64,
        most: u32,
    ) -> Result<Vec<OutboxRow>, SourceError> {
        let large = |column| {
            format!("CASE WHEN length({column}) <= {MOST_PAYLOAD} THEN CAST({column} AS BLOB) END")
        };
        // Nothing tells which notes are of one statement.
        let statement = format!(
            "SELECT id, CAST(user_id AS TEXT), event, length(payload), {}, {}, {CREATED_US}, CAST(NULL AS INTEGER) \
             FROM user_outbox WHERE {condition} LIMIT ?",
            large("payload"),
            large("previous")
        );
        let query = sqlx::query(AssertSqlSafe(statement));
        let rows = query.bind(id).bind(most).fetch(&mut self.connection);
        until_much(rows, "reading the outbox", outbox_row, OutboxRow::bytes).await
    }
}

/// The last id of a page, as it is.
struct Last {
    told: String,
    raw: Vec<u8>,
    is_blob: bool,
}

impl Last {
    fn is_odd(&self) -> bool {
        self.is_blob || str::from_utf8(&self.raw).is_err()
    }
}

/// Device and number of the file with this name.
fn file_at(path: &Path) -> Result<(u64, u64), SourceError> {
    match path.metadata() {
        Ok(file) if file.is_file() => Ok((file.dev(), file.ino())),
        _ => Err(SourceError::Unavailable(format!(
            "there is no file {}",
            path.display()
        ))),
    }
}

#[async_trait]
impl Session for Sqlite {
    async fn look(&mut self, table: &TableName) -> Result<Option<Live>, SourceError> {
        let failed = |error| SourceError::of("looking at the table", &error);
        let name = &table.name;
        let kind = "SELECT type, COALESCE(sql, '') FROM sqlite_schema WHERE name = ? AND type IN ('table', 'view')";
        let kind = sqlx::query_as(kind).bind(name);
        let kind: Option<(String, String)> = kind
            .fetch_optional(&mut self.connection)
            .await
            .map_err(failed)?;
        let Some((kind, sql)) = kind else {
            return Ok(None);
        };
        let mut live = Live::default();
        if kind == "view" || sql.to_ascii_uppercase().starts_with("CREATE VIRTUAL") {
            live.problem = Some("it is no ordinary table; name the table behind it".to_owned());
        }
        let columns = "SELECT name, type, pk FROM pragma_table_xinfo(?)";
        let columns = sqlx::query_as(columns).bind(name);
        let columns: Vec<(String, String, i64)> = columns
            .fetch_all(&mut self.connection)
            .await
            .map_err(failed)?;
        if columns.iter().filter(|(_, _, key)| *key > 0).count() == 1 {
            let key = columns.iter().find(|(_, _, key)| *key > 0);
            live.unique.extend(key.map(|(name, _, _)| name.clone()));
        }
        live.columns = columns
            .into_iter()
            .map(|(name, shown, _)| column(name, shown))
            .collect();
        let keys = "SELECT MIN(c.name) FROM pragma_index_list(?) i, pragma_index_info(i.name) c \
             WHERE i.\"unique\" = 1 AND i.partial = 0 GROUP BY i.name HAVING count(*) = 1 AND MIN(c.name) IS NOT NULL";
        let keys = sqlx::query_scalar(keys).bind(name);
        let keys: Vec<String> = keys.fetch_all(&mut self.connection).await.map_err(failed)?;
        live.unique.extend(keys);
        Ok(Some(live))
    }

    async fn columns(&mut self, table: &TableName) -> Result<Vec<LiveColumn>, SourceError> {
        let columns = sqlx::query_as("SELECT name, type FROM pragma_table_xinfo(?)");
        let columns = columns.bind(&table.name).fetch_all(&mut self.connection);
        let columns: Vec<(String, String)> = columns
            .await
            .map_err(|error| SourceError::of("looking at the table", &error))?;
        let column = |(name, shown)| column(name, shown);
        Ok(columns.into_iter().map(column).collect())
    }

    async fn run(&mut self, script: &str) -> Result<(), SourceError> {
        let ran = sqlx::raw_sql(AssertSqlSafe(script.to_owned()));
        let ran = ran.execute(&mut self.connection).await;
        if ran.is_err() {
            let _ = self.connection.execute("ROLLBACK").await;
        }
        let refused = |error| {
            SourceError::Refused(
                SourceError::of("changing tables and triggers", &error).to_string(),
            )
        };
        ran.map(drop).map_err(refused)
    }

    async fn installed(&mut self, table: &TableName) -> Result<Installed, SourceError> {
        let failed = |error| SourceError::of("looking for the outbox", &error);
        let columns = sqlx::query_scalar("SELECT name FROM pragma_table_info(?)").bind(OUTBOX);
        let about = sqlx::query_scalar("SELECT count(*) > 0 FROM pragma_table_info(?)").bind(ABOUT);
        Ok(Installed {
            about: about
                .fetch_one(&mut self.connection)
                .await
                .map_err(failed)?,
            outbox: columns
                .fetch_all(&mut self.connection)
                .await
                .map_err(failed)?,
            triggers: self.triggers(table).await?,
        })
    }

    async fn triggers(&mut self, table: &TableName) -> Result<Option<Vec<Trigger>>, SourceError> {
        let triggers = "SELECT name, tbl_name, COALESCE(sql, '') FROM sqlite_schema WHERE type = 'trigger' AND name LIKE 'user\\_outbox\\_%' ESCAPE '\\'";
        let triggers = sqlx::query_as(triggers).fetch_all(&mut self.connection);
        let triggers: Vec<(String, String, String)> = triggers
            .await
            .map_err(|error| SourceError::of("looking for triggers", &error))?;
        let ours = triggers
            .into_iter()
            .filter(|(name, ..)| TRIGGERS.contains(&name.as_str()));
        let trigger = |(name, on, text): (String, String, String)| {
            let is_there = on.eq_ignore_ascii_case(&table.name);
            let mistaken = notes_another_id(&text, &self.id).filter(|_| is_there);
            Trigger {
                name,
                elsewhere: (!is_there).then_some(on),
                of_another_id: mistaken.is_some(),
                disabled: mistaken,
                current: true,
            }
        };
        Ok(Some(ours.map(trigger).collect()))
    }

    fn script(&self, layout: &Layout) -> String {
        script(layout)
    }

    fn new_epoch(&self, _: &TableName) -> String {
        format!(
            "BEGIN IMMEDIATE;\nDELETE FROM {ABOUT};\nINSERT INTO {ABOUT} (epoch, first) \
             SELECT lower(hex(randomblob(16))), coalesce(max(id), 0) + 1 FROM {OUTBOX};\nCOMMIT;\n"
        )
    }

    fn removal(&self, _: &TableName) -> String {
        let drops = TRIGGERS.map(|name| format!("DROP TRIGGER IF EXISTS {name};\n"));
        format!(
            "BEGIN IMMEDIATE;\n{}DROP TABLE IF EXISTS user_outbox;\nDROP TABLE IF EXISTS {ABOUT};\nDROP TABLE IF EXISTS usersync_apply;\nCOMMIT;\n",
            drops.concat()
        )
    }

    async fn try_lock(&mut self, _: &TableName) -> Result<bool, SourceError> {
        // The database's own locks are its writers'; ours is a file beside it.
        let mut name = self.path.clone().into_os_string();
        name.push(".usersync-lock");
        let path = PathBuf::from(name);
        let failed = |error: std::io::Error| {
            SourceError::Unavailable(format!("locking {}: {error}", path.display()))
        };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let file = file.map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {
                self.lock = Some(file);
                Ok(true)
            }
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    async fn unpublished(&mut self, after: i64, most: u32) -> Result<Vec<OutboxRow>, SourceError> {
        self.rows("state = 0 AND id > ? ORDER BY id", after, most)
            .await
    }

    async fn failed(&mut self, after: i64, most: u32) -> Result<Vec<OutboxRow>, SourceError> {
        self.rows("state = 2 AND id > ? ORDER BY id", after, most)
            .await
    }

    async fn passed_on(
        &mut self,
        after: i64,
        span: Duration,
        most: u32,
    ) -> Result<Vec<PassedOn>, SourceError> {
        let statement = "SELECT CAST(user_id AS TEXT), event, \
               CAST((julianday('now') - julianday(published_at)) * 86400 AS INTEGER) FROM user_outbox \
             WHERE state = 1 AND id > ? AND event IN ('I', 'D') \
               AND published_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ?) ORDER BY id DESC LIMIT ?";
        let notes = sqlx::query(statement)
            .bind(after)
            .bind(format!("-{} seconds", span.as_secs_f64()))
            .bind(most);
        let failed = |error| SourceError::of("reading the outbox", &error);
        let notes = notes
            .fetch_all(&mut self.connection)
            .await
            .map_err(failed)?;
        let note = |row| Ok((text(row, 0)?, text(row, 1)?, row.try_get(2)?));
        notes
            .iter()
            .map(note)
            .collect::<Result<_, _>>()
            .map_err(failed)
    }

    async fn unpublished_until(&mut self, last: i64) -> Result<i64, SourceError> {
        let statement = "SELECT count(*) FROM user_outbox WHERE state = 0 AND id <= ?";
        let count = sqlx::query_scalar(statement).bind(last);
        let count = count.fetch_one(&mut self.connection).await;
        count.map_err(|error| SourceError::of("reading the outbox", &error))
    }

    async fn waiting(&mut self, _: &Layout, ids: &[String]) -> Result<Vec<String>, SourceError> {
        let statement = format!(
            "SELECT DISTINCT CAST(user_id AS TEXT) FROM user_outbox WHERE state = 0 AND CAST(user_id AS TEXT) IN ({})",
            vec!["?"; ids.len()].join(", ")
        );
        let mut waiting = sqlx::query_scalar(AssertSqlSafe(statement));
        for id in ids {
            waiting = waiting.bind(id);
        }
        let waiting = waiting.fetch_all(&mut self.connection).await;
        waiting.map_err(|error| SourceError::of("reading the outbox", &error))
    }

    async fn read_only(&mut self) -> Result<Option<&'static str>, SourceError> {
        let replaced = file_at(&self.path)? != self.file;
        Ok(replaced.then_some("another file has its name now"))
    }

    async fn about(&mut self) -> Result<Option<About>, SourceError> {
        let failed = |error| SourceError::of("looking which outbox it is", &error);
        let there = sqlx::query_scalar("SELECT count(*) > 0 FROM pragma_table_info(?)").bind(ABOUT);
        let there: bool = there
            .fetch_one(&mut self.connection)
            .await
            .map_err(failed)?;
        if !there {
            return Ok(None);
        }
        let about = sqlx::query_as("SELECT epoch, first, approved, format FROM user_outbox_about");
        let about: Option<(String, i64, i64, i16)> = about
            .fetch_optional(&mut self.connection)
            .await
            .map_err(failed)?;
        Ok(about.map(|(epoch, first, approved, format)| About {
            epoch,
            first,
            approved,
            format,
        }))
    }

    async fn highest(&mut self) -> Result<i64, SourceError> {
        let highest = sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM user_outbox");
        let highest = highest.fetch_one(&mut self.connection).await;
        highest.map_err(|error| SourceError::of("reading the outbox", &error))
    }

    async fn approve(&mut self) -> Result<(), SourceError> {
        let statement = "UPDATE user_outbox_about SET approved = (SELECT coalesce(max(id), 0) FROM user_outbox)";
        let done = sqlx::query(statement).execute(&mut self.connection).await;
        done.map(drop)
            .map_err(|error| SourceError::of("approving deletions", &error))
    }

    async fn mark_published(&mut self, ids: &[i64]) -> Result<(), SourceError> {
        let statement = format!(
            "UPDATE user_outbox SET state = 1, published_at = {NOW} WHERE id IN (SELECT value FROM json_each(?))"
        );
        let done = sqlx::query(AssertSqlSafe(statement)).bind(list(ids));
        let done = done.execute(&mut self.connection).await;
        done.map(drop)
            .map_err(|error| SourceError::of("marking rows of the outbox", &error))
    }

    async fn mark_failed(&mut self, failures: &[Failure]) -> Result<(), SourceError> {
        for failure in failures {
            let query = sqlx::query(
                "UPDATE user_outbox SET state = 2, error = substr(?, 1, 1000) WHERE id = ?",
            );
            let query = query.bind(&failure.reason).bind(failure.id);
            let done = query.execute(&mut self.connection).await;
            done.map_err(|error| SourceError::of("marking rows of the outbox", &error))?;
        }
        Ok(())
    }

    async fn prune(
        &mut self,
        retention: Duration,
        kept: i64,
        most: u32,
    ) -> Result<u64, SourceError> {
        let failed = |error| SourceError::of("pruning the outbox", &error);
        let statement = "SELECT id, published_at < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ?) \
             FROM user_outbox WHERE state = 1 AND id <> ? ORDER BY id LIMIT ?";
        let oldest = sqlx::query_as(statement)
            .bind(format!("-{} seconds", retention.as_secs_f64()))
            .bind(kept)
            .bind(most);
        let oldest: Vec<(i64, i64)> = oldest
            .fetch_all(&mut self.connection)
            .await
            .map_err(failed)?;
        let old: Vec<i64> = oldest
            .into_iter()
            .filter(|(_, old)| *old == 1)
            .map(|(id, _)| id)
            .collect();
        if old.is_empty() {
            return Ok(0);
        }
        let statement = "DELETE FROM user_outbox WHERE id IN (SELECT value FROM json_each(?))";
        let done = sqlx::query(statement)
            .bind(list(&old))
            .execute(&mut self.connection)
            .await;
        Ok(done.map_err(failed)?.rows_affected())
    }

    async fn row(&mut self, id: i64) -> Result<Option<OutboxRow>, SourceError> {
        let found = self.rows("id = ? ORDER BY id", id, 1).await?;
        Ok(found.into_iter().next())
    }

    async fn last_published(&mut self) -> Result<Option<OutboxRow>, SourceError> {
        let last = "state = 1 AND id > ? ORDER BY id DESC";
        let found = self.rows(last, i64::MIN, 1).await?;
        Ok(found.into_iter().next())
    }

    async fn lag(&mut self) -> Result<Lag, SourceError> {
        let counted = |state| {
            format!(
                "(SELECT count(*) FROM (SELECT 1 FROM user_outbox WHERE state = {state} LIMIT {MOST_COUNTED}))"
            )
        };
        let statement = format!(
            "SELECT {}, COALESCE((SELECT CAST((julianday('now') - julianday(created_at)) * 86400000000 AS INTEGER) \
             FROM user_outbox WHERE state = 0 ORDER BY id LIMIT 1), 0), {}",
            counted(0),
            counted(2)
        );
        let lag = sqlx::query_as(AssertSqlSafe(statement)).fetch_one(&mut self.connection);
        let lag = lag.await;
        lag.map(Lag::of)
            .map_err(|error| SourceError::of("looking at the outbox", &error))
    }

    async fn failures(&mut self, _: &TableName, most: u32) -> Result<Vec<Failure>, SourceError> {
        let statement = "SELECT id, COALESCE(error, '') FROM user_outbox WHERE state = 2 ORDER BY id DESC LIMIT ?";
        let rows = sqlx::query_as(statement).bind(most);
        let rows: Vec<(i64, String)> = rows
            .fetch_all(&mut self.connection)
            .await
            .map_err(|error| SourceError::of("looking at the outbox", &error))?;
        let failure = |(id, reason)| Failure { id, reason };
        Ok(rows.into_iter().map(failure).collect())
    }

    async fn page(
        &mut self,
        layout: &Layout,
        after: Option<&str>,
        most: u32,
    ) -> Result<Vec<UserRow>, SourceError> {
        let id = name_quoted(&layout.id.name);
        // Of an id that is no text, what it is told as says too little.
        let odd = self.last.take();
        let odd = odd.filter(|last| Some(last.told.as_str()) == after && last.is_odd());
        let behind = match (after, &odd) {
            (None, _) => String::new(),
            (Some(_), Some(last)) if !last.is_blob => format!("AND u.{id} > CAST(? AS TEXT) "),
            (Some(_), _) => format!("AND u.{id} > ? "),
        };
        let statement = format!("{} {behind}ORDER BY u.{id} LIMIT {most}", select(layout));
        let mut query = sqlx::query(AssertSqlSafe(statement));
        if let Some(after) = after {
            query = match odd {
                Some(last) => query.bind(last.raw),
                None => bind_id(query, layout, after),
            };
        }
        let read = |row: &SqliteRow| {
            let user = user_row(row)?;
            let last = Last {
                told: user.id.clone(),
                raw: row.try_get_unchecked(0)?,
                is_blob: row.try_get(3)?,
            };
            Ok((user, last))
        };
        let rows = query.fetch(&mut self.connection);
        let page = until_much(rows, "reading users", read, |(user, _)| user.bytes()).await?;
        let (users, mut lasts): (Vec<_>, Vec<_>) = page.into_iter().unzip();
        self.last = lasts.pop();
        Ok(users)
    }

    async fn users(
        &mut self,
        layout: &Layout,
        ids: &[String],
    ) -> Result<Vec<UserRow>, SourceError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let places = vec!["?"; ids.len()].join(", ");
        let id = name_quoted(&layout.id.name);
        let statement = format!("{} AND u.{id} IN ({places})", select(layout));
        let mut query = sqlx::query(AssertSqlSafe(statement));
        for id in ids {
            query = bind_id(query, layout, id);
        }
        let failed = |error| SourceError::of("reading users", &error);
        let rows = query
            .fetch_all(&mut self.connection)
            .await
            .map_err(failed)?;
        rows.iter()
            .map(|row| user_row(row).map_err(failed))
            .collect()
    }

    async fn estimate(&mut self, table: &TableName) -> Result<u64, SourceError> {
        let statement = format!("SELECT count(*) FROM {}", name_quoted(&table.name));
        let rows = sqlx::query_scalar(AssertSqlSafe(statement));
        let rows: i64 = rows
            .fetch_one(&mut self.connection)
            .await
            .map_err(|error| SourceError::of("counting users", &error))?;
        Ok(rows.unsigned_abs())
    }

    async fn close(self: Box<Self>) {
        let _ = self.connection.close().await;
    }
}

fn bind_id<'q>(
    query: Query<'q, sqlx::Sqlite, SqliteArguments>,
    layout: &Layout,
    id: &'q str,
) -> Query<'q, sqlx::Sqlite, SqliteArguments> {
    match id.parse::<i64>() {
        Ok(number) if layout.id.kind == Kind::Integer => query.bind(number),
        _ => query.bind(id),
    }
}

fn outbox_row(row: &SqliteRow) -> Result<OutboxRow, sqlx::Error> {
    Ok(OutboxRow {
        id: row.try_get(0)?,
        user: text(row, 1)?,
        event: text(row, 2)?,
        payload: Payload::of(row.try_get(3)?, row.try_get(4)?),
        previous: row.try_get(5)?,
        created_us: row.try_get(6)?,
        tx: row.try_get(7)?,
    })
}

/// What a column holds that should be a text, and may be any bytes: whose row it is fails alone.
fn text(row: &SqliteRow, at: usize) -> Result<String, sqlx::Error> {
    let held: Vec<u8> = row.try_get_unchecked(at)?;
    Ok(String::from_utf8_lossy(&held).into_owned())
}

fn user_row(row: &SqliteRow) -> Result<UserRow, sqlx::Error> {
    let document: Option<Vec<u8>> = row.try_get(1)?;
    let unwritable: Option<String> = row.try_get(2)?;
    let document = match unwritable {
        Some(column) => Err(format!(
            "its column `{column}` holds a BLOB or an infinite number, which JSON has no form for"
        )),
        None => document.ok_or_else(|| "SQLite can't write it as JSON".to_owned()),
    };
    Ok(UserRow {
        id: text(row, 0)?,
        document,
    })
}

/// By the words of the declared type, as SQLite itself does (its documentation, "Datatypes", 3.1).
fn column(name: String, shown: String) -> LiveColumn {
    let declared = shown.to_ascii_uppercase();
    let says = |words: &[&str]| words.iter().any(|word| declared.contains(word));
    let kind = match () {
        () if says(&["BOOL"]) => Kind::Boolean,
        () if says(&["JSON"]) => Kind::Json,
        () if says(&["DATETIME", "TIMESTAMP"]) => Kind::Local,
        () if says(&["INT"]) => Kind::Integer,
        () if says(&["CHAR", "CLOB", "TEXT", "UUID", "DATE"]) => Kind::Text,
        () if says(&["BLOB"]) => Kind::Unsupported,
        () if says(&["REAL", "FLOA", "DOUB"]) => Kind::Float,
        () if says(&["DEC", "NUM"]) => Kind::Decimal,
        () => Kind::Verbatim,
    };
    LiveColumn { name, kind, shown }
}
