//! The table as the server describes it, and what its columns hold.

use std::collections::BTreeSet;

/// What kind of values a column holds, and so what they are in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// A number, exactly.
    Integer,
    /// A number.
    Float,
    /// A number of single precision, by its shortest digits.
    Single,
    /// A string with the digits that are there: a JSON number would lose some.
    Decimal,
    /// true or false; in MySQL a number where it is neither 0 nor 1.
    Boolean,
    /// What it holds.
    Json,
    /// A list of such strings.
    Decimals,
    /// A point in time: RFC 3339 in UTC.
    Instant,
    /// A date and time of day without a zone, taken as UTC.
    Local,
    /// `YYYY-MM-DD`.
    Day,
    /// The server's own text of it: UUIDs, enumerations, addresses.
    Verbatim,
    /// A text that may be JSON: the server doesn't show us which.
    Veiled,
    /// Nothing that JSON has.
    Unsupported,
}

/// A column as the server describes it.
#[derive(Clone, Debug)]
pub struct LiveColumn {
    /// Its name, as the server spells it.
    pub name: String,
    /// What it holds.
    pub kind: Kind,
    /// Its type in the server's own words.
    pub shown: String,
}

/// A table as the server describes it.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// Its schema, where code that runs elsewhere must name it.
    pub schema: Option<String>,
    /// Its columns, in their order.
    pub columns: Vec<LiveColumn>,
    /// The columns that alone identify a row: with a unique key of their own.
    pub unique: BTreeSet<String>,
    /// Why no trigger can keep it and its outbox in one transaction.
    pub problem: Option<String>,
    /// Changes of it that no trigger sees.
    pub remarks: Vec<String>,
}

impl Live {
    /// The column of that name: spelt so, or else regardless of case.
    pub(crate) fn column(&self, name: &str) -> Option<&LiveColumn> {
        let exact = self.columns.iter().find(|column| column.name == name);
        exact.or_else(|| {
            let mut folded = self.columns.iter();
            folded.find(|column| column.name.eq_ignore_ascii_case(name))
        })
    }
}
