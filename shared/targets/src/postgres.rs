//! PostgreSQL: one `INSERT … SELECT FROM unnest(…) ON CONFLICT (id) DO UPDATE … RETURNING` per batch.
//!
//! Values go as texts and the server reads them as the columns' types, so that every type works that has a
//! textual form.
//!
//! Every transaction that writes says `usersync.apply`, so that it is no change of the table's own, should that have
//! an outbox. Not the session: behind a pooler it may be another client's next.

mod columns;
mod errors;
mod keys;
mod pooler;

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    str::FromStr,
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, FromRow, PgConnection, Row as _,
    postgres::{PgConnectOptions, PgRow, PgSslMode},
};
use url::Url;
use usersync_core::{
    auth::Pem,
    target::{Table, TargetConfig},
};
use usersync_digest::sql::Flavour;

use self::{
    columns::column,
    errors::{READ_ONLY, row_trouble, trouble},
    pooler::Pooler,
};
use crate::{
    ConfigError, Failure,
    dialect::{Against, Dialect, Fate, Held, by_id},
    layout::{Layout, Live, Row, Shape},
    password, rows,
    sql::SqlTarget,
    tls::Peer,
    trouble::Trouble,
    unique::{Claim, Parked},
    way::{Blocked, Way, first},
};

const SERVER: &str = "PostgreSQL";

/// How PostgreSQL is spoken to.
pub(crate) struct Postgres {
    options: PgConnectOptions,
    pooler: Pooler,
    peer: Peer,
    way: Way,
}

/// A target that is a table in PostgreSQL.
pub(crate) fn target(config: &TargetConfig, way: Way) -> Result<SqlTarget<Postgres>, ConfigError> {
    let password = password::of(config)?;
    SqlTarget::new(
        config,
        server(&config.url, password, Peer::of(config), way)?,
    )
}

/// The server at `url`.
pub(crate) fn server(
    url: &Url,
    password: Option<SecretString>,
    peer: Peer,
    way: Way,
) -> Result<Postgres, ConfigError> {
    let expected = "expected postgres://USER@HOST:PORT/DATABASE";
    let options = PgConnectOptions::from_str(url.as_str());
    let mut options = options.map_err(|_| ConfigError::Url(expected.to_owned()))?;
    if url.path().len() < 2 {
        return Err(ConfigError::Url(format!(
            "it names no database; {expected}"
        )));
    }
    // Else the driver would take PGPASSWORD or ~/.pgpass, which are this process's own.
    let password = password.as_ref().map(SecretString::expose_secret);
    options = options.password(password.unwrap_or_default());
    if peer.tls().is_some() {
        options = options.ssl_mode(PgSslMode::VerifyFull);
    }
    let options = options
        .application_name("usersync")
        .disable_statement_logging();
    Ok(Postgres {
        options,
        pooler: Pooler::of(url),
        peer,
        way,
    })
}

impl Postgres {
    /// Rows as they are held, by id; `more` ends the statement.
    async fn rows_of(
        &self,
        connection: &mut PgConnection,
        layout: &Layout,
        ids: &[String],
        more: &str,
    ) -> Result<HashMap<String, Held>, Trouble> {
        let Table {
            id,
            version,
            deleted,
            ..
        } = &layout.table;
        let (id, version, deleted) = (quoted(id), quoted(version), quoted(deleted));
        let cells = layout.columns.iter().map(|column| {
            format!(
                ", {}",
                Self::FLAVOUR.shown(&quoted(&column.name), column.stored)
            )
        });
        let statement = format!(
            "SELECT {id}::text, COALESCE({version}, 0), COALESCE({deleted}, true){} FROM {} \
             WHERE {id} = ANY ($1::text[]::{}[]) {more}",
            cells.collect::<String>(),
            quoted(&layout.name),
            layout.id_cast
        );
        let query = self.query(AssertSqlSafe(statement)).bind(ids);
        let rows = query.fetch_all(connection).await.map_err(trouble)?;
        by_id(rows.iter().map(|row| held(row, layout))).map_err(trouble)
    }

    /// What became of `rows`, of which the server says that some were written: the condition of the statement keeps a row
    /// from being written without an error, and so may a trigger.
    async fn fates(
        &self,
        connection: &mut PgConnection,
        layout: &Layout,
        rows: &[Row],
        is_written: impl Fn(&Row) -> bool,
    ) -> Result<Vec<Fate>, Trouble> {
        let others = rows.iter().filter(|row| !is_written(row));
        let others: Vec<String> = others.map(|row| row.id.clone()).collect();
        if others.is_empty() {
            return Ok(vec![Fate::Written; rows.len()]);
        }
        let held = self.rows_of(connection, layout, &others, "").await?;
        let fate = |row: &Row| match is_written(row) {
            true => Fate::Written,
            false => Fate::unsaid(row, held.get(&row.id)),
        };
        Ok(rows.iter().map(fate).collect())
    }

    /// Connects to an address that was looked at; by name where the server must prove that it is that name's.
    async fn reach(&self, options: PgConnectOptions) -> Result<PgConnection, Trouble> {
        let (host, port) = (options.get_host(), options.get_port());
        let trouble = |error| {
            // That names the place.
            let refusal = self.peer.sql_refusal(&error);
            let place = |trouble: Trouble| trouble.reaching(host, port, options.get_database());
            refusal.unwrap_or_else(|| place(trouble(error)))
        };
        if options.get_socket().is_some() || options.get_host().starts_with('/') {
            self.way.check_local().map_err(Blocked::from)?;
            return options.connect().await.map_err(trouble);
        }
        let addresses = self.way.to(host, port).await?;
        if matches!(options.get_ssl_mode(), PgSslMode::VerifyFull) {
            return options.connect().await.map_err(trouble);
        }
        let connected = first(addresses, |host| options.clone().host(host)).await;
        connected.map_err(trouble)
    }

    /// With the certificates as they are now.
    fn certified(&self) -> Result<PgConnectOptions, Trouble> {
        let mut options = self.options.clone();
        let Some(Pem { ca, identity }) = self.peer.pem()? else {
            return Ok(options);
        };
        if let Some(ca) = ca {
            options = options.ssl_root_cert_from_pem(ca);
        }
        if let Some((cert, key)) = identity {
            options = options
                .ssl_client_cert_from_pem(cert)
                .ssl_client_key_from_pem(key);
        }
        Ok(options)
    }
}

impl Dialect for Postgres {
    type Connection = PgConnection;
    const FLAVOUR: Flavour = Flavour::Postgres;
    const DUPLICATE: &str = "23505";

    fn begin(&self, layout: &Layout) -> Cow<'_, str> {
        let begin = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL usersync.apply = 'on'";
        match layout.outbox {
            Some(_) => begin.into(),
            None => format!("{begin}; SET LOCAL usersync.blind = 'on'").into(),
        }
    }

    async fn connect(&self) -> Result<PgConnection, Trouble> {
        self.open().await
    }

    fn needs_transactions(&self) -> bool {
        self.pooler.is_there()
    }

    async fn ping(&self, connection: &mut PgConnection) -> Result<(), Trouble> {
        connection.ping().await.map_err(trouble)
    }

    async fn writable(
        &self,
        connection: &mut PgConnection,
        name: &str,
        _: &Table,
    ) -> Result<(), Trouble> {
        // Not by writing nothing: a trigger may be called for that. Not prepared, for the sake of poolers.
        let place = format!("to_regclass('{}')", quoted(name).replace('\'', "''"));
        let question = format!(
            "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean, \
             has_any_column_privilege({place}, 'INSERT') AND has_any_column_privilege({place}, 'UPDATE') \
             AND has_any_column_privilege({place}, 'SELECT')"
        );
        let answer = sqlx::raw_sql(AssertSqlSafe(question)).fetch_one(connection);
        let answer = answer.await.map_err(trouble)?;
        let answer: (bool, Option<bool>) = FromRow::from_row(&answer).map_err(trouble)?;
        match answer {
            (true, _) => Err(Trouble::demoted(Failure {
                code: Some("25006".into()),
                ..Failure::new(format!("{SERVER}: {READ_ONLY}"))
            })),
            (_, Some(false)) => Err(Trouble::misfit(Failure {
                code: Some("42501".into()),
                ..Failure::new(format!(
                    "{SERVER}: we need SELECT, INSERT and UPDATE on the table `{name}`"
                ))
            })),
            _ => Ok(()),
        }
    }

    async fn look(
        &self,
        connection: &mut PgConnection,
        name: &str,
    ) -> Result<Option<Live>, Trouble> {
        let columns = "SELECT a.attname::text, format_type(a.atttypid, NULL), b.typcategory::text, b.typtype::text, \
             NOT a.attnotnull, a.atthasdef OR a.attidentity <> '', a.attgenerated <> '' OR a.attidentity = 'a', \
             COALESCE(c.collisdeterministic, true), b.typname::text, n.nspname::text, \
             EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisunique AND i.indimmediate \
                     AND i.indpred IS NULL AND i.indexprs IS NULL AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum), \
             CASE t.typtype WHEN 'd' THEN t.typtypmod ELSE a.atttypmod END, \
             current_setting('server_encoding') = 'UTF8', t.typtype = 'd' \
             FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
             JOIN pg_type b ON b.oid = CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END \
             JOIN pg_namespace n ON n.oid = b.typnamespace \
             LEFT JOIN pg_collation c ON c.oid = a.attcollation \
             WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";
        let outbox = "SELECT quote_ident(n.nspname) || '.user_outbox', has_table_privilege(o.oid, 'SELECT') FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid \
             JOIN pg_namespace n ON n.oid = c.relnamespace \
             JOIN pg_class o ON o.relnamespace = c.relnamespace AND o.relname = 'user_outbox' \
             WHERE t.tgrelid = to_regclass($1) AND t.tgname = 'user_outbox'";
        let looking = async |connection: &mut PgConnection| {
            let rows = self.query(columns).bind(quoted(name));
            let rows = rows.fetch_all(&mut *connection).await.map_err(trouble)?;
            if rows.is_empty() {
                return Ok(None);
            }
            let outbox = self.query(outbox).bind(quoted(name));
            let outbox = outbox.fetch_optional(&mut *connection).await;
            let mut live = Live::default();
            if let Some(row) = outbox.map_err(trouble)? {
                live.outbox = Some(row.try_get(0).map_err(trouble)?);
                live.outbox_is_hidden = !row.try_get::<bool, _>(1).map_err(trouble)?;
            }
            for row in &rows {
                let (column, unique) = column(row).map_err(trouble)?;
                if unique {
                    live.unique.insert(column.name.clone());
                }
                live.columns.push(column);
            }
            live.keys = keys::read(&mut *connection, name).await?;
            // Before a row is written: bit 0 is for rows, bit 1 for before.
            let altered = "SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass($1) AND tgtype & 3 = 3 \
                 AND NOT tgisinternal AND tgenabled <> 'D')";
            let altered = self.scalar(altered).bind(quoted(name));
            live.altered = altered.fetch_one(connection).await.map_err(trouble)?;
            Ok(Some(live))
        };
        self.reading(connection, looking).await
    }

    async fn obstacle(
        &self,
        connection: &mut PgConnection,
        name: &str,
    ) -> Result<Option<String>, Trouble> {
        let name = quoted(name).replace('\'', "''");
        // Not prepared, for the sake of poolers.
        let asked = format!(
            "SELECT pg_is_in_recovery(), COALESCE(row_security_active(to_regclass('{name}')), false)"
        );
        let asked = sqlx::raw_sql(AssertSqlSafe(asked));
        let row = asked.fetch_one(connection).await.map_err(trouble)?;
        let (standby, hidden) = (row.try_get(0), row.try_get(1));
        Ok(match (standby.map_err(trouble)?, hidden.map_err(trouble)?) {
            (true, _) => Some(
                "this server is a standby (pg_is_in_recovery): it may be behind; name the primary in `url`"
                    .to_owned(),
            ),
            (false, true) => Some(format!(
                "policies (row-level security) of table {name} hide rows from this user, who has to see all: \
                 ALTER ROLE … BYPASSRLS"
            )),
            (false, false) => None,
        })
    }

    async fn upsert(
        &self,
        connection: &mut PgConnection,
        layout: &Layout,
        rows: &[Row],
    ) -> Result<Vec<Fate>, Trouble> {
        let Some(first) = rows.first() else {
            return Ok(Vec::new());
        };
        let shape = first.shape();
        let query = sqlx::query_as(AssertSqlSafe(upsert(layout, &shape)));
        let mut query = query
            .persistent(!self.pooler.is_there())
            .bind(rows.iter().map(|row| row.id.as_str()).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.deleted).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.version).collect::<Vec<_>>());
        let told = rows
            .iter()
            .map(|row| row.told().collect())
            .collect::<Vec<Vec<_>>>();
        for at in 0..layout.told(&shape).len() {
            query = query.bind(
                told.iter()
                    .map(|told| told[at])
                    .collect::<Vec<Option<&str>>>(),
            );
        }
        let written = query.fetch_all(&mut *connection).await;
        let written = written.map_err(|error| row_trouble(error, layout))?;
        let written: HashMap<String, Option<i64>> = written.into_iter().collect();
        let is_written = |row: &Row| written.get(&row.id) == Some(&Some(row.version));
        self.fates(connection, layout, rows, is_written).await
    }

    async fn is_noted(
        &self,
        connection: &mut PgConnection,
        _: &Layout,
        outbox: &str,
        rows: &[Row],
    ) -> Result<bool, Trouble> {
        let statement =
            format!("SELECT EXISTS (SELECT FROM {outbox} WHERE state = 0 AND user_id = ANY ($1))");
        let ids: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
        let noted = self.scalar(AssertSqlSafe(statement)).bind(ids);
        noted.fetch_one(connection).await.map_err(trouble)
    }

    async fn update(
        &self,
        connection: &mut PgConnection,
        layout: &Layout,
        rows: &[Row],
    ) -> Result<Vec<Fate>, Trouble> {
        let Table {
            id,
            version,
            deleted,
            ..
        } = &layout.table;
        let (id, version, deleted) = (quoted(id), quoted(version), quoted(deleted));
        let mut written = HashSet::new();
        for row in rows {
            let told = layout.told(&row.shape()).into_iter().enumerate();
            let assignments: String = told
                .map(|(at, column)| {
                    let (name, cast, at) = (quoted(&column.name), &column.cast, at + 3);
                    match row.merged && is_json(cast) {
                        true => format!(
                            "{name} = CASE WHEN jsonb_typeof({name}::jsonb) = 'object' \
                             THEN ({name}::jsonb || ${at}::text::jsonb)::{cast} ELSE {name} END, "
                        ),
                        false => format!("{name} = ${at}::text::{cast}, "),
                    }
                })
                .collect();
            let statement = format!(
                "UPDATE {} SET {assignments}{version} = $2 WHERE {id} = $1::text::{} \
                 AND COALESCE({version}, 0) <= $2 AND NOT COALESCE({deleted}, true)",
                quoted(&layout.name),
                layout.id_cast
            );
            let mut query = self
                .query(AssertSqlSafe(statement))
                .bind(&row.id)
                .bind(row.version);
            for told in row.told() {
                query = query.bind(told);
            }
            let done = query.execute(&mut *connection).await;
            let done = done.map_err(|error| row_trouble(error, layout))?;
            if done.rows_affected() > 0 {
                written.insert(row.id.as_str());
            }
        }
        let is_written = |row: &Row| written.contains(row.id.as_str());
        self.fates(connection, layout, rows, is_written).await
    }

    async fn culprit(
        &self,
        connection: &mut PgConnection,
        layout: &Layout,
        row: &Row,
    ) -> Option<String> {
        for (column, cell) in layout.columns.iter().zip(&row.cells) {
            let Some(Some(cell)) = cell else { continue };
            // As a column of the table, with its length and its precision, which a cast would cut to.
            let (name, cast) = (quote(&column.name), &column.cast);
            let statement = match is_json(cast) {
                true => format!("SELECT $1::text::{cast} IS NULL"),
                false => format!(
                    "SELECT (jsonb_populate_record(NULL::{}, jsonb_build_object({}, $1::text))).{name} IS NULL",
                    quoted(&layout.name),
                    literal(&column.name)
                ),
            };
            let trying = async |connection: &mut PgConnection| {
                let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
                query.bind(cell).execute(connection).await.map_err(trouble)
            };
            match self.reading(connection, trying).await {
                Ok(_) => {}
                Err(trouble) if trouble.lost => return None,
                Err(_) => return Some(column.name.clone()),
            }
        }
        None
    }

    async fn forget(
        &self,
        connection: &mut PgConnection,
        layout: &Layout,
        id: &str,
        version: i64,
    ) -> Result<(), Trouble> {
        let Table {
            id: key,
            version: kept,
            ..
        } = &layout.table;
        let (key, kept) = (quoted(key), quoted(kept));
        let statement = format!(
            "UPDATE {} SET {kept} = 0 WHERE {key} = $1::text::{} AND {kept} = $2",
            quoted(&layout.name),
            layout.id_cast
        );
        let begin = AssertSqlSafe(self.begin(layout).into_owned());
        let mut transaction = connection.begin_with(begin).await.map_err(trouble)?;
        let query = self.query(AssertSqlSafe(statement)).bind(id).bind(version);
        query.execute(&mut *transaction).await.map_err(trouble)?;
        transaction.commit().await.map_err(trouble)
    }

    async fn read(
        &self,
        connection: &mut PgConnection,
        layout: &Layout,
        ids: &[String],
    ) -> Result<HashMap<String, Held>, Trouble> {
        let reading =
            async |connection: &mut PgConnection| self.rows_of(connection, layout, ids, "").await;
        self.reading(connection, reading).await
    }

    async fn lock(
        &self,
        connection: &mut PgConnection,
        layout: &Layout,
        ids: &[String],
    ) -> Result<HashMap<String, Held>, Trouble> {
        // In the order that batches are written in.
        let id = quoted(&layout.table.id);
        let locked = format!("ORDER BY {id}::text COLLATE \"C\" FOR UPDATE");
        self.rows_of(connection, layout, ids, &locked).await
    }

    async fn claims(
        &self,
        connection: &mut PgConnection,
        layout: &Layout,
        rows: &[Row],
        against: Against,
    ) -> Result<Vec<Claim>, Trouble> {
        let claiming = async |connection: &mut PgConnection| {
            keys::claims(connection, layout, rows, against).await
        };
        self.reading(connection, claiming).await
    }

    async fn park(
        &self,
        connection: &mut PgConnection,
        layout: &Layout,
        rows: &[Parked],
    ) -> Result<(), Trouble> {
        let (name, id) = (quoted(&layout.name), quoted(&layout.table.id));
        for row in rows {
            let cells = row.cells.iter().enumerate().map(|(at, (column, _))| {
                let column = &layout.columns[*column];
                format!(
                    "{} = ${}::text::{}",
                    quoted(&column.name),
                    at + 2,
                    column.cast
                )
            });
            let statement = format!(
                "UPDATE {name} SET {} WHERE {id} = $1::text::{}",
                cells.collect::<Vec<_>>().join(", "),
                layout.id_cast
            );
            let mut query = self.query(AssertSqlSafe(statement)).bind(&row.id);
            for (_, cell) in &row.cells {
                query = query.bind(cell);
            }
            query.execute(&mut *connection).await.map_err(trouble)?;
        }
        Ok(())
    }

    async fn run(&self, connection: &mut PgConnection, statement: &str) -> Result<(), Trouble> {
        let done = connection.execute(AssertSqlSafe(statement)).await;
        done.map(drop).map_err(trouble)
    }

    async fn allow(
        &self,
        connection: &mut PgConnection,
        patience: Duration,
    ) -> Result<(), Trouble> {
        self.limit(connection, patience).await
    }

    async fn packed(
        &self,
        connection: &mut PgConnection,
        statement: &str,
    ) -> Result<(i64, Vec<u8>), Trouble> {
        let asking = async |connection: &mut PgConnection| {
            let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
            query.fetch_one(connection).await.map_err(trouble)
        };
        let row = self.reading(connection, asking).await?;
        let octets: Option<Vec<u8>> = row.try_get(1).map_err(trouble)?;
        Ok((row.try_get(0).map_err(trouble)?, octets.unwrap_or_default()))
    }

    async fn texts(
        &self,
        connection: &mut PgConnection,
        statement: &str,
        patience: Duration,
        each: &mut (dyn FnMut(&[Option<&str>]) + Send),
    ) -> Result<(), Trouble> {
        let reading = async |connection: &mut PgConnection| {
            let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
            let mut rows = query.fetch(connection);
            while let Some(row) = rows::next(&mut rows, patience).await? {
                let row = row.map_err(trouble)?;
                let texts: Result<Vec<Option<&str>>, _> =
                    (0..row.len()).map(|at| row.try_get(at)).collect();
                each(&texts.map_err(trouble)?);
            }
            Ok(())
        };
        self.reading(connection, reading).await
    }

    fn create(&self, name: &str, table: &Table) -> String {
        let columns = table.columns.iter().map(|(column, path)| {
            let kind = if path == "data" { "jsonb" } else { "text" };
            format!("  {} {kind},\n", quoted(column))
        });
        format!(
            "CREATE TABLE IF NOT EXISTS {} (\n  {} text COLLATE \"C\" PRIMARY KEY,\n{}  {} {DELETED},\n  {} {VERSION}\n)",
            quoted(name),
            quoted(&table.id),
            columns.collect::<String>(),
            quoted(&table.deleted),
            quoted(&table.version),
        )
    }

    fn add(&self, name: &str, version: Option<&str>, deleted: Option<&str>) -> Vec<String> {
        let add = |(column, kind): (Option<&str>, &str)| {
            let column = quoted(column?);
            Some(format!(
                "ALTER TABLE {} ADD COLUMN IF NOT EXISTS {column} {kind}",
                quoted(name)
            ))
        };
        [(deleted, DELETED), (version, VERSION)]
            .into_iter()
            .filter_map(add)
            .collect()
    }
}

const DELETED: &str = "boolean NOT NULL DEFAULT false";
const VERSION: &str = "bigint NOT NULL DEFAULT 0";

/// The statement for rows of `shape`.
fn upsert(layout: &Layout, shape: &Shape) -> String {
    let Table {
        id,
        version,
        deleted,
        ..
    } = &layout.table;
    let (id, version, deleted) = (quoted(id), quoted(version), quoted(deleted));
    let (mut names, mut parameters, mut aliases) = (String::new(), String::new(), String::new());
    let (mut values, mut assignments) = (String::new(), String::new());
    for (at, column) in layout.told(shape).into_iter().enumerate() {
        let (name, cast) = (quoted(&column.name), &column.cast);
        names += &format!("{name}, ");
        parameters += &format!(", ${}::text[]", at + 4);
        aliases += &format!(", c{at}");
        values += &format!("told.c{at}::{cast}, ");
        // PostgreSQL merges objects at their top only.
        assignments += &match shape.merged && is_json(cast) {
            true => format!(
                "{name} = CASE WHEN jsonb_typeof(held.{name}::jsonb) = 'object' \
                 AND jsonb_typeof(EXCLUDED.{name}::jsonb) = 'object' \
                 THEN (held.{name}::jsonb || EXCLUDED.{name}::jsonb)::{cast} ELSE EXCLUDED.{name} END, "
            ),
            false => format!("{name} = EXCLUDED.{name}, "),
        };
    }
    let blind = match layout.outbox {
        Some(_) => "",
        None => "set_config('usersync.blind', 'on', true) AS blind, ",
    };
    format!(
        "INSERT INTO {} AS held ({id}, {names}{deleted}, {version}) OVERRIDING SYSTEM VALUE \
         SELECT told.i::{}, {values}told.d, told.v \
         FROM set_config('usersync.apply', 'on', true) AS applying, {blind}\
              unnest($1::text[], $2::bool[], $3::int8[]{parameters}) AS told(i, d, v{aliases}) \
         ON CONFLICT ({id}) DO UPDATE SET {assignments}{deleted} = EXCLUDED.{deleted}, {version} = EXCLUDED.{version} \
         WHERE COALESCE(held.{version}, 0) <= EXCLUDED.{version} \
         RETURNING held.{id}::text, held.{version}",
        quoted(&layout.name),
        layout.id_cast
    )
}

fn is_json(cast: &str) -> bool {
    cast.ends_with("\"json\"") || cast.ends_with("\"jsonb\"")
}

fn held(row: &PgRow, layout: &Layout) -> Result<(String, Held), sqlx::Error> {
    let cells = 3..3 + layout.columns.len();
    let held = Held {
        version: row.try_get(1)?,
        deleted: row.try_get(2)?,
        cells: cells
            .map(|cell| row.try_get(cell))
            .collect::<Result<_, _>>()?,
        twice: false,
    };
    Ok((row.try_get(0)?, held))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// `schema.table` is two names.
fn quoted(name: &str) -> String {
    name.split('.').map(quote).collect::<Vec<_>>().join(".")
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted() {
        assert_eq!(quoted("us\"ers"), "\"us\"\"ers\"");
        assert_eq!(quoted("app.users"), "\"app\".\"users\"");
    }
}
