//! What MySQL tells of a column.

use sqlx::{Row as _, mysql::MySqlRow};
use usersync_digest::{Address, Clock, Rounding, Stored};

use crate::{
    cell::Kind,
    layout::{Ids, LiveColumn},
};

/// A column, and whether the server numbers it by itself.
pub(super) fn column(row: &MySqlRow) -> Result<(LiveColumn, bool), sqlx::Error> {
    let (name, data_type, shown): (String, String, String) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let (nullable, has_default): (bool, bool) = (row.try_get(3)?, row.try_get(4)?);
    let (extra, collation): (String, Option<String>) = (row.try_get(5)?, row.try_get(6)?);
    let extra = extra.to_ascii_lowercase();
    let kind = match data_type.as_str() {
        "char" | "varchar" | "tinytext" | "text" | "mediumtext" | "longtext" => Kind::Text,
        "tinyint" | "smallint" | "mediumint" | "int" | "bigint" => Kind::Integer,
        "decimal" | "float" | "double" => Kind::Number,
        "json" => Kind::Json,
        "datetime" | "timestamp" => Kind::Instant,
        "date" => Kind::Day,
        "year" => Kind::Year,
        "enum" | "set" | "uuid" | "inet4" | "inet6" | "time" => Kind::Verbatim,
        _ => Kind::Other,
    };
    let digits: Option<i64> = row.try_get(7)?;
    let charset: Option<String> = row.try_get(8)?;
    let type_of = Type {
        name: &data_type,
        shown: &shown,
        digits: digits.and_then(|digits| u32::try_from(digits).ok()),
        unicode: charset.is_some_and(is_unicode),
        folded: collation
            .as_deref()
            .is_some_and(|name| name.ends_with("_ci")),
        most: row.try_get::<Option<u32>, _>(10)?,
        rounding: match row.try_get(9)? {
            true => Rounding::Later,
            false => Rounding::Cut,
        },
    };
    let stored = type_of.stored();
    let exact = collation.is_some_and(|collation| collation.ends_with("_bin"));
    let ids = match kind {
        Kind::Text => exact.then_some(Ids::Texts),
        Kind::Integer => Some(Ids::Numbers {
            most: most(&data_type, shown.contains("unsigned")),
        }),
        _ => match shown.as_str() {
            "uuid" => Some(Ids::Uuids),
            "binary(16)" => Some(Ids::Octets),
            _ => None,
        },
    };
    let numbered = extra.contains("auto_increment");
    let column = LiveColumn {
        name,
        kind,
        stored,
        shown,
        cast: String::new(),
        nullable,
        defaulted: has_default || numbered || extra.contains("generated"),
        generated: extra.contains("generated") && !extra.contains("default_generated"),
        ids,
    };
    Ok((column, numbered))
}

/// What a digest has to know of a type.
struct Type<'a> {
    name: &'a str,
    shown: &'a str,
    /// Digits behind the point, or of the fraction of a second, where they are fixed.
    digits: Option<u32>,
    unicode: bool,
    /// Whether case doesn't count.
    folded: bool,
    /// The most characters.
    most: Option<u32>,
    rounding: Rounding,
}

impl Type<'_> {
    fn stored(&self) -> Stored {
        let &Self {
            unicode,
            folded,
            rounding,
            ..
        } = self;
        let digits = self.digits.unwrap_or_default();
        match self.name {
            name @ ("char" | "varchar" | "tinytext" | "text" | "mediumtext" | "longtext") => {
                Stored::Text {
                    padded: name == "char",
                    unicode,
                    most: self.most.filter(|_| name == "varchar"),
                }
            }
            "tinyint" | "smallint" | "mediumint" | "int" | "bigint" | "year" => Stored::Integer,
            "decimal" => Stored::Decimal {
                scale: i32::try_from(digits).ok(),
            },
            name @ ("float" | "double") => Stored::Float {
                single: name == "float",
                scale: self.digits,
            },
            "datetime" | "timestamp" => Stored::Instant { digits, rounding },
            "date" => Stored::Day,
            "time" => Stored::Clock {
                digits,
                rounding,
                clock: Clock::Span,
            },
            "json" => Stored::Json,
            "enum" if folded => Stored::Label {
                ascii: self.shown.is_ascii(),
            },
            "enum" => Stored::Text {
                padded: true,
                unicode,
                most: None,
            },
            "set" => Stored::Labels { folded },
            "uuid" => Stored::Uuid,
            "inet4" => Stored::Address(Address::Any),
            "inet6" => Stored::Address(Address::V6),
            _ => Stored::Other,
        }
    }
}

fn is_unicode(charset: String) -> bool {
    matches!(&*charset, "utf8mb4" | "utf8mb3" | "utf8" | "ascii")
}

/// The largest integer of a type.
pub(super) fn most(data_type: &str, unsigned: bool) -> u64 {
    let bits = match data_type {
        "tinyint" => 8,
        "smallint" => 16,
        "mediumint" => 24,
        "int" => 32,
        _ => 64,
    };
    u64::MAX >> (64 - bits + u32::from(!unsigned))
}
