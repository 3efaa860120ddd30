//! Forms: what a field's values look like in the encoding, so that types that hold the same value agree.

use std::borrow::Cow;

use jiff::{Timestamp, civil, tz::TimeZone};
use serde::{Deserialize, Serialize};

use crate::json;

/// How a field is written, whatever the side keeps it as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// As it is; without the spaces at its end where one side can't keep them.
    Text {
        /// Whether spaces at the end don't count.
        trimmed: bool,
    },
    /// A whole number in decimal; true and false are 1 and 0.
    Integer,
    /// A number in decimal, without needless zeros.
    Decimal {
        /// Digits behind the point, rounded half away from zero; none: as many as there are.
        scale: Option<u32>,
    },
    /// A floating-point number, in as many digits as it is good for.
    Float {
        /// Six digits instead of fifteen.
        single: bool,
    },
    /// Whole units since 1970 in UTC, where a unit is a second divided by 10^`digits`.
    Instant {
        /// Digits of the fraction of a second, 0 to 6.
        digits: u32,
        /// Whether what is finer is rounded, half away from zero, instead of cut off.
        rounded: bool,
    },
    /// `YYYY-MM-DD`.
    Day,
    /// A text in which the case of ASCII letters doesn't count: UUIDs, enumerations.
    Folded,
    /// JSON: see [`canonical`](crate::canonical).
    Json,
}

/// What an SQL column is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Text of any length.
    Text {
        /// Of a fixed length, filled with spaces or bereft of them.
        padded: bool,
        /// In the connection's character set, or a part of it.
        unicode: bool,
    },
    /// Whole numbers.
    Integer,
    /// True and false.
    Boolean,
    /// Exact numbers.
    Decimal {
        /// Digits behind the point, where they are fixed.
        scale: Option<u32>,
    },
    /// Floating-point numbers.
    Float {
        /// Of 32 bits.
        single: bool,
    },
    /// Date and time.
    Instant {
        /// Digits of the fraction of a second that are kept.
        digits: u32,
        /// Whether the server rounds what is finer.
        rounded: bool,
    },
    /// Dates.
    Day,
    /// JSON, as a type or as a text.
    Json,
    /// Anything else that has a text.
    Other,
}

impl Stored {
    /// The form of values that are kept like this.
    pub const fn form(self) -> Form {
        match self {
            Self::Text { padded, .. } => Form::Text { trimmed: padded },
            Self::Integer | Self::Boolean => Form::Integer,
            Self::Decimal { scale } => Form::Decimal { scale },
            Self::Float { single } => Form::Float { single },
            Self::Instant { digits, rounded } => Form::Instant { digits, rounded },
            Self::Day => Form::Day,
            Self::Json => Form::Json,
            Self::Other => Form::Folded,
        }
    }
}

impl Form {
    /// `text`, as a server shows the value or reads it, in this form; as it is where it has another.
    pub fn of(self, text: &str) -> Cow<'_, str> {
        let written: Option<Cow<'_, str>> = match self {
            Self::Text { trimmed: true } => Some(text.trim_end_matches(' ').into()),
            Self::Text { trimmed: false } => None,
            Self::Integer => integer(text).map(Cow::Owned),
            Self::Decimal { scale } => decimal(text, scale).map(Cow::Owned),
            Self::Float { single } => float(text, single).map(Cow::Owned),
            Self::Instant { digits, rounded } => {
                let units = micros(text).map(|micros| units(micros, digits, rounded));
                units.map(|units| units.to_string().into())
            }
            Self::Day => day(text).map(|day| day.to_string().into()),
            Self::Folded => Some(text.to_ascii_lowercase().into()),
            Self::Json => {
                let value = serde_json::from_str(text).ok();
                value.map(|value| json::canonical(&value).into())
            }
        };
        written.unwrap_or(Cow::Borrowed(text))
    }
}

fn integer(text: &str) -> Option<String> {
    match text {
        "true" | "t" => return Some("1".to_owned()),
        "false" | "f" => return Some("0".to_owned()),
        _ => {}
    }
    let number: i128 = text.trim().parse().ok()?;
    Some(number.to_string())
}

/// Exponents beyond this aren't written out.
const LONGEST: usize = 400;

/// A decimal number, also with an exponent, rounded to `scale` digits behind the point and without needless zeros.
pub(crate) fn decimal(text: &str, scale: Option<u32>) -> Option<String> {
    let text = text.trim();
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mut digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // Where the point is: this many digits before it, which may be none or beyond the end.
    let mut point = i32::try_from(whole.len()).ok()?.checked_add(exponent)?;
    if point.unsigned_abs() as usize > LONGEST {
        return None;
    }
    while point <= 0 {
        digits.insert(0, b'0');
        point += 1;
    }
    let mut point = point as usize;
    while digits.len() < point {
        digits.push(b'0');
    }
    if let Some(scale) = scale {
        let keep = point + scale as usize;
        if keep < digits.len() {
            let up = digits[keep] >= b'5';
            digits.truncate(keep);
            if up && !increment(&mut digits) {
                digits.insert(0, b'1');
                point += 1;
            }
        }
    }
    let (whole, fraction) = digits.split_at(point);
    let whole = whole.iter().skip_while(|digit| **digit == b'0');
    let mut written: String = whole.map(|digit| char::from(*digit)).collect();
    if written.is_empty() {
        written.push('0');
    }
    let kept = fraction.iter().rposition(|digit| *digit != b'0');
    if let Some(last) = kept {
        written.push('.');
        written.extend(fraction[..=last].iter().map(|digit| char::from(*digit)));
    }
    if negative && written != "0" {
        written.insert(0, '-');
    }
    Some(written)
}

/// Adds one to the last digit; says whether there was room.
fn increment(digits: &mut [u8]) -> bool {
    for digit in digits.iter_mut().rev() {
        if *digit < b'9' {
            *digit += 1;
            return true;
        }
        *digit = b'0';
    }
    false
}

fn float(text: &str, single: bool) -> Option<String> {
    let number: f64 = text.trim().parse().ok()?;
    if !number.is_finite() {
        return None;
    }
    let written = match single {
        true => format!("{number:.5e}"),
        false => format!("{number:.14e}"),
    };
    decimal(&written, None)
}

/// Microseconds in units of 10^-`digits` seconds.
fn units(micros: i64, digits: u32, rounded: bool) -> i64 {
    let unit = 10_i64.pow(6_u32.saturating_sub(digits));
    match rounded {
        false => micros.div_euclid(unit),
        true if micros < 0 => -((-micros + unit / 2) / unit),
        true => (micros + unit / 2) / unit,
    }
}

/// Microseconds since 1970 of a time in RFC 3339, or as servers show it; without an offset it is UTC.
fn micros(text: &str) -> Option<i64> {
    let utc = ["Z", "+00:00", "+00"]
        .into_iter()
        .find_map(|offset| text.strip_suffix(offset));
    // Not by way of `Timestamp`, which ends hours before the year 9999 does.
    let local: Option<civil::DateTime> = utc.unwrap_or(text).parse().ok();
    match local.filter(|_| utc.is_some() || !has_offset(text)) {
        Some(local) => {
            let epoch = civil::DateTime::constant(1970, 1, 1, 0, 0, 0, 0);
            i64::try_from(local.duration_since(epoch).as_micros()).ok()
        }
        None => Some(text.parse::<Timestamp>().ok()?.as_microsecond()),
    }
}

/// Whether something like `-02:00` follows the time of day.
fn has_offset(text: &str) -> bool {
    let time = text.get(11..).unwrap_or_default();
    time.contains(['+', '-', 'Z', 'z'])
}

fn day(text: &str) -> Option<civil::Date> {
    match text.len() {
        10 => text.parse().ok(),
        _ => {
            let instant = Timestamp::from_microsecond(micros(text)?).ok()?;
            Some(instant.to_zoned(TimeZone::UTC).date())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_have_one_form() {
        let cents = Form::Decimal { scale: Some(2) };
        let any = Form::Decimal { scale: None };
        let seconds = |rounded| Form::Instant { digits: 0, rounded };
        let micros = Form::Instant {
            digits: 6,
            rounded: true,
        };
        let rows = [
            (Form::Text { trimmed: false }, "ann ", "ann "),
            (Form::Text { trimmed: true }, "ann ", "ann"),
            (Form::Integer, "true", "1"),
            (Form::Integer, "f", "0"),
            (Form::Integer, "007", "7"),
            (
                Form::Integer,
                "18446744073709551615",
                "18446744073709551615",
            ),
            (any, "1.50", "1.5"),
            (any, "1.5e3", "1500"),
            (any, "-0.0", "0"),
            (any, "12e-3", "0.012"),
            (any, "000.100", "0.1"),
            (cents, "1.755", "1.76"),
            (cents, "1.754999", "1.75"),
            (cents, "9.995", "10"),
            (cents, "-9.995", "-10"),
            (cents, "0.004", "0"),
            (cents, "NaN", "NaN"),
            (Form::Float { single: true }, "1.2345678", "1.23457"),
            (Form::Float { single: false }, "0.1", "0.1"),
            (
                Form::Float { single: false },
                "1e20",
                "100000000000000000000",
            ),
            (micros, "2026-01-31T12:00:00.5+01:00", "1769857200500000"),
            (micros, "2026-01-31 11:00:00.5+00", "1769857200500000"),
            (micros, "2026-01-31 11:00:00.500000", "1769857200500000"),
            (micros, "1969-12-31 23:59:59.999999", "-1"),
            (seconds(false), "2026-01-31 11:00:00.999999", "1769857200"),
            (seconds(true), "9999-12-31 23:59:59", "253402300799"),
            (seconds(true), "2026-01-31 11:00:00.999999", "1769857201"),
            (seconds(false), "1969-12-31 23:59:59.5", "-1"),
            (Form::Day, "2026-01-31", "2026-01-31"),
            (Form::Day, "2026-01-31T23:30:00-02:00", "2026-02-01"),
            (Form::Folded, "ADMIN", "admin"),
            (
                Form::Json,
                "{\"b\": 1.0, \"a\": [1]}",
                "{\"a\":[1],\"b\":1}",
            ),
            (Form::Json, "broken", "broken"),
        ];
        for (form, text, expected) in rows {
            assert_eq!(form.of(text), expected, "{form:?} {text}");
        }
    }
}
