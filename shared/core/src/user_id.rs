//! The id of a user: parsed once at the edge, and the form of it that subjects, keys and headers can carry.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;

/// An integer 0…2^64−1 or a string of 1 to 128 bytes of printable ASCII without space.
///
/// `42` and `"42"` are the same user; `"042"` is another one, and so are `aB` and `Ab`: spelling is identity.
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
    "must be an integer from 0 to 18446744073709551615 or a string of 1 to 128 bytes of printable ASCII without spaces"
)]
pub struct InvalidUserId;

/// The most bytes of an id.
pub const MAX_BYTES: usize = 128;
/// The largest integer that programs which hold numbers as IEEE doubles tell from its neighbours: 2^53 − 1.
pub const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

impl FromStr for UserId {
    type Err = InvalidUserId;

    fn from_str(text: &str) -> Result<Self, InvalidUserId> {
        let graphic = text.bytes().all(|byte| byte.is_ascii_graphic());
        if !(1..=MAX_BYTES).contains(&text.len()) || !graphic {
            return Err(InvalidUserId);
        }
        // A sign would be read too, and leading zeros: both are other spellings.
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let canonical = digits && (text == "0" || !text.starts_with('0'));
        match text.parse::<u64>() {
            Ok(number) if canonical => Ok(Self::Number(number)),
            _ => Ok(Self::Text(text.into())),
        }
    }
}

impl UserId {
    /// The id as one token of a subject, for task ids, headers and keys too: `A-Z a-z 0-9 _ -` stand for themselves,
    /// any other byte is `=` and two upper-case hexadecimal digits. See docs/SUBJECTS.md.
    pub const fn token(&self) -> Token<'_> {
        Token(self)
    }

    /// The user of a [`token`](Self::token); `None` for any other spelling, so that a user has one subject.
    pub fn from_token(token: &str) -> Option<Self> {
        // Most are their own tokens.
        if token.bytes().all(is_plain) {
            return token.parse().ok();
        }
        let mut id = String::with_capacity(token.len());
        let mut bytes = token.bytes();
        while let Some(byte) = bytes.next() {
            if is_plain(byte) {
                id.push(char::from(byte));
                continue;
            }
            let mut digit = || bytes.next().and_then(upper_hex);
            let (true, Some(high), Some(low)) = (byte == b'=', digit(), digit()) else {
                return None;
            };
            let escaped = high << 4 | low;
            if is_plain(escaped) {
                return None;
            }
            id.push(char::from(escaped));
        }
        id.parse().ok()
    }
}

/// Whether a byte stands for itself in a [`Token`].
const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

const fn upper_hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Shows an id as one token; see [`UserId::token`].
#[derive(Clone, Copy, Debug)]
pub struct Token<'a>(&'a UserId);

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            UserId::Number(number) => return number.fmt(f),
            UserId::Text(text) => text,
        };
        for part in text.split_inclusive(|symbol: char| !u8::try_from(symbol).is_ok_and(is_plain)) {
            match part.as_bytes().split_last() {
                Some((last, plain)) if !is_plain(*last) => {
                    f.write_str(&part[..plain.len()])?;
                    write!(f, "={last:02X}")?;
                }
                _ => f.write_str(part)?,
            }
        }
        Ok(())
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

/// As [`Ids::Auto`]: what is emitted survives programs that hold numbers as IEEE doubles.
impl Serialize for UserId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Ids::Auto.of(self).serialize(serializer)
    }
}

/// How integer ids are written in JSON. Other ids are strings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ids {
    /// As a number, however large.
    #[default]
    Number,
    /// As a string.
    String,
    /// As a number up to 2^53 − 1, above as a string.
    Auto,
}

/// An id as JSON; see [`Ids::of`].
#[derive(Clone, Copy, Debug)]
pub struct JsonId<'a>(Ids, &'a UserId);

impl Ids {
    /// `user_id`, to be written like this.
    pub const fn of(self, user_id: &UserId) -> JsonId<'_> {
        JsonId(self, user_id)
    }
}

impl Serialize for JsonId<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (self.1, self.0) {
            (UserId::Text(text), _) => serializer.serialize_str(text),
            (UserId::Number(number), Ids::Auto) if *number > MAX_SAFE_INTEGER => {
                serializer.collect_str(number)
            }
            (UserId::Number(number), Ids::Number | Ids::Auto) => serializer.serialize_u64(*number),
            (UserId::Number(number), Ids::String) => serializer.collect_str(number),
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
        for text in [
            "042",
            "+42",
            "-0",
            "00",
            "1e3",
            "1.5",
            "aB",
            "Ab",
            "a-b_c",
            "18446744073709551616",
        ] {
            let id: UserId = text.parse().unwrap();
            assert!(matches!(id, UserId::Text(_)), "{text}");
            assert_eq!(id.to_string(), text);
            assert_eq!(serde_json::to_string(&id).unwrap(), format!("{text:?}"));
        }
    }

    #[test]
    fn integers_are_written_as_asked_for_and_read_in_any_form() {
        let written = |ids: Ids, id: u64| {
            let id = UserId::from(id);
            let text = serde_json::to_string(&ids.of(&id)).unwrap();
            assert_eq!(serde_json::from_str::<UserId>(&text).unwrap(), id);
            text
        };
        let (safe, unsafe_) = (MAX_SAFE_INTEGER, MAX_SAFE_INTEGER + 1);
        assert_eq!(written(Ids::Number, u64::MAX), "18446744073709551615");
        assert_eq!(written(Ids::String, 42), "\"42\"");
        assert_eq!(written(Ids::Auto, safe), "9007199254740991");
        assert_eq!(written(Ids::Auto, unsafe_), "\"9007199254740992\"");
        let own = serde_json::to_string(&UserId::from(u64::MAX)).unwrap();
        assert_eq!(own, "\"18446744073709551615\"");
    }

    #[test]
    fn what_identity_providers_call_users_are_ids() {
        for (text, token) in [
            ("auth0|6f1c", "auth0=7C6f1c"),
            ("f:3c1d:jane", "f=3A3c1d=3Ajane"),
            ("jane@example.com", "jane=40example=2Ecom"),
            ("urn:uuid:0198", "urn=3Auuid=3A0198"),
            ("a=b", "a=3Db"),
            ("=7C", "=3D7C"),
            ("*", "=2A"),
            (">", "=3E"),
            ("$JS.API", "=24JS=2EAPI"),
            ("+42", "=2B42"),
            ("-1", "-1"),
            ("~", "=7E"),
            ("6F", "6F"),
            ("6f", "6f"),
        ] {
            let id: UserId = text.parse().unwrap();
            assert_eq!(id.to_string(), text);
            assert_eq!(id.token().to_string(), token);
            assert_eq!(UserId::from_token(token), Some(id.clone()));
            let json = serde_json::to_string(&id).unwrap();
            assert_eq!(serde_json::from_str::<UserId>(&json).unwrap(), id);
        }
    }

    #[test]
    fn every_byte_has_one_token_and_no_two_ids_share_one() {
        let mut tokens = std::collections::BTreeSet::new();
        for byte in 0x21..=0x7e_u8 {
            for text in [
                char::from(byte).to_string(),
                char::from(byte).to_string().repeat(MAX_BYTES),
            ] {
                let id: UserId = text.parse().unwrap();
                let token = id.token().to_string();
                assert!(token.bytes().all(|byte| is_plain(byte) || byte == b'='));
                assert_eq!(UserId::from_token(&token), Some(id));
                assert!(tokens.insert(token), "{text}");
            }
        }
    }

    #[test]
    fn another_spelling_of_a_token_names_nobody() {
        let long = "a".repeat(MAX_BYTES + 1);
        for token in [
            "", "=", "a=", "=7", "a=7c", "=7c", "=41", "=34=32", "=5F", "=2D", "=20", "=00", "=FF",
            "=C3=A4", "=XY", "=7CX=", "==", "=3D=", "a.b", "a|b", "a b", "ä", "*", ">", &long,
        ] {
            assert_eq!(UserId::from_token(token), None, "{token:?}");
        }
    }

    #[test]
    fn what_is_no_printable_ascii_or_too_long_is_refused() {
        let long = "a".repeat(MAX_BYTES + 1);
        for text in ["", "a b", " ", "ä", "a\n", "\0", "\u{7f}", "a\u{a0}", &long] {
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
