//! The row of sides that keep a user as a document: the id, and one field with the document.

use serde_json::{Map, Value};

use crate::{json::canonical, row::Row};

/// The row of the user with this id and document.
///
/// Members that are null, at any depth of objects, are as good as absent, and so is a `data` with nothing in it:
/// whoever merges documents can't keep either.
pub fn document(id: &str, mut document: Map<String, Value>) -> Row {
    prune(&mut document);
    let empty = |data: &Value| data.as_object().is_some_and(Map::is_empty);
    if document.get("data").is_some_and(empty) {
        document.remove("data");
    }
    let mut row = Row::new(id);
    row.field(Some(canonical(&Value::Object(document)).as_bytes()));
    row
}

fn prune(document: &mut Map<String, Value>) {
    document.retain(|_, member| !member.is_null());
    for member in document.values_mut() {
        if let Value::Object(inner) = member {
            prune(inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_null_is_not_there() {
        let octets = |value: Value| {
            let document = super::document("42", value.as_object().unwrap().clone());
            String::from_utf8(document.octets().to_vec()).unwrap()
        };
        assert_eq!(
            octets(json!({"email": null, "data": {"a": null}})),
            "2:422:{}"
        );
        let page = include_str!("../../../docs/RECEIVER.md");
        let documented =
            octets(json!({"username": "ann", "email": null, "data": {"b": 1.0, "a": null}}));
        assert!(page.contains(&documented), "{documented}");
        assert_eq!(
            octets(json!({"email": "", "data": {"b": {"c": null}, "a": [null, 1.0]}})),
            "2:4241:{\"data\":{\"a\":[null,1],\"b\":{}},\"email\":\"\"}"
        );
    }
}
