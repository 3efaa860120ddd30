//! What PostgreSQL is told: triggers, queries, names.

use crate::{
    Column, Kind, Layout, TableName,
    document::{self, Blank, Words, filled},
};

/// The triggers of an outbox.
pub(crate) const TRIGGERS: [&str; 1] = ["user_outbox"];

const TEMPLATE: &str = include_str!("outbox.sql");

/// The outbox of `layout`, for the server's own client too.
pub(crate) fn script(layout: &Layout) -> String {
    let table = &layout.table;
    let id = name_quoted(&layout.id.name);
    let outbox = quoted(&layout.outbox());
    let mut places = document::places(&PostgresWords, layout);
    places.extend([
        ("table", quoted(table)),
        ("outbox_quoted", outbox.replace('\'', "''")),
        ("outbox", outbox),
        ("function", quoted(&table.beside("user_outbox_capture"))),
        ("new_id_text", format!("NEW.{id}::text")),
        ("old_id_text", format!("OLD.{id}::text")),
        (
            "id_changed",
            format!("OLD.{id}::text IS DISTINCT FROM NEW.{id}::text"),
        ),
    ]);
    filled(TEMPLATE, &places)
}

/// Asks for the columns themselves: PostgreSQL takes more than twice as long to write them as JSON, and goes through
/// what it knows of every type for each row. They are told as texts, the id first, and fill in the document.
pub(super) fn select(layout: &Layout) -> (String, Blank) {
    let table = quoted(&layout.table);
    let (blank, columns) = Blank::of(layout);
    let mut told = format!("u.{}::text", name_quoted(&layout.id.name));
    for column in columns {
        let value = PostgresWords.value(column, "u", column.member.is_text());
        told.push_str(&format!(", {value}::text"));
    }
    (format!("SELECT {told} FROM {table} u"), blank)
}

struct PostgresWords;

impl Words for PostgresWords {
    fn name(&self, name: &str) -> String {
        name_quoted(name)
    }

    fn text(&self, value: &str) -> String {
        format!("{value}::text")
    }

    fn kept(&self, object: String) -> String {
        self.text(&object)
    }

    fn object(&self, members: &[(String, String)]) -> String {
        let members = members
            .iter()
            .map(|(name, value)| format!("'{name}', {value}"));
        format!(
            "json_build_object({})",
            members.collect::<Vec<_>>().join(", ")
        )
    }

    fn value(&self, column: &Column, of: &str, text: bool) -> String {
        let value = format!("{of}.{}", name_quoted(&column.name));
        let shown = |value: &str| format!("to_char({value}, 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
        match column.kind {
            Kind::Instant => shown(&format!("{value} AT TIME ZONE 'UTC'")),
            Kind::Local => shown(&value),
            Kind::Day => format!("to_char({value}, 'YYYY-MM-DD')"),
            Kind::Integer | Kind::Float | Kind::Boolean if !text => value,
            Kind::Json if !text => format!("to_json({value})"),
            _ => format!("{value}::text"),
        }
    }

    fn or_empty(&self, value: String) -> String {
        format!("COALESCE({value}, '{{}}'::json)")
    }

    fn changed(&self, column: &Column) -> String {
        let name = name_quoted(&column.name);
        // As texts: some types have no equality, and some texts are equal that aren't the same.
        format!("OLD.{name}::text IS DISTINCT FROM NEW.{name}::text")
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
