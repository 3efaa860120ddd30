//! Digests as SQL text: the same encoding, hashed and summed where the rows are.
//!
//! Only text is made here; names are quoted, everything else in it are numbers of ours. Each statement answers
//! one row: how many entries there are, and the entries as one binary value ([`digests`], [`entries`]).

mod mysql;
mod postgres;

use std::ops::Range;

use crate::{
    cut::{Cut, Keys},
    digest::Digest,
    form::{Form, Stored},
    row::RowHash,
    side::{Entry, SideError},
};

/// Whose SQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// MySQL and MariaDB.
    MySql,
    /// PostgreSQL.
    Postgres,
}

/// A table of users, as far as its digest goes.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its name, quoted.
    pub name: String,
    /// The column of the id, quoted.
    pub id: String,
    /// Whether ids are integers there.
    pub integer_ids: bool,
    /// The condition for rows that count; all do without it.
    pub counts: Option<String>,
    /// The fields, in the order both sides agree on.
    pub fields: Vec<Field>,
}

/// One field of a row.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its column, quoted; `None` where the side has no such field, which is NULL then.
    pub column: Option<String>,
    /// What the column is.
    pub stored: Stored,
    /// How its values are encoded.
    pub form: Form,
}

/// The longest id that is listed, in characters. No user has a longer one; of a row that does, this is shown.
const ID_CHARACTERS: u32 = 200;
/// Ranges of ids that a condition may name. More of them take an optimizer longer than they save.
const RANGES: usize = 64;
/// Octets of a digest: bucket, count, two sums.
const DIGEST: usize = 24;
/// Octets of an entry without its id: the id's length, the hash.
const ENTRY: usize = 18;

impl Flavour {
    /// `schema.table` is two names.
    pub fn quoted(self, name: &str) -> String {
        let mark = match self {
            Self::MySql => "`",
            Self::Postgres => "\"",
        };
        let quote = |part: &str| format!("{mark}{}{mark}", part.replace(mark, &mark.repeat(2)));
        name.split('.').map(quote).collect::<Vec<_>>().join(".")
    }

    /// `column` as a text of the server's own that [`Form::of`] reads, with nothing lost of it.
    pub fn shown(self, column: &str, stored: Stored) -> String {
        match self {
            Self::MySql => mysql::shown(column, stored),
            Self::Postgres => postgres::shown(column, stored),
        }
    }

    /// A column of which `stored` is known as a text in `form`; `None` where this server's SQL has no such text.
    fn text(self, field: &Field) -> Option<String> {
        let Some(column) = &field.column else {
            return Some("NULL".to_owned());
        };
        match self {
            Self::MySql => mysql::text(column, field.stored, field.form),
            Self::Postgres => postgres::text(column, field.stored, field.form),
        }
    }
}

impl Table {
    /// Whether the server can make these digests; else rows have to be read and hashed here.
    pub fn is_pushed_down(&self, flavour: Flavour) -> bool {
        self.fields
            .iter()
            .all(|field| flavour.text(field).is_some())
    }

    /// The statement for the digests of those of `buckets` that hold somebody. Buckets are told relative to the first.
    pub fn digest(&self, flavour: Flavour, cut: &Cut, buckets: &[Range<u64>]) -> String {
        match flavour {
            Flavour::MySql => mysql::digest(self, cut, buckets),
            Flavour::Postgres => postgres::digest(self, cut, buckets),
        }
    }

    /// The statement for everybody in `buckets`.
    pub fn list(&self, flavour: Flavour, cut: &Cut, buckets: &[Range<u64>]) -> String {
        match flavour {
            Flavour::MySql => mysql::list(self, cut, buckets),
            Flavour::Postgres => postgres::list(self, cut, buckets),
        }
    }

    /// The statement for the sums over all rows without buckets: the least that any of this costs.
    pub fn total(&self, flavour: Flavour) -> String {
        match flavour {
            Flavour::MySql => mysql::total(self),
            Flavour::Postgres => postgres::total(self),
        }
    }

    /// The statement that reads everybody: the id, then each field, as texts of the server's own.
    pub fn scan(&self, flavour: Flavour) -> String {
        let text = |column: &str| match flavour {
            Flavour::MySql => format!("CAST({column} AS CHAR)"),
            Flavour::Postgres => format!("{column}::text"),
        };
        let fields = self.fields.iter().map(|field| match &field.column {
            Some(column) => format!(", {}", flavour.shown(column, field.stored)),
            None => ", NULL".to_owned(),
        });
        let id = match (flavour, self.integer_ids) {
            (Flavour::MySql, true) => text(&format!("({} + 0)", self.id)),
            _ => text(&self.id),
        };
        let fields = fields.collect::<String>();
        format!("SELECT {id}{fields} FROM {}{}", self.name, self.filter(&[]))
    }

    /// The statement for the smallest and the largest id, as texts.
    pub fn extent(&self, flavour: Flavour) -> String {
        let (id, name) = (&self.id, &self.name);
        match flavour {
            Flavour::MySql => {
                format!("SELECT CAST(MIN({id}) AS CHAR), CAST(MAX({id}) AS CHAR) FROM {name}")
            }
            Flavour::Postgres => format!("SELECT MIN({id})::text, MAX({id})::text FROM {name}"),
        }
    }

    /// ` WHERE …`, or nothing.
    fn filter(&self, more: &[String]) -> String {
        let all = self.counts.iter().chain(more);
        let all: Vec<String> = all.map(|condition| format!("({condition})")).collect();
        match all.is_empty() {
            true => String::new(),
            false => format!(" WHERE {}", all.join(" AND ")),
        }
    }

    /// The texts of all fields, with what a server has for one that can't be made.
    fn texts(&self, flavour: Flavour) -> impl Iterator<Item = String> {
        let text = move |field: &Field| flavour.text(field).unwrap_or_else(|| "NULL".to_owned());
        self.fields.iter().map(text)
    }
}

/// From the first id of `buckets` to the last, where ids are the keys.
fn span(cut: &Cut, buckets: &[Range<u64>]) -> Option<(i128, i128)> {
    let (first, last) = (buckets.first()?, buckets.last()?);
    cut.ids(&(first.start..last.end))
}

/// Each of `buckets`, separated by commas.
fn numbers(buckets: &[Range<u64>]) -> String {
    let all = buckets.iter().flat_map(Clone::clone);
    all.map(|bucket| bucket.to_string())
        .collect::<Vec<_>>()
        .join(",")
}

/// Whether `buckets` are all that there can be.
fn is_everything(cut: &Cut, buckets: &[Range<u64>]) -> bool {
    cut.keys == Keys::Hashes && matches!(buckets, [all] if *all == (0..1 << (32 - cut.shift)))
}

/// Reads what a [`Table::digest`] answered; `first` is the first bucket that was asked for.
///
/// # Errors
/// When it isn't whole.
pub fn digests(count: i64, octets: &[u8], first: u64) -> Result<Vec<(u64, Digest)>, SideError> {
    let (whole, rest) = octets.as_chunks::<DIGEST>();
    if !rest.is_empty() || i64::try_from(whole.len()) != Ok(count) {
        return Err(broken());
    }
    let number = |octets: &[u8]| {
        let digits = octets.iter();
        digits.fold(0_u64, |number, octet| number << 8 | u64::from(*octet))
    };
    let digest = |entry: &[u8; DIGEST]| {
        let digest = Digest {
            count: number(&entry[4..8]),
            high: number(&entry[8..16]),
            low: number(&entry[16..]),
        };
        (first + number(&entry[..4]), digest)
    };
    let mut all: Vec<_> = whole.iter().map(digest).collect();
    all.sort_unstable_by_key(|(bucket, _)| *bucket);
    Ok(all)
}

/// Reads what a [`Table::list`] answered.
///
/// # Errors
/// When it isn't whole.
pub fn entries(count: i64, mut octets: &[u8]) -> Result<Vec<Entry>, SideError> {
    let mut all = Vec::new();
    while !octets.is_empty() {
        let (length, rest) = octets.split_first_chunk::<2>().ok_or_else(broken)?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (id, rest) = rest.split_at_checked(length).ok_or_else(broken)?;
        let (hash, rest) = rest
            .split_first_chunk::<{ ENTRY - 2 }>()
            .ok_or_else(broken)?;
        all.push(Entry {
            id: String::from_utf8_lossy(id).into(),
            hash: RowHash(*hash),
        });
        octets = rest;
    }
    match i64::try_from(all.len()) == Ok(count) {
        true => Ok(all),
        false => Err(broken()),
    }
}

fn broken() -> SideError {
    SideError::new("the answer of the database is not whole")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cut_off_is_not_taken() {
        assert!(digests(1, &[0; 24], 0).is_ok());
        assert!(digests(2, &[0; 24], 0).is_err());
        assert!(digests(1, &[0; 25], 0).is_err());
        let mut entry = vec![0, 2, b'4', b'2'];
        entry.extend([7; 16]);
        let all = entries(1, &entry).unwrap();
        assert_eq!((&*all[0].id, all[0].hash), ("42", RowHash([7; 16])));
        assert!(entries(2, &entry).is_err());
        assert!(entries(1, &entry[..19]).is_err());
    }

    #[test]
    fn names_are_quoted_for_their_server() {
        assert_eq!(Flavour::MySql.quoted("app.us`ers"), "`app`.`us``ers`");
        assert_eq!(Flavour::Postgres.quoted("us\"ers"), "\"us\"\"ers\"");
    }
}
