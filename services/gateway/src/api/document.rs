//! The body of `POST /v1/events`, taken apart without building more in memory than is going to be used.

use std::fmt;

use axum::http::StatusCode;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, SeqAccess, Visitor},
};
use serde_json::{Value, value::RawValue};
use usersync_core::{
    event::{self, MAX_EVENT_BYTES},
    json,
    number::Beyond,
};

use crate::problem::Problem;

/// The most events in one request.
pub(super) const MOST_EVENTS: usize = 1_000;

/// What came: one document, or many that aren't parsed yet.
pub(super) enum Documents<'a> {
    One(Value),
    Many(Vec<&'a RawValue>),
}

impl<'a> Documents<'a> {
    /// Reads a body; what is too large is refused before it is parsed.
    pub(super) fn of(body: &'a [u8]) -> Result<Self, Problem> {
        let body = json::unmarked(body);
        if body.trim_ascii_start().first() != Some(&b'[') {
            let document = document(body, StatusCode::PAYLOAD_TOO_LARGE)?;
            return Ok(Self::One(document));
        }
        match serde_json::from_slice(body) {
            Ok(Few(documents)) => Ok(Self::Many(documents)),
            Err(error) if error.is_data() => Err(Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the array has more than {MOST_EVENTS} events; send it in parts"),
            )),
            Err(error) => Err(not_json(&error)),
        }
    }
}

/// Parses one document of an array.
pub(super) fn item(text: &RawValue) -> Result<Value, Problem> {
    document(text.get().as_bytes(), StatusCode::UNPROCESSABLE_ENTITY)
}

/// Parses one document, unless it is too large: then it is refused with the status `large`.
fn document(text: &[u8], large: StatusCode) -> Result<Value, Problem> {
    if text.len() > MAX_EVENT_BYTES {
        let bytes = text.len();
        let detail = format!("the event has {bytes} bytes; at most {MAX_EVENT_BYTES} are taken");
        return Err(Problem::new(large, detail));
    }
    let value = json::value(text).map_err(|error| not_json(&error))?;
    event::check_integers(text, &value, Beyond::All)?;
    Ok(value)
}

fn not_json(error: &serde_json::Error) -> Problem {
    let detail = format!("the body {}", event::not_json(error).reason);
    Problem::new(StatusCode::BAD_REQUEST, detail)
}

/// An array of at most [`MOST_EVENTS`]; reading ends at the first too many.
struct Few<'a>(Vec<&'a RawValue>);

impl<'de> Deserialize<'de> for Few<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reading;

        impl<'de> Visitor<'de> for Reading {
            type Value = Few<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of events")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Few<'de>, A::Error> {
                let mut documents = Vec::new();
                while let Some(document) = items.next_element()? {
                    if documents.len() == MOST_EVENTS {
                        return Err(A::Error::custom("too many"));
                    }
                    documents.push(document);
                }
                Ok(Few(documents))
            }
        }

        deserializer.deserialize_seq(Reading)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &[u8]) -> (u16, String) {
        match Documents::of(body) {
            Ok(_) => panic!("taken"),
            Err(problem) => (problem.status.as_u16(), problem.detail.into_owned()),
        }
    }

    #[test]
    fn arrays_are_taken_apart_and_others_are_one_document() {
        let Ok(Documents::Many(items)) = Documents::of(b" \n[{\"a\": 1}, 7, [[]]]") else {
            panic!("no array")
        };
        let texts: Vec<_> = items.iter().map(|item| item.get()).collect();
        assert_eq!(texts, ["{\"a\": 1}", "7", "[[]]"]);
        assert!(matches!(Documents::of(b"7"), Ok(Documents::One(_))));
        for body in ["", "[", "[1,]", "{\"a\"", "[1] 2", "\u{fe}"] {
            assert_eq!(refused(body.as_bytes()).0, 400, "{body}");
        }
        assert_eq!(refused(b"[\"\xff\"]").0, 400);
        let marked = |body: &str| format!("\u{feff}{body}").into_bytes();
        assert!(matches!(
            Documents::of(&marked("[7]")),
            Ok(Documents::Many(_))
        ));
        assert!(matches!(Documents::of(&marked("7")), Ok(Documents::One(_))));
    }

    #[test]
    fn an_integer_beyond_64_bits_is_refused_where_it_is() {
        let refused = |body: &str| match Documents::of(body.as_bytes()) {
            Err(problem) => problem,
            Ok(Documents::Many(items)) => item(items[0]).unwrap_err(),
            Ok(Documents::One(_)) => panic!("taken"),
        };
        for body in [
            r#"{"data": {"n": 18446744073709551616}}"#,
            r#"[{"data": {"n": -9223372036854775809}}]"#,
        ] {
            let problem = refused(body);
            assert_eq!(problem.status, 422, "{body}");
            assert_eq!(problem.pointer.as_deref(), Some("/data/n"), "{body}");
        }
    }

    #[test]
    fn what_is_too_much_ends_before_it_is_parsed() {
        // Broken behind the limit: only who goes on would see it.
        let many = format!("[{}", "1,".repeat(MOST_EVENTS + 1));
        assert_eq!(refused(many.as_bytes()).0, 413);
        let large = format!("{{\"a\": \"{}", "x".repeat(MAX_EVENT_BYTES));
        assert_eq!(refused(large.as_bytes()).0, 413);
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let Ok(Documents::Many(items)) = Documents::of(deep.as_bytes()) else {
            panic!("no array")
        };
        let problem = item(items[0]).unwrap_err();
        assert_eq!(problem.status, 400);
        assert!(
            problem.detail.contains("nested deeper"),
            "{}",
            problem.detail
        );
    }
}
