//! MySQL and MariaDB: one multi-row `INSERT … ON DUPLICATE KEY UPDATE` per batch.
//!
//! That statement fires on any unique key, so every assignment is conditioned on the id, and the version is
//! assigned last, for assignments see those before them.

mod columns;
mod errors;
mod keys;
mod server;

use std::{borrow::Cow, collections::HashMap, time::Duration};

use sqlx::{
    AssertSqlSafe, Connection, Executor, MySqlConnection, Row as _,
    mysql::{MySqlArguments, MySqlRow},
    query::Query,
};
use usersync_core::target::{Table, TargetConfig};
use usersync_digest::{Stored, sql::Flavour};

pub(crate) use self::server::{MySql, server};
use self::{
    columns::column,
    errors::{row_trouble, trouble},
};
use crate::{
    ConfigError,
    cell::Kind,
    dialect::{Against, Dialect, Fate, Held, by_id},
    layout::{Ids, Layout, Live, Row, Shape},
    password, rows,
    sql::{SqlTarget, TABLE},
    tls::Peer,
    trouble::Trouble,
    unique::{Claim, Parked},
    way::Way,
};

const SERVER: &str = "MySQL";
/// What the answer to a statement carries as "last insert id" when it refused a row; no real id.
const REFUSED: u64 = i64::MAX as u64;
/// A target that is a table in MySQL or MariaDB.
pub(crate) fn target(config: &TargetConfig, way: Way) -> Result<SqlTarget<MySql>, ConfigError> {
    let password = password::of(config)?;
    let server = server(&config.url, password, config.timeout, Peer::of(config), way)?;
    let name = config
        .table
        .as_ref()
        .and_then(|table| table.name.as_deref());
    SqlTarget::new(config, server.writing_to(name.unwrap_or(TABLE)))
}

impl Dialect for MySql {
    type Connection = MySqlConnection;
    const FLAVOUR: Flavour = Flavour::MySql;
    const DUPLICATE: &str = "23000";

    // The session is at READ COMMITTED.
    fn begin(&self, layout: &Layout) -> Cow<'_, str> {
        match layout.outbox {
            Some(_) => "SET @usersync_apply = 1; BEGIN".into(),
            None => "BEGIN".into(),
        }
    }

    fn commit(&self) -> Cow<'_, str> {
        format!("COMMIT; {}", self.blind).into()
    }

    fn rollback(&self) -> Cow<'_, str> {
        format!("ROLLBACK; {}", self.blind).into()
    }

    async fn connect(&self) -> Result<MySqlConnection, Trouble> {
        self.open().await
    }

    async fn ping(&self, connection: &mut MySqlConnection) -> Result<(), Trouble> {
        connection.ping().await.map_err(trouble)
    }

    async fn writable(
        &self,
        connection: &mut MySqlConnection,
        name: &str,
        table: &Table,
    ) -> Result<(), Trouble> {
        // A server that is read-only refuses even this, unless it takes our writes all the same.
        let version = quoted(&table.version);
        let name = quoted(name);
        let statement = format!("UPDATE {name} SET {version} = {version} WHERE FALSE LIMIT 1");
        let done = connection.execute(AssertSqlSafe(statement)).await;
        done.map(drop).map_err(trouble)
    }

    async fn look(
        &self,
        connection: &mut MySqlConnection,
        name: &str,
    ) -> Result<Option<Live>, Trouble> {
        let (schema, name) = match name.split_once('.') {
            Some((schema, name)) => (Some(schema), name),
            None => (None, name),
        };
        let columns = "SELECT CAST(column_name AS CHAR), CAST(data_type AS CHAR), CAST(column_type AS CHAR), \
             is_nullable = 'YES', column_default IS NOT NULL, CAST(extra AS CHAR), CAST(collation_name AS CHAR), \
             CAST(COALESCE(numeric_scale, datetime_precision) AS SIGNED), CAST(character_set_name AS CHAR), \
             VERSION() NOT LIKE '%MariaDB%' AND @@sql_mode NOT LIKE '%TIME_TRUNCATE_FRACTIONAL%', \
             CAST(LEAST(character_maximum_length, 1000000) AS UNSIGNED) \
             FROM information_schema.columns \
             WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? ORDER BY ordinal_position";
        let rows = sqlx::query(columns).bind(schema).bind(name);
        let rows = rows.fetch_all(&mut *connection).await.map_err(trouble)?;
        if rows.is_empty() {
            return Ok(None);
        }
        let mut live = Live::default();
        for row in &rows {
            let (column, numbered) = column(row).map_err(trouble)?;
            live.columns.push(column);
            live.numbers_itself |= numbered;
        }
        for name in self.json_columns(connection, schema, name).await? {
            if let Some(column) = live.columns.iter_mut().find(|column| column.name == name) {
                (column.kind, column.stored) = (Kind::Json, Stored::Json);
            }
        }
        // Seen by whoever may read it.
        let outbox = "SELECT COUNT(*) FROM information_schema.triggers t JOIN information_schema.tables o \
             ON o.table_schema = t.event_object_schema AND o.table_name = 'user_outbox' \
             WHERE t.event_object_schema = COALESCE(?, DATABASE()) AND t.event_object_table = ? \
             AND t.trigger_name = 'user_outbox_insert'";
        let outbox = sqlx::query_scalar(outbox).bind(schema).bind(name);
        let outbox: i64 = outbox.fetch_one(&mut *connection).await.map_err(trouble)?;
        live.outbox = (outbox > 0).then(|| match schema {
            Some(schema) => quoted(&format!("{schema}.user_outbox")),
            None => quoted("user_outbox"),
        });
        let keys = "SELECT CAST(MIN(column_name) AS CHAR) FROM information_schema.statistics \
             WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? AND non_unique = 0 \
             GROUP BY index_name HAVING COUNT(*) = 1 AND COUNT(sub_part) = 0 AND COUNT(column_name) = 1";
        let rows = sqlx::query(keys).bind(schema).bind(name);
        for row in rows.fetch_all(&mut *connection).await.map_err(trouble)? {
            live.unique.insert(row.try_get(0).map_err(trouble)?);
        }
        live.keys = keys::read(&mut *connection, schema, name).await?;
        let altered = "SELECT COUNT(*) > 0 FROM information_schema.triggers \
             WHERE event_object_schema = COALESCE(?, DATABASE()) AND event_object_table = ? AND action_timing = 'BEFORE'";
        let altered = sqlx::query_scalar(altered).bind(schema).bind(name);
        live.altered = altered.fetch_one(connection).await.map_err(trouble)?;
        Ok(Some(live))
    }

    async fn obstacle(
        &self,
        connection: &mut MySqlConnection,
        _: &str,
    ) -> Result<Option<String>, Trouble> {
        let read_only = "SELECT CAST(@@global.read_only OR @@global.innodb_read_only AS SIGNED)";
        let read_only = sqlx::query_scalar(read_only).fetch_one(connection);
        let read_only: i64 = read_only.await.map_err(trouble)?;
        let reason = "this server is read_only, as a replica is: it may be behind; name the one that is written to in `url`";
        Ok((read_only != 0).then(|| reason.to_owned()))
    }

    async fn upsert(
        &self,
        connection: &mut MySqlConnection,
        layout: &Layout,
        rows: &[Row],
    ) -> Result<Vec<Fate>, Trouble> {
        let Some(first) = rows.first() else {
            return Ok(Vec::new());
        };
        // A statement per number of rows would have the server prepare hundreds. The shortest row is
        // repeated up to the next power of two instead: the same version again changes nothing.
        let places = rows.len().next_power_of_two();
        let statement = upsert(layout, &first.shape(), places);
        let mut query = sqlx::query(AssertSqlSafe(statement));
        let shortest = rows.iter().min_by_key(|row| row.size()).unwrap_or(first);
        for row in padded(rows, shortest, places) {
            query = bind_id(query, layout, &row.id);
            for told in row.told() {
                query = query.bind(told);
            }
            query = query.bind(row.deleted).bind(row.version);
        }
        let done = query
            .execute(&mut *connection)
            .await
            .map_err(|error| row_trouble(error, layout))?;
        if done.last_insert_id() != REFUSED && !layout.numbers_itself {
            return Ok(vec![Fate::Written; rows.len()]);
        }
        let ids: Vec<String> = rows.iter().map(|row| row.id.clone()).collect();
        let held = self.read(connection, layout, &ids).await?;
        let fate = |row: &Row| match held.get(&row.id) {
            Some(held) if held.version > row.version => Fate::Newer,
            Some(held) if held.version == row.version => Fate::Written,
            _ => Fate::InTheWay,
        };
        Ok(rows.iter().map(fate).collect())
    }

    async fn is_noted(
        &self,
        connection: &mut MySqlConnection,
        layout: &Layout,
        outbox: &str,
        rows: &[Row],
    ) -> Result<bool, Trouble> {
        // Kept as the column shows it, which may be with zeros before it.
        let kept = match matches!(layout.ids, Ids::Numbers { .. }) {
            true => "CAST(CAST(user_id AS DECIMAL(20, 0)) AS BINARY)",
            false => "CAST(user_id AS BINARY)",
        };
        let statement = format!(
            "SELECT EXISTS (SELECT 1 FROM {outbox} WHERE state = 0 AND {kept} IN ({}))",
            vec!["?"; rows.len()].join(", ")
        );
        let mut noted = sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false);
        for row in rows {
            noted = noted.bind(row.id.as_bytes());
        }
        let noted: i64 = noted.fetch_one(connection).await.map_err(trouble)?;
        Ok(noted != 0)
    }

    async fn update(
        &self,
        connection: &mut MySqlConnection,
        layout: &Layout,
        rows: &[Row],
    ) -> Result<Vec<Fate>, Trouble> {
        let mut unsaid = Vec::new();
        let Table {
            id,
            version,
            deleted,
            ..
        } = &layout.table;
        let (id, version, deleted) = (quoted(id), quoted(version), quoted(deleted));
        for row in rows {
            let told = layout.told(&row.shape()).into_iter();
            let assignments: String = told
                .map(|column| {
                    let (name, json) = (quoted(&column.name), column.kind == Kind::Json);
                    match row.merged && json {
                        true => {
                            format!("{name} = IF(JSON_VALID({name}), JSON_MERGE_PATCH({name}, ?), {name}), ")
                        }
                        false => format!("{name} = ?, "),
                    }
                })
                .collect();
            let statement = format!(
                "UPDATE {} SET {assignments}{version} = ? \
                 WHERE {id} = ? AND COALESCE({version}, 0) <= ? AND NOT COALESCE({deleted}, TRUE)",
                quoted(&layout.name)
            );
            let mut query = sqlx::query(AssertSqlSafe(statement));
            for told in row.told() {
                query = query.bind(told);
            }
            query = bind_id(query.bind(row.version), layout, &row.id).bind(row.version);
            let done = query.execute(&mut *connection).await;
            let done = done.map_err(|error| row_trouble(error, layout))?;
            if done.rows_affected() == 0 {
                unsaid.push(row.id.clone());
            }
        }
        let held = rows_of(connection, layout, &unsaid, "").await?;
        let fate = |row: &Row| match unsaid.contains(&row.id) {
            true => Fate::unsaid(row, held.get(&row.id)),
            false => Fate::Written,
        };
        Ok(rows.iter().map(fate).collect())
    }

    /// It says so itself.
    async fn culprit(&self, _: &mut MySqlConnection, _: &Layout, _: &Row) -> Option<String> {
        None
    }

    async fn forget(
        &self,
        connection: &mut MySqlConnection,
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
        let name = quoted(&layout.name);
        let statement = format!("UPDATE {name} SET {kept} = 0 WHERE {key} = ? AND {kept} = ?");
        let query = bind_id(sqlx::query(AssertSqlSafe(statement)), layout, id).bind(version);
        self.run(connection, &self.begin(layout)).await?;
        let done = query.execute(&mut *connection).await;
        let done = done.map(drop).map_err(trouble);
        let end = match done {
            Ok(()) => self.commit(),
            Err(_) => self.rollback(),
        };
        self.run(connection, &end).await?;
        done
    }

    async fn read(
        &self,
        connection: &mut MySqlConnection,
        layout: &Layout,
        ids: &[String],
    ) -> Result<HashMap<String, Held>, Trouble> {
        rows_of(connection, layout, ids, "").await
    }

    async fn lock(
        &self,
        connection: &mut MySqlConnection,
        layout: &Layout,
        ids: &[String],
    ) -> Result<HashMap<String, Held>, Trouble> {
        rows_of(connection, layout, ids, "FOR UPDATE").await
    }

    async fn claims(
        &self,
        connection: &mut MySqlConnection,
        layout: &Layout,
        rows: &[Row],
        against: Against,
    ) -> Result<Vec<Claim>, Trouble> {
        keys::claims(connection, layout, rows, against).await
    }

    async fn park(
        &self,
        connection: &mut MySqlConnection,
        layout: &Layout,
        rows: &[Parked],
    ) -> Result<(), Trouble> {
        let (name, id) = (quoted(&layout.name), quoted(&layout.table.id));
        for row in rows {
            let cells = row.cells.iter();
            let cells = cells.map(|(at, _)| format!("{} = ?", quoted(&layout.columns[*at].name)));
            let cells = cells.collect::<Vec<_>>().join(", ");
            let statement = format!("UPDATE {name} SET {cells} WHERE {id} = ?");
            let mut query = sqlx::query(AssertSqlSafe(statement));
            for (_, cell) in &row.cells {
                query = query.bind(cell);
            }
            let done = bind_id(query, layout, &row.id).execute(&mut *connection);
            done.await.map_err(|error| row_trouble(error, layout))?;
        }
        Ok(())
    }

    async fn run(&self, connection: &mut MySqlConnection, statement: &str) -> Result<(), Trouble> {
        let done = connection.execute(AssertSqlSafe(statement)).await;
        done.map(drop).map_err(trouble)
    }

    async fn allow(
        &self,
        connection: &mut MySqlConnection,
        patience: Duration,
    ) -> Result<(), Trouble> {
        // More than any answer has; with less the end of it would be cut off.
        let room = "SET SESSION group_concat_max_len = 16777216";
        connection.execute(room).await.map_err(trouble)?;
        let seconds = patience.as_secs();
        let limit = format!("SET SESSION max_statement_time = {seconds}");
        if connection.execute(AssertSqlSafe(limit)).await.is_err() {
            // MySQL's name for it.
            let limit = format!("SET SESSION max_execution_time = {}", seconds * 1000);
            connection
                .execute(AssertSqlSafe(limit))
                .await
                .map_err(trouble)?;
        }
        Ok(())
    }

    async fn packed(
        &self,
        connection: &mut MySqlConnection,
        statement: &str,
    ) -> Result<(i64, Vec<u8>), Trouble> {
        // Not prepared: it runs once.
        let query = sqlx::raw_sql(AssertSqlSafe(statement));
        let row = query.fetch_one(connection).await.map_err(trouble)?;
        let octets: Option<Vec<u8>> = row.try_get(1).map_err(trouble)?;
        Ok((row.try_get(0).map_err(trouble)?, octets.unwrap_or_default()))
    }

    async fn texts(
        &self,
        connection: &mut MySqlConnection,
        statement: &str,
        patience: Duration,
        each: &mut (dyn FnMut(&[Option<&str>]) + Send),
    ) -> Result<(), Trouble> {
        let query = sqlx::raw_sql(AssertSqlSafe(statement));
        let mut rows = query.fetch(connection);
        while let Some(row) = rows::next(&mut rows, patience).await? {
            let row = row.map_err(trouble)?;
            let texts: Result<Vec<Option<&str>>, _> =
                (0..row.len()).map(|at| row.try_get(at)).collect();
            each(&texts.map_err(trouble)?);
        }
        Ok(())
    }

    fn create(&self, name: &str, table: &Table) -> String {
        let columns = table.columns.iter().map(|(column, path)| {
            let kind = match path.as_str() {
                "username" | "email" => "VARCHAR(320)",
                "status" | "data.status" => "VARCHAR(64)",
                "data" => "JSON",
                _ => "MEDIUMTEXT",
            };
            format!("  {} {kind} NULL,\n", quoted(column))
        });
        // Ids are ASCII; a binary collation keeps `aB` and `Ab` apart.
        format!(
            "CREATE TABLE IF NOT EXISTS {} (\n  {} VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,\n\
             {}  {} {DELETED},\n  {} {VERSION}\n) DEFAULT CHARACTER SET utf8mb4",
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
                "ALTER TABLE {} ADD COLUMN {column} {kind}",
                quoted(name)
            ))
        };
        [(deleted, DELETED), (version, VERSION)]
            .into_iter()
            .filter_map(add)
            .collect()
    }
}

const DELETED: &str = "BOOLEAN NOT NULL DEFAULT FALSE";
const VERSION: &str = "BIGINT NOT NULL DEFAULT 0";

impl MySql {
    /// MariaDB keeps JSON in text columns with a check; only the check tells.
    async fn json_columns(
        &self,
        connection: &mut MySqlConnection,
        schema: Option<&str>,
        name: &str,
    ) -> Result<Vec<String>, Trouble> {
        let version = sqlx::query_scalar("SELECT VERSION()");
        let version: String = version.fetch_one(&mut *connection).await.map_err(trouble)?;
        if !version.contains("MariaDB") {
            return Ok(Vec::new());
        }
        // The list of checks is shown to who has a right to the database; this to who has one to the table.
        let place = match schema {
            Some(schema) => quoted(&format!("{schema}.{name}")),
            None => quoted(name),
        };
        let shown = format!("SHOW CREATE TABLE {place}");
        let shown = match connection.fetch_one(AssertSqlSafe(shown)).await {
            Ok(shown) => shown,
            // Who has a right to some columns sees neither; all their columns are texts to them.
            Err(sqlx::Error::Database(_)) => return Ok(Vec::new()),
            Err(error) => return Err(trouble(error)),
        };
        let shown: String = shown.try_get(1).map_err(trouble)?;
        let columns = shown.split("CHECK (json_valid(`").skip(1);
        let column = |rest: &str| Some(rest.split_once("`))")?.0.replace("``", "`"));
        Ok(columns.filter_map(column).collect())
    }
}

/// The statement for `places` rows of `shape`.
fn upsert(layout: &Layout, shape: &Shape, places: usize) -> String {
    let Table {
        id,
        version,
        deleted,
        ..
    } = &layout.table;
    let (id, version, deleted) = (quoted(id), quoted(version), quoted(deleted));
    let guard = format!("{id} = VALUES({id}) AND COALESCE({version}, 0) <= VALUES({version})");
    let mut columns = Vec::new();
    let mut assignments = String::new();
    let told = layout.told(shape).into_iter();
    let told = told.map(|column| {
        (
            quoted(&column.name),
            shape.merged && column.kind == Kind::Json,
        )
    });
    for (column, merged) in told.chain([(deleted, false)]) {
        let value = match merged {
            true => format!(
                "IF(JSON_VALID({column}), JSON_MERGE_PATCH({column}, VALUES({column})), VALUES({column}))"
            ),
            false => format!("VALUES({column})"),
        };
        assignments += &format!("{column} = IF({guard}, {value}, {column}), ");
        columns.push(column);
    }
    let place = format!("({})", vec!["?"; columns.len() + 2].join(", "));
    format!(
        "INSERT INTO {} ({id}, {}, {version}) VALUES {} ON DUPLICATE KEY UPDATE {assignments}\
         {version} = IF({guard}, VALUES({version}), {version} + 0 * LAST_INSERT_ID({REFUSED}))",
        quoted(&layout.name),
        columns.join(", "),
        vec![place; places].join(", "),
    )
}

/// `items`, and `filler` up to `places`.
fn padded<'a, T>(items: &'a [T], filler: &'a T, places: usize) -> impl Iterator<Item = &'a T> {
    items.iter().chain(std::iter::repeat(filler)).take(places)
}

/// Numbers are compared as numbers: as a text, an id would be compared as a floating-point number.
fn bind_id<'q>(
    query: Query<'q, sqlx::MySql, MySqlArguments>,
    layout: &Layout,
    id: &'q str,
) -> Query<'q, sqlx::MySql, MySqlArguments> {
    match (layout.ids, id.parse::<u64>()) {
        (Ids::Numbers { .. }, Ok(number)) => query.bind(number),
        (Ids::Octets, _) => query.bind(octets(id)),
        _ => query.bind(id),
    }
}

/// The octets of a UUID, in the order of its text.
fn octets(uuid: &str) -> Vec<u8> {
    let digits = uuid
        .bytes()
        .filter_map(|byte| char::from(byte).to_digit(16));
    let digits: Vec<u32> = digits.collect();
    let (pairs, _) = digits.as_chunks::<2>();
    let octets = pairs.iter().map(|[high, low]| high * 16 + low);
    octets
        .filter_map(|octet| u8::try_from(octet).ok())
        .collect()
}

/// The column of the id, `id`, as what shows it: of octets the UUID, in the spelling of every server.
pub(crate) fn shown_id(ids: Ids, id: &str) -> String {
    if ids != Ids::Octets {
        return id.to_owned();
    }
    let hyphens = [9, 14, 19, 24].into_iter();
    let hex = format!("HEX({id})");
    let spelled = hyphens.fold(hex, |text, at| format!("INSERT({text}, {at}, 0, '-')"));
    format!("LOWER({spelled})")
}

/// Rows as they are held, by id; `more` ends the statement.
async fn rows_of(
    connection: &mut MySqlConnection,
    layout: &Layout,
    ids: &[String],
    more: &str,
) -> Result<HashMap<String, Held>, Trouble> {
    let Some(first) = ids.first() else {
        return Ok(HashMap::new());
    };
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
            MySql::FLAVOUR.shown(&quoted(&column.name), column.stored)
        )
    });
    let places = ids.len().next_power_of_two();
    let statement = format!(
        "SELECT CAST({} AS CHAR), CAST(COALESCE({version}, 0) AS SIGNED), COALESCE({deleted}, TRUE) <> 0{} \
         FROM {} WHERE {id} IN ({}) {more}",
        shown_id(layout.ids, &id),
        cells.collect::<String>(),
        quoted(&layout.name),
        vec!["?"; places].join(", ")
    );
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for id in padded(ids, first, places) {
        query = bind_id(query, layout, id);
    }
    let rows = query.fetch_all(connection).await.map_err(trouble)?;
    by_id(rows.iter().map(|row| held(row, layout))).map_err(trouble)
}

fn held(row: &MySqlRow, layout: &Layout) -> Result<(String, Held), sqlx::Error> {
    let cells = 3..3 + layout.columns.len();
    let held = Held {
        version: row.try_get(1)?,
        deleted: row.try_get(2)?,
        cells: cells
            .map(|cell| row.try_get(cell))
            .collect::<Result<_, _>>()?,
        twice: false,
    };
    let id: String = row.try_get(0)?;
    let id = match layout.ids {
        // ZEROFILL shows zeros before a number.
        Ids::Numbers { .. } => id.parse::<u64>().map_or(id, |number| number.to_string()),
        Ids::Texts | Ids::Uuids | Ids::Octets => id,
    };
    Ok((id, held))
}

/// `schema.table` is two names.
fn quoted(name: &str) -> String {
    let parts = name
        .split('.')
        .map(|part| format!("`{}`", part.replace('`', "``")));
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_sixteen_octets() {
        let uuid = "0198c0de-6b7c-7d00-8000-0000000000ff";
        assert_eq!(octets(uuid)[..4], [0x01, 0x98, 0xc0, 0xde]);
        assert_eq!((octets(uuid).len(), octets(uuid)[15]), (16, 0xff));
    }

    #[test]
    fn names_are_quoted() {
        assert_eq!(quoted("us`ers"), "`us``ers`");
        assert_eq!(quoted("app.users"), "`app`.`users`");
    }
}
