//! The id of a user: parsed once at the edge, safe as one token of a NATS subject ever after.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An integer 0…2^64−1 or a string of `[A-Za-z0-9_-]{1,64}`.
///
/// `42` and `"42"` are the same user; `"042"` is another one, because its subject token differs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UserId {
    /// A decimal integer without leading zeros.
    Number(u64),
    /// Any other permitted string.
    Text(Arc<str>),
}

/// Why a value is no user id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be an integer from 0 to 18446744073709551615 or a string of 1 to 64 characters A-Z a-z 0-9 _ -"
)]
pub struct InvalidUserId;

impl FromStr for UserId {
    type Err = InvalidUserId;

    fn from_str(text: &str) -> Result<Self, InvalidUserId> {
        let permitted = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if !(1..=64).contains(&text.len()) || !text.bytes().all(permitted) {
            return Err(InvalidUserId);
        }
        let canonical = text == "0" || !text.starts_with('0');
        match text.parse::<u64>() {
            Ok(number) if canonical => Ok(Self::Number(number)),
            _ => Ok(Self::Text(text.into())),
        }
    }
}

impl TryFrom<&serde_json::Value> for UserId {
    type Error = InvalidUserId;

    fn try_from(value: &serde_json::Value) -> Result<Self, InvalidUserId> {
        match value {
            serde_json::Value::Number(number) => {
                number.as_u64().map(Self::Number).ok_or(InvalidUserId)
            }
            serde_json::Value::String(text) => text.parse(),
            _ => Err(InvalidUserId),
        }
    }
}

impl From<u64> for UserId {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl Serialize for UserId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(number) => serializer.serialize_u64(*number),
            Self::Text(text) => serializer.serialize_str(text),
        }
    }
}

impl<'de> Deserialize<'de> for UserId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = UserId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&InvalidUserId, f)
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<UserId, E> {
                Ok(UserId::Number(number))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<UserId, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_and_its_string_are_the_same_user() {
        assert_eq!("42".parse(), Ok(UserId::Number(42)));
        assert_eq!(
            serde_json::from_str::<UserId>("42").unwrap(),
            "42".parse().unwrap()
        );
        assert_eq!("18446744073709551615".parse(), Ok(UserId::Number(u64::MAX)));
    }

    #[test]
    fn text_ids_keep_their_spelling() {
        for text in ["042", "aB", "Ab", "a-b_c", "18446744073709551616"] {
            let id: UserId = text.parse().unwrap();
            assert!(matches!(id, UserId::Text(_)), "{text}");
            assert_eq!(id.to_string(), text);
            assert_eq!(serde_json::to_string(&id).unwrap(), format!("{text:?}"));
        }
    }

    #[test]
    fn ids_that_are_not_subject_safe_are_refused() {
        let long = "a".repeat(65);
        for text in ["", "a.b", "*", ">", "a b", "ä", "a\n", "-1.5", &long] {
            assert_eq!(text.parse::<UserId>(), Err(InvalidUserId), "{text:?}");
        }
        for json in [
            "-1",
            "1.5",
            "1e3",
            "true",
            "null",
            "[1]",
            "18446744073709551616",
        ] {
            let value: serde_json::Value = serde_json::from_str(json).unwrap();
            assert_eq!(UserId::try_from(&value), Err(InvalidUserId), "{json}");
        }
    }
}
