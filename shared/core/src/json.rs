//! JSON of messages.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

/// What some editors and servers put before a text in UTF-8. JSON has none, and parsers may overlook it (RFC 8259, 8.1).
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// A document without the byte order mark before it.
#[must_use]
pub fn unmarked(document: &[u8]) -> &[u8] {
    document.strip_prefix(BYTE_ORDER_MARK).unwrap_or(document)
}

/// What a message says. UTF-8 is looked at as a whole, which is quicker than string by string; of what isn't any, the
/// parser says where.
///
/// # Errors
/// When it isn't JSON, or says something else.
pub fn read<T: DeserializeOwned>(payload: &[u8]) -> serde_json::Result<T> {
    parse(unmarked(payload))
}

fn parse<T: DeserializeOwned>(payload: &[u8]) -> serde_json::Result<T> {
    match std::str::from_utf8(payload) {
        Ok(text) => serde_json::from_str(text),
        Err(_) => serde_json::from_slice(payload),
    }
}

/// What members can't be named: serde_json takes an object whose first member is named so for something else, and what the
/// member holds for JSON to be read.
pub const RESERVED: &str = "$serde_json::private::";

/// A document without a mark, whatever its members are named: a [`Value`] that serde_json reads isn't always what was written.
///
/// # Errors
/// When it isn't JSON.
pub fn value(document: &[u8]) -> serde_json::Result<Value> {
    parse(document).map(|Plain(value)| value)
}

/// A value, read as it is written.
struct Plain(Value);

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reading)
    }
}

struct Reading;

impl<'de> Visitor<'de> for Reading {
    type Value = Plain;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Plain, E> {
        Ok(Plain(Value::Null))
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Plain, E> {
        Ok(Plain(flag.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Plain, E> {
        Ok(Plain(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Plain, E> {
        Ok(Plain(number.into()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Plain, E> {
        let number = Number::from_f64(number).ok_or_else(|| E::custom("no number"))?;
        Ok(Plain(number.into()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Plain, E> {
        Ok(Plain(text.into()))
    }

    fn visit_string<E>(self, text: String) -> Result<Plain, E> {
        Ok(Plain(text.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Plain, A::Error> {
        let mut all = Vec::new();
        while let Some(Plain(item)) = items.next_element()? {
            all.push(item);
        }
        Ok(Plain(all.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Plain, A::Error> {
        let mut all = Map::new();
        while let Some((name, Plain(member))) = members.next_entry::<String, Plain>()? {
            all.insert(name, member);
        }
        Ok(Plain(all.into()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_is_what_was_written() {
        for text in [
            r#"{"$serde_json::private::RawValue":"3"}"#,
            r#"[{"$serde_json::private::RawValue":5,"a":{"\u0024serde_json::private::RawValue":"{}"}}]"#,
            r#"{"a":[1,-1,1.5,"é",true,null,{}],"b":18446744073709551615}"#,
        ] {
            let read = value(text.as_bytes()).unwrap();
            let written = text.replace("\\u0024", "$");
            assert_eq!(read.to_string(), written);
        }
        for wrong in ["", "[1", "{\"a\"}", "1e999", "[1] 2", "\u{feff}[1]"] {
            assert!(value(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_overlooked_once_and_in_front() {
        assert_eq!(read::<Value>("\u{feff}[1]".as_bytes()).unwrap(), json!([1]));
        assert_eq!(
            read::<Value>("[\"\u{feff}\"]".as_bytes()).unwrap(),
            json!(["\u{feff}"])
        );
        for wrong in ["\u{feff}\u{feff}[1]", "[1]\u{feff}", "\u{feff}"] {
            assert!(read::<Value>(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_no_text_has_a_place() {
        assert_eq!(read::<Value>("[\"é\"]".as_bytes()).unwrap(), json!(["é"]));
        let error = read::<Value>(b"[1,\n\"\xff\"]").unwrap_err();
        assert_eq!((error.line(), error.column()), (2, 2));
    }
}
