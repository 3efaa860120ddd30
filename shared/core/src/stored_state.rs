//! Reading what USER_STATE holds of a user. A body about somebody else than its subject is no state, whoever stored it:
//! a target would be told of one user under the name of another.

use async_nats::Message;

use crate::{
    state::{State, Unreadable},
    subjects,
    user_id::UserId,
};

/// The state of `user_id`.
///
/// # Errors
/// When it is none, of another user, or only a newer program understands it.
pub fn read(user_id: &UserId, payload: &[u8]) -> Result<State, Unreadable> {
    match State::read(payload)? {
        state if state.user_id == *user_id => Ok(state),
        _ => Err(Unreadable::OfAnother),
    }
}

/// The state of `user_id`, `None` for what is none: who writes states puts one in its place.
///
/// # Errors
/// When only a newer program understands it: it must not be replaced.
pub fn unless_newer(user_id: &UserId, payload: &[u8]) -> Result<Option<State>, Unreadable> {
    match read(user_id, payload) {
        Ok(state) => Ok(Some(state)),
        Err(newer @ Unreadable::Newer(_)) => Err(newer),
        Err(Unreadable::NoState(_) | Unreadable::Beyond | Unreadable::OfAnother) => Ok(None),
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
        assert!(matches!(of("43"), Err(Unreadable::OfAnother)));
        let broken = read(&state.user_id, b"{");
        assert!(matches!(broken, Err(Unreadable::NoState(_))));
        for nobody in [&b"{"[..], b"{}"] {
            assert!(unless_newer(&state.user_id, nobody).unwrap().is_none());
        }
        let newer = unless_newer(&state.user_id, br#"{"format":99}"#);
        assert!(matches!(newer, Err(Unreadable::Newer(99))));
    }
}
