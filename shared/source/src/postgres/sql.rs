//! What PostgreSQL is told: triggers, queries, names.

use crate::{
    Column, Kind, Layout, TableName,
    document::{Blank, filled},
    layout::ABOUT,
};

/// The triggers of an outbox.
pub(crate) const TRIGGERS: [&str; 1] = ["user_outbox"];

const TEMPLATE: &str = include_str!("outbox.sql");

/// The outbox of `layout`, for the server's own client too.
pub(crate) fn script(layout: &Layout) -> String {
    let table = &layout.table;
    let id = name_quoted(&layout.id.name);
    let outbox = quoted(&layout.outbox());
    let about = quoted(&table.beside(ABOUT));
    let places = [
        ("table_shown", table.to_string()),
        ("table", quoted(table)),
        ("outbox_quoted", outbox.replace('\'', "''")),
        ("outbox", outbox),
        ("about_quoted", about.replace('\'', "''")),
        ("about", about),
        ("function", quoted(&table.beside("user_outbox_capture"))),
        ("notify", quoted(&table.beside("user_outbox_notify"))),
        (
            "same_id",
            match layout.id.kind {
                Kind::Integer => format!("OLD.{id} OPERATOR(pg_catalog.=) NEW.{id}"),
                // Some texts are equal that aren't the same.
                _ => format!(
                    "OLD.{id}::pg_catalog.text COLLATE pg_catalog.\"C\" OPERATOR(pg_catalog.=) NEW.{id}::pg_catalog.text"
                ),
            },
        ),
        ("id", id),
    ];
    filled(TEMPLATE, &places)
}

/// Asks for the columns themselves: PostgreSQL takes more than twice as long to write them as JSON, and goes through
/// what it knows of every type for each row. They are told as texts, the id first, and fill in the document.
pub(super) fn select(layout: &Layout) -> (String, Blank) {
    let table = quoted(&layout.table);
    let (blank, columns) = Blank::of(layout);
    let mut told = format!("u.{}::text", name_quoted(&layout.id.name));
    for column in columns {
        told.push_str(&format!(", {}::text", value(column)));
    }
    (format!("SELECT {told} FROM {table} u"), blank)
}

/// A column as what can be told as a text.
fn value(column: &Column) -> String {
    let value = format!("u.{}", name_quoted(&column.name));
    let shown = |value: &str| format!("to_char({value}, 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
    match column.kind {
        Kind::Instant => shown(&format!("{value} AT TIME ZONE 'UTC'")),
        Kind::Local => shown(&value),
        Kind::Day => format!("to_char({value}, 'YYYY-MM-DD')"),
        Kind::Json if !column.member.is_text() => format!("to_json({value})"),
        _ => value,
    }
}

pub(super) fn quoted(table: &TableName) -> String {
    match &table.schema {
        Some(schema) => format!("{}.{}", name_quoted(schema), name_quoted(&table.name)),
        None => name_quoted(&table.name),
    }
}

pub(super) fn name_quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
