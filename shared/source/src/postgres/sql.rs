//! What PostgreSQL is told: triggers, queries, names.

use crate::{
    Column, Kind, Layout, TableName,
    document::{Blank, filled},
    layout::ABOUT,
};

/// The trigger that notes changes.
pub(crate) const TRIGGERS: [&str; 1] = ["user_outbox"];
/// What came later: without them the outbox is one of an older version.
pub(crate) const LATER: [&str; 1] = ["user_outbox_truncate"];
/// All that an outbox has.
pub(super) const ALL: [&str; 3] = ["user_outbox", "user_outbox_truncate", "user_outbox_notify"];
/// The functions they run.
pub(super) const FUNCTIONS: [&str; 3] = [
    "user_outbox_capture",
    "user_outbox_truncate",
    "user_outbox_notify",
];
/// The label in every function, which says how it was made.
pub(super) const VERSION: &str = "usersync_4";

const TEMPLATE: &str = include_str!("outbox.sql");

/// The outbox of `layout`, for the server's own client too.
pub(crate) fn script(layout: &Layout) -> String {
    let table = &layout.table;
    let id = &layout.id.name;
    let literal = |text: &str| text.replace('\'', "''");
    let outbox = quoted(&layout.outbox());
    let about = quoted(&table.beside(ABOUT));
    let function = |at: usize| quoted(&table.beside(FUNCTIONS[at]));
    let places = [
        ("table_shown", table.to_string()),
        ("table_quoted", literal(&quoted(table))),
        ("table", quoted(table)),
        ("outbox_quoted", literal(&outbox)),
        ("outbox_format", literal(&outbox).replace('%', "%%")),
        ("outbox", outbox),
        ("about_quoted", literal(&about)),
        ("about", about),
        ("function", function(0)),
        ("truncate", function(1)),
        ("notify", function(2)),
        ("id_text", literal(id)),
        ("id", name_quoted(id)),
    ];
    filled(TEMPLATE, &places)
}

/// Asks for the columns themselves: PostgreSQL takes more than twice as long to write them as JSON, and goes through
/// what it knows of every type for each row. They are told as texts, the id first, and fill in the document.
pub(super) fn select(layout: &Layout) -> (String, Blank) {
    let table = quoted(&layout.table);
    let (blank, columns) = Blank::of(layout, true);
    let mut told = format!("u.{}::text", name_quoted(&layout.id.name));
    for column in columns {
        told.push_str(&format!(", {}::text", value(column)));
    }
    let select = format!("SELECT {told} FROM {table} u WHERE {}", is_row(layout));
    (select, blank)
}

/// Whether a row is one of the application's.
fn is_row(layout: &Layout) -> String {
    let Some(mark) = &layout.deleted else {
        return "true".to_owned();
    };
    let name = name_quoted(&mark.name);
    match mark.kind {
        Kind::Boolean => format!("u.{name} IS NOT TRUE"),
        _ => format!("COALESCE(u.{name}, 0) = 0"),
    }
}

/// A column as what can be told as a text; the session says how (`SESSION`).
fn value(column: &Column) -> String {
    let value = format!("u.{}", name_quoted(&column.name));
    match column.kind {
        Kind::Instant => format!("({value} AT TIME ZONE 'UTC')"),
        // As the server shows it: a cast says `/32` of every address.
        Kind::Verbatim if column.shown == "inet" => format!("abbrev({value})"),
        Kind::Json if !column.member.is_text() => format!("to_json({value})"),
        Kind::Decimals if !column.member.is_text() => format!("to_json({value}::text[])"),
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
