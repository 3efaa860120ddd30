//! What PostgreSQL tells of a column.

use sqlx::{Row as _, postgres::PgRow};
use usersync_digest::{Address, Clock, Rounding, Stored};

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
        "uuid" | "inet" | "cidr" | "macaddr" | "macaddr8" | "time" | "timetz" | "interval"
        | "bit" | "varbit" => Kind::Verbatim,
        // Enumerations, and domains over domains over texts.
        _ if sort == "e" || (sort == "d" && category == "S") => Kind::Verbatim,
        _ => Kind::Other,
    };
    let stored = match sort.as_str() {
        // Labels that differ in case are different ones.
        "e" => Stored::Text {
            padded: false,
            unicode: row.try_get(12)?,
            most: None,
        },
        _ => stored(&type_name, row.try_get(11)?, row.try_get(12)?),
    };
    let (deterministic, is_domain): (bool, bool) = (row.try_get(7)?, row.try_get(13)?);
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
            _ if is_domain => None,
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

/// What a digest has to know of a type with this modifier (`atttypmod`), which is negative where there is none.
fn stored(type_name: &str, modifier: i32, unicode: bool) -> Stored {
    let modified = u32::try_from(modifier).ok();
    let digits = modified.unwrap_or(6).min(6);
    // Lengths and the like come after the header's four octets.
    let behind_header = u32::try_from(modifier - 4).ok();
    let rounding = Rounding::Apart;
    let clock = |clock| Stored::Clock {
        digits,
        rounding,
        clock,
    };
    match type_name {
        "text" | "varchar" | "bpchar" | "citext" => Stored::Text {
            padded: type_name == "bpchar",
            unicode,
            most: behind_header.filter(|_| type_name == "varchar"),
        },
        "int2" | "int4" | "int8" => Stored::Integer,
        "numeric" => Stored::Decimal {
            // In the lower 11 bits, as a number with a sign.
            scale: behind_header.map(|modifier| ((modifier & 0x7ff) as i32 ^ 1024) - 1024),
        },
        "float4" | "float8" => Stored::Float {
            single: type_name == "float4",
            scale: None,
        },
        "bool" => Stored::Boolean,
        "timestamp" | "timestamptz" => Stored::Instant { digits, rounding },
        "date" => Stored::Day,
        "time" => clock(Clock::Day),
        "timetz" => clock(Clock::Zoned),
        // Digits are in the lower 16 bits.
        "interval" => Stored::Interval {
            digits: modified.map_or(6, |modifier| (modifier & 0xffff).min(6)),
        },
        "json" | "jsonb" => Stored::Json,
        "uuid" => Stored::Uuid,
        "inet" => Stored::Address(Address::Any),
        "cidr" => Stored::Address(Address::Network),
        "macaddr" | "macaddr8" => Stored::Mac {
            long: type_name == "macaddr8",
        },
        _ => Stored::Other,
    }
}
