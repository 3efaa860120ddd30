//! The SQL of PostgreSQL.

use std::ops::Range;

use super::{Flavour, ID_CHARACTERS, RANGES, Table, is_everything, numbers};
use crate::{
    cut::{Cut, Keys},
    form::{Address, Clock, Form, Rounding, Stored, TO_2000},
};

/// The column as a text that this program reads, whatever the session's settings are.
pub(super) fn shown(column: &str, stored: Stored) -> String {
    let same = match stored {
        Stored::Float { .. } | Stored::Interval { .. } => text(column, stored, stored.form()),
        _ => None,
    };
    same.unwrap_or_else(|| format!("{column}::text"))
}

pub(super) fn text(column: &str, stored: Stored, form: Form) -> Option<String> {
    let chars = || format!("{column}::text");
    Some(match (form, stored) {
        // In another encoding lengths would be others.
        (_, Stored::Text { unicode: false, .. }) => return None,
        (Form::Text { trimmed: true, .. }, Stored::Text { .. }) => {
            format!("rtrim({column}::text, ' ')")
        }
        (
            Form::Text {
                most: Some(most), ..
            },
            Stored::Text { most: held, .. },
        ) if held.is_none_or(|held| held > most) => {
            format!(
                "left({column}::text, {most}) || rtrim(substr({column}::text, {most} + 1), ' ')"
            )
        }
        (Form::Text { .. }, Stored::Text { .. }) => chars(),
        (Form::Text { most: None, .. }, Stored::Integer | Stored::Uuid | Stored::Other) => chars(),
        (Form::Integer, Stored::Boolean) => format!("{column}::int::text"),
        (Form::Integer, Stored::Integer | Stored::Decimal { scale: Some(0) }) => chars(),
        (Form::Decimal { .. }, Stored::Integer) => chars(),
        (Form::Decimal { scale }, Stored::Decimal { scale: held }) => match scale {
            Some(scale) if held.is_none_or(|held| scale < held) => {
                format!("trim_scale(round({column}, {scale}))::text")
            }
            _ => format!("trim_scale({column})::text"),
        },
        (
            Form::Float {
                single,
                scale: None,
            },
            Stored::Float {
                single: held,
                scale: None,
            },
        ) if single == held => {
            let send = if single { "float4send" } else { "float8send" };
            let zero = if single { "0::float4" } else { "0" };
            // Minus zero plus zero is zero. What is no number is as the server shows it.
            format!(
                "CASE WHEN {column} - {column} = 0 THEN 'x' || encode({send}({column} + {zero}), 'hex') ELSE {column}::text END"
            )
        }
        (Form::Instant { digits, rounding }, Stored::Instant { digits: held, .. }) => {
            instant(column, digits, held, rounding)
        }
        (Form::Day, Stored::Day) => chars(),
        (
            Form::Clock { digits, clock, .. },
            Stored::Clock {
                digits: held,
                clock: kept,
                ..
            },
        ) if held <= digits && clock == kept => time_of_day(column, digits, clock),
        (Form::Interval { digits }, Stored::Interval { digits: held }) if held <= digits => {
            interval(column)
        }
        (Form::Folded, Stored::Text { .. }) => {
            format!("lower(rtrim({column}::text, ' ') COLLATE \"C\")")
        }
        (Form::Uuid, Stored::Uuid) | (Form::Mac { .. }, Stored::Mac { .. })
            if form == stored.form() =>
        {
            chars()
        }
        (Form::Address { .. }, Stored::Address(Address::Any | Address::Network)) => format!(
            "substr(encode(inet_send({column}::inet), 'hex'), 9) || '/' || masklen({column}::inet)"
        ),
        _ => return None,
    })
}

/// A time of a column that has `held` digits, in units of 10^-`digits` seconds.
fn instant(column: &str, digits: u32, held: u32, rounding: Rounding) -> String {
    let unit = 10_i64.pow(6_u32.saturating_sub(digits));
    let micros = format!("extract(epoch from {column}) * 1000000");
    let units = match (held <= digits, rounding) {
        _ if unit == 1 => micros,
        (_, Rounding::Cut) => format!("floor({micros} / {unit})"),
        (true, _) => format!("round({micros} / {unit})"),
        (false, Rounding::Later) => format!("floor({micros} / {unit} + 0.5)"),
        (false, Rounding::Apart) => {
            format!(
                "round(({micros} - {TO_2000}) / {unit}) + {}",
                TO_2000 / unit
            )
        }
    };
    // A double holds these in microseconds with a bit to spare, at half of what a numeric costs.
    let near = match unit {
        1 => format!(
            "WHEN {column} BETWEEN '1970-01-01Z' AND '2040-01-01Z' \
                     THEN round(date_part('epoch', {column}) * 1000000)::int8::text "
        ),
        _ => String::new(),
    };
    // There is an infinity, which is no number of seconds.
    format!("CASE {near}WHEN isfinite({column}) THEN ({units})::int8::text ELSE {column}::text END")
}

/// A time of day in units of 10^-`digits` seconds, with its zone where it has one.
fn time_of_day(column: &str, digits: u32, clock: Clock) -> String {
    let unit = 10_i64.pow(6_u32.saturating_sub(digits));
    let time = match clock {
        Clock::Zoned => format!("{column}::time"),
        Clock::Day | Clock::Span => column.to_owned(),
    };
    let units = format!(
        "(extract(epoch from {time}) * {})::int8::text",
        1_000_000 / unit
    );
    match clock {
        Clock::Zoned => format!("{units} || '@' || extract(timezone from {column})::int8"),
        Clock::Day | Clock::Span => units,
    }
}

/// Months, days and microseconds.
fn interval(column: &str) -> String {
    let part = |of: &str| format!("extract({of} from {column})");
    format!(
        "CASE WHEN isfinite({column}) THEN ({} * 12 + {})::int8 || ' ' || {}::int8 || ' ' \
                 || ({} * 3600000000 + {} * 60000000 + {})::int8 ELSE {column}::text END",
        part("year"),
        part("month"),
        part("day"),
        part("hour"),
        part("minute"),
        part("microseconds")
    )
}

/// Rows with their texts, each made once, in columns c0 (the id), c1, c2…
fn texts(table: &Table, more: &str, from: &str) -> String {
    let texts = table.texts(Flavour::Postgres).enumerate();
    let texts = texts.map(|(at, text)| format!(", {text} AS c{}", at + 1));
    format!(
        "SELECT {more}{}::text AS c0{} FROM {from} OFFSET 0",
        table.id,
        texts.collect::<String>()
    )
}

/// The first half of the hash of rows made by [`texts`].
fn hash(table: &Table) -> String {
    // Faster than `concat`, which looks up how each type is written, row by row; and `textsend` makes octets in the
    // connection's encoding, which is UTF-8: a digest takes an eighth less time than with `convert_to`.
    let encoded = (0..=table.fields.len())
        .map(|at| format!("coalesce(octet_length(c{at})::text || ':' || c{at}, ':')"));
    let encoded = encoded.collect::<Vec<_>>().join(" || ");
    format!("substr(sha256(textsend({encoded})), 1, 16)")
}

/// The bucket's number.
fn bucket(table: &Table, cut: &Cut) -> String {
    let key = match cut.keys {
        Keys::Numbers(origin) => format!("({}::int8 - ({origin}))", table.id),
        Keys::Hashes => format!(
            "('x' || left(encode(sha256(convert_to({}::text, 'UTF8')), 'hex'), 8))::bit(32)::int8",
            table.id
        ),
    };
    format!("({key} >> {})", cut.shift)
}

/// What rows are taken from: the table, joined with the ranges that are looked up in its index.
fn source(table: &Table, cut: &Cut, buckets: &[Range<u64>]) -> String {
    let ranges: Vec<_> = buckets.iter().filter_map(|range| cut.ids(range)).collect();
    let (name, id) = (&table.name, &table.id);
    match ranges.as_slice() {
        [] if is_everything(cut, buckets) => format!("{name}{}", table.filter(&[])),
        [] => {
            let within = format!(
                "{} = ANY ('{{{}}}'::int8[])",
                bucket(table, cut),
                numbers(buckets)
            );
            format!("{name}{}", table.filter(&[within]))
        }
        // The planner knows how few rows are in these, and takes a join with a list for much larger than it is.
        few if few.len() <= RANGES => {
            let between = few
                .iter()
                .map(|(first, last)| format!("{id} BETWEEN {first} AND {last}"));
            let between = between.collect::<Vec<_>>().join(" OR ");
            format!("{name}{}", table.filter(&[between]))
        }
        ranges => {
            let list = |of: fn(&(i128, i128)) -> i128| {
                let all = ranges.iter().map(|range| of(range).to_string());
                all.collect::<Vec<_>>().join(",")
            };
            format!(
                "unnest('{{{}}}'::int8[], '{{{}}}'::int8[]) AS usersync_r(usersync_low, usersync_high) \
                 JOIN {name} ON {id} BETWEEN usersync_low AND usersync_high{}",
                list(|range| range.0),
                list(|range| range.1),
                table.filter(&[])
            )
        }
    }
}

/// Rows with the two halves of their hashes as numbers.
fn halves(table: &Table, more: &str, texts: &str) -> String {
    format!(
        "SELECT {more}h::bit(64)::int8 AS high, substring(h from 65)::bit(64)::int8 AS low \
         FROM (SELECT {more}('x' || encode({}, 'hex'))::bit(128) AS h FROM ({texts}) AS t OFFSET 0) AS hashed",
        hash(table)
    )
}

pub(super) fn digest(table: &Table, cut: &Cut, buckets: &[Range<u64>]) -> String {
    let first = buckets.first().map_or(0, |range| range.start);
    let texts = texts(
        table,
        &format!("{} - {first} AS b, ", bucket(table, cut)),
        &source(table, cut, buckets),
    );
    // Numbers are signed there, which modulo 2^64 is all the same.
    let wrapped = |sum: &str| {
        format!(
            "int8send((mod(mod({sum}, 18446744073709551616) + 27670116110564327424, 18446744073709551616) \
             - 9223372036854775808)::int8)"
        )
    };
    format!(
        "SELECT count(*), string_agg(int4send(b::int4) || int4send(n::int4) || {} || {}, ''::bytea) \
         FROM (SELECT b, count(*) AS n, sum(high) AS high, sum(low) AS low FROM ({}) AS rows GROUP BY b) AS d",
        wrapped("high"),
        wrapped("low"),
        halves(table, "b, ", &texts)
    )
}

pub(super) fn list(table: &Table, cut: &Cut, buckets: &[Range<u64>]) -> String {
    let texts = texts(table, "", &source(table, cut, buckets));
    format!(
        "SELECT count(*), string_agg(int2send(octet_length(i)::int2) || i || h, ''::bytea) \
         FROM (SELECT convert_to(left(c0, {ID_CHARACTERS}), 'UTF8') AS i, {} AS h FROM ({texts}) AS t) AS d",
        hash(table)
    )
}

pub(super) fn total(table: &Table) -> String {
    let source = format!("{}{}", table.name, table.filter(&[]));
    format!(
        "SELECT count(*), sum(high), sum(low) FROM ({}) AS rows",
        halves(table, "", &texts(table, "", &source))
    )
}
