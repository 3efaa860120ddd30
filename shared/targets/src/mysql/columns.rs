//! What MySQL tells of a column.

use sqlx::{Row as _, mysql::MySqlRow};
use usersync_digest::Stored;

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
        "enum" | "uuid" | "inet4" | "inet6" | "time" | "year" => Kind::Verbatim,
        _ => Kind::Other,
    };
    let digits: i64 = row.try_get(7)?;
    let digits = u32::try_from(digits).unwrap_or_default();
    let charset: Option<String> = row.try_get(8)?;
    let unicode = |charset: String| matches!(&*charset, "utf8mb4" | "utf8mb3" | "utf8" | "ascii");
    let stored = match (kind, data_type.as_str()) {
        (Kind::Text, data_type) => Stored::Text {
            padded: data_type == "char",
            unicode: charset.is_some_and(unicode),
        },
        (Kind::Integer, _) => Stored::Integer,
        (Kind::Number, "decimal") => Stored::Decimal {
            scale: Some(digits),
        },
        (Kind::Number, data_type) => Stored::Float {
            single: data_type == "float",
        },
        (Kind::Instant, _) => Stored::Instant {
            digits,
            rounded: row.try_get(9)?,
        },
        (Kind::Day, _) => Stored::Day,
        (Kind::Json, _) => Stored::Json,
        _ => Stored::Other,
    };
    let exact = collation.is_some_and(|collation| collation.ends_with("_bin"));
    let ids = match kind {
        Kind::Text => exact.then_some(Ids::Texts),
        Kind::Integer => Some(Ids::Numbers {
            most: most(&data_type, shown.contains("unsigned")),
        }),
        _ => (data_type == "uuid").then_some(Ids::Uuids),
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
