//! Integers that JSON can write and that nobody here could hold: they are refused, for reading them rounds them silently.

use std::collections::BTreeMap;

use serde_json::{Value, value::RawValue};

/// Which integers are beyond us, below −2^63 or above 2^64 − 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beyond {
    /// All of them.
    All,
    /// All but those that are how a server writes a floating-point number: PostgreSQL's `jsonb` shows 1e30 as a one with
    /// thirty zeros.
    AllButDoubles,
}

/// The longest pointer told, in characters.
const LONGEST: usize = 256;

/// JSON Pointer (RFC 6901) to the first integer of `text` that is beyond us; `read` is what was read of it.
pub(crate) fn find(text: &[u8], read: &Value, beyond: Beyond) -> Option<String> {
    // Nearly always there is none, and nothing is parsed twice.
    if !is_suspicious(read) {
        return None;
    }
    let mut pointer = String::new();
    let found = look(std::str::from_utf8(text).ok()?, beyond, &mut pointer);
    found.then(|| pointer.chars().take(LONGEST).collect())
}

/// Whether there is a number that such an integer is read as.
fn is_suspicious(value: &Value) -> bool {
    const LEAST: f64 = 9_223_372_036_854_775_808.0;
    match value {
        Value::Number(number) => {
            number.is_f64() && number.as_f64().is_some_and(|number| number.abs() >= LEAST)
        }
        Value::Array(items) => items.iter().any(is_suspicious),
        Value::Object(members) => members.values().any(is_suspicious),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
    }
}

/// Says whether there is one in `text`, which is JSON; `pointer` leads there then.
fn look(text: &str, beyond: Beyond, pointer: &mut String) -> bool {
    let text = text.trim_ascii();
    let end = pointer.len();
    let mut inside = |name: &str, value: &RawValue| {
        pointer.push('/');
        pointer.push_str(&name.replace('~', "~0").replace('/', "~1"));
        let found = look(value.get(), beyond, pointer);
        if !found {
            pointer.truncate(end);
        }
        found
    };
    match text.as_bytes().first() {
        Some(b'{') => serde_json::from_str::<BTreeMap<String, &RawValue>>(text)
            .is_ok_and(|members| members.iter().any(|(name, value)| inside(name, value))),
        Some(b'[') => serde_json::from_str::<Vec<&RawValue>>(text).is_ok_and(|items| {
            let mut items = items.iter().enumerate();
            items.any(|(place, value)| inside(&place.to_string(), value))
        }),
        Some(b'-' | b'0'..=b'9') => match beyond {
            Beyond::All => is_beyond(text),
            Beyond::AllButDoubles => is_beyond(text) && !is_double(text),
        },
        _ => false,
    }
}

/// Whether a number is written as an integer and is one that we can't hold.
fn is_beyond(number: &str) -> bool {
    let held = i128::from(i64::MIN)..=i128::from(u64::MAX);
    let is_integer = !number.contains(['.', 'e', 'E']);
    // Longer ones don't even fit here.
    is_integer && !matches!(number.parse(), Ok(number) if held.contains(&number))
}

/// Whether an integer has the digits that a floating-point number is written with, and zeros behind them.
fn is_double(integer: &str) -> bool {
    let digits = integer.trim_start_matches('-');
    let Ok(double) = digits.parse::<f64>() else {
        return false;
    };
    // The shortest digits that are read as this number again.
    let shortest = format!("{double:e}").replace('.', "");
    let shortest = shortest.split('e').next().unwrap_or_default();
    digits.trim_end_matches('0') == shortest.trim_end_matches('0')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, beyond: Beyond) -> Option<String> {
        find(
            text.as_bytes(),
            &serde_json::from_str(text).unwrap(),
            beyond,
        )
    }

    #[test]
    fn integers_beyond_64_bits_are_found_wherever_they_are() {
        for (text, pointer) in [
            ("18446744073709551616", ""),
            (r#"{"n": 18446744073709551616}"#, "/n"),
            (r#"{"n": -9223372036854775809}"#, "/n"),
            (
                r#"{"a": [1, {"b/c~d": [-99999999999999999999999999999999999999999999]}]}"#,
                "/a/1/b~1c~0d/0",
            ),
            (
                r#"{"a": 1e300, "b": [2e20, 100000000000000000000]}"#,
                "/b/1",
            ),
            (r#"{"a\nb": 1000000000000000000000000000000}"#, "/a\nb"),
        ] {
            assert_eq!(found(text, Beyond::All).as_deref(), Some(pointer), "{text}");
        }
    }

    #[test]
    fn what_can_be_held_is_not_found() {
        for text in [
            "18446744073709551615",
            "-9223372036854775808",
            "9007199254740993",
            "-0",
            "1e300",
            "18446744073709551616.0",
            "1.8446744073709551616e19",
            "-1E+25",
            r#"["18446744073709551616", {"18446744073709551616": 1e19}]"#,
        ] {
            assert_eq!(found(text, Beyond::All), None, "{text}");
        }
    }

    #[test]
    fn how_servers_write_doubles_is_not_found_where_that_is_asked_for() {
        let zeros = |digits: &str, zeros: usize| format!("{digits}{}", "0".repeat(zeros));
        for text in [
            zeros("1", 30),
            zeros("-17976931348623157", 292),
            zeros("18446744073709552", 3),
        ] {
            assert_eq!(found(&text, Beyond::AllButDoubles), None, "{text}");
            assert_eq!(found(&text, Beyond::All).as_deref(), Some(""), "{text}");
        }
        for text in [
            "18446744073709551616",
            "-9223372036854775809",
            "100000000000000000001",
        ] {
            assert_eq!(
                found(text, Beyond::AllButDoubles).as_deref(),
                Some(""),
                "{text}"
            );
        }
    }
}
