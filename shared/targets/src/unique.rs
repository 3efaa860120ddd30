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
    /// Everything it may hold, where that is an enumeration.
    pub(crate) labels: Vec<String>,
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
    /// Something made up that begins and ends like what it held, where a column has a rule for that.
    Near,
    /// Something made up that only has the form of what it held, of which there is more.
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
                    let made = known
                        .zip(held)
                        .and_then(|(known, held)| known.made_up(column.kind, form, held));
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

impl KeyColumn {
    /// Something of the same form as `held` that nobody else has: other letters where there are letters, other digits
    /// where there are digits, so that it suits what suited the former. `None` where a column of this `kind` hasn't
    /// enough of them.
    fn made_up(&self, kind: Kind, form: Form, held: &str) -> Option<String> {
        let other = |make: &dyn Fn() -> String| {
            let mut made = (0..TRIES).map(|_| make());
            made.find(|made| made != held)
        };
        let alike = || match form {
            Form::Near => {
                let (before, changed, behind) = middle(held);
                format!("{before}{}{behind}", alike(changed))
            }
            Form::Null | Form::Made => alike(held),
        };
        match kind {
            _ if !self.labels.is_empty() => {
                let others = self.labels.iter().filter(|label| *label != held);
                fastrand::choice(others.collect::<Vec<_>>()).cloned()
            }
            Kind::Verbatim => match made_for(&self.kind) {
                Some(make) => other(&make),
                None if is_uuid(held) => Some(uuid()),
                None => other(&alike),
            },
            Kind::Text if is_uuid(held) => Some(uuid()),
            // What is compared in another form says nothing of its own.
            Kind::Number if held.parse::<f64>().is_err() => None,
            Kind::Text | Kind::Number => other(&alike),
            Kind::Integer => {
                let near = (form == Form::Near).then(|| other(&alike)).flatten();
                let near = near.and_then(|near| near.parse().ok());
                let near = near.filter(|near: &i64| *near <= self.largest);
                let made = near.unwrap_or_else(|| fastrand::i64(self.largest / 2..=self.largest));
                Some(made.to_string())
            }
            Kind::Year => Some(fastrand::i64(1901..=2155).to_string()),
            Kind::Day => Some(day()),
            Kind::Instant => Some(instant()),
            Kind::Boolean | Kind::Json | Kind::Other => None,
        }
    }
}

/// What makes up a value of a type that has a form of its own, in a server's words for it.
fn made_for(kind: &str) -> Option<fn() -> String> {
    let word = kind.split(['(', ' ']).next().unwrap_or_default();
    match word.trim_start_matches("pg_catalog.").trim_matches('"') {
        "UUID" | "uuid" => Some(uuid),
        "TIME" | "time" | "timetz" => Some(time_of_day),
        "interval" => Some(|| format!("{} seconds", below(1 << 30))),
        "INET4" | "inet" => Some(|| format!("10.{}.{}.{}", below(256), below(256), below(256))),
        "INET6" => Some(|| format!("fd00::{:x}:{:x}", below(1 << 16), below(1 << 16))),
        "cidr" => Some(|| format!("10.{}.{}.{}/32", below(256), below(256), below(256))),
        "macaddr" => Some(|| {
            let bytes = [below(256), below(256), below(256), below(256)];
            let [a, b, c, d] = bytes;
            format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
        }),
        _ => None,
    }
}

/// `text` in three parts, of which the one in the middle may change while the whole begins and ends as before: an
/// address keeps its domain.
fn middle(text: &str) -> (&str, &str, &str) {
    let end = text.rfind('@').filter(|end| *end > 0).unwrap_or(text.len());
    let mut symbols = text[..end].char_indices().map(|(at, _)| at);
    let half = text[..end].chars().count() / 2;
    let start = symbols.nth(half).unwrap_or_default();
    (&text[..start], &text[start..end], &text[end..])
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
    format!("{year:04}-{month:02}-{day:02} {}", time_of_day())
}

fn time_of_day() -> String {
    let (hour, minute, second) = (below(24), below(60), below(60));
    format!("{hour:02}:{minute:02}:{second:02}")
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

    fn column(kind: &str) -> KeyColumn {
        KeyColumn {
            name: "it".to_owned(),
            kind: kind.to_owned(),
            collation: String::new(),
            default: None,
            generated: None,
            nullable: false,
            largest: i16::MAX.into(),
            labels: Vec::new(),
        }
    }

    #[test]
    fn what_is_made_up_has_the_form_of_what_was_held() {
        let text = column("utf8mb4");
        for held in ["Ann.Lee+1@example.com", "7", "-90210", "12.50", "ä@b.c"] {
            let made = text.made_up(Kind::Text, Form::Made, held);
            let made = made.expect("something else");
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
        assert_eq!(text.made_up(Kind::Text, Form::Made, "---"), None);
        assert_eq!(text.made_up(Kind::Boolean, Form::Made, "true"), None);
        let uuids = text.made_up(Kind::Verbatim, Form::Made, &uuid());
        assert_eq!(uuids.map(|made| made.len()), Some(36));
    }

    #[test]
    fn what_is_near_begins_and_ends_as_before() {
        let text = column("utf8mb4");
        for (held, begins, ends) in [
            ("ann.lee@example.com", "ann", "@example.com"),
            ("a@b.c", "", "@b.c"),
            ("EMP-0042", "EMP-", ""),
            ("@handle", "@ha", ""),
            ("äöü@b.c", "ä", "@b.c"),
            ("7", "", ""),
        ] {
            let made = text.made_up(Kind::Text, Form::Near, held);
            let made = made.expect("something else");
            assert_ne!(made, held);
            assert!(
                made.starts_with(begins) && made.ends_with(ends),
                "{made} for {held}"
            );
        }
        let made = text.made_up(Kind::Integer, Form::Near, "42").unwrap();
        assert!((10..=99).contains(&made.parse().unwrap()), "{made}");
        let made = text.made_up(Kind::Integer, Form::Near, "32000").unwrap();
        assert!((10_000..=32_767).contains(&made.parse().unwrap()), "{made}");
    }

    #[test]
    fn what_has_a_form_of_its_own_keeps_it() {
        let clock = column("TIME(3)").made_up(Kind::Verbatim, Form::Near, "08:00:00");
        assert!(clock.unwrap().parse::<jiff::civil::Time>().is_ok());
        for kind in ["INET4", "pg_catalog.inet"] {
            let address = column(kind).made_up(Kind::Verbatim, Form::Made, "192.168.0.1");
            assert!(address.unwrap().parse::<std::net::Ipv4Addr>().is_ok());
        }
        let sizes = KeyColumn {
            labels: ["s", "m", "l"].map(str::to_owned).to_vec(),
            ..column("utf8mb4")
        };
        let size = sizes.made_up(Kind::Verbatim, Form::Near, "m").unwrap();
        assert!(["s", "l"].contains(&size.as_str()), "{size}");
    }
}
