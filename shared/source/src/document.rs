//! A user's JSON: as an expression that the server evaluates, or as a form that the values of a row fill in.

use std::collections::BTreeMap;

use usersync_core::member::Member;

use crate::{
    Column, Kind, Layout,
    value::{Form, quote},
};

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
    /// The JSON value of a column; a text where `text` says so.
    fn value(&self, column: &Column, of: &str, text: bool) -> String;
    /// `value`, or an empty object where it is NULL.
    fn or_empty(&self, value: String) -> String;
}

/// A part of the document.
enum Node<'a> {
    Value(&'a Column),
    Object(BTreeMap<&'a str, Node<'a>>),
}

/// The members of a user as one object, `of` being the table. The id stands first.
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

/// A document without its values, which a server tells as texts: so no setting of a session and no limit of a server's
/// JSON functions can change them, and it takes less time.
pub(crate) struct Blank {
    /// The value of each column, the id's first.
    parts: Vec<Part>,
    end: String,
}

/// The place of one value.
struct Part {
    /// What stands before it.
    before: String,
    form: Form,
    /// The column it is from, and its type.
    column: String,
}

impl Blank {
    /// The document of a row, and the columns it is made of behind the id, in order; `fraction` where the server tells
    /// the microseconds of times even if there are none.
    pub(crate) fn of(layout: &Layout, fraction: bool) -> (Self, Vec<&Column>) {
        let (mut parts, mut columns) = (Vec::new(), Vec::new());
        let form = match layout.id.kind {
            Kind::Integer => Form::Number,
            _ => Form::Text,
        };
        parts.push(Part {
            before: format!("{{\"{USER_ID}\":"),
            form,
            column: format!("`{}` ({})", layout.id.name, layout.id.shown),
        });
        let mut before = String::new();
        for (name, node) in members(layout) {
            before.push(',');
            outline(&name, node, fraction, &mut before, &mut parts, &mut columns);
        }
        let end = before + "}";
        (Self { parts, end }, columns)
    }

    /// The document with these values, the id's first; `None` is null. Why there is none, naming the column.
    pub(crate) fn filled<'a>(
        &self,
        values: impl Iterator<Item = Option<&'a [u8]>>,
    ) -> Result<Vec<u8>, String> {
        let mut document = Vec::with_capacity(256);
        for (part, value) in self.parts.iter().zip(values) {
            document.extend_from_slice(part.before.as_bytes());
            let Some(value) = value else {
                part.form.write_null(&mut document);
                continue;
            };
            let written = part.form.write(value, &mut document);
            written.map_err(|why| format!("its column {} {why}", part.column))?;
        }
        document.extend_from_slice(self.end.as_bytes());
        Ok(document)
    }
}

/// Writes down where the values of `node` go; `before` is what stands before the next of them.
fn outline<'a>(
    name: &str,
    node: Node<'a>,
    fraction: bool,
    before: &mut String,
    parts: &mut Vec<Part>,
    columns: &mut Vec<&'a Column>,
) {
    let mut quoted = Vec::new();
    quote(name, &mut quoted);
    before.push_str(&String::from_utf8_lossy(&quoted));
    before.push(':');
    match node {
        Node::Value(column) => {
            let form = Form::of(column.kind, column.member.is_whole(), fraction);
            parts.push(Part {
                before: std::mem::take(before),
                form: match column.member.is_text() {
                    true => form.as_text(),
                    false => form,
                },
                column: format!("`{}` ({})", column.name, column.shown),
            });
            columns.push(column);
        }
        Node::Object(members) => {
            before.push('{');
            for (place, (name, node)) in members.into_iter().enumerate() {
                if place > 0 {
                    before.push(',');
                }
                outline(name, node, fraction, before, parts, columns);
            }
            before.push('}');
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
