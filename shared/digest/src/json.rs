//! JSON in one form, whatever it came as.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

use crate::form::decimal;

/// Reads JSON; `None` where it is none, or an object names a member twice: readers differ in which of both they take.
pub(crate) fn read(text: &str) -> Option<Value> {
    let read: Once = serde_json::from_str(text).ok()?;
    Some(read.0)
}

/// A value in which no object names a member twice.
struct Once(Value);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OnceVisitor)
    }
}

struct OnceVisitor;

impl<'de> Visitor<'de> for OnceVisitor {
    type Value = Once;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Once, E> {
        Ok(Once(Value::Null))
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Once, E> {
        Ok(Once(flag.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Once, E> {
        Ok(Once(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Once, E> {
        Ok(Once(number.into()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Once, E> {
        let number = Number::from_f64(number);
        let number = number.ok_or_else(|| E::custom("no number"))?;
        Ok(Once(number.into()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Once, E> {
        Ok(Once(text.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Once, A::Error> {
        let mut all = Vec::new();
        while let Some(Once(item)) = items.next_element()? {
            all.push(item);
        }
        Ok(Once(all.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Once, A::Error> {
        let mut all = Map::new();
        while let Some((name, Once(member))) = members.next_entry::<String, Once>()? {
            if all.insert(name, member).is_some() {
                return Err(A::Error::custom("a member is named twice"));
            }
        }
        Ok(Once(all.into()))
    }
}

/// `value` without white space, members ordered by the octets of their names, numbers in decimal without needless
/// zeros, so that 1, 1.0 and 1e0 are one.
pub fn canonical(value: &Value) -> String {
    let mut text = String::new();
    write(value, &mut text);
    text
}

fn write(value: &Value, into: &mut String) {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => into.push_str(&value.to_string()),
        Value::Number(number) => {
            let text = number.to_string();
            into.push_str(decimal(&text, None).as_deref().unwrap_or(&text));
        }
        Value::Array(items) => {
            into.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    into.push(',');
                }
                write(item, into);
            }
            into.push(']');
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| name.as_bytes());
            into.push('{');
            for (at, (name, member)) in members.into_iter().enumerate() {
                if at > 0 {
                    into.push(',');
                }
                into.push_str(&Value::from(name.as_str()).to_string());
                into.push(':');
                write(member, into);
            }
            into.push('}');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_white_space_and_zeros_do_not_matter() {
        let form = |text: &str| canonical(&serde_json::from_str(text).unwrap());
        let texts = [
            r#"{"b": [1.0, true, null], "a": {"y": "é", "x": 1e2}}"#,
            r#"{"a":{"x":100,"y":"\u00e9"},"b":[1,true,null]}"#,
        ];
        for text in texts {
            assert_eq!(form(text), r#"{"a":{"x":100,"y":"é"},"b":[1,true,null]}"#);
        }
        let read_again = |text: &str| canonical(&read(text).unwrap());
        assert!(texts.iter().all(|text| read_again(text) == form(text)));
        for numbers in [
            "[18446744073709551615,-9223372036854775808,1e300,0.1]",
            "-0.0",
        ] {
            assert_eq!(read_again(numbers), form(numbers));
        }
        assert_eq!(read(r#"{"a":{"b":1,"b":1}}"#), None);
        assert_ne!(form("[1,2]"), form("[2,1]"));
        assert_ne!(form("{\"a\":null}"), form("{}"));
    }
}
