//! Times: instants, days, times of day, intervals.

use jiff::{Timestamp, civil, tz::TimeZone};

use super::{Clock, Rounding};

/// Microseconds from 1970 to 2000, where PostgreSQL counts from.
pub(crate) const TO_2000: i64 = 946_684_800_000_000;
const SECOND: i64 = 1_000_000;

pub(super) fn instant(text: &str, digits: u32, rounding: Rounding) -> Option<String> {
    Some(units(micros(text)?, digits, rounding, TO_2000).to_string())
}

/// Microseconds in units of 10^-`digits` seconds; `origin` is where a server counts from that rounds away from there.
fn units(micros: i64, digits: u32, rounding: Rounding, origin: i64) -> i64 {
    let unit = 10_i64.pow(6_u32.saturating_sub(digits));
    match rounding {
        Rounding::Cut => micros.div_euclid(unit),
        Rounding::Later => (micros + unit / 2).div_euclid(unit),
        Rounding::Apart => {
            // Both are whole units.
            let since = micros - origin;
            let rounded = (since.abs() + unit / 2) / unit;
            since.signum() * rounded + origin / unit
        }
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

pub(super) fn day(text: &str) -> Option<civil::Date> {
    match text.len() {
        10 => text.parse().ok(),
        _ => {
            let instant = Timestamp::from_microsecond(micros(text)?).ok()?;
            Some(instant.to_zoned(TimeZone::UTC).date())
        }
    }
}

pub(super) fn clock(text: &str, digits: u32, rounding: Rounding, clock: Clock) -> Option<String> {
    let text = text.trim();
    if clock == Clock::Span {
        let (negative, text) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (days, time) = match text.split_once(' ') {
            Some((days, time)) => (number(days)?, time),
            None => (0, text),
        };
        // A number's last two digits are seconds; and what is finer is rounded as if it were positive.
        let micros = 86_400 * SECOND * days + time_of_day(time, true)?;
        let units = units(micros, digits, rounding, 0);
        return Some(if negative { -units } else { units }.to_string());
    }
    let (time, offset) = zone(text);
    let (time, afternoon) = match time.get(time.len().saturating_sub(2)..) {
        Some(end) if end.eq_ignore_ascii_case("am") => (&time[..time.len() - 2], Some(false)),
        Some(end) if end.eq_ignore_ascii_case("pm") => (&time[..time.len() - 2], Some(true)),
        _ => (time, None),
    };
    let time = time.trim_start_matches(['T', 't']).trim_end();
    let mut micros = time_of_day(time, false)?;
    if let Some(afternoon) = afternoon {
        let half = 12 * 3_600 * SECOND;
        micros = micros % half + if afternoon { half } else { 0 };
    }
    let units = units(micros, digits, rounding, 0);
    match clock {
        Clock::Zoned => Some(format!("{units}@{}", offset.unwrap_or(Some(0))?)),
        Clock::Day | Clock::Span => Some(units.to_string()),
    }
}

/// A time of day without its zone; the zone's offset in seconds where there is one, `None` inside where it is a name.
fn zone(text: &str) -> (&str, Option<Option<i64>>) {
    if let Some(time) = text.strip_suffix(['Z', 'z']) {
        return (time.trim_end(), Some(Some(0)));
    }
    let Some(at) = text.rfind(['+', '-']).filter(|at| *at > 0) else {
        return (text, None);
    };
    let (time, offset) = text.split_at(at);
    let negative = offset.starts_with('-');
    let offset = &offset[1..];
    // `+05`, `+0530`, `+05:30`.
    let parts: Option<Vec<i64>> = match offset.contains(':') {
        true => offset.split(':').map(number).collect(),
        false => offset
            .as_bytes()
            .chunks(2)
            .map(|pair| number(std::str::from_utf8(pair).ok()?))
            .collect(),
    };
    let seconds = parts.map(|parts| {
        let factors = [3_600, 60, 1].iter();
        let seconds: i64 = parts.iter().zip(factors).map(|(part, by)| part * by).sum();
        if negative { -seconds } else { seconds }
    });
    (time.trim_end(), Some(seconds))
}

/// Microseconds of `08:00`, `08:00:00.5`, `080000`; of digits alone the last are seconds where they `end_in_seconds`,
/// else the first are hours.
fn time_of_day(text: &str, end_in_seconds: bool) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let parts: Vec<i64> = match whole.contains(':') {
        true => whole.split(':').map(number).collect::<Option<_>>()?,
        false => {
            let pairs = whole.len().div_ceil(2).max(1);
            let missing = 3_usize.checked_sub(pairs)?;
            let padded = match end_in_seconds {
                true => format!("{whole:0>6}"),
                false => format!("{whole}{}", "00".repeat(missing)),
            };
            let all = padded.as_bytes().chunks(2);
            all.map(|pair| number(std::str::from_utf8(pair).ok()?))
                .collect::<Option<_>>()?
        }
    };
    let (hours, minutes, seconds) = match parts[..] {
        [hours, minutes] => (hours, minutes, 0),
        [hours, minutes, seconds] => (hours, minutes, seconds),
        _ => return None,
    };
    if minutes > 59 || seconds > 60 {
        return None;
    }
    Some((hours * 3_600 + minutes * 60 + seconds) * SECOND + micros_of(fraction)?)
}

/// Microseconds of a fraction's digits, rounded.
fn micros_of(fraction: &str) -> Option<i64> {
    if fraction.is_empty() {
        return Some(0);
    }
    if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let tenth = number(&format!("{fraction:0<7}")[..7])?;
    Some((tenth + 5) / 10)
}

fn number(digits: &str) -> Option<i64> {
    let all = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    all.then(|| digits.parse().ok())?
}

/// What an interval is there: months, days, microseconds.
#[derive(Default)]
struct Interval([i64; 3]);

pub(super) fn interval(text: &str, digits: u32) -> Option<String> {
    let text = text.trim();
    let Interval([months, days, micros]) = match text.strip_prefix('P') {
        Some(text) => iso(text)?,
        None => words(text)?,
    };
    let unit = 10_i64.pow(6_u32.saturating_sub(digits));
    let micros = units(micros, digits, Rounding::Apart, 0) * unit;
    Some(format!("{months} {days} {micros}"))
}

impl Interval {
    /// Adds `amount`, such as `-1.5`, of `unit`.
    fn add(&mut self, amount: &str, unit: &str) -> Option<()> {
        let (at, factor) = match unit {
            "y" | "yr" | "yrs" | "year" | "years" => (0, 12),
            "mon" | "mons" | "month" | "months" => (0, 1),
            "w" | "week" | "weeks" => (1, 7),
            "d" | "day" | "days" => (1, 1),
            "h" | "hr" | "hrs" | "hour" | "hours" => (2, 3_600),
            "m" | "min" | "mins" | "minute" | "minutes" => (2, 60),
            "s" | "sec" | "secs" | "second" | "seconds" => (2, 1),
            _ => return None,
        };
        let (negative, amount) = signed(amount);
        let (whole, fraction) = amount.split_once('.').unwrap_or((amount, ""));
        let mut value = if whole.is_empty() { 0 } else { number(whole)? };
        match (at, fraction) {
            (2, _) => value = (value * SECOND + micros_of(fraction)?).checked_mul(factor)?,
            // Servers spread these over smaller units.
            (_, fraction) if !fraction.is_empty() => return None,
            _ => value = value.checked_mul(factor)?,
        }
        self.0[at] += if negative { -value } else { value };
        Some(())
    }
}

fn signed(text: &str) -> (bool, &str) {
    match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    }
}

/// `1 year 2 mons -3 days +04:05:06.7`, `@ 1 day ago`.
fn words(text: &str) -> Option<Interval> {
    let mut interval = Interval::default();
    let (text, ago) = match text.strip_suffix("ago") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let text = text.trim_start_matches('@').to_ascii_lowercase();
    let mut words = text.split_ascii_whitespace();
    let mut any = false;
    while let Some(word) = words.next() {
        any = true;
        if word.contains(':') {
            let (negative, time) = signed(word);
            let micros = time_of_day(time, false)?;
            interval.0[2] += if negative { -micros } else { micros };
            continue;
        }
        // `2h` as well as `2 h`.
        match word.find(|char: char| char.is_ascii_alphabetic()) {
            Some(at) => interval.add(&word[..at], &word[at..])?,
            None => interval.add(word, words.next()?)?,
        }
    }
    if ago {
        interval.0 = interval.0.map(|part| -part);
    }
    any.then_some(interval)
}

/// `1Y2M3DT4H5M6.7S`.
fn iso(text: &str) -> Option<Interval> {
    let mut interval = Interval::default();
    let (date, time) = text.split_once('T').unwrap_or((text, ""));
    for (mut rest, units) in [
        (
            date,
            &[('Y', "y"), ('M', "mon"), ('W', "w"), ('D', "d")][..],
        ),
        (time, &[('H', "h"), ('M', "m"), ('S', "s")]),
    ] {
        while !rest.is_empty() {
            let at = rest.find(|char: char| char.is_ascii_alphabetic())?;
            let unit = rest[at..].chars().next()?;
            let (_, unit) = units.iter().find(|(letter, _)| *letter == unit)?;
            interval.add(&rest[..at], unit)?;
            rest = &rest[at + 1..];
        }
    }
    Some(interval)
}
