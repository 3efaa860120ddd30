//! MySQL and MariaDB as a main database.

mod replica;
mod sql;

use std::{str::FromStr, time::Duration};

use async_trait::async_trait;
use secrecy::ExposeSecret;
use sha1::{Digest, Sha1};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, MySqlConnection, Row,
    mysql::{MySqlArguments, MySqlConnectOptions, MySqlDatabaseError, MySqlRow, MySqlSslMode},
    query::Query,
};
use usersync_core::auth::Pem;

use crate::{
    About, Failure, Kind, Lag, Layout, Live, LiveColumn, OutboxRow, Payload, SourceConfig,
    SourceError, TableName, UserRow,
    layout::{ABOUT, OUTBOX},
    session::{
        Answering, Installed, MOST_COUNTED, MOST_PAYLOAD, PassedOn, Session, Trigger,
        notes_another_id, until_much, user_row,
    },
};
use sql::{
    ALL, NOTE, SPENT, STANDIN, WATCH, name_quoted, quoted, ranges, select, statements, watch,
};
pub(crate) use sql::{Flavour, LATER, RANDOM, TRIGGERS, script, watch_script};

/// Marking a range must not lock the gap behind it, where writers add rows.
const ISOLATION: &str = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE";
/// Whatever the server's defaults are: times are told in UTC, texts without blanks behind them, all rows are read, names are shown in
/// quotes, and what is written is written at once.
const SESSION: &str = "SET SESSION innodb_lock_wait_timeout = 10, lock_wait_timeout = 10, time_zone = '+00:00', \
     sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', sql_select_limit = 18446744073709551615, \
     sql_safe_updates = 0, sql_big_selects = 1, completion_type = 0, autocommit = 1, sql_quote_show_create = 1";
/// What is said where the account is gone with whose rights something runs.
const NO_SUCH_DEFINER: u16 = 1449;
/// What is said of a function or procedure that isn't there.
const NO_SUCH_ROUTINE: u16 = 1305;
/// The most ranges of ids in one statement.
const RANGES: usize = 1_000;

/// One connection.
pub(crate) struct MySql {
    connection: MySqlConnection,
    flavour: Flavour,
    table: TableName,
    /// The column with the user's id, as the settings name it.
    id: String,
    outbox: String,
    about: String,
    /// Whether the outbox is one of an older version, without notes.
    old: bool,
    /// Whether it may follow another server, as one of two primaries does; or was seen not to.
    follows: bool,
}

impl MySql {
    /// Connects.
    pub(crate) async fn connect(config: &SourceConfig) -> Result<Self, SourceError> {
        let mut url = config.url.clone();
        // MariaDB is a server of the same sort.
        let _ = url.set_scheme("mysql");
        let options = MySqlConnectOptions::from_str(url.as_str());
        let mut options = options.map_err(|_| {
            SourceError::Config("url: expected mysql://USER@HOST:PORT/DATABASE".to_owned())
        })?;
        if options.get_database().is_none_or(str::is_empty) {
            let text = "url: it names no database; expected mysql://USER@HOST:PORT/DATABASE";
            return Err(SourceError::Config(text.to_owned()));
        }
        if let Some(password) = config.password()? {
            options = options.password(password.expose_secret());
        }
        if let Some(Pem { ca, identity }) = config.pem()? {
            options = options.ssl_mode(MySqlSslMode::VerifyIdentity);
            if let Some(ca) = ca {
                options = options.ssl_ca_from_pem(ca);
            }
            if let Some((cert, key)) = identity {
                options = options
                    .ssl_client_cert_from_pem(cert)
                    .ssl_client_key_from_pem(key);
            }
        }
        let place = format!(
            "connecting to {}:{}",
            options.get_host(),
            options.get_port()
        );
        let trouble = |error: sqlx::Error| SourceError::of(&place, &error);
        let options = options.disable_statement_logging();
        let mut connection = options.connect().await.map_err(trouble)?;
        let version = sqlx::query_scalar("SELECT VERSION()").fetch_one(&mut connection);
        let version: String = version.await.map_err(trouble)?;
        Ok(Self {
            connection,
            flavour: Flavour::of(&version),
            table: config.table.clone(),
            id: config.id.clone(),
            outbox: quoted(&config.table.beside(OUTBOX)),
            about: quoted(&config.table.beside(ABOUT)),
            old: false,
            follows: config.follows,
        })
    }

    /// MariaDB keeps JSON in text columns with a check; only the check tells. Who has no right to the database sees it where the
    /// table is shown as a whole, which takes a right to all of it.
    async fn tell_json(
        &mut self,
        table: &TableName,
        columns: &mut [LiveColumn],
    ) -> Result<(), SourceError> {
        let failed = |error| SourceError::of("looking at the table", &error);
        if self.flavour == Flavour::MySql {
            return Ok(());
        }
        let seen = "SELECT (SELECT COUNT(*) FROM information_schema.user_privileges \
                WHERE privilege_type = 'SHOW VIEW' AND grantee = me.name) \
             + (SELECT COUNT(*) FROM information_schema.schema_privileges \
                WHERE privilege_type IN ('SELECT', 'INSERT', 'REFERENCES', 'TRIGGER', 'SHOW VIEW') AND grantee = me.name \
                  AND COALESCE(?, DATABASE()) LIKE table_schema) > 0 \
             FROM (SELECT CONCAT('''', REPLACE(CURRENT_USER(), '@', '''@'''), '''') AS name) me";
        let seen = sqlx::query_scalar(seen).bind(&table.schema);
        let seen: bool = seen.fetch_one(&mut self.connection).await.map_err(failed)?;
        let checks: Option<Vec<String>> = match seen {
            true => {
                let checks = "SELECT CAST(check_clause AS CHAR) FROM information_schema.check_constraints \
                     WHERE constraint_schema = COALESCE(?, DATABASE()) AND table_name = ?";
                let checks = sqlx::query_scalar(checks)
                    .bind(&table.schema)
                    .bind(&table.name);
                Some(
                    checks
                        .fetch_all(&mut self.connection)
                        .await
                        .map_err(failed)?,
                )
            }
            false => {
                let shown = format!("SHOW CREATE TABLE {}", quoted(table));
                match self.connection.fetch_one(AssertSqlSafe(shown)).await {
                    Ok(row) => Some(vec![row.try_get(1).map_err(failed)?]),
                    Err(sqlx::Error::Database(_)) => None,
                    Err(error) => return Err(failed(error)),
                }
            }
        };
        for column in columns {
            let check = format!("json_valid({})", name_quoted(&column.name));
            match &checks {
                Some(checks)
                    if checks.iter().any(|told| {
                        *told == check || told.contains(&format!("CHECK ({check})"))
                    }) =>
                {
                    column.kind = Kind::Json;
                }
                // What JSON is made of.
                None if column.shown == "longtext" && column.kind == Kind::Text => {
                    let collation = "SELECT COUNT(*) FROM information_schema.columns WHERE table_schema = COALESCE(?, DATABASE()) \
                         AND table_name = ? AND column_name = ? AND collation_name = 'utf8mb4_bin'";
                    let collation = sqlx::query_scalar(collation)
                        .bind(&table.schema)
                        .bind(&table.name)
                        .bind(&column.name);
                    let of_json: i64 = collation
                        .fetch_one(&mut self.connection)
                        .await
                        .map_err(failed)?;
                    if of_json > 0 {
                        column.kind = Kind::Veiled;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The name of the relay's lock.
    async fn lock(&mut self, table: &TableName) -> Result<String, SourceError> {
        let schema = sqlx::query_scalar("SELECT CAST(COALESCE(?, DATABASE()) AS CHAR)");
        let schema = schema.bind(&table.schema).fetch_one(&mut self.connection);
        let schema: Result<String, _> = schema.await;
        let schema = schema.map_err(|error| SourceError::of("looking for its schema", &error))?;
        Ok(lock_name(&schema))
    }

    /// Whether the server would show us triggers of the table.
    async fn may_see_triggers(&mut self, table: &TableName) -> Result<bool, SourceError> {
        let rights = "SELECT (SELECT COUNT(*) FROM information_schema.user_privileges WHERE privilege_type = 'TRIGGER') \
             + (SELECT COUNT(*) FROM information_schema.schema_privileges \
                WHERE privilege_type = 'TRIGGER' AND table_schema = COALESCE(?, DATABASE())) \
             + (SELECT COUNT(*) FROM information_schema.table_privileges \
                WHERE privilege_type = 'TRIGGER' AND table_schema = COALESCE(?, DATABASE()) AND table_name = ?) > 0";
        let may = sqlx::query_scalar(rights)
            .bind(&table.schema)
            .bind(&table.schema)
            .bind(&table.name)
            .fetch_one(&mut self.connection);
        may.await
            .map_err(|error| SourceError::of("looking for triggers", &error))
    }

    /// Removes triggers that stood in for others; whichever can't be is harmless.
    async fn without_standins(&mut self, table: &TableName) {
        for name in ALL {
            let drop = format!("DROP TRIGGER IF EXISTS {}", standin(table, name));
            let _ = self.connection.execute(AssertSqlSafe(drop)).await;
        }
    }

    /// The triggers, which note nothing where the procedure is gone that they call; `None` where that can't be seen.
    async fn with_their_procedure(
        &mut self,
        table: &TableName,
        mut triggers: Vec<Trigger>,
    ) -> Result<Option<Vec<Trigger>>, SourceError> {
        let call_it =
            self.flavour == Flavour::MariaDb && triggers.iter().any(|found| found.current);
        if !call_it {
            return Ok(Some(triggers));
        }
        let failed = |error| SourceError::of("looking for triggers", &error);
        let seen = "SELECT COUNT(*) > 0 FROM information_schema.routines \
             WHERE routine_schema = COALESCE(?, DATABASE()) AND routine_name = ? AND routine_type = 'PROCEDURE'";
        let seen = sqlx::query_scalar(seen).bind(&table.schema).bind(NOTE);
        let seen: bool = seen.fetch_one(&mut self.connection).await.map_err(failed)?;
        if seen {
            return Ok(Some(triggers));
        }
        let told = format!("SELECT CAST({}(?) AS CHAR)", watch(table));
        let told = sqlx::query_scalar(AssertSqlSafe(told)).bind(NOTE);
        let told: Option<String> = match told.fetch_one(&mut self.connection).await {
            Ok(told) => told,
            // Both came from the same installation, and are gone together.
            Err(error) if is_routine_gone(&error) => None,
            Err(sqlx::Error::Database(_)) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        if told.is_none() {
            for trigger in &mut triggers {
                trigger.disabled = Some(format!("there is no procedure {NOTE}, which it calls"));
            }
        }
        Ok(Some(triggers))
    }

    /// The first `most` rows that fulfil a condition on an id.
    async fn rows(
        &mut self,
        condition: &str,
        id: i64,
        most: u32,
    ) -> Result<Vec<OutboxRow>, SourceError> {
        let tx = if self.old { "NULL" } else { "tx" };
        let large = |column| format!("IF(LENGTH({column}) > {MOST_PAYLOAD}, NULL, {column})");
        let statement = format!(
            "SELECT id, CAST(user_id AS BINARY), event, CAST(LENGTH(payload) AS SIGNED), {}, {}, \
             CAST(UNIX_TIMESTAMP(created_at) * 1000000 AS SIGNED), CAST({tx} AS SIGNED) \
             FROM {} WHERE {condition} LIMIT ?",
            large("payload"),
            large("previous"),
            self.outbox
        );
        let query = sqlx::query(AssertSqlSafe(statement));
        let rows = query.bind(id).bind(most).fetch(&mut self.connection);
        until_much(rows, "reading the outbox", outbox_row, OutboxRow::bytes).await
    }

    async fn execute(&mut self, doing: &str, statement: String) -> Result<u64, SourceError> {
        let done = self.connection.execute(AssertSqlSafe(statement)).await;
        let done = done.map_err(|error| SourceError::of(doing, &error))?;
        Ok(done.rows_affected())
    }
}

#[async_trait]
impl Session for MySql {
    async fn begin(&mut self) -> Result<(), SourceError> {
        const DOING: &str = "setting up the session";
        self.execute(DOING, ISOLATION.to_owned()).await?;
        self.execute(DOING, SESSION.to_owned()).await?;
        Ok(())
    }

    async fn look(&mut self, table: &TableName) -> Result<Option<Live>, SourceError> {
        const DOING: &str = "looking at the table";
        let failed = |error| SourceError::of(DOING, &error);
        let (schema, name) = (table.schema.as_deref(), table.name.as_str());
        let tables = "SELECT CAST(table_type AS CHAR), CAST(engine AS CHAR) FROM information_schema.tables \
             WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?";
        let found = sqlx::query(tables).bind(schema).bind(name);
        let Some(found) = found
            .fetch_optional(&mut self.connection)
            .await
            .map_err(failed)?
        else {
            return Ok(None);
        };
        let (kind, engine): (String, Option<String>) = (
            found.try_get(0).map_err(failed)?,
            found.try_get(1).map_err(failed)?,
        );
        let mut live = Live::default();
        if !matches!(kind.as_str(), "BASE TABLE" | "SYSTEM VERSIONED") {
            live.problem = Some("it is a view; name the table behind it".to_owned());
        } else if engine.as_deref() != Some("InnoDB") {
            let engine = engine.unwrap_or_default();
            live.problem = Some(format!(
                "its engine is {engine}, which knows no transactions; ALTER TABLE … ENGINE = InnoDB"
            ));
        }
        live.columns = self.columns(table).await?;
        // A part of a key that is an expression has no name; the end of a row's time, in MariaDB, is part of every key.
        let keys = "SELECT CAST(MIN(column_name) AS CHAR) FROM information_schema.statistics s \
             WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? AND non_unique = 0 \
               AND NOT EXISTS (SELECT 1 FROM information_schema.columns c WHERE c.table_schema = s.table_schema \
                 AND c.table_name = s.table_name AND c.column_name = s.column_name AND c.generation_expression = 'ROW END') \
             GROUP BY index_name HAVING COUNT(*) = 1 AND COUNT(sub_part) = 0";
        let rows = sqlx::query_scalar(keys).bind(schema).bind(name);
        let keys: Vec<Option<String>> =
            rows.fetch_all(&mut self.connection).await.map_err(failed)?;
        live.unique = keys.into_iter().flatten().collect();
        let cascades = "SELECT CAST(CONCAT(constraint_name, ' (ON DELETE ', delete_rule, ' ON UPDATE ', update_rule, ')') AS CHAR) \
             FROM information_schema.referential_constraints \
             WHERE constraint_schema = COALESCE(?, DATABASE()) AND table_name = ? \
               AND (delete_rule IN ('CASCADE', 'SET NULL', 'SET DEFAULT') OR update_rule IN ('CASCADE', 'SET NULL', 'SET DEFAULT')) \
             ORDER BY constraint_name";
        let cascades = sqlx::query_scalar(cascades).bind(schema).bind(name);
        let cascades: Vec<String> = cascades
            .fetch_all(&mut self.connection)
            .await
            .map_err(failed)?;
        let remark = |key: String| {
            format!(
                "the foreign key {key} changes rows and no trigger sees it; only a check finds such changes (sources.NAME.check)"
            )
        };
        live.remarks = cascades.into_iter().map(remark).collect();
        Ok(Some(live))
    }

    async fn columns(&mut self, table: &TableName) -> Result<Vec<LiveColumn>, SourceError> {
        let failed = |error| SourceError::of("looking at the table", &error);
        let columns = "SELECT CAST(column_name AS CHAR), CAST(data_type AS CHAR), CAST(column_type AS CHAR) \
             FROM information_schema.columns \
             WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? ORDER BY ordinal_position";
        let mut all = Vec::new();
        let rows = sqlx::query(columns).bind(&table.schema).bind(&table.name);
        for row in rows.fetch_all(&mut self.connection).await.map_err(failed)? {
            all.push(column(&row).map_err(failed)?);
        }
        // What JSON is made of.
        if all.iter().any(|column| column.shown == "longtext") {
            self.tell_json(table, &mut all).await?;
        }
        Ok(all)
    }

    async fn run(&mut self, script: &str) -> Result<(), SourceError> {
        let mut done = Ok(());
        for statement in statements(script) {
            let ran = sqlx::raw_sql(AssertSqlSafe(statement.clone()));
            if let Err(error) = ran.execute(&mut self.connection).await {
                let first = statement.lines().next().unwrap_or_default();
                done = Err(SourceError::Refused(
                    SourceError::of(&format!("`{first}`"), &error).to_string(),
                ));
                let _ = self.connection.execute("ROLLBACK").await;
                // The old triggers are there still.
                if first.starts_with("CREATE TRIGGER") && first.contains(&format!("{STANDIN}`")) {
                    let table = self.table.clone();
                    self.without_standins(&table).await;
                }
                break;
            }
        }
        // Whatever happened, nobody waits for this connection.
        let unlocked = self.connection.execute("UNLOCK TABLES").await;
        done.and(
            unlocked
                .map(drop)
                .map_err(|error| SourceError::of("UNLOCK TABLES", &error)),
        )
    }

    async fn installed(&mut self, table: &TableName) -> Result<Installed, SourceError> {
        let failed = |error| SourceError::of("looking for the outbox", &error);
        let schema = table.schema.as_deref();
        let columns = "SELECT CAST(column_name AS CHAR) FROM information_schema.columns \
             WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?";
        let columns = sqlx::query_scalar(columns).bind(schema).bind(OUTBOX);
        let about = "SELECT COUNT(*) FROM information_schema.tables \
             WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?";
        let about = sqlx::query_scalar(about).bind(schema).bind(ABOUT);
        let about: i64 = about
            .fetch_one(&mut self.connection)
            .await
            .map_err(failed)?;
        Ok(Installed {
            about: about > 0,
            outbox: columns
                .fetch_all(&mut self.connection)
                .await
                .map_err(failed)?,
            triggers: self.triggers(table).await?,
        })
    }

    fn watch_script(&self, table: &TableName) -> Option<String> {
        Some(watch_script(table))
    }

    /// The server shows triggers to those alone who may make some; others are told by a function.
    async fn triggers(&mut self, table: &TableName) -> Result<Option<Vec<Trigger>>, SourceError> {
        let names: Vec<String> = ALL
            .iter()
            .flat_map(|name| [(*name).to_owned(), format!("{name}{STANDIN}")])
            .collect();
        let seen = "SELECT CAST(trigger_name AS CHAR), \
               CAST(CONCAT(IF(event_object_table = ?, '', event_object_table), CHAR(10), action_statement) AS CHAR) \
             FROM information_schema.triggers WHERE trigger_schema = COALESCE(?, DATABASE())";
        let seen = sqlx::query_as(seen)
            .bind(&table.name)
            .bind(&table.schema)
            .fetch_all(&mut self.connection);
        // Who may change rows and make no triggers sees their names alone.
        let seen: Vec<(String, Option<String>)> = seen
            .await
            .map_err(|error| SourceError::of("looking for triggers", &error))?;
        let ours = |(name, told): (String, Option<String>)| {
            told.filter(|_| names.contains(&name))
                .map(|told| trigger(table, &self.id, name, &told, self.flavour))
        };
        let seen: Vec<Trigger> = seen.into_iter().filter_map(ours).collect();
        if !seen.is_empty() || self.may_see_triggers(table).await? {
            return self.with_their_procedure(table, seen).await;
        }
        let mut found = Vec::new();
        for name in names {
            let told = format!("SELECT CAST({}(?) AS CHAR)", watch(table));
            let told = sqlx::query_scalar(AssertSqlSafe(told)).bind(&name);
            let told: Option<String> = match told.fetch_one(&mut self.connection).await {
                Ok(told) => told,
                // There is no such function, or not for us: of an older version, or nobody may see anything.
                Err(sqlx::Error::Database(_)) => return Ok(None),
                Err(error) => return Err(SourceError::of("looking for triggers", &error)),
            };
            found.extend(told.map(|told| trigger(table, &self.id, name, &told, self.flavour)));
        }
        self.with_their_procedure(table, found).await
    }

    async fn is_watched_by_another(&mut self, table: &TableName) -> Result<bool, SourceError> {
        let others = "SELECT COUNT(*) > 0 FROM information_schema.routines \
             WHERE routine_schema = COALESCE(?, DATABASE()) AND routine_name = ? AND definer <> CURRENT_USER()";
        let others = sqlx::query_scalar(others).bind(&table.schema).bind(WATCH);
        let others = others.fetch_one(&mut self.connection).await;
        others.map_err(|error| SourceError::of("looking for triggers", &error))
    }

    /// The function that shows triggers was made by whoever made them, and tells it of itself.
    async fn is_orphaned(&mut self, table: &TableName) -> Result<bool, SourceError> {
        let asked = format!("SELECT CAST({}('') AS CHAR)", watch(table));
        match self.connection.execute(AssertSqlSafe(asked)).await {
            Ok(_) => Ok(false),
            Err(sqlx::Error::Database(said)) => {
                let said = said.try_downcast_ref::<MySqlDatabaseError>();
                Ok(said.is_some_and(|said| said.number() == NO_SUCH_DEFINER))
            }
            Err(error) => Err(SourceError::of("looking for triggers", &error)),
        }
    }

    async fn has_column(&mut self, table: &TableName, column: &str) -> Result<bool, SourceError> {
        let columns = "SELECT COUNT(*) FROM information_schema.columns \
             WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? AND column_name = ?";
        let columns = sqlx::query_scalar(columns)
            .bind(&table.schema)
            .bind(&table.name)
            .bind(column);
        let columns: i64 = columns
            .fetch_one(&mut self.connection)
            .await
            .map_err(|error| SourceError::of("looking for a column", &error))?;
        Ok(columns > 0)
    }

    fn script(&self, layout: &Layout) -> String {
        let epoch = uuid::Uuid::now_v7().simple().to_string();
        script(layout, &format!("'{epoch}'"), self.flavour)
    }

    fn new_epoch(&self, _: &TableName) -> String {
        let (about, outbox) = (&self.about, &self.outbox);
        let epoch = uuid::Uuid::now_v7().simple();
        format!(
            "BEGIN;\nDELETE FROM {about};\n\
             INSERT INTO {about} (epoch, first) SELECT '{epoch}', COALESCE(MAX(id), 0) + 1 FROM {outbox};\nCOMMIT;\n"
        )
    }

    fn removal(&self, table: &TableName) -> String {
        let names = ALL
            .iter()
            .flat_map(|name| [quoted(&table.beside(name)), standin(table, name)]);
        let drops: String = names
            .map(|name| format!("DROP TRIGGER IF EXISTS {name};\n"))
            .collect();
        let note = quoted(&table.beside(NOTE));
        let note = match self.flavour {
            Flavour::MySql => String::new(),
            Flavour::MariaDb => format!("DROP PROCEDURE IF EXISTS {note};\n"),
        };
        format!(
            "{drops}{note}DROP TABLE IF EXISTS {};\nDROP TABLE IF EXISTS {};\nDROP TABLE IF EXISTS {};\n",
            self.outbox,
            self.about,
            quoted(&table.beside(SPENT))
        )
    }

    fn unwatch_script(&self, table: &TableName) -> Option<String> {
        Some(format!("DROP FUNCTION IF EXISTS {};\n", watch(table)))
    }

    async fn try_lock(&mut self, table: &TableName) -> Result<bool, SourceError> {
        let name = self.lock(table).await?;
        let taken = sqlx::query_scalar("SELECT COALESCE(GET_LOCK(?, 0), 0) = 1").bind(name);
        let taken = taken.fetch_one(&mut self.connection).await;
        taken.map_err(|error| SourceError::of("taking the relay's lock", &error))
    }

    async fn end_after(&mut self, silence: Duration) -> Result<(), SourceError> {
        let seconds = silence.as_secs().max(1);
        let statement = format!(
            "SET SESSION wait_timeout = {seconds}, net_read_timeout = {seconds}, net_write_timeout = {seconds}"
        );
        let set = self.execute("limiting its silence", statement).await;
        set.map(drop)
    }

    async fn holds_lock(&mut self, table: &TableName) -> Result<bool, SourceError> {
        let name = self.lock(table).await?;
        let held = sqlx::query_scalar("SELECT COALESCE(IS_USED_LOCK(?) = CONNECTION_ID(), 0) = 1");
        let held = held.bind(name).fetch_one(&mut self.connection).await;
        held.map_err(|error| SourceError::of("looking for the relay's lock", &error))
    }

    async fn answering(&mut self) -> Result<Option<Answering>, SourceError> {
        let number = sqlx::query_scalar("SELECT CAST(CONNECTION_ID() AS SIGNED)");
        let number = number.fetch_one(&mut self.connection).await;
        let number = number.map_err(|error| SourceError::of("asking who answers", &error))?;
        Ok(Some(Answering {
            number,
            is_older: false,
        }))
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
        let statement = format!(
            "SELECT CAST(user_id AS BINARY), event, TIMESTAMPDIFF(SECOND, published_at, NOW(6)) FROM {} \
             WHERE state = 1 AND id > ? AND event IN ('I', 'D') AND published_at > NOW(6) - INTERVAL ? SECOND \
             ORDER BY id DESC LIMIT ?",
            self.outbox
        );
        let notes = sqlx::query_as(AssertSqlSafe(statement));
        let notes = notes.bind(after).bind(span.as_secs()).bind(most);
        let notes: Vec<(Vec<u8>, String, i64)> = notes
            .fetch_all(&mut self.connection)
            .await
            .map_err(|error| SourceError::of("reading the outbox", &error))?;
        let text = |(user, event, ago): (Vec<u8>, String, i64)| {
            (String::from_utf8_lossy(&user).into_owned(), event, ago)
        };
        Ok(notes.into_iter().map(text).collect())
    }

    async fn unpublished_until(&mut self, last: i64) -> Result<i64, SourceError> {
        let statement = format!(
            "SELECT COUNT(*) FROM {} WHERE state = 0 AND id <= ?",
            self.outbox
        );
        let count = sqlx::query_scalar(AssertSqlSafe(statement)).bind(last);
        let count = count.fetch_one(&mut self.connection).await;
        count.map_err(|error| SourceError::of("reading the outbox", &error))
    }

    async fn waiting(
        &mut self,
        layout: &Layout,
        ids: &[String],
    ) -> Result<Vec<String>, SourceError> {
        // Kept as the column shows it, which may be with zeros before it.
        let kept = match layout.id.kind {
            Kind::Integer => "CAST(CAST(user_id AS DECIMAL(20, 0)) AS BINARY)",
            _ => "CAST(user_id AS BINARY)",
        };
        let statement = format!(
            "SELECT DISTINCT {kept} FROM {} WHERE state = 0 AND {kept} IN ({})",
            self.outbox,
            vec!["?"; ids.len()].join(", ")
        );
        let mut waiting = sqlx::query_scalar(AssertSqlSafe(statement));
        for id in ids {
            waiting = waiting.bind(id.as_bytes());
        }
        let waiting: Result<Vec<Vec<u8>>, _> = waiting.fetch_all(&mut self.connection).await;
        let waiting = waiting.map_err(|error| SourceError::of("reading the outbox", &error))?;
        let text = |id: Vec<u8>| String::from_utf8_lossy(&id).into_owned();
        Ok(waiting.into_iter().map(text).collect())
    }

    async fn read_only(&mut self) -> Result<Option<&'static str>, SourceError> {
        let read_only = replica::read_only(&mut self.connection).await?;
        // Asked once in a connection: it takes more than the variable.
        match (read_only, std::mem::replace(&mut self.follows, true)) {
            (None, false) => Ok(replica::follows(&mut self.connection).await),
            (read_only, _) => Ok(read_only),
        }
    }

    async fn about(&mut self) -> Result<Option<About>, SourceError> {
        let statement = format!("SELECT epoch, first, approved, format FROM {}", self.about);
        let about = sqlx::query_as(AssertSqlSafe(statement));
        let about: Option<(String, i64, i64, i16)> =
            match about.fetch_optional(&mut self.connection).await {
                Ok(about) => about,
                Err(error) if is_missing(&error) => None,
                Err(error) => return Err(SourceError::of("looking which outbox it is", &error)),
            };
        self.old = about.is_none();
        Ok(about.map(|(epoch, first, approved, format)| About {
            epoch,
            first,
            approved,
            format,
        }))
    }

    async fn highest(&mut self) -> Result<i64, SourceError> {
        let statement = format!("SELECT COALESCE(MAX(id), 0) FROM {}", self.outbox);
        let highest = sqlx::query_scalar(AssertSqlSafe(statement));
        let highest = highest.fetch_one(&mut self.connection).await;
        highest.map_err(|error| SourceError::of("reading the outbox", &error))
    }

    async fn approve(&mut self) -> Result<(), SourceError> {
        let highest = self.highest().await?;
        let statement = format!("UPDATE {} SET approved = {highest}", self.about);
        self.execute("approving deletions", statement).await?;
        Ok(())
    }

    async fn mark_published(&mut self, ids: &[i64]) -> Result<(), SourceError> {
        for ranges in ranges(ids).chunks(RANGES) {
            let within = ranges.iter().map(|(first, last)| match first == last {
                true => format!("id = {first}"),
                false => format!("id BETWEEN {first} AND {last}"),
            });
            let statement = format!(
                "UPDATE {} SET state = 1, published_at = NOW(6) WHERE {}",
                self.outbox,
                within.collect::<Vec<_>>().join(" OR ")
            );
            self.execute("marking rows of the outbox", statement)
                .await?;
        }
        Ok(())
    }

    async fn mark_failed(&mut self, failures: &[Failure]) -> Result<(), SourceError> {
        let statement = format!(
            "UPDATE {} SET state = 2, error = LEFT(?, 1000) WHERE id = ?",
            self.outbox
        );
        for failure in failures {
            let query = sqlx::query(AssertSqlSafe(statement.clone()));
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
        let statement = format!(
            "SELECT id, published_at < NOW(6) - INTERVAL ? SECOND FROM {} WHERE state = 1 AND id <> ? ORDER BY id LIMIT ?",
            self.outbox
        );
        let oldest = sqlx::query_as(AssertSqlSafe(statement))
            .bind(retention.as_secs())
            .bind(kept)
            .bind(most);
        let oldest: Vec<(i64, bool)> = oldest
            .fetch_all(&mut self.connection)
            .await
            .map_err(failed)?;
        let old: Vec<i64> = oldest
            .into_iter()
            .filter(|(_, old)| *old)
            .map(|(id, _)| id)
            .collect();
        let mut pruned = 0;
        for ids in old.chunks(RANGES) {
            let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
            let statement = format!(
                "DELETE FROM {} WHERE id IN ({})",
                self.outbox,
                ids.join(",")
            );
            pruned += self.execute("pruning the outbox", statement).await?;
        }
        Ok(pruned)
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
        let outbox = &self.outbox;
        let counted = |state| {
            format!(
                "(SELECT COUNT(*) FROM (SELECT 1 FROM {outbox} WHERE state = {state} LIMIT {MOST_COUNTED}) counted{state})"
            )
        };
        let statement = format!(
            "SELECT {}, COALESCE((SELECT CAST((UNIX_TIMESTAMP(NOW(6)) - UNIX_TIMESTAMP(created_at)) * 1000000 AS SIGNED) \
             FROM {outbox} WHERE state = 0 ORDER BY id LIMIT 1), 0), {}",
            counted(0),
            counted(2)
        );
        let lag = sqlx::query_as(AssertSqlSafe(statement)).fetch_one(&mut self.connection);
        let lag = lag.await;
        lag.map(Lag::of)
            .map_err(|error| SourceError::of("looking at the outbox", &error))
    }

    async fn failures(&mut self, _: &TableName, most: u32) -> Result<Vec<Failure>, SourceError> {
        let statement = format!(
            "SELECT id, COALESCE(error, '') FROM {} WHERE state = 2 ORDER BY id DESC LIMIT ?",
            self.outbox
        );
        let rows = sqlx::query_as(AssertSqlSafe(statement)).bind(most);
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
        let behind = after.map_or_else(String::new, |_| format!("AND u.{id} > ? "));
        let (select, blank) = select(layout);
        let statement = format!("{select} {behind}ORDER BY u.{id} LIMIT {most}");
        let mut query = sqlx::query(AssertSqlSafe(statement));
        if let Some(after) = after {
            query = bind_id(query, layout, after);
        }
        let rows = query.fetch(&mut self.connection);
        let read = |row: &MySqlRow| Ok(user_row(layout.id.kind, &blank, &told(row)?));
        until_much(rows, "reading users", read, UserRow::bytes).await
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
        let (select, blank) = select(layout);
        let statement = format!("{select} AND u.{id} IN ({places})");
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
            .map(|row| {
                Ok(user_row(
                    layout.id.kind,
                    &blank,
                    &told(row).map_err(failed)?,
                ))
            })
            .collect()
    }

    async fn estimate(&mut self, table: &TableName) -> Result<u64, SourceError> {
        let statement = "SELECT CAST(COALESCE(table_rows, 0) AS SIGNED) FROM information_schema.tables \
             WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ?";
        let rows = sqlx::query_scalar(statement)
            .bind(&table.schema)
            .bind(&table.name);
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

/// Numbers are compared as numbers: as a text, an id would be compared as a floating-point number.
fn bind_id<'q>(
    query: Query<'q, sqlx::MySql, MySqlArguments>,
    layout: &Layout,
    id: &'q str,
) -> Query<'q, sqlx::MySql, MySqlArguments> {
    if layout.id.kind == Kind::Integer {
        if let Ok(number) = id.parse::<i64>() {
            return query.bind(number);
        }
        if let Ok(number) = id.parse::<u64>() {
            return query.bind(number);
        }
    }
    query.bind(id)
}

/// What stands in for a trigger while it is made anew.
fn standin(table: &TableName, name: &str) -> String {
    quoted(&table.beside(&format!("{name}{STANDIN}")))
}

/// A trigger, of the table it is on, unless that is the users', and what it does.
fn trigger(table: &TableName, id: &str, name: String, told: &str, flavour: Flavour) -> Trigger {
    let (on, statement) = told.split_once('\n').unwrap_or((told, ""));
    let is_there = on.is_empty() || on == table.name;
    let current = statement.trim_start().starts_with(flavour.version());
    let mistaken = notes_another_id(statement, id).filter(|_| current && is_there);
    Trigger {
        name,
        elsewhere: (!is_there).then(|| on.to_owned()),
        of_another_id: mistaken.is_some(),
        disabled: mistaken,
        current,
    }
}

/// Locks are the server's, not the database's, and their names short. Hashed here: not every server has SHA1().
fn lock_name(schema: &str) -> String {
    let hash = Sha1::digest(schema.as_bytes());
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("usersync_outbox.{hash}")
}

/// Whether there is no such function or procedure.
fn is_routine_gone(error: &sqlx::Error) -> bool {
    let said = match error {
        sqlx::Error::Database(said) => said.try_downcast_ref::<MySqlDatabaseError>(),
        _ => None,
    };
    said.is_some_and(|said| said.number() == NO_SUCH_ROUTINE)
}

/// Whether there is no such table.
fn is_missing(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(answer) if answer.code().as_deref() == Some("42S02"))
}

fn outbox_row(row: &MySqlRow) -> Result<OutboxRow, sqlx::Error> {
    let user: Vec<u8> = row.try_get(1)?;
    Ok(OutboxRow {
        id: row.try_get(0)?,
        user: String::from_utf8_lossy(&user).into_owned(),
        event: row.try_get(2)?,
        payload: Payload::of(row.try_get(3)?, row.try_get(4)?),
        previous: row.try_get(5)?,
        created_us: row.try_get(6)?,
        tx: row.try_get(7)?,
    })
}

/// The bytes of a row's texts: whoever is no text is found out later, one by one. MySQL calls JSON a type of its own.
fn told(row: &MySqlRow) -> Result<Vec<Option<&[u8]>>, sqlx::Error> {
    (0..row.len()).map(|at| row.try_get_unchecked(at)).collect()
}

fn column(row: &MySqlRow) -> Result<LiveColumn, sqlx::Error> {
    let (name, data_type, shown): (String, String, String) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let kind = match data_type.as_str() {
        "char" | "varchar" | "tinytext" | "text" | "mediumtext" | "longtext" => Kind::Text,
        "tinyint" if shown.starts_with("tinyint(1)") => Kind::Boolean,
        "bit" if shown == "bit(1)" => Kind::Boolean,
        "tinyint" | "smallint" | "mediumint" | "int" | "bigint" | "year" | "bit" => Kind::Integer,
        "decimal" => Kind::Decimal,
        "float" => Kind::Single,
        "double" => Kind::Float,
        "json" => Kind::Json,
        "timestamp" => Kind::Instant,
        "datetime" => Kind::Local,
        "date" => Kind::Day,
        "enum" | "set" | "uuid" | "inet4" | "inet6" | "time" => Kind::Verbatim,
        _ => Kind::Unsupported,
    };
    Ok(LiveColumn { name, kind, shown })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_has_the_name_that_older_gateways_ask_the_server_to_make() {
        // SELECT SHA1('app')
        assert_eq!(
            lock_name("app"),
            "usersync_outbox.7d1043473d55bfa90e8530d35801d4e381bc69f0"
        );
    }
}
