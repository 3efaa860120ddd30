//! JSON of messages.

use serde::de::DeserializeOwned;

/// What a message says. UTF-8 is looked at as a whole, which is quicker than string by string; of what isn't any, the
/// parser says where.
///
/// # Errors
/// When it isn't JSON, or says something else.
pub fn read<T: DeserializeOwned>(payload: &[u8]) -> serde_json::Result<T> {
    match std::str::from_utf8(payload) {
        Ok(text) => serde_json::from_str(text),
        Err(_) => serde_json::from_slice(payload),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_is_no_text_has_a_place() {
        assert_eq!(read::<Value>("[\"é\"]".as_bytes()).unwrap(), json!(["é"]));
        let error = read::<Value>(b"[1,\n\"\xff\"]").unwrap_err();
        assert_eq!((error.line(), error.column()), (2, 2));
    }
}
