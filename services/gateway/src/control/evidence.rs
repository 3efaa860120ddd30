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
        None if says(&text, &id) => Whose::Theirs,
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

fn says(event: &str, id: &str) -> bool {
    ids(event).any(|named| named == id)
}

/// Every id after `"user_id":`.
fn ids(event: &str) -> impl Iterator<Item = &str> {
    event.split("\"user_id\"").skip(1).filter_map(|rest| {
        let value = rest.trim_start().strip_prefix(':')?.trim_start();
        let value = value.strip_prefix('"').unwrap_or(value);
        let no_id = |symbol: char| !(symbol.is_ascii_alphanumeric() || "_-".contains(symbol));
        let id = value.split(no_id).next()?;
        id.parse::<UserId>().is_ok().then_some(id)
    })
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
}
