//! How JSON Schema and OpenAPI describe what this crate defines, where the JSON isn't the type's shape.

use serde_json::{Value, json};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ObjectBuilder, OneOfBuilder, RefOr,
        schema::{Schema, Type},
    },
};

use crate::{
    retry::Code,
    secret::SecretRef,
    target::{TargetConfig, TargetName},
    user_id::UserId,
};

fn text(description: &str, pattern: &str) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some(description))
        .pattern(Some(pattern))
        .into()
}

fn number(description: &str) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .description(Some(description))
        .minimum(Some(0))
        .into()
}

impl PartialSchema for UserId {
    fn schema() -> RefOr<Schema> {
        OneOfBuilder::new()
            .description(Some(
                "42 and \"42\" are the same user; answers have integers above 2^53 - 1 as strings",
            ))
            .item(number("An integer from 0 to 2^64-1"))
            .item(text(
                "Any other string of printable ASCII without spaces",
                "^[!-~]{1,128}$",
            ))
            .into()
    }
}

impl ToSchema for UserId {}

impl PartialSchema for TargetName {
    fn schema() -> RefOr<Schema> {
        text(
            "A target's name; `gateway` is reserved",
            "^[a-z0-9_-]{1,32}$",
        )
    }
}

impl ToSchema for TargetName {}

impl PartialSchema for SecretRef {
    fn schema() -> RefOr<Schema> {
        text(
            "A reference, `env:NAME` or `file:PATH`; never the secret itself",
            "^(env|file):.+$",
        )
    }
}

impl ToSchema for SecretRef {}

impl PartialSchema for Code {
    fn schema() -> RefOr<Schema> {
        OneOfBuilder::new()
            .description(Some("409 and \"409\" are the same code"))
            .item(number("An HTTP status"))
            .item(text("An SQLSTATE, a Redis or Neo4j error code", "^.+$"))
            .into()
    }
}

impl ToSchema for Code {}

/// The JSON Schema (draft 2020-12) of one target's entry, as files, HTTP API and KV have it.
pub fn of_target() -> Value {
    let mut parts = vec![(
        TargetConfig::name().into_owned(),
        <TargetConfig as PartialSchema>::schema(),
    )];
    <TargetConfig as ToSchema>::schemas(&mut parts);
    let mut definitions = serde_json::Map::new();
    let mut root = Value::Null;
    for (name, part) in parts {
        let mut part = serde_json::to_value(part).unwrap_or_default();
        refer_to_definitions(&mut part);
        if name == TargetConfig::name() {
            root = part;
        } else {
            definitions.insert(name, part);
        }
    }
    // The name is the entry's key; it may be repeated inside.
    root["required"] = json!(["url"]);
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["title"] = json!("A target of usersync");
    root["$defs"] = definitions.into();
    root
}

fn refer_to_definitions(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if let Some(Value::String(to)) = members.get_mut("$ref") {
                *to = to.replace("#/components/schemas/", "#/$defs/");
            }
            members.values_mut().for_each(refer_to_definitions);
        }
        Value::Array(items) => items.iter_mut().for_each(refer_to_definitions),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The keys of an entry in which nothing is left out.
    fn keys_of(value: &Value) -> BTreeSet<String> {
        value.as_object().unwrap().keys().cloned().collect()
    }

    #[test]
    fn the_schema_has_the_keys_that_an_entry_has() {
        let entry = json!({
            "name": "t", "url": "http://h/x", "allow_networks": ["loopback"], "method": "POST", "concurrency": 1, "batch": 2, "linger": "5ms",
            "rate_limit": 5, "filter": "true", "read_url": "http://h/{id}", "unique": ["email"], "refill": true, "headers": {"X-A": "b"},
            "secret": "env:S", "previous_secret": "env:P", "auth": {"bearer": "env:T"}, "tls": {"ca": "file:/c", "cert": "file:/c", "key": "file:/k"}, "note": "n", "table": {"name": "users", "binary_uuid": true},
            "retry": {"permanent_status": [409], "transient_status": ["X"]},
            "fields": {"include": ["data.a"], "exclude": ["data.b"], "compute": {"data.c": "1"},
                       "mask": {"email": "hash"}, "mask_key": "env:K", "rename": {"email": "data.mail"}},
        });
        let entry: TargetConfig = serde_json::from_value(entry).unwrap();
        let entry = serde_json::to_value(entry).unwrap();
        let schema = of_target();
        assert_eq!(keys_of(&schema["properties"]), keys_of(&entry));
        assert_eq!(schema["additionalProperties"], false);
        for (name, key) in [
            ("Retry", "retry"),
            ("Breaker", "breaker"),
            ("Fields", "fields"),
            ("Table", "table"),
            ("Tls", "tls"),
        ] {
            let part = &schema["$defs"][name];
            assert_eq!(keys_of(&part["properties"]), keys_of(&entry[key]), "{name}");
            assert!(
                part["required"].is_null(),
                "{name}: every key may be left out"
            );
        }
        let text = schema.to_string();
        assert!(!text.contains("#/components"), "{text}");
    }
}
