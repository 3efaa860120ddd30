//! One value of a row: how what a server tells of it becomes JSON, or why it can't, which that row alone fails for.

use std::borrow::Cow;

use jiff::civil::Date;
use serde_json::Value;
use usersync_core::{
    event::{check_integers, not_json},
    number::Beyond,
};

use crate::Kind;

/// How a server's text becomes a JSON value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Text,
    /// A number; a text where JSON has no such number.
    Number,
    /// The shortest number that is read as this one in single precision.
    Single,
    /// A text of its digits.
    Digits,
    /// What is JSON already.
    Boolean,
    Json,
    /// The same, and an empty object where there is none.
    Object,
    Day,
    /// A date and a time of day in UTC: RFC 3339, with microseconds where the server tells a fraction, or always.
    Instant {
        fraction: bool,
    },
}

/// Why a value has no form in JSON, without the value.
pub(crate) type Unwritable = Cow<'static, str>;

/// Digits that every double is told by (IEEE 754 has no more than 17 that matter).
const DOUBLE_DIGITS: usize = 17;
/// How deep JSON may be nested to be read without a look.
const SHALLOW: usize = 100;

impl Form {
    /// Of a column; `whole` where its value is all of `data`, `fraction` where the server tells microseconds always.
    pub(crate) fn of(kind: Kind, whole: bool, fraction: bool) -> Self {
        match kind {
            Kind::Integer | Kind::Float => Self::Number,
            Kind::Single => Self::Single,
            Kind::Decimal => Self::Digits,
            Kind::Boolean => Self::Boolean,
            Kind::Json | Kind::Decimals if whole => Self::Object,
            Kind::Json | Kind::Decimals => Self::Json,
            Kind::Instant | Kind::Local => Self::Instant { fraction },
            Kind::Day => Self::Day,
            Kind::Text | Kind::Veiled | Kind::Verbatim | Kind::Unsupported => Self::Text,
        }
    }

    /// The same where the value must be a JSON string.
    pub(crate) fn as_text(self) -> Self {
        match self {
            Self::Day | Self::Instant { .. } => self,
            _ => Self::Text,
        }
    }

    /// Writes `told` as JSON.
    pub(crate) fn write(self, told: &[u8], to: &mut Vec<u8>) -> Result<(), Unwritable> {
        let Ok(text) = str::from_utf8(told) else {
            return Err("holds bytes that are no text (UTF-8)".into());
        };
        match self {
            Self::Boolean => to.extend_from_slice(told),
            Self::Json | Self::Object => {
                readable(text)?;
                to.extend_from_slice(told);
            }
            // NaN and Infinity are none.
            Self::Number if text.ends_with(|end: char| end.is_ascii_digit()) => {
                to.extend_from_slice(unpadded(text).as_bytes());
            }
            Self::Single => single(text, to),
            Self::Digits => quote(&unpadded(text), to),
            Self::Day => quote(day(text)?, to),
            Self::Instant { fraction } => quote(&instant(text, fraction)?, to),
            Self::Number | Self::Text => quote(text, to),
        }
        Ok(())
    }

    /// Writes what stands for NULL.
    pub(crate) fn write_null(self, to: &mut Vec<u8>) {
        to.extend_from_slice(match self {
            Self::Object => b"{}",
            _ => b"null",
        });
    }
}

/// Writes `text` as a JSON string.
pub(crate) fn quote(text: &str, to: &mut Vec<u8>) {
    // Nothing fails in memory.
    let _ = serde_json::to_writer(to, text);
}

/// A number without the zeros before it, which a column may show (ZEROFILL) and JSON doesn't have.
pub(crate) fn unpadded(number: &str) -> Cow<'_, str> {
    let (sign, digits) = match number.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", number),
    };
    let stripped = digits.trim_start_matches('0');
    match digits.len() - stripped.len() {
        0 => number.into(),
        zeros => {
            let kept = usize::from(!stripped.starts_with(|first: char| first.is_ascii_digit()));
            format!("{sign}{}", &digits[zeros - kept..]).into()
        }
    }
}

/// A number that is kept in single precision and told in double.
fn single(text: &str, to: &mut Vec<u8>) {
    #[allow(clippy::cast_possible_truncation, reason = "it is one of these")]
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => _ = serde_json::to_writer(to, &(number as f32)),
        _ => quote(text, to),
    }
}

/// A day of the calendar in the years that JSON's readers know, or one of PostgreSQL's two days beyond all others.
fn day(text: &str) -> Result<&str, Unwritable> {
    match is_day(text) || is_infinite(text) {
        true => Ok(text),
        false => Err(
            "holds a day that the calendar doesn't have, or one outside of the years 0 to 9999"
                .into(),
        ),
    }
}

fn instant(text: &str, fraction: bool) -> Result<Cow<'_, str>, Unwritable> {
    if is_infinite(text) {
        return Ok(text.into());
    }
    let parts = text.split_once([' ', 'T']);
    let Some((day, time)) = parts.filter(|(day, _)| is_day(day)) else {
        let why = "holds a time on a day that the calendar doesn't have, or outside of the years 0 to 9999";
        return Err(why.into());
    };
    let (seconds, digits) = time.split_once('.').unwrap_or((time, ""));
    // Some servers tell an era behind the time.
    if seconds.len() != 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err("holds a time outside of the years 0 to 9999".into());
    }
    Ok(match fraction || !digits.is_empty() {
        true => format!("{day}T{seconds}.{digits:0<6}Z").into(),
        false => format!("{day}T{seconds}Z").into(),
    })
}

fn is_infinite(text: &str) -> bool {
    matches!(text, "infinity" | "-infinity")
}

/// Whether it is `YYYY-MM-DD` and such a day exists.
fn is_day(text: &str) -> bool {
    let bytes = text.as_bytes();
    let [y, yy, yyy, yyyy, b'-', m, mm, b'-', d, dd] = bytes else {
        return false;
    };
    if ![y, yy, yyy, yyyy, m, mm, d, dd]
        .iter()
        .all(|digit| digit.is_ascii_digit())
    {
        return false;
    }
    let number = |ten: &u8, one: &u8| i8::try_from((ten - b'0') * 10 + one - b'0').unwrap_or(0);
    let (month, day) = (number(m, mm), number(d, dd));
    let year = i16::from(number(y, yy)) * 100 + i16::from(number(yyy, yyyy));
    Date::new(year, month, day).is_ok()
}

/// Whether JSON is read as it is written: else it would fail later, when nobody knows which column it is from.
fn readable(json: &str) -> Result<(), Unwritable> {
    if is_plain(json.as_bytes()) {
        return Ok(());
    }
    let value: Value = serde_json::from_str(json).map_err(|error| {
        let why = not_json(&error);
        match json.contains("\\u") {
            true => format!("holds JSON that can't be read (half of a surrogate pair?): {why}"),
            false => format!("holds JSON that can't be read: {why}"),
        }
    })?;
    let checked = check_integers(json.as_bytes(), &value, Beyond::AllButDoubles);
    checked.map_err(|error| format!("holds an integer that is out of bounds: {error}"))?;
    match has_long_number(json.as_bytes()) {
        true => Err(
            "holds JSON with a number of more digits than a double has; keep it as a string".into(),
        ),
        false => Ok(()),
    }
}

/// Whether nothing in JSON that a database takes could be read otherwise: no escaped code point, no long number, no depth.
fn is_plain(json: &[u8]) -> bool {
    let (mut inside, mut depth, mut digits) = (false, 0, 0);
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        match (inside, byte) {
            (true, b'\\') => match bytes.next() {
                Some(b'u') | None => return false,
                Some(_) => {}
            },
            (true, b'"') => inside = false,
            (true, control) if *control < 0x20 => return false,
            (true, _) => {}
            (false, b'"') => inside = true,
            (false, b'0'..=b'9') => digits += 1,
            (false, b'e' | b'E') if digits > 0 => return false,
            (false, b'.') => {}
            (false, other) => {
                digits = 0;
                match other {
                    b'[' | b'{' => depth += 1,
                    b']' | b'}' => depth -= 1,
                    _ => {}
                }
            }
        }
        if depth > SHALLOW || digits > 15 {
            return false;
        }
    }
    true
}

/// Whether a number has a fraction and more digits than a double keeps.
fn has_long_number(json: &[u8]) -> bool {
    let (mut inside, mut escaped, mut number) = (false, false, Vec::new());
    for byte in json.iter().chain(b" ") {
        if inside {
            inside = escaped || *byte != b'"';
            escaped = !escaped && *byte == b'\\';
        } else if byte.is_ascii_digit() || *byte == b'.' {
            number.push(*byte);
        } else {
            if number.contains(&b'.') && significant(&number) > DOUBLE_DIGITS {
                return true;
            }
            number.clear();
            inside = *byte == b'"';
        }
    }
    false
}

/// How many digits of a number matter.
fn significant(number: &[u8]) -> usize {
    let digits = number.iter().filter(|byte| **byte != b'.');
    let digits: Vec<u8> = digits.copied().skip_while(|digit| *digit == b'0').collect();
    let zeros = digits.iter().rev().take_while(|digit| **digit == b'0');
    digits.len() - zeros.count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(form: Form, told: &str) -> Result<String, String> {
        let mut to = Vec::new();
        form.write(told.as_bytes(), &mut to)
            .map_err(|why| why.into_owned())?;
        Ok(String::from_utf8(to).unwrap())
    }

    #[test]
    fn values_are_written_as_they_are_or_not_at_all() {
        let times = Form::Instant { fraction: false };
        for (form, told, expected) in [
            (Form::Number, "0000", Some("0")),
            (Form::Number, "1e+300", Some("1e+300")),
            (Form::Number, "NaN", Some(r#""NaN""#)),
            (Form::Single, "0.10000000149011612", Some("0.1")),
            (Form::Single, "16777216", Some("16777216.0")),
            (Form::Single, "3.4028234663852886e38", Some("3.4028235e+38")),
            (Form::Single, "1.401298464324817e-45", Some("1e-45")),
            (Form::Digits, "-000.50", Some(r#""-0.50""#)),
            (Form::Day, "2024-02-29", Some(r#""2024-02-29""#)),
            (Form::Day, "9999-12-31", Some(r#""9999-12-31""#)),
            (Form::Day, "infinity", Some(r#""infinity""#)),
            (Form::Day, "2026-02-29", None),
            (Form::Day, "0000-00-00", None),
            (Form::Day, "2026-00-00", None),
            (Form::Day, "0044-03-15 BC", None),
            (Form::Day, "10000-01-01", None),
            (
                times,
                "2026-01-31 12:00:00",
                Some(r#""2026-01-31T12:00:00Z""#),
            ),
            (
                times,
                "9999-12-31 23:59:59.999",
                Some(r#""9999-12-31T23:59:59.999000Z""#),
            ),
            (
                Form::Instant { fraction: true },
                "2026-01-31 12:00:00",
                Some(r#""2026-01-31T12:00:00.000000Z""#),
            ),
            (times, "-infinity", Some(r#""-infinity""#)),
            (times, "0000-00-00 00:00:00", None),
            (times, "0044-03-15 12:00:00 BC", None),
            (times, "0044-03-15 12:00:00.5 BC", None),
            (times, "294276-12-31 23:59:59", None),
        ] {
            let found = written(form, told);
            assert_eq!(
                found.as_deref().ok(),
                expected,
                "{form:?} {told}: {found:?}"
            );
        }
    }

    #[test]
    fn json_that_would_be_read_otherwise_is_refused() {
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        for (json, good) in [
            (r#"{"a": [1, -2.5e3, true, null, "\"\\ é"]}"#, true),
            (r#""\u00e9\ud83e\udd80""#, true),
            (r#""\ud800""#, false),
            (r#"{"a": "\udc00"}"#, false),
            ("18446744073709551615", true),
            ("18446744073709551616", false),
            ("1000000000000000000000000000000", true),
            ("0.10000000000000001", true),
            ("0.1234567890123456789", false),
            ("1.50000000000000000000000", true),
            (r#""0.1234567890123456789""#, true),
            ("1e400", false),
            (&deep, false),
        ] {
            assert_eq!(readable(json).is_ok(), good, "{json}");
        }
    }

    #[test]
    fn numbers_lose_the_zeros_that_a_column_shows() {
        for (shown, number) in [
            ("0000007", "7"),
            ("-007", "-7"),
            ("0", "0"),
            ("000", "0"),
            ("0.50", "0.50"),
            ("007.50", "7.50"),
            ("-00.5", "-0.5"),
            ("1e300", "1e300"),
            ("100", "100"),
        ] {
            assert_eq!(unpadded(shown), number, "{shown}");
        }
    }
}
