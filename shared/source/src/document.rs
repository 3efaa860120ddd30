//! A user's JSON: as an expression that the server evaluates, or as a form that the values of a row fill in.

use std::{borrow::Cow, collections::BTreeMap};

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
    written: Written,
    /// The column it is from.
    column: String,
}

/// How a server's text becomes a JSON value.
#[derive(Clone, Copy)]
enum Written {
    Text,
    /// A number; a text where JSON has no such number.
    Number,
    /// A text of its digits.
    Digits,
    Json,
    /// The same, and an empty object where there is none.
    Object,
}

impl Blank {
    /// The document of a row, and the columns it is made of behind the id, in order.
    pub(crate) fn of(layout: &Layout) -> (Self, Vec<&Column>) {
        let (mut parts, mut columns) = (Vec::new(), Vec::new());
        let written = match layout.id.kind {
            Kind::Integer => Written::Number,
            _ => Written::Text,
        };
        parts.push(Part {
            before: format!("{{\"{USER_ID}\":"),
            written,
            column: layout.id.name.clone(),
        });
        let mut before = String::new();
        for (name, node) in members(layout) {
            before.push(',');
            outline(&name, node, &mut before, &mut parts, &mut columns);
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
                document.extend_from_slice(match part.written {
                    Written::Object => b"{}",
                    _ => b"null",
                });
                continue;
            };
            let Ok(value) = str::from_utf8(value) else {
                return Err(format!(
                    "its column `{}` holds bytes that are no text (UTF-8)",
                    part.column
                ));
            };
            match part.written {
                Written::Json | Written::Object => document.extend_from_slice(value.as_bytes()),
                // NaN and Infinity are none.
                Written::Number if value.ends_with(|end: char| end.is_ascii_digit()) => {
                    document.extend_from_slice(unpadded(value).as_bytes());
                }
                Written::Digits => quote(&unpadded(value), &mut document),
                Written::Number | Written::Text => quote(value, &mut document),
            }
        }
        document.extend_from_slice(self.end.as_bytes());
        Ok(document)
    }
}

/// A number without the zeros before it, which a column may show (ZEROFILL) and JSON doesn't have.
pub(crate) fn unpadded(number: &str) -> Cow<'_, str> {
    let (sign, digits) = match number.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", number),
    };
    let stripped = digits.trim_start_matches('0');
    match digits.len() - stripped.len() {
        0 => number.into(),
        zeros => {
            let kept = usize::from(!stripped.starts_with(|first: char| first.is_ascii_digit()));
            format!("{sign}{}", &digits[zeros - kept..]).into()
        }
    }
}

/// Writes down where the values of `node` go; `before` is what stands before the next of them.
fn outline<'a>(
    name: &str,
    node: Node<'a>,
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
            let written = match column.kind {
                _ if column.member.is_text() => Written::Text,
                Kind::Integer | Kind::Float => Written::Number,
                Kind::Decimal => Written::Digits,
                Kind::Json if column.member.is_whole() => Written::Object,
                Kind::Boolean | Kind::Json => Written::Json,
                _ => Written::Text,
            };
            parts.push(Part {
                before: std::mem::take(before),
                written,
                column: column.name.clone(),
            });
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
    #[test]
    fn numbers_lose_the_zeros_that_a_column_shows() {
        for (shown, number) in [
            ("0000007", "7"),
            ("-007", "-7"),
            ("0", "0"),
            ("000", "0"),
            ("0.50", "0.50"),
            ("007.50", "7.50"),
            ("-00.5", "-0.5"),
            ("1e300", "1e300"),
            ("100", "100"),
        ] {
            assert_eq!(unpadded(shown), number, "{shown}");
        }
    }
}
