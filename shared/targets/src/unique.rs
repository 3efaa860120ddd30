//! What must be unique in a table, and how a row's value is set aside so that another row may have it.

use crate::{
    cell::Kind,
    layout::{Column, Row},
};

/// How often something else is made up.
const TRIES: usize = 32;

/// What a server says of the unique keys of a table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys {
    pub(crate) keys: Vec<UniqueKey>,
    /// The columns that they are made of, and those that these are made of.
    pub(crate) columns: Vec<KeyColumn>,
}

/// A unique key: no two rows are equal in all its parts, unless one of them is NULL.
#[derive(Clone, Debug)]
pub(crate) struct UniqueKey {
    pub(crate) name: String,
    pub(crate) parts: Vec<KeyPart>,
    /// Whose rows it holds for, as SQL over the columns' bare names; all without one.
    pub(crate) predicate: Option<String>,
    /// NULL equals NULL.
    pub(crate) nulls_equal: bool,
}

/// One part of a key.
#[derive(Clone, Debug)]
pub(crate) struct KeyPart {
    /// SQL over the columns' bare names, with the collation that it compares by.
    pub(crate) expression: String,
    /// What compares two of them.
    pub(crate) operator: String,
}

/// A column that a key is made of, as SQL has to know it.
#[derive(Clone, Debug)]
pub(crate) struct KeyColumn {
    pub(crate) name: String,
    /// The type, in the server's own words.
    pub(crate) kind: String,
    /// How it compares; empty where it is no text.
    pub(crate) collation: String,
    /// SQL for its default, where that is the same for everybody.
    pub(crate) default: Option<String>,
    /// SQL that it is computed by, over the columns' bare names.
    pub(crate) generated: Option<String>,
    pub(crate) nullable: bool,
    /// The largest integer it holds, where it holds integers.
    pub(crate) largest: i64,
}

/// What a user is to have, and another row has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Claim {
    /// The id of who is to have it.
    pub(crate) by: String,
    /// The id of the row that has it.
    pub(crate) of: String,
    /// Which key says so.
    pub(crate) key: usize,
}

/// Which cells of a row are written over until it is written itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parked {
    pub(crate) id: String,
    /// Which column of the layout, and what it is to hold meanwhile.
    pub(crate) cells: Vec<(usize, Option<String>)>,
}

/// What a parked cell holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Nothing, where the column takes that.
    Null,
    /// Something made up that looks like what it held.
    Made,
}

impl Keys {
    /// Leaves out what the columns `mapped` have no part in.
    pub(crate) fn about<'a>(mut self, mapped: impl Iterator<Item = &'a str> + Clone) -> Self {
        let computed = self.columns.clone();
        let touches = |text: &str| {
            let mut mapped = mapped.clone();
            mapped.any(|name| names(text, name))
        };
        let concerned = |text: &str| {
            touches(text)
                || computed.iter().any(|column| {
                    let made = column.generated.as_deref();
                    names(text, &column.name) && made.is_some_and(touches)
                })
        };
        self.keys.retain(|key| key.texts().any(concerned));
        // Too many are harmless.
        let mut texts: Vec<String> = Vec::new();
        texts.extend(
            self.keys
                .iter()
                .flat_map(|key| key.texts().map(str::to_owned)),
        );
        let named = |texts: &[String], name: &str| texts.iter().any(|text| names(text, name));
        for column in self.columns.iter().rev() {
            if let Some(made) = column
                .generated
                .as_ref()
                .filter(|_| named(&texts, &column.name))
            {
                texts.push(made.clone());
            }
        }
        self.columns.retain(|column| named(&texts, &column.name));
        self
    }

    /// The name of a key, for people.
    pub(crate) fn name(&self, key: usize) -> &str {
        self.keys.get(key).map_or("?", |key| key.name.as_str())
    }

    /// How a row that holds `held` makes room in `key` until it is written as `row`; `None` where no column of the key
    /// can be written over.
    pub(crate) fn parked(
        &self,
        key: usize,
        columns: &[Column],
        row: &Row,
        held: &[Option<String>],
        form: Form,
    ) -> Option<Vec<(usize, Option<String>)>> {
        let key = self.keys.get(key)?;
        let mut cells = Vec::new();
        for (at, column) in columns.iter().enumerate() {
            // What the row isn't told of stays, so nothing may be lost there.
            if row.cells[at].is_none() || !self.makes(key, &column.name) {
                continue;
            }
            let known = self.columns.iter().find(|known| known.name == column.name);
            let nullable = known.is_some_and(|known| known.nullable) && !key.nulls_equal;
            match (form, nullable) {
                (Form::Null, true) => cells.push((at, None)),
                _ => {
                    let held = held.get(at).and_then(Option::as_deref);
                    let largest = known.map_or(0, |known| known.largest);
                    let made = held.and_then(|held| made_up(column.kind, largest, held));
                    cells.extend(made.map(|made| (at, Some(made))));
                }
            }
        }
        // One is enough to differ, and NULL the surest.
        let nothing = cells.iter().position(|(_, cell)| cell.is_none());
        match nothing {
            Some(at) => Some(vec![cells.swap_remove(at)]),
            None => (!cells.is_empty()).then_some(cells),
        }
    }

    /// Whether `column` has a part in `key`, by itself or in what is computed of it.
    fn makes(&self, key: &UniqueKey, column: &str) -> bool {
        let in_text = |text: &str| {
            names(text, column)
                || self.columns.iter().any(|computed| {
                    let made = computed.generated.as_deref();
                    names(text, &computed.name) && made.is_some_and(|made| names(made, column))
                })
        };
        key.parts.iter().any(|part| in_text(&part.expression))
    }
}

impl UniqueKey {
    fn texts(&self) -> impl Iterator<Item = &str> {
        let parts = self.parts.iter().map(|part| part.expression.as_str());
        parts.chain(self.predicate.as_deref())
    }
}

/// Whether `text`, which is SQL, names `column`: as a word of its own that is no function and no type that is cast to.
fn names(text: &str, column: &str) -> bool {
    let is_word = |symbol: char| symbol.is_alphanumeric() || matches!(symbol, '_' | '$');
    text.match_indices(column).any(|(at, _)| {
        let (before, behind) = (&text[..at], &text[at + column.len()..]);
        let whole = !before.ends_with(is_word) && !behind.starts_with(is_word);
        whole && !before.ends_with("::") && !behind.starts_with('(')
    })
}

/// Something of the same form as `held` that nobody else has: other letters where there are letters, other digits where
/// there are digits, so that it suits what suited the former. `None` where a column of this `kind` hasn't enough of them.
fn made_up(kind: Kind, largest: i64, held: &str) -> Option<String> {
    match kind {
        Kind::Text | Kind::Verbatim if is_uuid(held) => Some(uuid()),
        // What is compared in another form says nothing of its own.
        Kind::Number if held.parse::<f64>().is_err() => None,
        Kind::Text | Kind::Verbatim | Kind::Number => {
            let mut made = (0..TRIES).map(|_| alike(held));
            made.find(|made| made != held)
        }
        Kind::Integer => Some(fastrand::i64(largest / 2..=largest).to_string()),
        Kind::Year => Some(fastrand::i64(1901..=2155).to_string()),
        Kind::Day => Some(day()),
        Kind::Instant => Some(instant()),
        Kind::Boolean | Kind::Json | Kind::Other => None,
    }
}

/// The first digit of a number is none that others don't show.
fn alike(held: &str) -> String {
    let mut least = 1;
    let other = |symbol: char| match symbol {
        '0'..='9' => {
            let least = std::mem::take(&mut least);
            char::from_digit(fastrand::u32(least..=9), 10).unwrap_or(symbol)
        }
        'a'..='z' => fastrand::lowercase(),
        'A'..='Z' => fastrand::uppercase(),
        // Of another script: what has letters of any script has letters of this one, mostly.
        _ if symbol.is_alphabetic() => fastrand::lowercase(),
        _ => symbol,
    };
    held.chars().map(other).collect()
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36 && text.bytes().filter(|byte| *byte == b'-').count() == 4
}

fn uuid() -> String {
    let random = fastrand::u128(..);
    // Version 4 of RFC 9562, the random one.
    let random = random & !(0xf << 76) & !(0x3 << 62) | 4 << 76 | 2 << 62;
    let hex = format!("{random:032x}");
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    parts.join("-")
}

fn day() -> String {
    let (year, month, day) = (1001 + below(900), 1 + below(12), 1 + below(28));
    format!("{year:04}-{month:02}-{day:02}")
}

/// Within what every server takes: TIMESTAMP begins in 1970, and ends in 2038.
fn instant() -> String {
    let (year, month, day) = (1971 + below(66), 1 + below(12), 1 + below(28));
    let (hour, minute, second) = (below(24), below(60), below(60));
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

fn below(most: u32) -> u32 {
    fastrand::u32(0..most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_named_by_a_word_of_its_own() {
        for (text, column, is_named) in [
            ("lower((email)::text)", "email", true),
            ("lower((email)::text)", "t", false),
            ("lower((email)::text)", "mail", false),
            ("lower((email)::text)", "text", false),
            ("lower((email)::text)", "lower", false),
            ("(text)", "text", true),
            ("\"odd name\" || ''::text", "odd name", true),
            ("LEFT(`email`, 3)", "email", true),
            ("lower(`e_mail`)", "mail", false),
            ("a+b", "b", true),
        ] {
            assert_eq!(names(text, column), is_named, "{column} in {text}");
        }
    }

    #[test]
    fn what_is_made_up_has_the_form_of_what_was_held() {
        for held in ["Ann.Lee+1@example.com", "7", "-90210", "12.50", "ä@b.c"] {
            let made = made_up(Kind::Text, 0, held).expect("something else");
            assert_ne!(made, held);
            assert_eq!(made.chars().count(), held.chars().count());
            for (made, held) in made.chars().zip(held.chars()) {
                assert_eq!(
                    made.is_alphabetic(),
                    held.is_alphabetic(),
                    "{made} for {held}"
                );
                assert_eq!(
                    made.is_ascii_digit(),
                    held.is_ascii_digit(),
                    "{made} for {held}"
                );
            }
        }
        assert_eq!(made_up(Kind::Text, 0, "---"), None);
        assert_eq!(made_up(Kind::Boolean, 0, "true"), None);
        assert!(is_uuid(&made_up(Kind::Verbatim, 0, &uuid()).unwrap()));
    }
}
