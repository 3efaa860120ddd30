//! JSON of messages.

use serde::de::DeserializeOwned;

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
    let payload = unmarked(payload);
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
