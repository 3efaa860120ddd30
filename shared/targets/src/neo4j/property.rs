//! JSON values as properties of a node, which hold texts, numbers, booleans and lists of one of them.

use neo4rs::{BoltList, BoltNull, BoltType};
use serde_json::Value;
use usersync_core::user_id::UserId;

/// What takes a property away.
pub(crate) fn none() -> BoltType {
    BoltType::Null(BoltNull)
}

/// A user's id: an integer where it is one that fits, else a text.
pub(crate) fn id(id: &UserId) -> BoltType {
    match id {
        UserId::Number(number) => match i64::try_from(*number) {
            Ok(number) => number.into(),
            Err(_) => number.to_string().into(),
        },
        UserId::Text(text) => text.to_string().into(),
    }
}

/// `value` as a property; objects, mixed lists and what is to be `whole` become JSON.
pub(crate) fn of(value: &Value, whole: bool) -> BoltType {
    let json = || value.to_string().into();
    if whole {
        return json();
    }
    match value {
        Value::Array(items) => list(items).unwrap_or_else(json),
        value => scalar(value).unwrap_or_else(json),
    }
}

/// About as many bytes as it takes on the way.
pub(crate) fn size(property: &BoltType) -> usize {
    match property {
        BoltType::String(text) => text.value.len() + 5,
        BoltType::List(list) => list.value.iter().map(size).sum::<usize>() + 5,
        _ => 9,
    }
}

/// A property of ours as it is shown again.
pub(crate) fn shown(property: &BoltType) -> Value {
    match property {
        BoltType::String(text) => text.value.as_str().into(),
        BoltType::Boolean(flag) => flag.value.into(),
        BoltType::Integer(integer) => integer.value.into(),
        BoltType::Float(float) => float.value.into(),
        BoltType::List(list) => list.value.iter().map(shown).collect(),
        _ => Value::Null,
    }
}

fn scalar(value: &Value) -> Option<BoltType> {
    match value {
        Value::Bool(flag) => Some((*flag).into()),
        Value::String(text) => Some(text.as_str().into()),
        Value::Number(number) => match (number.as_i64(), number.is_f64()) {
            (Some(integer), _) => Some(integer.into()),
            (None, true) => number.as_f64().map(BoltType::from),
            (None, false) => None,
        },
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn list(items: &[Value]) -> Option<BoltType> {
    let items: Vec<BoltType> = items.iter().map(scalar).collect::<Option<_>>()?;
    let alike = items
        .windows(2)
        .all(|pair| std::mem::discriminant(&pair[0]) == std::mem::discriminant(&pair[1]));
    let mut list = BoltList::new();
    items.into_iter().for_each(|item| list.push(item));
    alike.then_some(BoltType::List(list))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_no_property_can_hold_becomes_json() {
        let rows = [
            (json!("x"), BoltType::from("x")),
            (json!(7), 7_i64.into()),
            (json!(1.5), 1.5.into()),
            (json!(true), true.into()),
            (json!({"a": 1}), "{\"a\":1}".into()),
            (json!([1, "x"]), "[1,\"x\"]".into()),
            (json!(u64::MAX), "18446744073709551615".into()),
        ];
        for (value, expected) in rows {
            assert_eq!(of(&value, false), expected, "{value}");
        }
        assert!(matches!(of(&json!(["a", "b"]), false), BoltType::List(_)));
        assert_eq!(of(&json!("x"), true), "\"x\"".into());
    }

    #[test]
    fn ids_are_integers_where_they_fit() {
        let id = |text: &str| id(&text.parse().unwrap());
        assert_eq!(id("42"), 42_i64.into());
        assert_eq!(id("042"), "042".into());
        assert_eq!(id("18446744073709551615"), "18446744073709551615".into());
    }
}
