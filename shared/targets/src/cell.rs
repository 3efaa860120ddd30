//! What one column of an SQL table can hold: JSON values become text that the server reads as the column's
//! type, and what it holds can be compared with that text.

use jiff::{Timestamp, civil, fmt::temporal::DateTimePrinter, tz::TimeZone};
use serde_json::{Number, Value};
use usersync_core::json;
use usersync_digest::{Form, Stored, canonical};

/// What kind of values a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Integer,
    Number,
    Boolean,
    Json,
    /// A date and a time of day, in UTC.
    Instant,
    Day,
    /// From 1901 to 2155, and 0.
    Year,
    /// Text that only the server can judge: UUIDs, enumerations, addresses.
    Verbatim,
    /// Nothing that JSON can be written to.
    Other,
}

/// `2026-01-31 12:00:00.500000`.
const INSTANT: DateTimePrinter = DateTimePrinter::new().separator(b' ').precision(Some(6));

impl Kind {
    /// `value` as the text that the server reads; the error says what was expected. `value` isn't null.
    pub(crate) fn text_of(self, value: &Value) -> Result<String, &'static str> {
        let text = value.as_str();
        match self {
            Self::Text => Ok(text.map_or_else(|| value.to_string(), str::to_owned)),
            Self::Json => Ok(value.to_string()),
            Self::Integer => match (value, text) {
                (Value::Bool(flag), _) => Ok(u8::from(*flag).to_string()),
                (Value::Number(number), _) if !number.is_f64() => Ok(number.to_string()),
                (Value::Number(number), _) => whole(number).ok_or("an integer"),
                (_, Some(text)) => integer(text).ok_or("an integer"),
                _ => Err("an integer"),
            },
            // What PostgreSQL has that is no number, and no other server takes.
            Self::Number if matches!(text, Some("NaN" | "Infinity" | "-Infinity")) => {
                Ok(text.unwrap_or_default().to_owned())
            }
            Self::Number => {
                let number = text.map_or_else(|| value.as_f64(), |text| text.trim().parse().ok());
                let finite = number.is_some_and(f64::is_finite);
                let exact =
                    || text.map_or_else(|| value.to_string(), |text| text.trim().to_owned());
                finite.then(exact).ok_or("a number")
            }
            Self::Boolean => match (value, text) {
                (Value::Bool(flag), _) => Ok(flag.to_string()),
                (Value::Number(number), _) if number.as_u64() == Some(0) => Ok("false".to_owned()),
                (Value::Number(number), _) if number.as_u64() == Some(1) => Ok("true".to_owned()),
                (_, Some(text @ ("true" | "false"))) => Ok(text.to_owned()),
                _ => Err("true or false"),
            },
            // What PostgreSQL has beyond all times and days, and no other server takes.
            Self::Instant | Self::Day if matches!(text, Some("infinity" | "-infinity")) => {
                Ok(text.unwrap_or_default().to_owned())
            }
            Self::Instant => {
                let instant = text.and_then(instant).ok_or("a time as RFC 3339 has it")?;
                Ok(INSTANT.datetime_to_string(&instant))
            }
            Self::Year => {
                let year = text.map_or_else(|| value.as_i64(), |text| text.trim().parse().ok());
                let known = year.filter(|year| *year == 0 || (1901..=2155).contains(year));
                // With four digits: a shorter one is another year.
                let year = known.ok_or("a year from 1901 to 2155, or 0")?;
                Ok(format!("{year:04}"))
            }
            Self::Day => {
                let day = text.and_then(day).ok_or("a date as YYYY-MM-DD")?;
                Ok(day.to_string())
            }
            Self::Verbatim => Ok(text.ok_or("a text")?.to_owned()),
            Self::Other => Err("nothing"),
        }
    }
}

/// Whether `held`, as the server shows it, is what `told` was written as, or `merged` into it.
pub(crate) fn is_alike(
    stored: Stored,
    held: Option<&str>,
    told: Option<&str>,
    merged: bool,
) -> bool {
    let form = stored.form();
    let read = |text: &str| json::value(text.as_bytes()).ok();
    if let (true, Form::Json, Some(held), Some(told)) = (merged, form, held, told) {
        let both = read(held).zip(read(told));
        return both.is_some_and(|(held, told)| contains(&held, &told));
    }
    form.is_alike(held, told)
}

/// Whether merging `told` into `held` (RFC 7396) would change nothing.
fn contains(held: &Value, told: &Value) -> bool {
    match (held, told) {
        (Value::Object(held), Value::Object(told)) => {
            told.iter().all(|(name, told)| match held.get(name) {
                Some(held) => contains(held, told),
                None => told.is_null(),
            })
        }
        (held, told) => canonical(held) == canonical(told),
    }
}

/// A whole number in its one canonical form.
fn integer(text: &str) -> Option<String> {
    let number: i128 = text.trim().parse().ok()?;
    Some(number.to_string())
}

/// A number with a point that is whole all the same, as sources with floating-point columns have: 7.0 and -0.0.
fn whole(number: &Number) -> Option<String> {
    /// 2^53: above it neighbours are the same number.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let number = number.as_f64()?;
    let is_whole = number.fract() == 0.0 && number.abs() <= EXACT;
    is_whole.then(|| (number as i64).to_string())
}

/// In UTC, and so it is without an offset. A `Timestamp` ends hours before the year 9999 does.
fn instant(text: &str) -> Option<civil::DateTime> {
    let utc = |time: Timestamp| time.to_zoned(TimeZone::UTC).datetime();
    let local = || text.trim_end_matches('Z').parse().ok();
    text.parse().map(utc).ok().or_else(local)
}

fn day(text: &str) -> Option<civil::Date> {
    let from_instant = || Some(instant(text)?.date());
    match text.len() {
        10 => text.parse().ok(),
        _ => from_instant(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_become_what_the_column_holds_or_are_refused() {
        let rows = [
            (Kind::Text, json!("x"), Some("x")),
            (Kind::Text, json!(7), Some("7")),
            (Kind::Text, json!({"a": [1]}), Some("{\"a\":[1]}")),
            (Kind::Json, json!("x"), Some("\"x\"")),
            (Kind::Integer, json!(-7), Some("-7")),
            (Kind::Integer, json!("007"), Some("7")),
            (Kind::Integer, json!(true), Some("1")),
            (Kind::Integer, json!(7.0), Some("7")),
            (Kind::Integer, json!(-0.0), Some("0")),
            (Kind::Integer, json!(1e300), None),
            (Kind::Integer, json!(1.5), None),
            (Kind::Integer, json!("x"), None),
            (Kind::Integer, json!([]), None),
            (Kind::Number, json!(1.5), Some("1.5")),
            (Kind::Number, json!("1.50"), Some("1.50")),
            (Kind::Number, json!("NaN"), Some("NaN")),
            (Kind::Number, json!("-Infinity"), Some("-Infinity")),
            (Kind::Number, json!("nan"), None),
            (Kind::Number, json!("1e999"), None),
            (Kind::Boolean, json!(false), Some("false")),
            (Kind::Boolean, json!(1), Some("true")),
            (Kind::Boolean, json!("yes"), None),
            (
                Kind::Instant,
                json!("2026-01-31T12:00:00.5+01:00"),
                Some("2026-01-31 11:00:00.500000"),
            ),
            (
                Kind::Instant,
                json!("9999-12-31T23:59:59.999Z"),
                Some("9999-12-31 23:59:59.999000"),
            ),
            (Kind::Instant, json!("infinity"), Some("infinity")),
            (Kind::Day, json!("-infinity"), Some("-infinity")),
            (Kind::Year, json!(2026), Some("2026")),
            (Kind::Year, json!("2026"), Some("2026")),
            (Kind::Year, json!(0), Some("0000")),
            (Kind::Year, json!(1900), None),
            (Kind::Year, json!(26.5), None),
            (Kind::Instant, json!("yesterday"), None),
            (Kind::Instant, json!(0), None),
            (Kind::Day, json!("2026-01-31"), Some("2026-01-31")),
            (Kind::Day, json!("2026-02-31"), None),
            (Kind::Verbatim, json!("x"), Some("x")),
            (Kind::Verbatim, json!(1), None),
            (Kind::Other, json!("x"), None),
        ];
        for (kind, value, text) in rows {
            assert_eq!(
                kind.text_of(&value).ok().as_deref(),
                text,
                "{kind:?} {value}"
            );
        }
    }

    #[test]
    fn what_was_merged_may_have_more_around_it() {
        let held = Some("{\"a\": {\"b\": 1, \"c\": 2}, \"d\": 3}");
        let alike = |told, merged| is_alike(Stored::Json, held, Some(told), merged);
        assert!(alike("{\"a\": {\"b\": 1.0}}", true));
        assert!(!alike("{\"a\": {\"b\": 1}}", false));
        assert!(!alike("{\"a\": {\"b\": 2}}", true));
        assert!(!alike("{\"e\": 1}", true));
        assert!(alike("{\"e\": null}", true));
        assert!(!is_alike(Stored::Json, None, Some("{}"), true));
    }
}
