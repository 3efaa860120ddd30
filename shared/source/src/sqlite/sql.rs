//! What SQLite is told: triggers, queries, names.

use crate::{
    Column, Kind, Layout,
    document::{self, Words, filled},
};

/// The triggers of an outbox.
pub(crate) const TRIGGERS: [&str; 4] = [
    "user_outbox_insert",
    "user_outbox_update",
    "user_outbox_rename",
    "user_outbox_delete",
];

const TEMPLATE: &str = include_str!("outbox.sql");

/// The outbox of `layout`, for the server's own client too.
pub(crate) fn script(layout: &Layout) -> String {
    let id = name_quoted(&layout.id.name);
    let places = [
        ("table_shown", layout.table.to_string()),
        ("table", name_quoted(&layout.table.name)),
        (
            "id_changed",
            format!("OLD.{id} IS NOT NEW.{id} COLLATE BINARY"),
        ),
        ("id", id),
    ];
    filled(TEMPLATE, &places)
}

pub(super) fn select(layout: &Layout) -> String {
    let table = name_quoted(&layout.table.name);
    let id = name_quoted(&layout.id.name);
    let document = document::document(&SqliteWords, layout, "u");
    format!(
        "SELECT CAST(u.{id} AS TEXT), CAST({document} AS BLOB), {}, typeof(u.{id}) = 'blob' FROM {table} u WHERE {}",
        unwritable(layout),
        is_row(layout)
    )
}

/// Whether a row is one of the application's.
fn is_row(layout: &Layout) -> String {
    layout.deleted.as_ref().map_or("TRUE".to_owned(), |mark| {
        format!("u.{} IS NOT TRUE", name_quoted(&mark.name))
    })
}

/// Names the column of a value that JSON has no form for, whatever its type says: bytes, and numbers without an end.
fn unwritable(layout: &Layout) -> String {
    let cases = layout.columns.iter().map(|column| {
        let value = format!("u.{}", name_quoted(&column.name));
        format!(
            "WHEN typeof({value}) = 'blob' OR (typeof({value}) = 'real' AND {value} - {value} IS NOT 0.0) THEN '{}' ",
            column.name.replace('\'', "''")
        )
    });
    match layout.columns.is_empty() {
        true => "NULL".to_owned(),
        false => format!("CASE {}END", cases.collect::<String>()),
    }
}

struct SqliteWords;

impl Words for SqliteWords {
    fn name(&self, name: &str) -> String {
        name_quoted(name)
    }

    fn text(&self, value: &str) -> String {
        format!("CAST({value} AS TEXT)")
    }

    fn object(&self, members: &[(String, String)]) -> String {
        let members = members
            .iter()
            .map(|(name, value)| format!("'{name}', {value}"));
        format!("json_object({})", members.collect::<Vec<_>>().join(", "))
    }

    /// A column may hold anything, whatever its type says: what JSON can't hold is null.
    fn value(&self, column: &Column, of: &str, text: bool) -> String {
        let value = format!("{of}.{}", name_quoted(&column.name));
        let unless_blob =
            |other: &str| format!("CASE typeof({value}) WHEN 'blob' THEN NULL ELSE {other} END");
        let format = "'%Y-%m-%dT%H:%M:%fZ'";
        match column.kind {
            // By itself SQLite writes 15 digits of 17, and infinity as a number that nobody can read.
            Kind::Integer | Kind::Float | Kind::Verbatim if !text => format!(
                "CASE typeof({value}) WHEN 'blob' THEN NULL WHEN 'real' \
                 THEN json(CASE WHEN {value} - {value} = 0 THEN printf('%!.17g', {value}) ELSE 'null' END) ELSE {value} END"
            ),
            Kind::Boolean if !text => format!(
                "json(CASE WHEN {value} IS NULL THEN 'null' WHEN {value} THEN 'true' ELSE 'false' END)"
            ),
            Kind::Json if !text => format!(
                "json(CASE WHEN json_valid({value}) THEN {value} WHEN typeof({value}) = 'text' THEN json_quote({value}) ELSE 'null' END)"
            ),
            Kind::Local | Kind::Instant => format!(
                "CASE typeof({value}) WHEN 'text' THEN coalesce(strftime({format}, {value}), {value}) \
                 WHEN 'integer' THEN strftime({format}, {value}, 'unixepoch') WHEN 'blob' THEN NULL ELSE {value} END"
            ),
            _ => unless_blob(&format!("CAST({value} AS TEXT)")),
        }
    }

    fn or_empty(&self, value: String) -> String {
        format!("json(coalesce(nullif({value}, 'null'), '{{}}'))")
    }
}

/// Ids as one parameter.
pub(super) fn list(ids: &[i64]) -> String {
    let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
    format!("[{}]", ids.join(","))
}

pub(super) fn name_quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
