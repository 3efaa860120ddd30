//! Reading what USER_STATE holds of a user. A body about somebody else than its subject is no state, whoever stored it:
//! a target would be told of one user under the name of another.

use async_nats::Message;

use crate::{json, state::State, subjects, user_id::UserId};

/// Why what is stored is no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It isn't JSON, or not that of a state.
    #[error("line {line} column {column}")]
    Malformed {
        /// Where.
        line: usize,
        /// Where in it.
        column: usize,
    },
    /// Its `user_id` isn't that of the subject.
    #[error("its user_id isn't that of its subject")]
    OfAnother,
}

/// The state of `user_id`.
///
/// # Errors
/// When it is none, or of another user.
pub fn read(user_id: &UserId, payload: &[u8]) -> Result<State, Unreadable> {
    let state: State = json::read(payload).map_err(|error| Unreadable::Malformed {
        line: error.line(),
        column: error.column(),
    })?;
    match state.user_id == *user_id {
        true => Ok(state),
        false => Err(Unreadable::OfAnother),
    }
}

/// The state that a message of USER_STATE holds, `None` when that is none.
pub fn of_message(message: &Message) -> Option<State> {
    let user_id = subjects::user_of_state(&message.subject)?;
    read(&user_id, &message.payload).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_about_somebody_else_than_its_subject_is_none() {
        let stored = br#"{"user_id":42,"deleted":false,"version":1,"event_seq":1,"event":
            {"id":"1","type":"user.created","timestamp":"2026-01-01T00:00:00Z","stored_us":1}}"#;
        let of = |user: &str| read(&user.parse().unwrap(), stored);
        let state = of("42").unwrap();
        assert_eq!(state.user_id, "42".parse().unwrap());
        assert_eq!(of("43").unwrap_err(), Unreadable::OfAnother);
        assert!(matches!(
            read(&state.user_id, b"{").unwrap_err(),
            Unreadable::Malformed { line: 1, .. }
        ));
    }
}
