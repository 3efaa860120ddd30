//! The SQL of MySQL and MariaDB.

use std::ops::Range;

use super::{Flavour, ID_CHARACTERS, RANGES, Table, is_everything, numbers, span};
use crate::{
    cut::{Cut, Keys},
    form::{Clock, Form, Rounding, Stored, TO_2000},
};

/// Sums of 64-bit numbers wrap here.
const WRAP: &str = "18446744073709551616";
/// Lookups of ranges in one statement, which grows with each.
const LOOKUPS: usize = 32;
/// What separates the two sums in one: no sum of second halves comes near it.
const APART: &str = "1000000000000000000000000000000";

/// The column as a text that this program reads: floating-point numbers of 32 bits would lose digits.
pub(super) fn shown(column: &str, stored: Stored) -> String {
    match stored {
        Stored::Float { single: true, .. } => format!("CAST({column} + 0e0 AS CHAR)"),
        _ => format!("CAST({column} AS CHAR)"),
    }
}

pub(super) fn text(column: &str, stored: Stored, form: Form) -> Option<String> {
    let chars = || format!("CAST({column} AS CHAR)");
    Some(match (form, stored) {
        (
            Form::Text { trimmed, most },
            Stored::Text {
                unicode,
                most: held,
                ..
            },
        ) => {
            let text = match unicode {
                true => column.to_owned(),
                false => format!("CONVERT({column} USING utf8mb4)"),
            };
            match (trimmed, most) {
                (true, _) => format!("TRIM(TRAILING ' ' FROM {text})"),
                (false, Some(most)) if held.is_none_or(|held| held > most) => format!(
                    "CONCAT(LEFT({text}, {most}), TRIM(TRAILING ' ' FROM SUBSTR({text}, {most} + 1)))"
                ),
                (false, _) => text,
            }
        }
        (Form::Text { most: None, .. }, Stored::Integer | Stored::Uuid | Stored::Other) => chars(),
        (Form::Integer, Stored::Integer | Stored::Boolean) => column.to_owned(),
        (Form::Integer, Stored::Decimal { scale: Some(0) })
        | (Form::Decimal { .. }, Stored::Integer) => chars(),
        (Form::Decimal { scale }, Stored::Decimal { scale: Some(held) }) => {
            decimal(column, scale, held)
        }
        (Form::Instant { digits, rounding }, Stored::Instant { digits: held, .. }) => {
            let micros = format!("TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {column})");
            let units = instant(&micros, digits, held, rounding);
            // A date of zeros is no number of seconds, nor is it NULL.
            format!("COALESCE({units}, {})", chars())
        }
        (Form::Day, Stored::Day) => chars(),
        (
            Form::Clock {
                digits,
                clock: Clock::Span,
                ..
            },
            Stored::Clock {
                digits: held,
                clock: Clock::Span,
                ..
            },
        ) if held <= digits => time_span(column, digits),
        // Other letters than ASCII's would be folded, too.
        (Form::Folded, Stored::Label { ascii: true }) => format!("LOWER({})", chars()),
        (Form::Uuid, Stored::Uuid) => format!("LOWER({})", chars()),
        _ => return None,
    })
}

/// A number of a column with `held` digits behind the point, rounded to `scale`.
fn decimal(column: &str, scale: Option<i32>, held: i32) -> String {
    let (rounded, digits) = match scale {
        Some(scale) if scale < held => (format!("ROUND({column}, {scale})"), scale),
        _ => (column.to_owned(), held),
    };
    match digits {
        ..=0 => format!("CAST({rounded} AS CHAR)"),
        _ => format!("TRIM(TRAILING '.' FROM TRIM(TRAILING '0' FROM CAST({rounded} AS CHAR)))"),
    }
}

/// A span of time in units of 10^-`digits` seconds.
fn time_span(column: &str, digits: u32) -> String {
    let seconds = format!("HOUR({column}) * 3600 + MINUTE({column}) * 60 + SECOND({column})");
    let unit = 10_i64.pow(6_u32.saturating_sub(digits));
    format!(
        "CAST(IF(LEFT({}, 1) = '-', -1, 1) * (({seconds}) * {} + MICROSECOND({column}) DIV {unit}) AS CHAR)",
        format_args!("CAST({column} AS CHAR)"),
        1_000_000 / unit
    )
}

/// Microseconds since 1970 in units of 10^-`digits` seconds, of a column that has `held` digits.
fn instant(micros: &str, digits: u32, held: u32, rounding: Rounding) -> String {
    let unit = 10_i64.pow(6_u32.saturating_sub(digits));
    // Towards the past, also before 1970.
    let floor = |micros: &str| {
        format!("({micros} - MOD(MOD({micros}, {unit}) + {unit}, {unit})) DIV {unit}")
    };
    match (held <= digits, rounding) {
        _ if unit == 1 => micros.to_owned(),
        (true, _) => format!("{micros} DIV {unit}"),
        (false, Rounding::Cut) => floor(micros),
        (false, Rounding::Later) => floor(&format!("({micros} + {})", unit / 2)),
        (false, Rounding::Apart) => {
            let places = 6 - digits;
            format!("(ROUND({micros} - {TO_2000}, -{places}) + {TO_2000}) DIV {unit}")
        }
    }
}

/// How many octets `text` has, which is what [`text`] made of `column`.
fn length(column: Option<&str>, stored: Stored, form: Form, text: &str) -> String {
    match (column, stored, form) {
        // From 2001 to 2286 there are ten digits of seconds: no need to compute the time twice.
        (Some(column), Stored::Instant { .. }, Form::Instant { digits, .. }) => format!(
            "IF({column} BETWEEN '2001-09-10' AND '2286-11-20', {}, OCTET_LENGTH({text}))",
            10 + digits.min(6)
        ),
        _ => format!("OCTET_LENGTH({text})"),
    }
}

/// The id as a text.
fn id(table: &Table) -> String {
    match table.integer_ids {
        // A column with ZEROFILL shows zeros before its numbers, an expression doesn't.
        true => format!("({} + 0)", table.id),
        false => format!("CONVERT({} USING utf8mb4)", table.id),
    }
}

/// The hash in hex. `CONCAT_WS` leaves out what is NULL, and so does the length of NULL.
fn hash(table: &Table) -> String {
    let id = id(table);
    let fields = table.fields.iter().zip(table.texts(Flavour::MySql));
    let encoded = fields.map(|(field, text)| {
        let length = length(field.column.as_deref(), field.stored, field.form, &text);
        format!(", {length}, ':', {text}")
    });
    let encoded = encoded.collect::<String>();
    format!("SHA2(CONCAT_WS('', OCTET_LENGTH({id}), ':', {id}{encoded}), 256)")
}

/// Both halves of the hash in one number, so that it is computed once: a condition comes before what depends on it.
fn halves(table: &Table) -> String {
    let half =
        |from: u32| format!("CAST(CONV(SUBSTR(@usersync_hash, {from}, 16), 16, 10) AS UNSIGNED)");
    format!(
        "IF((@usersync_hash := {}) IS NULL, 0, {} * {APART} + {})",
        hash(table),
        half(1),
        half(17)
    )
}

/// The bucket's number.
fn bucket(table: &Table, cut: &Cut) -> String {
    let key = match cut.keys {
        Keys::Numbers(origin) => format!("({} - {origin})", table.id),
        Keys::Hashes => format!(
            "CAST(CONV(LEFT(SHA2({}, 256), 8), 16, 10) AS UNSIGNED)",
            // A number has no character set of its own.
            match table.integer_ids {
                true => format!("CAST({} AS CHAR)", id(table)),
                false => id(table),
            }
        ),
    };
    format!("({key} >> {})", cut.shift)
}

fn filter(table: &Table, cut: &Cut, buckets: &[Range<u64>]) -> String {
    let column = &table.id;
    let between = |(first, last)| format!("{column} BETWEEN {first} AND {last}");
    let within = || format!("{} IN ({})", bucket(table, cut), numbers(buckets));
    let conditions = match span(cut, buckets) {
        // Looking up many ranges takes the optimizer longer than passing over the rows between.
        Some(span) if buckets.len() > RANGES => vec![between(span), within()],
        Some(_) => {
            let ranges = buckets.iter().filter_map(|range| cut.ids(range));
            vec![ranges.map(between).collect::<Vec<_>>().join(" OR ")]
        }
        None if is_everything(cut, buckets) => Vec::new(),
        None => vec![within()],
    };
    table.filter(&conditions)
}

pub(super) fn digest(table: &Table, cut: &Cut, buckets: &[Range<u64>]) -> String {
    let first = buckets.first().map_or(0, |range| range.start);
    let sum = |of: &str| format!("LPAD(CONV(CAST({of} MOD {WRAP} AS UNSIGNED), 10, 16), 16, '0')");
    format!(
        "SELECT COUNT(*), GROUP_CONCAT(UNHEX(CONCAT(LPAD(HEX(usersync_b), 8, '0'), LPAD(HEX(usersync_n), 8, '0'), {}, {})) \
         SEPARATOR '') FROM (SELECT {} - {first} AS usersync_b, COUNT(*) AS usersync_n, SUM({}) AS usersync_s \
         FROM {}{} GROUP BY usersync_b) AS usersync_d",
        sum(&format!("FLOOR(usersync_s / {APART})")),
        sum(&format!("(usersync_s MOD {APART})")),
        bucket(table, cut),
        halves(table),
        table.name,
        filter(table, cut, buckets)
    )
}

pub(super) fn list(table: &Table, cut: &Cut, buckets: &[Range<u64>]) -> String {
    // Some ranges at a time are looked up; all at once, passing over the rows between them would be faster.
    let some = match cut.keys {
        Keys::Numbers(_) => RANGES.max(buckets.len().div_ceil(LOOKUPS)),
        Keys::Hashes => buckets.len(),
    };
    let entries = buckets.chunks(some.max(1)).map(|buckets| {
        format!(
            "SELECT LEFT({}, {ID_CHARACTERS}) AS usersync_i, UNHEX(LEFT({}, 32)) AS usersync_h FROM {}{}",
            id(table),
            hash(table),
            table.name,
            filter(table, cut, buckets)
        )
    });
    format!(
        "SELECT COUNT(*), GROUP_CONCAT(UNHEX(LPAD(HEX(OCTET_LENGTH(usersync_i)), 4, '0')), CAST(usersync_i AS BINARY), \
         usersync_h SEPARATOR '') FROM ({}) AS usersync_d",
        entries.collect::<Vec<_>>().join(" UNION ALL ")
    )
}

pub(super) fn total(table: &Table) -> String {
    format!(
        "SELECT COUNT(*), SUM({}) FROM {}{}",
        halves(table),
        table.name,
        table.filter(&[])
    )
}
