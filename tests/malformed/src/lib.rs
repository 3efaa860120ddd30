//! What every parser has to stand, whatever it is given: it takes what is right, refuses everything else with an error
//! that quotes nothing of it, and never panics.
//!
//! One function for each parser, which says whether the input was taken. The tests of this package call them with inputs made from `corpus`, the programs in
//! `tests/fuzz` with what libFuzzer comes up with.
#![allow(
    clippy::panic,
    reason = "a property that doesn't hold is a panic, as fuzzers expect it"
)]

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Request, StatusCode},
};
use jiff::Timestamp;
use serde_json::Value;
use tower::ServiceExt as _;
use usersync_core::{
    alert::Alert,
    catalogue,
    check::Request as CheckRequest,
    event::{Envelope, Event, MAX_EVENT_BYTES},
    state::State,
    subjects,
};
use usersync_receiver::{Applied, Delivery, Options, Senders, StoreError, UserStore};

/// The longest error that is still one: what is longer repeats what it was given.
const LONGEST_ERROR: usize = 2_000;
/// Signs the deliveries in `corpus/signature`, whose time has long passed: none may be taken.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// An event from a subject or a request. One that is taken says the same after it was written and read again, and
/// can be applied to a state.
pub fn event(input: &[u8]) -> bool {
    let envelope = Envelope {
        kind: None,
        id: Some("id".to_owned()),
        timestamp: Some(Timestamp::UNIX_EPOCH),
    };
    let event = match Event::parse(input, envelope) {
        Ok(event) => event,
        Err(error) => {
            is_short(&error.to_string());
            return false;
        }
    };
    assert!(input.len() <= MAX_EVENT_BYTES, "it was too long");
    let written = serde_json::to_vec(&event).expect("an event can be written");
    let again = Event::parse(&written, Envelope::default()).expect("and read again");
    assert_eq!(again, event);
    let made = State::of_one(&event, 1, 1);
    let written = serde_json::to_vec(&made).expect("a state can be written");
    assert!(state(&written), "and read again");
    true
}

/// A state from USER_STATE. One that is read says the same after it was written and read again.
pub fn state(input: &[u8]) -> bool {
    let Ok(state) = State::read(input) else {
        return false;
    };
    let written = serde_json::to_vec(&state).expect("a state can be written");
    let again: State = serde_json::from_slice(&written).expect("and read again");
    assert_eq!(again, state);
    true
}

/// An alert from USER_ALERT. One that is read says the same after it was written and read again.
pub fn alert(input: &[u8]) -> bool {
    let Ok(alert) = serde_json::from_slice::<Alert>(input) else {
        return false;
    };
    let written = serde_json::to_vec(&alert).expect("an alert can be written");
    let again: Alert = serde_json::from_slice(&written).expect("and read again");
    assert_eq!(again, alert);
    true
}

/// A request for a check. One that is taken says the same after it was written and read again.
pub fn check(input: &[u8]) -> bool {
    let request = match CheckRequest::read(input) {
        Ok(request) => request,
        Err(error) => {
            is_short(&error);
            return false;
        }
    };
    let written = serde_json::to_vec(&request).expect("a request can be written");
    let again = CheckRequest::read(&written).expect("and read again");
    assert_eq!(again, request);
    true
}

/// An entry of the target catalogue. One that is taken is still right after it was written and read again.
pub fn target(input: &[u8]) -> bool {
    let Ok(entry) = serde_json::from_slice::<Value>(input) else {
        return false;
    };
    match catalogue::entry("fuzzed", entry) {
        Ok(target) => {
            let written = serde_json::to_value(&target).expect("a target can be written");
            let again = catalogue::entry("fuzzed", written).expect("and read again");
            assert_eq!(again, target);
            true
        }
        Err(problems) => {
            assert!(!problems.is_empty(), "it was refused for no reason");
            problems.iter().for_each(|problem| is_short(problem));
            false
        }
    }
}

/// A subject. What is read from one makes the same subject again.
pub fn subject(input: &[u8]) -> bool {
    let Ok(subject) = std::str::from_utf8(input) else {
        return false;
    };
    let user = subjects::user_of_state(subject).map(|user| subjects::state(&user));
    let repair = subjects::of_repair(subject);
    let repair = repair.map(|(target, user)| subjects::repair(&target, &user));
    let letter = subjects::of_dead_letter(subject);
    let letter = letter.map(|(target, user)| subjects::dead_letter(&target, &user));
    let refused = subjects::seq_of_refused(subject).map(subjects::refused_event);
    let event = subjects::event_type(subject).map(|kind| kind.to_string());
    let check = subjects::target_of_check(subject).map(subjects::check);
    // "042" is no other way to write 42: there is one subject for each user.
    let read = [user, repair, letter, refused, event, check];
    read.iter()
        .flatten()
        .for_each(|again| assert_eq!(again, subject));
    read.iter().any(Option::is_some)
}

/// A signed delivery: the headers `webhook-id`, `webhook-timestamp` and `webhook-signature` in a line each, then the
/// body. None is taken, for whoever made it doesn't know the secret.
pub async fn signature(input: &[u8]) {
    let mut parts = input.splitn(4, |octet| *octet == b'\n');
    let mut next = || parts.next().unwrap_or_default();
    let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
    let mut request = Request::post("/").header("content-type", "application/json");
    for name in names {
        if let Ok(value) = HeaderValue::from_bytes(next()) {
            request = request.header(name, value);
        }
    }
    let request = request.body(Body::from(next().to_vec()));
    let request = request.expect("a request can be made of that");
    let answer = receiver().oneshot(request).await.expect("it answers");
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
}

fn receiver() -> Router {
    let options = Options::new(Senders::Signed(vec![SECRET.into()]));
    usersync_receiver::router(Unreached, options).expect("the secret is one")
}

/// A store that nothing may come to.
struct Unreached;

impl UserStore for Unreached {
    async fn apply(&self, _: Delivery) -> Result<Applied, StoreError> {
        panic!("a delivery with a wrong signature was taken")
    }
}

fn is_short(error: &str) {
    let length = error.len();
    assert!(
        length > 0 && length < LONGEST_ERROR,
        "an error of {length} octets"
    );
}
