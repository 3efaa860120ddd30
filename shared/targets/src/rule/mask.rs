//! Masks: forms of a value that don't tell it.

use hmac::{Hmac, KeyInit, Mac};
use secrecy::ExposeSecret;
use serde_json::Value;
use sha2::Sha256;
use usersync_core::{
    fields::{Fields, Mask},
    grant::Grants,
    secret::SecretRef,
};

/// The shortest key taken, in bytes: a shorter one could be found by trying.
const LEAST_KEY: usize = 16;
/// How many characters `last4` shows.
const SHOWN: usize = 4;

/// The masks of one target, in the order of their paths.
#[derive(Debug, Default)]
pub(super) struct Masks {
    pub(super) paths: Vec<(String, Mask)>,
    /// Keyed once; there whenever a path is hashed.
    key: Option<Keyed>,
}

/// HMAC-SHA256 with its key taken in.
struct Keyed(Hmac<Sha256>);

impl std::fmt::Debug for Keyed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keyed")
    }
}

impl Masks {
    /// Reads what `fields` say, without the key.
    pub(super) fn without_key(fields: &Fields) -> Self {
        let paths = fields.mask.iter();
        Self {
            paths: paths.map(|(path, mask)| (path.clone(), *mask)).collect(),
            key: None,
        }
    }

    /// Fetches the key where one is needed.
    ///
    /// # Errors
    /// When it isn't to be had or too short: one sentence that names `fields.mask_key`.
    pub(super) fn fetch_key(
        &mut self,
        reference: Option<&SecretRef>,
        grants: &Grants,
    ) -> Result<(), String> {
        let hashed = self.paths.iter().any(|(_, mask)| *mask == Mask::Hash);
        // That the reference is missing is a problem of `Fields`.
        let (true, Some(reference)) = (hashed, reference) else {
            return Ok(());
        };
        let wrong = |error: &dyn std::fmt::Display| format!("fields.mask_key: {error}");
        grants.admit(reference).map_err(|error| wrong(&error))?;
        let key = reference.resolve().map_err(|error| wrong(&error))?;
        let key = key.expose_secret().as_bytes();
        let long = format!("fields.mask_key: expected at least {LEAST_KEY} bytes");
        if key.len() < LEAST_KEY {
            return Err(long);
        }
        let keyed = Hmac::new_from_slice(key).map_err(|_| long)?;
        self.key = Some(Keyed(keyed));
        Ok(())
    }

    /// What goes out instead of `value`; null stays null.
    pub(super) fn apply(&self, mask: Mask, value: Value) -> Value {
        if value.is_null() {
            return value;
        }
        let masked = match (mask, &self.key) {
            (Mask::Hash, Some(Keyed(keyed))) => {
                let mut hash = keyed.clone();
                hash.update(canonical(&value).as_bytes());
                hex(&hash.finalize().into_bytes())
            }
            (Mask::Last4, _) => last4(&canonical(&value)),
            // Without a key nothing is told rather than everything.
            (Mask::Redact | Mask::Hash, _) => "***".to_owned(),
        };
        Value::String(masked)
    }
}

/// All but the last four characters are `*`; of four or fewer, all.
fn last4(text: &str) -> String {
    let hidden = match text.chars().count() {
        count if count <= SHOWN => count,
        count => count - SHOWN,
    };
    "*".repeat(hidden)
        .chars()
        .chain(text.chars().skip(hidden))
        .collect()
}

/// A text that is the same for equal values: a string as it is, anything else as JSON without white
/// space and with members in the order of their names.
fn canonical(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => {
            let mut text = String::new();
            write(other, &mut text);
            text
        }
    }
}

fn write(value: &Value, text: &mut String) {
    match value {
        Value::Array(values) => {
            text.push('[');
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write(value, text);
            }
            text.push(']');
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| name.as_str());
            text.push('{');
            for (index, (name, value)) in members.into_iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                text.push_str(&Value::from(name.as_str()).to_string());
                text.push(':');
                write(value, text);
            }
            text.push('}');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(64), |mut text, byte| {
            // Writing to a String can't fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn last4_counts_characters_and_never_shows_a_short_value() {
        let rows = [
            ("4111111111111111", "************1111"),
            ("ÄÖÜßéèêñ", "****éèêñ"),
            ("12345", "*2345"),
            ("1234", "****"),
            ("", ""),
        ];
        for (text, expected) in rows {
            assert_eq!(last4(text), expected, "{text}");
        }
        let masks = Masks::default();
        assert_eq!(masks.apply(Mask::Last4, json!(491_771_234)), "*****1234");
        assert_eq!(masks.apply(Mask::Last4, json!({"a": [1]})), "*****[1]}");
        assert_eq!(masks.apply(Mask::Redact, json!(7)), "***");
        assert_eq!(masks.apply(Mask::Redact, Value::Null), Value::Null);
    }

    #[test]
    fn a_hash_is_the_hmac_of_the_canonical_text() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // RFC 4231, test case 4 needs bytes that are no text; case 2's key is too short for us: so a
        // value made with `openssl dgst -sha256 -hmac`.
        std::fs::write(file.path(), "0123456789abcdef0123456789abcdef").unwrap();
        let fields = json!({"mask": {"email": "hash"}, "mask_key": format!("file:{}", file.path().display())});
        let fields: Fields = serde_json::from_value(fields).unwrap();
        let mut masks = Masks::without_key(&fields);
        let grants = Grants::of(vec![
            format!("file:{}", file.path().display()).parse().unwrap(),
        ]);
        let none = masks.fetch_key(fields.mask_key.as_ref(), &Grants::default());
        assert!(none.unwrap_err().contains("egress.secrets"));
        masks.fetch_key(fields.mask_key.as_ref(), &grants).unwrap();
        let hash = |value| masks.apply(Mask::Hash, value);
        assert_eq!(
            hash(json!("ann@example.com")),
            "093e3dd9df951c5008225d533a0175475075f7551ed269c5e61fa29bc2819ae4"
        );
        assert_eq!(hash(json!("7")), hash(json!(7)));
        assert_eq!(
            hash(json!({"b": 1, "a": {"d": [], "c": "x"}})),
            hash(json!("{\"a\":{\"c\":\"x\",\"d\":[]},\"b\":1}"))
        );
        std::fs::write(file.path(), "short").unwrap();
        let problem = masks
            .fetch_key(fields.mask_key.as_ref(), &grants)
            .unwrap_err();
        assert_eq!(problem, "fields.mask_key: expected at least 16 bytes");
    }
}
