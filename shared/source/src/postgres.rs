//! PostgreSQL as a main database.

mod sql;

use std::{str::FromStr, time::Duration};

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
    session::{Installed, MOST_COUNTED, MOST_PAYLOAD, Session, until_much, user_row},
};
pub(crate) use sql::{TRIGGERS, script};
use sql::{name_quoted, quoted, select};

/// Where a trigger says that there is something.
const CHANNEL: &str = "user_outbox";

/// Each statement sees what was committed before it. Rows that policies hide are an error instead of a shorter table:
/// whoever isn't seen would be taken for deleted.
const SESSION: &str = "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED; SET row_security = off";

/// One connection, and a second one that listens once somebody waits.
pub(crate) struct Postgres {
    connection: PgConnection,
    options: PgConnectOptions,
    ears: Option<PgListener>,
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
        let mut connection = options.connect().await.map_err(trouble)?;
        connection.execute(SESSION).await.map_err(trouble)?;
        Ok(Self {
            connection,
            options,
            ears: None,
            outbox: quoted(&config.table.beside(OUTBOX)),
            about: quoted(&config.table.beside(ABOUT)),
            old: false,
        })
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
}

#[async_trait]
impl Session for Postgres {
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
        let columns = "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), \
               COALESCE(b.typname, t.typname)::text, COALESCE(b.typtype, t.typtype)::text, t.typcategory::text \
             FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_type b ON b.oid = t.typbasetype \
             WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";
        let rows = sqlx::query(columns).bind(&name);
        for row in rows.fetch_all(&mut self.connection).await.map_err(failed)? {
            live.columns.push(column(&row).map_err(failed)?);
        }
        let keys = "SELECT a.attname::text FROM pg_index i \
               JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] \
             WHERE i.indrelid = to_regclass($1) AND i.indisunique AND i.indnkeyatts = 1 AND i.indpred IS NULL";
        let keys = sqlx::query_scalar(keys).bind(&name);
        let keys: Vec<String> = keys.fetch_all(&mut self.connection).await.map_err(failed)?;
        live.unique = keys.into_iter().collect();
        Ok(Some(live))
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
        let triggers = "SELECT t.tgname::text, c.relname::text FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid \
             WHERE NOT t.tgisinternal AND t.tgname = 'user_outbox' \
               AND c.relnamespace = COALESCE(to_regnamespace($1), to_regnamespace(quote_ident(current_schema())))";
        let triggers = sqlx::query_as(triggers).bind(table.schema.as_deref().map(name_quoted));
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
            triggers: triggers
                .fetch_all(&mut self.connection)
                .await
                .map_err(failed)?,
        })
    }

    fn script(&self, layout: &Layout) -> String {
        script(layout)
    }

    fn new_epoch(&self, _: &TableName) -> String {
        format!("DELETE FROM {};\n", self.about)
    }

    fn removal(&self, table: &TableName) -> String {
        format!(
            "BEGIN;\nSET LOCAL lock_timeout = '10s';\nDROP TRIGGER IF EXISTS user_outbox ON {0};\n\
             DROP TRIGGER IF EXISTS user_outbox_notify ON {0};\n\
             DROP FUNCTION IF EXISTS {1}();\nDROP FUNCTION IF EXISTS {2}();\nDROP TABLE IF EXISTS {3}, {4};\nCOMMIT;\n",
            quoted(table),
            quoted(&table.beside("user_outbox_capture")),
            quoted(&table.beside("user_outbox_notify")),
            self.outbox,
            self.about
        )
    }

    async fn try_lock(&mut self, _: &TableName) -> Result<bool, SourceError> {
        // Locks are the database's; and numbers.
        let statement = "SELECT pg_try_advisory_lock(hashtextextended('usersync ' || COALESCE(to_regclass($1)::oid::text, $1), 0))";
        let taken = sqlx::query_scalar(statement).bind(&self.outbox);
        let taken = taken.fetch_one(&mut self.connection).await;
        taken.map_err(|error| SourceError::of("taking the relay's lock", &error))
    }

    async fn unpublished(&mut self, after: i64, most: u32) -> Result<Vec<OutboxRow>, SourceError> {
        let large = |column| {
            format!("CASE WHEN octet_length({column}) <= {MOST_PAYLOAD} THEN {column} END")
        };
        let tx = if self.old { "NULL::bigint" } else { "tx" };
        let statement = format!(
            "SELECT id, user_id, event, octet_length(payload)::bigint, {}, {}, \
             (extract(epoch FROM created_at) * 1000000)::bigint, {tx} \
             FROM {} WHERE state = 0 AND id > $1 ORDER BY id LIMIT $2",
            large("payload"),
            large("previous"),
            self.outbox
        );
        let query = sqlx::query(AssertSqlSafe(statement)).bind(after);
        let rows = query.bind(i64::from(most)).fetch(&mut self.connection);
        until_much(rows, "reading the outbox", outbox_row, OutboxRow::bytes).await
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
        let standby = sqlx::query_scalar("SELECT pg_is_in_recovery()");
        let standby: bool = standby
            .fetch_one(&mut self.connection)
            .await
            .map_err(|error| SourceError::of("asking whether it may be written to", &error))?;
        Ok(standby.then_some("it is a standby (pg_is_in_recovery)"))
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

    async fn prune(&mut self, retention: Duration, most: u32) -> Result<u64, SourceError> {
        let statement = format!(
            "DELETE FROM {outbox} WHERE id = ANY(ARRAY(SELECT id FROM (SELECT id, published_at FROM {outbox} \
             WHERE state = 1 ORDER BY id LIMIT $1) oldest WHERE published_at < clock_timestamp() - make_interval(secs => $2)))",
            outbox = self.outbox
        );
        let done = sqlx::query(AssertSqlSafe(statement))
            .bind(i64::from(most))
            .bind(retention.as_secs_f64());
        let done = done.execute(&mut self.connection).await;
        let done = done.map_err(|error| SourceError::of("pruning the outbox", &error))?;
        Ok(done.rows_affected())
    }

    async fn lag(&mut self) -> Result<Lag, SourceError> {
        let outbox = &self.outbox;
        let counted = |state| {
            format!(
                "(SELECT count(*) FROM (SELECT 1 FROM {outbox} WHERE state = {state} LIMIT {MOST_COUNTED}) counted)"
            )
        };
        let statement = format!(
            "SELECT {}, COALESCE((SELECT (extract(epoch FROM clock_timestamp() - created_at) * 1000000)::bigint \
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
            format!("WHERE u.{id} > $1::{} ", layout.id.shown)
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
        let statement = format!("{select} WHERE u.{id} = ANY(CAST($1::text[] AS {shown}[]))");
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

fn outbox_row(row: &PgRow) -> Result<OutboxRow, sqlx::Error> {
    let bytes = |at| {
        Ok::<_, sqlx::Error>(
            row.try_get::<Option<String>, _>(at)?
                .map(String::into_bytes),
        )
    };
    Ok(OutboxRow {
        id: row.try_get(0)?,
        user: row.try_get(1)?,
        event: row.try_get(2)?,
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
    let (base, sort, category): (String, String, String) =
        (row.try_get(2)?, row.try_get(3)?, row.try_get(4)?);
    let kind = match base.as_str() {
        _ if category == "A" => Kind::Json,
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
        "uuid" | "inet" | "cidr" | "macaddr" | "time" | "timetz" | "interval" => Kind::Verbatim,
        _ => Kind::Unsupported,
    };
    Ok(LiveColumn { name, kind, shown })
}
