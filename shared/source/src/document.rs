//! A user's JSON as an expression that the server evaluates: triggers and scans use the same one.

use std::collections::BTreeMap;

use usersync_core::member::Member;

use crate::{Column, Kind, Layout};

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
enum Node {
    Leaf(String),
    Object(BTreeMap<String, Node>),
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
    let mut members = vec![id(words, layout, of)];
    let mut data = Node::Object(BTreeMap::new());
    for column in &layout.columns {
        let value = words.value(column, of, column.member.is_text());
        match &column.member {
            Member::Data(names) => put(words, &mut data, names, value),
            member => members.push((member.to_string(), value)),
        }
    }
    let empty = matches!(&data, Node::Object(members) if members.is_empty());
    if !empty {
        members.push(("data".to_owned(), render(words, &data)));
    }
    words.object(&members)
}

fn id(words: &impl Words, layout: &Layout, of: &str) -> (String, String) {
    let value = format!("{of}.{}", words.name(&layout.id.name));
    let value = match layout.id.kind {
        Kind::Integer => value,
        _ => words.text(&value),
    };
    ("user_id".to_owned(), value)
}

fn put(words: &impl Words, node: &mut Node, names: &[String], value: String) {
    match (names, node) {
        // Beside `status`, an event's `data` must be an object.
        ([], node) => *node = Node::Leaf(words.or_empty(value)),
        ([name], Node::Object(members)) => {
            members.insert(name.clone(), Node::Leaf(value));
        }
        ([name, rest @ ..], Node::Object(members)) => {
            let inner = members.entry(name.clone());
            put(
                words,
                inner.or_insert_with(|| Node::Object(BTreeMap::new())),
                rest,
                value,
            );
        }
        // A layout has no member inside another.
        (_, Node::Leaf(_)) => {}
    }
}

fn render(words: &impl Words, node: &Node) -> String {
    match node {
        Node::Leaf(value) => value.clone(),
        Node::Object(members) => {
            let members = members
                .iter()
                .map(|(name, node)| (name.clone(), render(words, node)));
            words.object(&members.collect::<Vec<_>>())
        }
    }
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
