//! What MySQL and MariaDB are told: triggers, queries, names.

use crate::{
    Column, Kind, Layout, TableName,
    document::{self, Words, filled},
};

/// The triggers of an outbox.
pub(crate) const TRIGGERS: [&str; 3] = [
    "user_outbox_insert",
    "user_outbox_update",
    "user_outbox_delete",
];

const TEMPLATE: &str = include_str!("outbox.sql");

/// The outbox of `layout`, for the server's own client too.
pub(crate) fn script(layout: &Layout) -> String {
    let table = &layout.table;
    let id = name_quoted(&layout.id.name);
    let id_text = |of: &str| format!("LEFT(CAST({of}.{id} AS CHAR), 255)");
    let trigger = |name: &str| quoted(&table.beside(name));
    let mut places = document::places(&MySqlWords, layout);
    places.extend([
        ("table", quoted(table)),
        ("outbox", quoted(&layout.outbox())),
        (
            "outbox_quoted",
            quoted(&layout.outbox()).replace('\'', "''"),
        ),
        ("insert_trigger", trigger(TRIGGERS[0])),
        ("update_trigger", trigger(TRIGGERS[1])),
        ("delete_trigger", trigger(TRIGGERS[2])),
        ("new_id_text", id_text("NEW")),
        ("old_id_text", id_text("OLD")),
        (
            "id_changed",
            format!("NOT (CAST(OLD.{id} AS BINARY) <=> CAST(NEW.{id} AS BINARY))"),
        ),
    ]);
    filled(TEMPLATE, &places)
}

/// A column to be compared byte by byte: as a text, `a` could equal `A`, and `x` equal `x `.
fn exact(column: &Column, of: &str) -> String {
    let value = format!("{of}.{}", name_quoted(&column.name));
    match column.kind {
        Kind::Text | Kind::Json | Kind::Verbatim => format!("CAST({value} AS BINARY)"),
        _ => value,
    }
}

pub(super) fn select(layout: &Layout) -> String {
    let table = quoted(&layout.table);
    let id = name_quoted(&layout.id.name);
    let document = document::document(&MySqlWords, layout, "u");
    format!("SELECT CAST(u.{id} AS CHAR), {document} FROM {table} u")
}

struct MySqlWords;

impl Words for MySqlWords {
    fn name(&self, name: &str) -> String {
        name_quoted(name)
    }

    fn text(&self, value: &str) -> String {
        format!("CAST({value} AS CHAR)")
    }

    fn object(&self, members: &[(String, String)]) -> String {
        let members = members
            .iter()
            .map(|(name, value)| format!("'{name}', {value}"));
        format!("JSON_OBJECT({})", members.collect::<Vec<_>>().join(", "))
    }

    fn value(&self, column: &Column, of: &str, text: bool) -> String {
        let value = format!("{of}.{}", name_quoted(&column.name));
        // Without a fraction where the column keeps none.
        let fraction = if column.shown.contains('(') {
            ".%f"
        } else {
            ""
        };
        let shown = |value: &str| format!("DATE_FORMAT({value}, '%Y-%m-%dT%H:%i:%s{fraction}Z')");
        match column.kind {
            Kind::Text => format!("CONVERT({value} USING utf8mb4)"),
            // Independent of the session's time zone, also in the hour that comes twice.
            Kind::Instant => shown(&format!(
                "TIMESTAMP '1970-01-01 00:00:00' + INTERVAL UNIX_TIMESTAMP({value}) SECOND"
            )),
            Kind::Local => shown(&value),
            Kind::Day => format!("DATE_FORMAT({value}, '%Y-%m-%d')"),
            Kind::Integer | Kind::Float if !text => value,
            Kind::Boolean if !text => {
                format!(
                    "JSON_EXTRACT(IF({value} IS NULL, NULL, IF({value}, 'true', 'false')), '$')"
                )
            }
            Kind::Json if !text => format!("JSON_EXTRACT({value}, '$')"),
            _ => format!("CAST({value} AS CHAR)"),
        }
    }

    fn or_empty(&self, value: String) -> String {
        format!("COALESCE({value}, JSON_OBJECT())")
    }

    fn changed(&self, column: &Column) -> String {
        format!(
            "NOT ({} <=> {})",
            exact(column, "OLD"),
            exact(column, "NEW")
        )
    }
}

/// The statements of a script, as the server's own client would send them.
pub(super) fn statements(script: &str) -> Vec<String> {
    let (mut delimiter, mut statement) = (";".to_owned(), String::new());
    let mut found = Vec::new();
    for line in script.lines() {
        if let Some(next) = line.strip_prefix("DELIMITER ") {
            delimiter = next.trim().to_owned();
            continue;
        }
        if statement.is_empty() && (line.is_empty() || line.starts_with("--")) {
            continue;
        }
        match line.trim_end().strip_suffix(delimiter.as_str()) {
            Some(last) => {
                statement.push_str(last.trim_end());
                found.push(std::mem::take(&mut statement));
            }
            None => {
                statement.push_str(line);
                statement.push('\n');
            }
        }
    }
    found
}

/// Ids as ranges without a gap: what lies between two of them may be a row that isn't published yet.
pub(super) fn ranges(ids: &[i64]) -> Vec<(i64, i64)> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    let mut ranges: Vec<(i64, i64)> = Vec::new();
    for id in ids {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == id => *last = id,
            _ => ranges.push((id, id)),
        }
    }
    ranges
}

pub(super) fn quoted(table: &TableName) -> String {
    match &table.schema {
        Some(schema) => format!("{}.{}", name_quoted(schema), name_quoted(&table.name)),
        None => name_quoted(&table.name),
    }
}

pub(super) fn name_quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_marked_in_ranges_that_hold_nothing_else() {
        assert_eq!(ranges(&[5, 3, 4, 9, 7]), [(3, 5), (7, 7), (9, 9)]);
        assert_eq!(ranges(&[]), []);
    }

    #[test]
    fn a_script_is_split_as_the_client_does() {
        let script = "-- one\n\nSET a = 1;\nDELIMITER //\nCREATE x\nBEGIN\n  y;\nEND //\nDELIMITER ;\nz\n  w;\n";
        assert_eq!(
            statements(script),
            ["SET a = 1", "CREATE x\nBEGIN\n  y;\nEND", "z\n  w"]
        );
    }
}
