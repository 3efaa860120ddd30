//! Whose an event is, told from its bytes alone, also where they are no valid event.

use usersync_core::user_id::UserId;

/// Whose an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// The user's that was asked about.
    Theirs,
    /// Another user's.
    Others,
    /// Nobody can tell: it names no user as users are named.
    Unclear,
}

/// Whether an event is about `user`.
///
/// What is no JSON is theirs when it says `"user_id": ID` anywhere: it was refused, so nothing follows from it, and rather
/// too much is taken for theirs than too little.
pub(super) fn whose(event: &[u8], user: &UserId) -> Whose {
    let id = user.to_string();
    // Most events are others', and reading JSON takes a while; a backslash may spell an id in another way.
    let may_be_theirs = contains(event, id.as_bytes()) || event.contains(&b'\\');
    let text = String::from_utf8_lossy(event);
    let named: Option<serde_json::Value> = match may_be_theirs {
        true => serde_json::from_str(&text).ok(),
        false => return elsewhere(&text),
    };
    match named {
        Some(event) => match event.get("user_id").map(UserId::try_from) {
            Some(Ok(named)) if named == *user => Whose::Theirs,
            Some(Ok(_)) => Whose::Others,
            Some(Err(_)) | None => Whose::Unclear,
        },
        None if says(&text, user) => Whose::Theirs,
        None => elsewhere(&text),
    }
}

/// Of an event that isn't theirs: whether it says whose it is.
fn elsewhere(event: &str) -> Whose {
    match ids(event).next() {
        Some(_) => Whose::Others,
        None => Whose::Unclear,
    }
}

fn says(event: &str, user: &UserId) -> bool {
    ids(event).any(|named| named == *user)
}

/// Every id after `"user_id":`.
fn ids(event: &str) -> impl Iterator<Item = UserId> {
    event.split("\"user_id\"").skip(1).filter_map(|rest| {
        let value = rest.trim_start().strip_prefix(':')?.trim_start();
        match value.strip_prefix('"') {
            Some(text) => unquoted(text).parse().ok(),
            None => {
                let no_id = |symbol: char| !symbol.is_ascii_alphanumeric();
                value.split(no_id).next()?.parse().ok()
            }
        }
    })
}

/// What stands before the quote that ends a JSON string, or before what can't be in an id, with its escapes read.
fn unquoted(text: &str) -> String {
    let mut escaped = false;
    let end = text.find(|symbol: char| {
        let ends = !symbol.is_ascii_graphic() || (symbol == '"' && !escaped);
        escaped = symbol == '\\' && !escaped;
        ends
    });
    let raw = &text[..end.unwrap_or(text.len())];
    serde_json::from_str(&format!("\"{raw}\"")).unwrap_or_else(|_| raw.to_owned())
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_theirs_however_it_is_written() {
        let user: UserId = "42".parse().unwrap();
        for event in [
            &br#"{"user_id": 42}"#[..],
            br#"{"email": "a@x", "user_id": "42"}"#,
            br#"{"user_id": "\u0034\u0032"}"#,
            br#"{"user_id": 7, "user_id": 42}"#,
            b"{\"user_id\": 42, \"email\": \"\xff\"}",
            br#"{"user_id" : "42", "email": "a@x"#,
            br#"{"user_id":42,"email":"a@x"#,
        ] {
            let text = String::from_utf8_lossy(event);
            assert_eq!(whose(event, &user), Whose::Theirs, "{text}");
        }
        for event in [
            &br#"{"user_id": 420}"#[..],
            br#"{"user_id": 7, "data": {"user_id": 42}}"#,
            br#"{"user_id": 42, "user_id": 7}"#,
            br#"{"user_id": "a42", "email": "#,
            br#"{"user_id": 7, "email": "a@x"}"#,
        ] {
            let text = String::from_utf8_lossy(event);
            assert_eq!(whose(event, &user), Whose::Others, "{text}");
        }
        for event in [
            &b""[..],
            b"42",
            b"[42]",
            br#"{"user_id": 42.5}"#,
            b"{\"email\": \"a@x",
        ] {
            let text = String::from_utf8_lossy(event);
            assert_eq!(whose(event, &user), Whose::Unclear, "{text}");
        }
    }

    #[test]
    fn ids_of_any_spelling_are_found_in_what_is_no_json() {
        for (id, event) in [
            ("auth0|6f", &br#"{"user_id":"auth0|6f","email":"a@x"#[..]),
            (
                "jane@x.org",
                b"{\"user_id\": \"jane@x.org\", \"email\": \"\xff\"}",
            ),
            ("a\"b", br#"{"user_id":"a\"b","email":"#),
            ("a\\", br#"{"user_id":"a\\","email":"#),
            ("a\\", br#"{"user_id":"a\u005c","email":"#),
            ("a\"b", br#"{"user_id":"a\"b"}"#),
        ] {
            let user = id.parse().unwrap();
            let text = String::from_utf8_lossy(event);
            assert_eq!(whose(event, &user), Whose::Theirs, "{text}");
        }
        let user = "auth0|6f".parse().unwrap();
        for event in [
            &br#"{"user_id":"auth0|6F","email":"#[..],
            br#"{"user_id":"auth0","x":"auth0|6f"#,
        ] {
            let text = String::from_utf8_lossy(event);
            assert_eq!(whose(event, &user), Whose::Others, "{text}");
        }
    }
}
