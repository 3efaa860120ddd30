//! PostgreSQL as a main database.

mod sql;

use std::{
    str::FromStr,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use secrecy::ExposeSecret;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions, PgRow, PgSslMode},
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
use sql::{ALL, FUNCTIONS, VERSION, name_quoted, quoted, select};
pub(crate) use sql::{LATER, TRIGGERS, script};

/// Where a trigger says that there is something.
const CHANNEL: &str = "user_outbox";

/// Whatever the role's defaults are: each statement sees what was committed before it, values are shown in one way, and who
/// may not see every row is told so. Where a database takes any bytes, they are told as they are: else no page is told that
/// holds some that are no text.
const SESSION: &str = "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED; \
     SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC'; SET extra_float_digits = 1; \
     SET bytea_output = 'hex'; SET row_security = off; SET client_min_messages = warning; \
     SELECT set_config('client_encoding', 'SQL_ASCII', false) WHERE getdatabaseencoding() = 'SQL_ASCII'";

/// Whether the server is a standby, and whether it or the database was closed to writers. A user who may only read, by a setting
/// of their own, says nothing of the server. What is set for the database is not in sessions that began before.
const WRITTEN_TO: &str = "SELECT pg_is_in_recovery(), \
     CASE WHEN current_setting('default_transaction_read_only')::boolean THEN \
       EXISTS (SELECT FROM pg_settings WHERE name = 'default_transaction_read_only' \
         AND source NOT IN ('user', 'database user', 'client', 'session')) \
     ELSE EXISTS (SELECT FROM pg_db_role_setting s, unnest(s.setconfig) AS told \
       WHERE s.setrole = 0 AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())) \
       AND lower(told) IN ('default_transaction_read_only=on', 'default_transaction_read_only=true', \
         'default_transaction_read_only=yes', 'default_transaction_read_only=1')) \
       AND NOT EXISTS (SELECT FROM pg_db_role_setting s, unnest(s.setconfig) AS told \
         WHERE s.setrole = current_user::regrole AND told LIKE 'default_transaction_read_only=%') END";

/// The number of the relay's lock, of the outbox's name.
const LOCK: &str = "hashtextextended('usersync ' || COALESCE(to_regclass($1)::oid::text, $1), 0)";

/// One connection, and a second one that listens once somebody waits.
/// When a row was written: not at a time that nobody can count from.
const CREATED: &str = "CASE WHEN created_at BETWEEN '1970-01-01+00' AND '9998-12-31+00' THEN created_at ELSE to_timestamp(0) END";

pub(crate) struct Postgres {
    connection: PgConnection,
    options: PgConnectOptions,
    /// When we began to connect.
    began: Instant,
    ears: Option<PgListener>,
    /// The column with the user's id, as the settings name it.
    id: String,
    outbox: String,
    about: String,
    /// Whether the outbox is one of an older version, without notes.
    old: bool,
}

impl Postgres {
    /// Connects.
    pub(crate) async fn connect(config: &SourceConfig) -> Result<Self, SourceError> {
        let options = PgConnectOptions::from_str(config.url.as_str());
        let mut options = options.map_err(|_| {
            SourceError::Config("url: expected postgres://USER@HOST:PORT/DATABASE".to_owned())
        })?;
        if let Some(password) = config.password()? {
            options = options.password(password.expose_secret());
        }
        if let Some(Pem { ca, identity }) = config.pem()? {
            options = options.ssl_mode(PgSslMode::VerifyFull);
            if let Some(ca) = ca {
                options = options.ssl_root_cert_from_pem(ca);
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
        let options = options
            .application_name("usersync")
            .disable_statement_logging();
        let trouble = |error: sqlx::Error| SourceError::of(&place, &error);
        let began = Instant::now();
        Ok(Self {
            connection: options.connect().await.map_err(trouble)?,
            options,
            began,
            ears: None,
            id: config.id.clone(),
            outbox: quoted(&config.table.beside(OUTBOX)),
            about: quoted(&config.table.beside(ABOUT)),
            old: false,
        })
    }

    /// Why triggers don't fire for some or all writers, whatever their tables say.
    async fn triggers_are_off(&mut self) -> Result<Option<String>, SourceError> {
        let off = "SELECT CASE WHEN current_setting('session_replication_role') = 'replica' THEN 'this server' \
               ELSE (SELECT COALESCE('role ' || min(s.setrole::regrole::text) FILTER (WHERE s.setrole <> 0), 'this database') \
                 FROM pg_db_role_setting s LEFT JOIN pg_database d ON d.oid = s.setdatabase \
                 WHERE 'session_replication_role=replica' = ANY(s.setconfig) AND (s.setdatabase = 0 OR d.datname = current_database()) \
                 HAVING count(*) > 0) END";
        let off: Option<String> = sqlx::query_scalar(off)
            .fetch_one(&mut self.connection)
            .await
            .map_err(|error| SourceError::of("looking for triggers", &error))?;
        Ok(off.map(|whose| {
            format!(
                "session_replication_role is `replica` for {whose}, which switches triggers off"
            )
        }))
    }

    async fn listen(&self) -> Result<PgListener, sqlx::Error> {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(Duration::from_secs(5));
        let pool = pool.connect_lazy_with(self.options.clone());
        let mut ears = PgListener::connect_with(&pool).await?;
        ears.listen(CHANNEL).await?;
        Ok(ears)
    }

    /// The first `most` rows that fulfil a condition on an id.
    async fn rows(
        &mut self,
        condition: &str,
        id: i64,
        most: u32,
    ) -> Result<Vec<OutboxRow>, SourceError> {
        let large = |column| {
            format!("CASE WHEN octet_length({column}) <= {MOST_PAYLOAD} THEN {column} END")
        };
        let tx = if self.old { "NULL::bigint" } else { "tx" };
        let statement = format!(
            "SELECT id, user_id, event, octet_length(payload)::bigint, {}, {}, \
             (extract(epoch FROM {CREATED}) * 1000000)::bigint, {tx} \
             FROM {} WHERE {condition} LIMIT $2",
            large("payload"),
            large("previous"),
            self.outbox
        );
        let query = sqlx::query(AssertSqlSafe(statement)).bind(id);
        let rows = query.bind(i64::from(most)).fetch(&mut self.connection);
        until_much(rows, "reading the outbox", outbox_row, OutboxRow::bytes).await
    }
}

#[async_trait]
impl Session for Postgres {
    async fn begin(&mut self) -> Result<(), SourceError> {
        let set = self.connection.execute(SESSION).await;
        set.map(drop)
            .map_err(|error| SourceError::of("setting up the session", &error))
    }

    async fn look(&mut self, table: &TableName) -> Result<Option<Live>, SourceError> {
        let failed = |error| SourceError::of("looking at the table", &error);
        let name = quoted(table);
        let kind = "SELECT relkind::text, (SELECT nspname::text FROM pg_namespace n WHERE n.oid = relnamespace) FROM pg_class WHERE oid = to_regclass($1)";
        let kind = sqlx::query_as(kind).bind(&name);
        let kind: Option<(String, String)> = kind
            .fetch_optional(&mut self.connection)
            .await
            .map_err(failed)?;
        let Some((kind, schema)) = kind else {
            return Ok(None);
        };
        // A trigger runs with another search path than whoever made it.
        let mut live = Live {
            schema: Some(schema),
            ..Live::default()
        };
        if !matches!(kind.as_str(), "r" | "p") {
            live.problem = Some("it is no ordinary table; name the table behind it".to_owned());
        }
        let heirs = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = to_regclass($1) ORDER BY 1";
        let heirs = sqlx::query_scalar(heirs).bind(&name);
        let heirs: Vec<String> = heirs
            .fetch_all(&mut self.connection)
            .await
            .map_err(failed)?;
        if kind == "r" {
            let remark = |heir: String| {
                format!(
                    "`{heir}` inherits from it: its rows are read with this table's and no trigger notes their changes; only a check \
                     finds them (sources.NAME.check)"
                )
            };
            live.remarks = heirs.into_iter().map(remark).collect();
        }
        live.columns = self.columns(table).await?;
        let keys = "SELECT a.attname::text FROM pg_index i \
               JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] \
             WHERE i.indrelid = to_regclass($1) AND i.indisunique AND i.indnkeyatts = 1 AND i.indpred IS NULL";
        let keys = sqlx::query_scalar(keys).bind(&name);
        let keys: Vec<String> = keys.fetch_all(&mut self.connection).await.map_err(failed)?;
        live.unique = keys.into_iter().collect();
        Ok(Some(live))
    }

    async fn columns(&mut self, table: &TableName) -> Result<Vec<LiveColumn>, SourceError> {
        let failed = |error| SourceError::of("looking at the table", &error);
        // A domain is read as what it is a domain over; a list as what its items are.
        let columns = "WITH RECURSIVE base AS ( \
               SELECT attnum, attname, format_type(atttypid, atttypmod) AS shown, atttypid AS type FROM pg_attribute \
               WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped \
               UNION ALL \
               SELECT b.attnum, b.attname, b.shown, t.typbasetype FROM base b JOIN pg_type t ON t.oid = b.type WHERE t.typtype = 'd') \
             SELECT b.attname::text, b.shown, t.typcategory = 'A', COALESCE(d.typname, e.typname, t.typname)::text, \
               COALESCE(d.typtype, e.typtype, t.typtype)::text \
             FROM base b JOIN pg_type t ON t.oid = b.type AND t.typtype <> 'd' \
             LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A' \
             LEFT JOIN pg_type d ON d.oid = e.typbasetype \
             ORDER BY b.attnum";
        let mut all = Vec::new();
        let rows = sqlx::query(columns).bind(quoted(table));
        for row in rows.fetch_all(&mut self.connection).await.map_err(failed)? {
            all.push(column(&row).map_err(failed)?);
        }
        Ok(all)
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
        let columns = "SELECT attname::text FROM pg_attribute \
             WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped";
        let columns = sqlx::query_scalar(columns).bind(quoted(&table.beside(OUTBOX)));
        let about = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL").bind(&self.about);
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
        let failed = |error| SourceError::of("looking for triggers", &error);
        // Those of partitions are copies, and each may be disabled.
        let triggers = "SELECT t.tgname::text, c.relname::text, COALESCE(t.tgrelid = to_regclass($1), false), \
               COALESCE((SELECT min(k.tgrelid::regclass::text) FROM pg_trigger k WHERE k.tgname = t.tgname AND k.tgenabled IN ('D', 'R') \
                 AND (k.oid = t.oid OR k.tgrelid IN (SELECT relid FROM pg_partition_tree(t.tgrelid)))), ''), \
               p.prosrc LIKE '%' || $2 || '%', p.prosrc \
             FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid \
             WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND t.tgname = ANY($3) \
               AND c.relnamespace = COALESCE(to_regnamespace($4), \
                 (SELECT relnamespace FROM pg_class WHERE oid = to_regclass($1)), \
                 (SELECT relnamespace FROM pg_class WHERE oid = to_regclass($5)), to_regnamespace(quote_ident(current_schema())))";
        let names: Vec<&str> = TRIGGERS.iter().chain(&LATER).copied().collect();
        let triggers = sqlx::query_as(triggers)
            .bind(quoted(table))
            .bind(VERSION)
            .bind(names)
            .bind(table.schema.as_deref().map(name_quoted))
            .bind(&self.outbox);
        let triggers: Vec<(String, String, bool, String, bool, String)> = triggers
            .fetch_all(&mut self.connection)
            .await
            .map_err(failed)?;
        let replica = self.triggers_are_off().await?;
        let trigger = |(name, on, is_there, disabled, current, text): (
            _,
            String,
            bool,
            String,
            _,
            String,
        )| {
            let disabled = (!disabled.is_empty())
                .then(|| format!("it is disabled on `{disabled}` (ALTER TABLE … ENABLE TRIGGER)"));
            let mistaken = notes_another_id(&text, &self.id).filter(|_| current && is_there);
            Trigger {
                name,
                of_another_id: mistaken.is_some(),
                elsewhere: (!is_there).then_some(on),
                disabled: disabled.or_else(|| replica.clone()).or(mistaken),
                current,
            }
        };
        Ok(Some(triggers.into_iter().map(trigger).collect()))
    }

    fn script(&self, layout: &Layout) -> String {
        script(layout)
    }

    fn new_epoch(&self, _: &TableName) -> String {
        let (about, outbox) = (&self.about, &self.outbox);
        format!(
            "BEGIN;\nDELETE FROM {about};\n\
             INSERT INTO {about} (epoch, first) SELECT gen_random_uuid()::text, COALESCE(max(id), 0) + 1 FROM {outbox};\nCOMMIT;\n"
        )
    }

    fn removal(&self, table: &TableName) -> String {
        let triggers =
            ALL.map(|name| format!("DROP TRIGGER IF EXISTS {name} ON {};\n", quoted(table)));
        let functions = FUNCTIONS.map(|name| {
            format!(
                "DROP FUNCTION IF EXISTS {}();\n",
                quoted(&table.beside(name))
            )
        });
        format!(
            "BEGIN;\nSET LOCAL lock_timeout = '10s';\n{}{}DROP TABLE IF EXISTS {}, {};\nCOMMIT;\n",
            triggers.concat(),
            functions.concat(),
            self.outbox,
            self.about
        )
    }

    async fn try_lock(&mut self, _: &TableName) -> Result<bool, SourceError> {
        // Locks are the database's; and numbers.
        let statement = format!("SELECT pg_try_advisory_lock({LOCK})");
        let taken = sqlx::query_scalar(AssertSqlSafe(statement)).bind(&self.outbox);
        let taken = taken.fetch_one(&mut self.connection).await;
        taken.map_err(|error| SourceError::of("taking the relay's lock", &error))
    }

    async fn end_after(&mut self, silence: Duration) -> Result<(), SourceError> {
        let seconds = silence.as_secs().max(1);
        let statement = format!(
            "SET idle_session_timeout = '{seconds}s'; SET idle_in_transaction_session_timeout = '{seconds}s'; \
             SET tcp_keepalives_idle = {seconds}; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 2"
        );
        let set = self.connection.execute(AssertSqlSafe(statement)).await;
        set.map(drop)
            .map_err(|error| SourceError::of("limiting its silence", &error))
    }

    async fn holds_lock(&mut self, _: &TableName) -> Result<bool, SourceError> {
        let statement = format!(
            "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid() \
             AND objsubid = 1 AND (classid::bigint << 32 | objid::bigint) = {LOCK})"
        );
        let held = sqlx::query_scalar(AssertSqlSafe(statement)).bind(&self.outbox);
        let held = held.fetch_one(&mut self.connection).await;
        held.map_err(|error| SourceError::of("looking for the relay's lock", &error))
    }

    /// A pooler's sessions are older than our connection, or change.
    async fn answering(&mut self) -> Result<Option<Answering>, SourceError> {
        let statement = "SELECT pid::bigint, extract(epoch FROM clock_timestamp() - backend_start)::float8 \
             FROM pg_stat_activity WHERE pid = pg_backend_pid()";
        let told = sqlx::query_as(statement).fetch_one(&mut self.connection);
        let (number, age): (i64, f64) = told
            .await
            .map_err(|error| SourceError::of("asking who answers", &error))?;
        // Clocks don't run alike to the millisecond.
        let ours = self.began.elapsed().as_secs_f64() * 1.001 + 1.0;
        Ok(Some(Answering {
            number,
            is_older: age > ours,
        }))
    }

    async fn unpublished(&mut self, after: i64, most: u32) -> Result<Vec<OutboxRow>, SourceError> {
        self.rows("state = 0 AND id > $1 ORDER BY id", after, most)
            .await
    }

    async fn failed(&mut self, after: i64, most: u32) -> Result<Vec<OutboxRow>, SourceError> {
        self.rows("state = 2 AND id > $1 ORDER BY id", after, most)
            .await
    }

    async fn passed_on(
        &mut self,
        after: i64,
        span: Duration,
        most: u32,
    ) -> Result<Vec<PassedOn>, SourceError> {
        let statement = format!(
            "SELECT user_id, event, extract(epoch FROM clock_timestamp() - published_at)::bigint FROM {} \
             WHERE state = 1 AND id > $1 AND event IN ('I', 'D') \
               AND published_at > clock_timestamp() - make_interval(secs => $2) ORDER BY id DESC LIMIT $3",
            self.outbox
        );
        let notes = sqlx::query_as(AssertSqlSafe(statement));
        let notes = notes
            .bind(after)
            .bind(span.as_secs_f64())
            .bind(i64::from(most));
        let notes = notes.fetch_all(&mut self.connection).await;
        notes.map_err(|error| SourceError::of("reading the outbox", &error))
    }

    async fn unpublished_until(&mut self, last: i64) -> Result<i64, SourceError> {
        let statement = format!(
            "SELECT count(*) FROM {} WHERE state = 0 AND id <= $1",
            self.outbox
        );
        let count = sqlx::query_scalar(AssertSqlSafe(statement)).bind(last);
        let count = count.fetch_one(&mut self.connection).await;
        count.map_err(|error| SourceError::of("reading the outbox", &error))
    }

    async fn waiting(&mut self, _: &Layout, ids: &[String]) -> Result<Vec<String>, SourceError> {
        let statement = format!(
            "SELECT DISTINCT user_id FROM {} WHERE state = 0 AND user_id = ANY($1)",
            self.outbox
        );
        let waiting = sqlx::query_scalar(AssertSqlSafe(statement)).bind(ids);
        let waiting = waiting.fetch_all(&mut self.connection).await;
        waiting.map_err(|error| SourceError::of("reading the outbox", &error))
    }

    async fn read_only(&mut self) -> Result<Option<&'static str>, SourceError> {
        let (standby, fenced): (bool, bool) = sqlx::query_as(WRITTEN_TO)
            .fetch_one(&mut self.connection)
            .await
            .map_err(|error| SourceError::of("asking whether it may be written to", &error))?;
        Ok(match (standby, fenced) {
            (true, _) => Some("it is a standby (pg_is_in_recovery)"),
            (_, true) => Some(
                "nobody may write to it (default_transaction_read_only), as to a primary that was replaced",
            ),
            _ => None,
        })
    }

    async fn about(&mut self) -> Result<Option<About>, SourceError> {
        let failed = |error| SourceError::of("looking which outbox it is", &error);
        let there = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL").bind(&self.about);
        let there: bool = there
            .fetch_one(&mut self.connection)
            .await
            .map_err(failed)?;
        let mut about: Option<(String, i64, i64, i16)> = None;
        if there {
            let statement = format!("SELECT epoch, first, approved, format FROM {}", self.about);
            about = sqlx::query_as(AssertSqlSafe(statement))
                .fetch_optional(&mut self.connection)
                .await
                .map_err(failed)?;
        }
        self.old = about.is_none();
        Ok(about.map(|(epoch, first, approved, format)| About {
            epoch,
            first,
            approved,
            format,
        }))
    }

    async fn highest(&mut self) -> Result<i64, SourceError> {
        let statement = format!("SELECT COALESCE(max(id), 0) FROM {}", self.outbox);
        let highest = sqlx::query_scalar(AssertSqlSafe(statement));
        let highest = highest.fetch_one(&mut self.connection).await;
        highest.map_err(|error| SourceError::of("reading the outbox", &error))
    }

    async fn approve(&mut self) -> Result<(), SourceError> {
        let statement = format!(
            "UPDATE {} SET approved = (SELECT COALESCE(max(id), 0) FROM {})",
            self.about, self.outbox
        );
        let done = sqlx::query(AssertSqlSafe(statement));
        let done = done.execute(&mut self.connection).await;
        done.map(drop)
            .map_err(|error| SourceError::of("approving deletions", &error))
    }

    async fn mark_published(&mut self, ids: &[i64]) -> Result<(), SourceError> {
        let statement = format!(
            "UPDATE {} SET state = 1, published_at = clock_timestamp() WHERE id = ANY($1)",
            self.outbox
        );
        let done = sqlx::query(AssertSqlSafe(statement)).bind(ids);
        let done = done.execute(&mut self.connection).await;
        done.map(drop)
            .map_err(|error| SourceError::of("marking rows of the outbox", &error))
    }

    async fn mark_failed(&mut self, failures: &[Failure]) -> Result<(), SourceError> {
        let statement = format!(
            "UPDATE {} SET state = 2, error = left($1, 1000) WHERE id = $2",
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
        let statement = format!(
            "DELETE FROM {outbox} WHERE id = ANY(ARRAY(SELECT id FROM (SELECT id, published_at FROM {outbox} \
             WHERE state = 1 AND id <> $3 ORDER BY id LIMIT $1) oldest WHERE published_at < clock_timestamp() - make_interval(secs => $2)))",
            outbox = self.outbox
        );
        let done = sqlx::query(AssertSqlSafe(statement))
            .bind(i64::from(most))
            .bind(retention.as_secs_f64())
            .bind(kept);
        let done = done.execute(&mut self.connection).await;
        let done = done.map_err(|error| SourceError::of("pruning the outbox", &error))?;
        Ok(done.rows_affected())
    }

    async fn row(&mut self, id: i64) -> Result<Option<OutboxRow>, SourceError> {
        let found = self.rows("id = $1 ORDER BY id", id, 1).await?;
        Ok(found.into_iter().next())
    }

    async fn last_published(&mut self) -> Result<Option<OutboxRow>, SourceError> {
        let last = "state = 1 AND id > $1 ORDER BY id DESC";
        let found = self.rows(last, i64::MIN, 1).await?;
        Ok(found.into_iter().next())
    }

    async fn lag(&mut self) -> Result<Lag, SourceError> {
        let outbox = &self.outbox;
        let counted = |state| {
            format!(
                "(SELECT count(*) FROM (SELECT 1 FROM {outbox} WHERE state = {state} LIMIT {MOST_COUNTED}) counted)"
            )
        };
        let statement = format!(
            "SELECT {}, COALESCE((SELECT (extract(epoch FROM clock_timestamp() - {CREATED}) * 1000000)::bigint \
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
            "SELECT id, COALESCE(error, '') FROM {} WHERE state = 2 ORDER BY id DESC LIMIT $1",
            self.outbox
        );
        let rows = sqlx::query_as(AssertSqlSafe(statement)).bind(i64::from(most));
        let rows: Vec<(i64, String)> = rows
            .fetch_all(&mut self.connection)
            .await
            .map_err(|error| SourceError::of("looking at the outbox", &error))?;
        let failure = |(id, reason)| Failure { id, reason };
        Ok(rows.into_iter().map(failure).collect())
    }

    /// Word comes by LISTEN; without it, looking again after `at_most` is enough.
    async fn wait(&mut self, at_most: Duration) {
        let end = tokio::time::Instant::now() + at_most;
        if self.ears.is_none() {
            let listening = tokio::time::timeout_at(end, self.listen()).await;
            self.ears = listening.ok().and_then(Result::ok);
            if self.ears.is_some() {
                // Something may have been said before we listened.
                return;
            }
        }
        let heard = async {
            match &mut self.ears {
                Some(ears) => ears.recv().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        match tokio::time::timeout_at(end, heard).await {
            Ok(true) => {
                // One look is enough for all that was said so far.
                if let Some(ears) = &mut self.ears {
                    while ears.next_buffered().is_some() {}
                }
            }
            Ok(false) => {
                self.ears = None;
                tokio::time::sleep_until(end).await;
            }
            Err(_) => {}
        }
    }

    async fn page(
        &mut self,
        layout: &Layout,
        after: Option<&str>,
        most: u32,
    ) -> Result<Vec<UserRow>, SourceError> {
        let id = name_quoted(&layout.id.name);
        let behind = after.map_or_else(String::new, |_| {
            format!("AND u.{id} > $1::{} ", layout.id.shown)
        });
        let (select, blank) = select(layout);
        let statement = format!("{select} {behind}ORDER BY u.{id} LIMIT {most}");
        let mut query = sqlx::query(AssertSqlSafe(statement));
        if let Some(after) = after {
            query = query.bind(after);
        }
        let rows = query.fetch(&mut self.connection);
        let read = |row: &PgRow| Ok(user_row(layout.id.kind, &blank, &told(row)?));
        until_much(rows, "reading users", read, UserRow::bytes).await
    }

    async fn users(
        &mut self,
        layout: &Layout,
        ids: &[String],
    ) -> Result<Vec<UserRow>, SourceError> {
        let id = name_quoted(&layout.id.name);
        let (select, blank) = select(layout);
        let shown = &layout.id.shown;
        let statement = format!("{select} AND u.{id} = ANY(CAST($1::text[] AS {shown}[]))");
        let failed = |error| SourceError::of("reading users", &error);
        let rows = sqlx::query(AssertSqlSafe(statement)).bind(ids);
        let rows = rows.fetch_all(&mut self.connection).await.map_err(failed)?;
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
        let statement =
            "SELECT GREATEST(reltuples, 0)::bigint FROM pg_class WHERE oid = to_regclass($1)";
        let rows = sqlx::query_scalar(statement).bind(quoted(table));
        let rows: Option<i64> = rows
            .fetch_optional(&mut self.connection)
            .await
            .map_err(|error| SourceError::of("counting users", &error))?;
        Ok(rows.unwrap_or(0).unsigned_abs())
    }

    async fn close(self: Box<Self>) {
        let _ = self.connection.close().await;
    }
}

/// Bytes that are no text must hold nobody else's row up: a database of SQL_ASCII takes any.
fn outbox_row(row: &PgRow) -> Result<OutboxRow, sqlx::Error> {
    let bytes = |at| {
        let text: Option<&[u8]> = row.try_get_unchecked(at)?;
        Ok::<_, sqlx::Error>(text.map(<[u8]>::to_vec))
    };
    let text = |at| {
        let text = bytes(at)?.unwrap_or_default();
        Ok::<_, sqlx::Error>(String::from_utf8_lossy(&text).into_owned())
    };
    Ok(OutboxRow {
        id: row.try_get(0)?,
        user: text(1)?,
        event: text(2)?,
        payload: Payload::of(row.try_get(3)?, bytes(4)?),
        previous: bytes(5)?,
        created_us: row.try_get(6)?,
        tx: row.try_get(7)?,
    })
}

/// The bytes of a row's texts: whoever is no text is found out later, one by one.
fn told(row: &PgRow) -> Result<Vec<Option<&[u8]>>, sqlx::Error> {
    (0..row.len()).map(|at| row.try_get_unchecked(at)).collect()
}

fn column(row: &PgRow) -> Result<LiveColumn, sqlx::Error> {
    let (name, shown): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let (is_list, base, sort): (bool, String, String) =
        (row.try_get(2)?, row.try_get(3)?, row.try_get(4)?);
    let kind = match base.as_str() {
        _ if sort == "e" => Kind::Verbatim,
        "int2" | "int4" | "int8" => Kind::Integer,
        "numeric" => Kind::Decimal,
        "float4" | "float8" => Kind::Float,
        "bool" => Kind::Boolean,
        "text" | "varchar" | "bpchar" | "citext" | "name" => Kind::Text,
        "json" | "jsonb" => Kind::Json,
        "timestamptz" => Kind::Instant,
        "timestamp" => Kind::Local,
        "date" => Kind::Day,
        "uuid" | "inet" | "cidr" | "macaddr" | "macaddr8" | "time" | "timetz" | "interval"
        | "bit" | "varbit" => Kind::Verbatim,
        _ => Kind::Unsupported,
    };
    let kind = match (is_list, kind) {
        (false, kind) => kind,
        (true, Kind::Unsupported) => Kind::Unsupported,
        (true, Kind::Decimal) => Kind::Decimals,
        (true, _) => Kind::Json,
    };
    Ok(LiveColumn { name, kind, shown })
}
