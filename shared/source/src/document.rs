//! A user's JSON: as an expression that the server evaluates, which triggers and scans share, or as a form that a scan fills in.

use std::collections::BTreeMap;

use usersync_core::member::Member;

use crate::{Column, Kind, Layout};

/// The member that says whose document it is.
const USER_ID: &str = "user_id";

/// How a server writes JSON.
pub(crate) trait Words {
    /// The name of a column.
    fn name(&self, name: &str) -> String;
    /// `value` as a text.
    fn text(&self, value: &str) -> String;
    /// An object of names and expressions.
    fn object(&self, members: &[(String, String)]) -> String;
    /// An object as an outbox keeps it.
    fn kept(&self, object: String) -> String {
        object
    }
    /// The JSON value of a column; a text where `text` says so.
    fn value(&self, column: &Column, of: &str, text: bool) -> String;
    /// `value`, or an empty object where it is NULL.
    fn or_empty(&self, value: String) -> String;
    /// Whether an update changes a column, byte by byte.
    fn changed(&self, column: &Column) -> String;
}

/// A part of the document.
enum Node<'a> {
    Value(&'a Column),
    Object(BTreeMap<&'a str, Node<'a>>),
}

/// What every template has a place for.
pub(crate) fn places(words: &impl Words, layout: &Layout) -> Vec<(&'static str, String)> {
    let document = |of| words.kept(document(words, layout, of));
    let changed = |columns: Vec<&Column>| match columns.as_slice() {
        [] => "FALSE".to_owned(),
        columns => {
            let each = columns.iter().map(|column| words.changed(column));
            each.collect::<Vec<_>>().join(" OR ")
        }
    };
    let more = layout.columns.iter();
    let more = more.filter(|column| column.member != Member::Status);
    vec![
        ("table_shown", layout.table.to_string()),
        ("new_document", document("NEW")),
        (
            "old_gone",
            words.kept(words.object(&[id(words, layout, "OLD")])),
        ),
        (
            "previous",
            match layout.holds_json() {
                true => document("OLD"),
                false => "NULL".to_owned(),
            },
        ),
        ("changed", changed(layout.columns.iter().collect())),
        ("more_changed", changed(more.collect())),
    ]
}

/// The members of a user as one object, `of` being the row: `NEW`, `OLD`, the table. The id stands first.
pub(crate) fn document(words: &impl Words, layout: &Layout, of: &str) -> String {
    let mut written = vec![id(words, layout, of)];
    let all = members(layout);
    let all = all
        .iter()
        .map(|(name, node)| (name.clone(), render(words, node, of)));
    written.extend(all);
    words.object(&written)
}

fn id(words: &impl Words, layout: &Layout, of: &str) -> (String, String) {
    let value = format!("{of}.{}", words.name(&layout.id.name));
    let value = match layout.id.kind {
        Kind::Integer => value,
        _ => words.text(&value),
    };
    (USER_ID.to_owned(), value)
}

/// What comes behind the id: members of their own, then `data`, unless there is nothing in it.
fn members(layout: &Layout) -> Vec<(String, Node<'_>)> {
    let (mut members, mut data) = (Vec::new(), Node::Object(BTreeMap::new()));
    for column in &layout.columns {
        match &column.member {
            Member::Data(names) => put(&mut data, names, column),
            member => members.push((member.to_string(), Node::Value(column))),
        }
    }
    let empty = matches!(&data, Node::Object(members) if members.is_empty());
    if !empty {
        members.push(("data".to_owned(), data));
    }
    members
}

fn put<'a>(node: &mut Node<'a>, names: &'a [String], column: &'a Column) {
    match (names, node) {
        ([], node) => *node = Node::Value(column),
        ([name, rest @ ..], Node::Object(members)) => {
            let inner = members.entry(name);
            let inner = inner.or_insert_with(|| Node::Object(BTreeMap::new()));
            put(inner, rest, column);
        }
        // A layout has no member inside another.
        (_, Node::Value(_)) => {}
    }
}

fn render(words: &impl Words, node: &Node<'_>, of: &str) -> String {
    match node {
        Node::Value(column) => {
            let value = words.value(column, of, column.member.is_text());
            match column.member.is_whole() {
                true => words.or_empty(value),
                false => value,
            }
        }
        Node::Object(members) => {
            let members = members
                .iter()
                .map(|(name, node)| ((*name).to_owned(), render(words, node, of)));
            words.object(&members.collect::<Vec<_>>())
        }
    }
}

/// A document without its values, which a server tells as texts: for one that takes longer to write JSON.
pub(crate) struct Blank {
    /// What stands before each value, and how the value is written.
    parts: Vec<(String, Written)>,
    end: String,
}

/// How a server's text becomes a JSON value.
#[derive(Clone, Copy)]
enum Written {
    Text,
    /// A text where JSON has no such number.
    Number,
    Json,
    /// The same, and an empty object where there is none.
    Object,
}

impl Blank {
    /// The document of a row, and the columns it is made of behind the id, in order.
    pub(crate) fn of(layout: &Layout) -> (Self, Vec<&Column>) {
        let (mut parts, mut columns) = (Vec::new(), Vec::new());
        let mut before = format!("{{\"{USER_ID}\":");
        let written = match layout.id.kind {
            Kind::Integer => Written::Number,
            _ => Written::Text,
        };
        parts.push((std::mem::take(&mut before), written));
        for (name, node) in members(layout) {
            before.push(',');
            outline(&name, node, &mut before, &mut parts, &mut columns);
        }
        let end = before + "}";
        (Self { parts, end }, columns)
    }

    /// The document with these values; `None` is null.
    pub(crate) fn filled<'a, E>(
        &self,
        values: impl Iterator<Item = Result<Option<&'a str>, E>>,
    ) -> Result<Vec<u8>, E> {
        let mut document = Vec::with_capacity(256);
        for ((before, written), value) in self.parts.iter().zip(values) {
            document.extend_from_slice(before.as_bytes());
            match (value?, written) {
                (None, Written::Object) => document.extend_from_slice(b"{}"),
                (None, _) => document.extend_from_slice(b"null"),
                (Some(value), Written::Json | Written::Object) => {
                    document.extend_from_slice(value.as_bytes());
                }
                // NaN and Infinity.
                (Some(value), Written::Number)
                    if value.ends_with(|end: char| end.is_ascii_digit()) =>
                {
                    document.extend_from_slice(value.as_bytes());
                }
                (Some(value), Written::Number | Written::Text) => quote(value, &mut document),
            }
        }
        document.extend_from_slice(self.end.as_bytes());
        Ok(document)
    }
}

/// Writes down where the values of `node` go; `before` is what stands before the next of them.
fn outline<'a>(
    name: &str,
    node: Node<'a>,
    before: &mut String,
    parts: &mut Vec<(String, Written)>,
    columns: &mut Vec<&'a Column>,
) {
    let mut quoted = Vec::new();
    quote(name, &mut quoted);
    before.push_str(&String::from_utf8_lossy(&quoted));
    before.push(':');
    match node {
        Node::Value(column) => {
            let written = match column.kind {
                _ if column.member.is_text() => Written::Text,
                Kind::Integer | Kind::Float => Written::Number,
                Kind::Json if column.member.is_whole() => Written::Object,
                Kind::Boolean | Kind::Json => Written::Json,
                _ => Written::Text,
            };
            parts.push((std::mem::take(before), written));
            columns.push(column);
        }
        Node::Object(members) => {
            before.push('{');
            for (place, (name, node)) in members.into_iter().enumerate() {
                if place > 0 {
                    before.push(',');
                }
                outline(name, node, before, parts, columns);
            }
            before.push('}');
        }
    }
}

/// Writes `text` as a JSON string.
fn quote(text: &str, to: &mut Vec<u8>) {
    // Nothing fails in memory.
    let _ = serde_json::to_writer(to, text);
}

/// `template` with each `{name}` replaced.
pub(crate) fn filled(template: &str, values: &[(&str, String)]) -> String {
    // One pass: a value may contain what looks like a place.
    let mut text = String::with_capacity(template.len() * 2);
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        let (before, behind) = rest.split_at(at);
        text.push_str(before);
        let place = behind.find('}').and_then(|end| {
            let found = values.iter().find(|(name, _)| *name == &behind[1..end]);
            found.map(|(_, value)| (value, end))
        });
        rest = match place {
            Some((value, end)) => {
                text.push_str(value);
                &behind[end + 1..]
            }
            None => {
                text.push('{');
                &behind[1..]
            }
        };
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_filled_once() {
        let values = [("a", "{b}".to_owned()), ("b", "x".to_owned())];
        assert_eq!(filled("{a} {b} {c} '{}'", &values), "{b} x {c} '{}'");
    }
}
