//! What PostgreSQL tells of a column.

use sqlx::{Row as _, postgres::PgRow};
use usersync_digest::Stored;

use super::quote;
use crate::{
    cell::Kind,
    layout::{Ids, LiveColumn},
};

/// A column, and whether it has a unique key of its own.
pub(super) fn column(row: &PgRow) -> Result<(LiveColumn, bool), sqlx::Error> {
    let (name, shown): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let (category, sort): (String, String) = (row.try_get(2)?, row.try_get(3)?);
    let (type_name, schema): (String, String) = (row.try_get(8)?, row.try_get(9)?);
    let kind = match type_name.as_str() {
        "text" | "varchar" | "bpchar" | "citext" => Kind::Text,
        "int2" | "int4" | "int8" => Kind::Integer,
        "numeric" | "float4" | "float8" => Kind::Number,
        "bool" => Kind::Boolean,
        "json" | "jsonb" => Kind::Json,
        "timestamp" | "timestamptz" => Kind::Instant,
        "date" => Kind::Day,
        "uuid" | "inet" | "cidr" | "time" | "interval" => Kind::Verbatim,
        // Enumerations, and domains over texts.
        _ if sort == "e" || (sort == "d" && category == "S") => Kind::Verbatim,
        _ => Kind::Other,
    };
    let modifier: i32 = row.try_get(11)?;
    let stored = match (kind, type_name.as_str()) {
        (Kind::Text, type_name) => Stored::Text {
            padded: type_name == "bpchar",
            unicode: row.try_get(12)?,
        },
        (Kind::Integer, _) => Stored::Integer,
        (Kind::Number, "numeric") => Stored::Decimal {
            // The scale is in the lower 11 bits, above the header's four octets.
            scale: u32::try_from(modifier - 4)
                .ok()
                .map(|modifier| modifier & 0x7ff),
        },
        (Kind::Number, type_name) => Stored::Float {
            single: type_name == "float4",
        },
        (Kind::Boolean, _) => Stored::Boolean,
        (Kind::Instant, _) => Stored::Instant {
            digits: u32::try_from(modifier).unwrap_or(6),
            rounded: true,
        },
        (Kind::Day, _) => Stored::Day,
        (Kind::Json, _) => Stored::Json,
        _ => Stored::Other,
    };
    let deterministic: bool = row.try_get(7)?;
    let most = |most| Ids::Numbers { most };
    let column = LiveColumn {
        name,
        kind,
        stored,
        shown,
        // Without a length: a text that is too long is to be refused, where a cast would cut it.
        cast: match sort == "d" && category == "S" {
            // A domain brings its length along.
            true => "\"pg_catalog\".\"text\"".to_owned(),
            false => format!("{}.{}", quote(&schema), quote(&type_name)),
        },
        nullable: row.try_get(4)?,
        defaulted: row.try_get(5)?,
        generated: row.try_get(6)?,
        ids: match type_name.as_str() {
            "text" | "varchar" if deterministic => Some(Ids::Texts),
            "int2" => Some(most(i16::MAX as u64)),
            "int4" => Some(most(i32::MAX as u64)),
            "int8" => Some(most(i64::MAX as u64)),
            "uuid" => Some(Ids::Uuids),
            // What is filled with spaces, or compares without a look at case.
            _ => None,
        },
    };
    Ok((column, row.try_get(10)?))
}
