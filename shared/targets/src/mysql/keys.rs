//! The unique keys of a table in MySQL and MariaDB, and who has what a row is to have.
//!
//! Values stand in these statements as hexadecimal numbers: rows differ in what they are told, so that hardly any statement
//! comes twice, and one that is prepared for a single use costs 40 ms.

use sqlx::{AssertSqlSafe, MySqlConnection, Row as _};

use super::{columns::most, errors::trouble, quoted, shown_id};
use crate::{
    dialect::Against,
    layout::{Ids, Layout, Row},
    trouble::Trouble,
    unique::{Claim, KeyColumn, KeyPart, Keys, UniqueKey},
};

/// The unique keys of the table.
pub(super) async fn read(
    connection: &mut MySqlConnection,
    schema: Option<&str>,
    name: &str,
) -> Result<Keys, Trouble> {
    let mut found = Keys::default();
    let expressions: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM information_schema.columns WHERE table_schema = 'information_schema' \
         AND table_name = 'STATISTICS' AND column_name = 'EXPRESSION'",
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(trouble)?;
    // MariaDB has none of them.
    let expression = if expressions > 0 {
        "expression"
    } else {
        "NULL"
    };
    let parts = format!(
        "SELECT CAST(index_name AS CHAR), CAST(column_name AS CHAR), CAST(sub_part AS SIGNED), CAST({expression} AS CHAR) \
         FROM information_schema.statistics WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? \
         AND non_unique = 0 ORDER BY index_name, seq_in_index"
    );
    let parts = sqlx::query(AssertSqlSafe(parts)).bind(schema).bind(name);
    for row in parts.fetch_all(&mut *connection).await.map_err(trouble)? {
        let name: String = row.try_get(0).map_err(trouble)?;
        let column: Option<String> = row.try_get(1).map_err(trouble)?;
        let prefix: Option<i64> = row.try_get(2).map_err(trouble)?;
        let expression: Option<String> = row.try_get(3).map_err(trouble)?;
        let expression = match (column, prefix) {
            (Some(column), None) => quoted_name(&column),
            (Some(column), Some(prefix)) => format!("LEFT({}, {prefix})", quoted_name(&column)),
            (None, _) => format!("({})", unescaped(&expression.unwrap_or_default())),
        };
        let part = KeyPart {
            expression,
            operator: "=".to_owned(),
        };
        match found.keys.last_mut().filter(|key| key.name == name) {
            Some(key) => key.parts.push(part),
            None => found.keys.push(UniqueKey {
                name,
                parts: vec![part],
                predicate: None,
                nulls_equal: false,
            }),
        }
    }
    let columns = "SELECT CAST(column_name AS CHAR), CAST(data_type AS CHAR), column_type LIKE '%unsigned%', \
         CAST(COALESCE(datetime_precision, 0) AS SIGNED), CAST(character_set_name AS CHAR), CAST(collation_name AS CHAR), \
         column_default IS NOT NULL AND extra NOT LIKE '%DEFAULT_GENERATED%' AND column_default NOT LIKE '%(%', \
         CAST(generation_expression AS CHAR), is_nullable = 'YES', \
         CAST(numeric_precision AS SIGNED), CAST(numeric_scale AS SIGNED), CAST(column_type AS CHAR) FROM information_schema.columns \
         WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? ORDER BY ordinal_position";
    let columns = sqlx::query(columns).bind(schema).bind(name);
    for row in columns.fetch_all(connection).await.map_err(trouble)? {
        let mut column = column(&row).map_err(trouble)?;
        if expressions > 0 {
            column.generated = column.generated.map(|made| unescaped(&made));
        }
        found.columns.push(column);
    }
    Ok(found)
}

fn column(row: &sqlx::mysql::MySqlRow) -> Result<KeyColumn, sqlx::Error> {
    let name: String = row.try_get(0)?;
    let data_type: String = row.try_get(1)?;
    let (unsigned, digits): (bool, i64) = (row.try_get(2)?, row.try_get(3)?);
    let charset: Option<String> = row.try_get(4)?;
    let collation: Option<String> = row.try_get(5)?;
    let (defaulted, generated): (bool, Option<String>) = (row.try_get(6)?, row.try_get(7)?);
    let kind = match data_type.as_str() {
        "tinyint" | "smallint" | "mediumint" | "int" | "bigint" if unsigned => {
            "UNSIGNED".to_owned()
        }
        "tinyint" | "smallint" | "mediumint" | "int" | "bigint" => "SIGNED".to_owned(),
        "year" => "UNSIGNED".to_owned(),
        // As it is rounded.
        "decimal" => {
            let (digits, behind): (i64, i64) = (row.try_get(9)?, row.try_get(10)?);
            format!("DECIMAL({digits}, {behind})")
        }
        "float" | "double" => "DOUBLE".to_owned(),
        "datetime" | "timestamp" => format!("DATETIME({digits})"),
        "time" => format!("TIME({digits})"),
        "date" => "DATE".to_owned(),
        "uuid" | "inet4" | "inet6" => data_type.to_uppercase(),
        _ => charset.unwrap_or_else(|| "utf8mb4".to_owned()),
    };
    Ok(KeyColumn {
        default: defaulted.then(|| format!("DEFAULT(old.{})", quoted_name(&name))),
        name,
        kind,
        collation: collation.unwrap_or_default(),
        generated: generated.filter(|made| !made.is_empty()),
        nullable: row.try_get(8)?,
        largest: i64::try_from(most(&data_type, unsigned)).unwrap_or(i64::MAX),
        labels: labels(row.try_get(11)?),
    })
}

/// The members of `enum('a','it''s')`.
fn labels(column_type: &str) -> Vec<String> {
    let inner = column_type.strip_prefix("enum('");
    let inner = inner.and_then(|inner| inner.strip_suffix("')"));
    let labels = inner.into_iter().flat_map(|inner| inner.split("','"));
    labels.map(|label| label.replace("''", "'")).collect()
}

/// MySQL shows an expression as it would stand within a text.
fn unescaped(expression: &str) -> String {
    let mut plain = String::with_capacity(expression.len());
    let mut symbols = expression.chars();
    while let Some(symbol) = symbols.next() {
        match symbol {
            '\\' => plain.extend(symbols.next()),
            symbol => plain.push(symbol),
        }
    }
    plain
}

/// Who has what `rows` are to have.
pub(super) async fn claims(
    connection: &mut MySqlConnection,
    layout: &Layout,
    rows: &[Row],
    against: Against,
) -> Result<Vec<Claim>, Trouble> {
    if rows.is_empty() || layout.keys.keys.is_empty() {
        return Ok(Vec::new());
    }
    let query = sqlx::raw_sql(AssertSqlSafe(statement(layout, rows, against)));
    let mut claims = Vec::new();
    for row in query.fetch_all(connection).await.map_err(trouble)? {
        let text = |at: usize| -> Result<String, Trouble> { row.try_get(at).map_err(trouble) };
        let claim = Claim {
            by: text(0)?,
            of: shown(layout, text(1)?),
            key: text(2)?.parse().unwrap_or_default(),
        };
        if claim.by != claim.of {
            claims.push(claim);
        }
    }
    claims.sort();
    claims.dedup();
    Ok(claims)
}

/// ZEROFILL shows zeros before a number.
fn shown(layout: &Layout, id: String) -> String {
    match (layout.ids, id.parse::<u64>()) {
        (Ids::Numbers { .. }, Ok(number)) => number.to_string(),
        _ => id,
    }
}

fn statement(layout: &Layout, rows: &[Row], against: Against) -> String {
    let id = quoted_name(&layout.table.id);
    let told = rows.iter().map(|row| told(layout, row));
    let mut levels = format!(
        "WITH usersync_0 AS ({})",
        told.collect::<Vec<_>>().join(" UNION ALL ")
    );
    // What is computed may be computed of what is computed before it.
    let mut level = 0;
    for column in &layout.keys.columns {
        if let Some(made) = &column.generated {
            let name = quoted_name(&column.name);
            levels += &format!(
                ", usersync_{} AS (SELECT usersync_{level}.*, {made} AS {name} FROM usersync_{level})",
                level + 1
            );
            level += 1;
        }
    }
    let sides = layout.keys.keys.iter().enumerate().map(|(number, key)| {
        let parts = key.parts.iter().enumerate();
        let values: String = parts
            .clone()
            .map(|(at, part)| format!(", {} AS usersync_k{at}", part.expression))
            .collect();
        let told = format!("SELECT usersync_i{values} FROM usersync_{level}");
        let held = match against {
            Against::Table => format!(
                "SELECT {} AS usersync_i{values} FROM {}",
                shown_id(layout.ids, &id),
                quoted(&layout.name)
            ),
            Against::Rows => told.clone(),
        };
        let equal = parts.map(|(at, part)| {
            format!("held.usersync_k{at} {} told.usersync_k{at}", part.operator)
        });
        format!(
            "SELECT CAST(told.usersync_i AS CHAR), CAST(held.usersync_i AS CHAR), CAST({number} AS CHAR) \
             FROM ({told}) told STRAIGHT_JOIN ({held}) held ON {}",
            equal.collect::<Vec<_>>().join(" AND ")
        )
    });
    let sides: Vec<String> = sides.collect();
    format!("{levels} {}", sides.join(" UNION ALL "))
}

/// One row as it is to be: what it isn't told is as it is held, or as the table makes it.
fn told(layout: &Layout, row: &Row) -> String {
    let table = &layout.table;
    let text = |text: &str| format!("_utf8mb4 X'{}'", hex(text));
    let id = match (layout.ids, row.id.parse::<u64>()) {
        (Ids::Numbers { .. }, Ok(number)) => number.to_string(),
        (Ids::Octets, _) => format!(
            "X'{}'",
            row.id
                .replace(|letter: char| !letter.is_ascii_hexdigit(), "")
        ),
        _ => text(&row.id),
    };
    let mut values = format!("{} AS usersync_i", text(&row.id));
    for column in layout
        .keys
        .columns
        .iter()
        .filter(|column| column.generated.is_none())
    {
        let name = quoted_name(&column.name);
        let mapped = layout
            .columns
            .iter()
            .position(|mapped| mapped.name == column.name);
        let cell = mapped.and_then(|at| row.cells[at].as_ref());
        let value = match cell {
            _ if column.name == table.id => id.clone(),
            _ if column.name == table.deleted => u8::from(row.deleted).to_string(),
            _ if column.name == table.version => row.version.to_string(),
            Some(None) => "NULL".to_owned(),
            Some(Some(cell)) => typed(column, &text(cell)),
            None => match &column.default {
                Some(default) => format!(
                    "IF(old.{} IS NULL, {default}, old.{name})",
                    quoted_name(&table.id)
                ),
                None => format!("old.{name}"),
            },
        };
        values += &format!(", {value} AS {name}");
    }
    format!(
        "SELECT {values} FROM (SELECT 1 AS usersync_one) one LEFT JOIN {} old ON old.{} = {id}",
        quoted(&layout.name),
        quoted_name(&table.id)
    )
}

/// `text` as a value of the column's type.
fn typed(column: &KeyColumn, text: &str) -> String {
    match column.kind.as_str() {
        "DOUBLE" => format!("({text} + 0e0)"),
        charset if !column.collation.is_empty() => {
            format!(
                "CONVERT({text} USING {charset}) COLLATE {}",
                column.collation
            )
        }
        kind if kind.starts_with(|first: char| first.is_ascii_uppercase()) => {
            format!("CAST({text} AS {kind})")
        }
        _ => text.to_owned(),
    }
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// One name, whatever is in it.
fn quoted_name(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}
