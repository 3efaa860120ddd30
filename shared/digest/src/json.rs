//! JSON in one form, whatever it came as.

use serde_json::Value;

use crate::form::decimal;

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
        assert_ne!(form("[1,2]"), form("[2,1]"));
        assert_ne!(form("{\"a\":null}"), form("{}"));
    }
}
