//! What MySQL and MariaDB are told: triggers, queries, names.

use crate::{
    Column, Kind, Layout, TableName,
    document::{Blank, filled},
    layout::ABOUT,
};

/// The triggers of an outbox.
pub(crate) const TRIGGERS: [&str; 3] = [
    "user_outbox_insert",
    "user_outbox_update",
    "user_outbox_delete",
];

const TEMPLATE: &str = include_str!("outbox.sql");

/// The outbox of `layout`, for the server's own client too; `epoch` is an expression that makes a random text.
pub(crate) fn script(layout: &Layout, epoch: &str) -> String {
    let table = &layout.table;
    let id = name_quoted(&layout.id.name);
    let trigger = |name: &str| quoted(&table.beside(name));
    // Some types are kept as other bytes than they show.
    let kept = |of: &str| match layout.id.kind {
        Kind::Verbatim => format!("CAST({of}.{id} AS CHAR)"),
        // In one character set, whatever the column's is.
        Kind::Text => format!("CONVERT({of}.{id} USING utf8mb4)"),
        _ => format!("{of}.{id}"),
    };
    let id_changed = match layout.id.kind {
        Kind::Integer => format!("NOT (OLD.{id} <=> NEW.{id})"),
        // Byte by byte, whatever the column's collation takes for equal.
        _ => format!("NOT (CAST(OLD.{id} AS BINARY) <=> CAST(NEW.{id} AS BINARY))"),
    };
    let schema = table.schema.as_ref();
    let places = [
        ("table_shown", table.to_string()),
        ("table", quoted(table)),
        ("outbox", quoted(&layout.outbox())),
        (
            "outbox_quoted",
            quoted(&layout.outbox()).replace('\'', "''"),
        ),
        ("about", quoted(&table.beside(ABOUT))),
        (
            "schema",
            schema.map_or("DATABASE()".to_owned(), |schema| text(schema)),
        ),
        ("epoch", epoch.to_owned()),
        ("insert_trigger", trigger(TRIGGERS[0])),
        ("update_trigger", trigger(TRIGGERS[1])),
        ("delete_trigger", trigger(TRIGGERS[2])),
        ("new_id", kept("NEW")),
        ("old_id", kept("OLD")),
        ("id_changed", id_changed),
        ("id", id.clone()),
    ];
    filled(TEMPLATE, &places)
}

/// A random text, in the words of both servers: MariaDB 10.6 has no RANDOM_BYTES(). Whoever can make one better does.
pub(crate) const RANDOM: &str =
    "LEFT(SHA2(CONCAT_WS('.', UUID(), RAND(), RAND(), RAND(), NOW(6), CONNECTION_ID()), 256), 32)";

/// As a literal.
pub(super) fn text(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// Asks for the columns themselves, told as texts, the id first; they fill in the document. A server's JSON functions
/// have limits and their own types, which differ between MySQL and MariaDB.
pub(super) fn select(layout: &Layout) -> (String, Blank) {
    let (blank, columns) = Blank::of(layout);
    let mut told = match layout.id.kind {
        Kind::Text => format!("u.{}", name_quoted(&layout.id.name)),
        _ => format!("CAST(u.{} AS CHAR)", name_quoted(&layout.id.name)),
    };
    for column in columns {
        told.push_str(", ");
        told.push_str(&value(column));
    }
    (
        format!("SELECT {told} FROM {} u", quoted(&layout.table)),
        blank,
    )
}

/// A column as a text. The session's time zone is UTC.
fn value(column: &Column) -> String {
    let value = format!("u.{}", name_quoted(&column.name));
    // Without a fraction where the column keeps none.
    let fraction = if column.shown.contains('(') {
        ".%f"
    } else {
        ""
    };
    match column.kind {
        // As they are: a function would have a limit.
        Kind::Text | Kind::Json => value,
        Kind::Instant | Kind::Local => {
            format!("DATE_FORMAT({value}, '%Y-%m-%dT%H:%i:%s{fraction}Z')")
        }
        Kind::Day => format!("DATE_FORMAT({value}, '%Y-%m-%d')"),
        Kind::Boolean if !column.member.is_text() => {
            format!("IF({value} IS NULL, NULL, IF({value}, 'true', 'false'))")
        }
        _ => format!("CAST({value} AS CHAR)"),
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
