//! Invalid events are refused: over HTTP with a problem document, over NATS as a dead letter with the
//! original bytes. Neither holds up what comes after.

#![allow(clippy::unwrap_used, reason = "a test fails where its set-up fails")]

use async_nats::jetstream::message::PublishMessage;
use serde_json::json;
use usersync_core::event::{MAX_EVENT_BYTES, MAX_EVENT_ITEMS, MAX_EVENT_MEMBERS};
use usersync_core::subjects::{self, INTAKE, USER_EVENTS, USER_REFUSED, header};

use crate::intake::{Intake, header_of};

/// What the server's `max_payload` allows in nats.conf.
const MAX_PAYLOAD: usize = 1024 * 1024;

/// An invalid event, and how it is refused.
struct Case {
    name: &'static str,
    subject: &'static str,
    body: Vec<u8>,
    pointer: &'static str,
    /// Part of the reason.
    reason: &'static str,
}

fn case(
    name: &'static str,
    subject: &'static str,
    body: impl Into<Vec<u8>>,
    pointer: &'static str,
    reason: &'static str,
) -> Case {
    Case {
        name,
        subject,
        body: body.into(),
        pointer,
        reason,
    }
}

/// A valid event that is exactly `bytes` long.
fn event_of(bytes: usize) -> String {
    let empty = json!({"user_id": 1, "data": {"fill": ""}}).to_string();
    json!({"user_id": 1, "data": {"fill": "x".repeat(bytes - empty.len())}}).to_string()
}

/// `levels` arrays, one in the other.
fn nested(levels: usize) -> String {
    format!(
        r#"{{"user_id":1,"data":{}{}}}"#,
        "[".repeat(levels),
        "]".repeat(levels)
    )
}

fn wide_array() -> String {
    json!({"user_id": 1, "data": vec![0; MAX_EVENT_ITEMS + 1]}).to_string()
}

fn wide_object() -> String {
    let members = (0..=MAX_EVENT_MEMBERS).map(|member| (member.to_string(), json!(0)));
    json!({"user_id": 1, "data": serde_json::Map::from_iter(members)}).to_string()
}

fn cases() -> Vec<Case> {
    const CREATED: &str = "user.created";
    let not_an_id = "must be an integer from 0";
    vec![
        case("cut off", CREATED, r#"{"user_id":1,"#, "", "not JSON"),
        case("no text", CREATED, b"\xff\xfe\x00", "", "not JSON"),
        case("nothing", CREATED, "", "", "not JSON"),
        case(
            "two documents",
            CREATED,
            r#"{"user_id":1}{}"#,
            "",
            "not JSON",
        ),
        case("no object", CREATED, "[1]", "", "must be a JSON object"),
        case(
            "unknown type",
            "user.exploded",
            r#"{"user_id":1}"#,
            "",
            "names no event type",
        ),
        case(
            "unknown type within",
            CREATED,
            r#"{"user_id":1,"type":"user.exploded"}"#,
            "/type",
            "must be one of",
        ),
        case(
            "another type than the subject's",
            "user.updated",
            r#"{"user_id":1,"type":"user.deleted"}"#,
            "/type",
            "the subject says user.updated",
        ),
        case(
            "no user_id",
            CREATED,
            r#"{"username":"ann"}"#,
            "/user_id",
            "is required",
        ),
        case(
            "null user_id",
            CREATED,
            r#"{"user_id":null}"#,
            "/user_id",
            not_an_id,
        ),
        case(
            "user_id with a control character",
            CREATED,
            r#"{"user_id":"a\u0000b"}"#,
            "/user_id",
            not_an_id,
        ),
        case(
            "user_id beyond ASCII",
            CREATED,
            r#"{"user_id":"zoë"}"#,
            "/user_id",
            not_an_id,
        ),
        case(
            "user_id with a space",
            CREATED,
            r#"{"user_id":"a b"}"#,
            "/user_id",
            not_an_id,
        ),
        case(
            "empty user_id",
            CREATED,
            r#"{"user_id":""}"#,
            "/user_id",
            not_an_id,
        ),
        case(
            "negative user_id",
            CREATED,
            r#"{"user_id":-1}"#,
            "/user_id",
            not_an_id,
        ),
        case(
            "broken user_id",
            CREATED,
            r#"{"user_id":1.5}"#,
            "/user_id",
            not_an_id,
        ),
        case(
            "too large",
            CREATED,
            event_of(MAX_EVENT_BYTES + 1),
            "",
            "at most 262144",
        ),
        case("deep", CREATED, nested(40), "", "nested deeper than 32"),
        case(
            "long array",
            CREATED,
            wide_array(),
            "",
            "more than 10000 items",
        ),
        case(
            "wide object",
            CREATED,
            wide_object(),
            "",
            "more than 1000 members",
        ),
        case(
            "username of another kind",
            CREATED,
            r#"{"user_id":1,"username":7}"#,
            "/username",
            "must be a string",
        ),
        case(
            "timestamp without an offset",
            CREATED,
            r#"{"user_id":1,"timestamp":"2026-01-31"}"#,
            "/timestamp",
            "RFC 3339",
        ),
        case(
            "id with a space",
            CREATED,
            r#"{"user_id":1,"id":"a b"}"#,
            "/id",
            "printable ASCII",
        ),
    ]
}

#[tokio::test]
async fn every_invalid_event_becomes_exactly_one_dead_letter_and_holds_up_nothing() {
    let intake = Intake::start().await;
    let cases = cases();
    let mut published = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let seq = intake.publish(case.subject, case.body.clone()).await;
        published.push((seq, case));
        // A valid event after each of them.
        intake
            .publish_json("user.created", json!({"user_id": 1_000 + number}))
            .await;
    }
    intake.all_taken_in().await;

    let letters = intake.dead_letters().await;
    for (seq, case) in &published {
        let subject = format!("user.refused.{seq}");
        let letter = letters
            .iter()
            .find(|letter| letter.subject.as_str() == subject)
            .unwrap_or_else(|| panic!("{}: no dead letter {subject}", case.name));
        let told = |name| header_of(&letter.headers, name);
        assert_eq!(
            letter.payload, case.body,
            "{}: the original bytes",
            case.name
        );
        assert_eq!(told(header::CLASS), "invalid", "{}", case.name);
        assert_eq!(told(header::SUBJECT), case.subject, "{}", case.name);
        assert_eq!(told(header::POINTER), case.pointer, "{}", case.name);
        let reason = told(header::REASON);
        assert!(reason.contains(case.reason), "{}: {reason}", case.name);
    }
    // One each, and none was stored twice: the stream never gave another sequence.
    let count = cases.len() as u64;
    assert_eq!(intake.size(USER_REFUSED).await, (count, count));
    assert_eq!(intake.counted("refused").await, cases.len() as f64);

    let states = intake.states().await;
    assert_eq!(
        states.len(),
        cases.len(),
        "only the valid events have a state"
    );
    for number in 0..cases.len() as u64 {
        assert!(states.contains_key(&(1_000 + number).into()), "{number}");
    }
}

#[tokio::test]
async fn nesting_too_deep_for_the_parser_is_named_as_such() {
    let intake = Intake::start().await;
    let seq = intake.publish("user.created", nested(50_000)).await;
    intake.all_taken_in().await;
    let letters = intake.dead_letters().await;
    assert_eq!(letters[0].subject.as_str(), subjects::refused_event(seq));
    let reason = header_of(&letters[0].headers, header::REASON);
    assert!(
        reason.contains("nested"),
        "it is valid JSON, but the reason is: {reason}"
    );
}

#[tokio::test]
async fn an_event_as_large_as_the_server_takes_is_refused_like_any_other() {
    let intake = Intake::start().await;
    let large = vec![b'x'; MAX_PAYLOAD];
    let seq = intake.publish("user.created", large.clone()).await;
    intake
        .publish_json("user.created", json!({"user_id": 42}))
        .await;
    intake.all_taken_in().await;

    let letters = intake.dead_letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].subject.as_str(), subjects::refused_event(seq));
    // With its headers it may not fit into one message: USER_EVENTS still has all of it.
    assert!(large.starts_with(&letters[0].payload));
    let reason = header_of(&letters[0].headers, header::REASON);
    assert!(reason.contains("at most 262144"), "{reason}");
    assert!(intake.state_message("42").await.is_some());
}

#[tokio::test]
async fn an_event_of_exactly_the_size_limit_is_taken() {
    let intake = Intake::start().await;
    intake
        .publish("user.created", event_of(MAX_EVENT_BYTES))
        .await;
    let state = intake.state("1").await;
    assert!(state.data["fill"].as_str().unwrap().len() > MAX_EVENT_BYTES - 100);
    assert_eq!(intake.size(USER_REFUSED).await, (0, 0));
}

#[tokio::test]
async fn over_http_every_invalid_event_is_answered_with_its_problem() {
    let intake = Intake::start().await;
    let mut checked = 0;
    for case in cases() {
        // Over HTTP the document itself has to say its type.
        let Some(body) = with_type(&case) else {
            let answer = intake.post_raw("application/json", case.body).await;
            answer.is_problem(400, "", case.name);
            continue;
        };
        let (status, pointer) = match case.name {
            "too large" => (413, ""),
            "unknown type" => (422, "/type"),
            // There is no subject to contradict, and an array is an array of events.
            "another type than the subject's" | "no object" => continue,
            _ => (422, case.pointer),
        };
        let answer = intake.post_raw("application/json", body).await;
        answer.is_problem(status, pointer, case.name);
        if status == 422 && case.name != "unknown type" {
            let detail = answer.body["detail"].as_str().unwrap();
            assert!(detail.contains(case.reason), "{}: {detail}", case.name);
        }
        checked += 1;
    }
    assert_eq!(checked, 17);
    assert_eq!(intake.size(USER_EVENTS).await, (0, 0), "nothing was stored");

    let answer = intake.post_raw("text/plain", "{}").await;
    answer.is_problem(415, "", "another content type");
    let many: Vec<_> = (0..1_001).map(|id| json!({"user_id": id})).collect();
    let answer = intake.post(&many.into()).await;
    answer.is_problem(413, "", "too many events");
    let answer = intake
        .post_raw("application/json", vec![b' '; 8 * 1024 * 1024 + 1])
        .await;
    answer.is_problem(413, "", "too large a body");
    let answer = intake
        .post(&json!([{"type": "user.created", "user_id": 1, "data": "x".repeat(MAX_EVENT_BYTES)}]))
        .await;
    assert_eq!(answer.status, 422, "{answer:?}");
    assert!(
        answer.body["results"][0]["detail"]
            .as_str()
            .unwrap()
            .contains("at most 262144")
    );
    let answer = intake
        .post(&json!({"type": "user.created", "user_id": 1}))
        .await;
    assert_eq!(answer.status, 202, "{answer:?}");
}

/// The body of a case with the type its subject says; `None` where it is no JSON.
fn with_type(case: &Case) -> Option<String> {
    let mut document: serde_json::Value = serde_json::from_slice(&case.body).ok()?;
    if let Some(members) = document.as_object_mut() {
        members.entry("type").or_insert_with(|| case.subject.into());
    }
    Some(document.to_string())
}

#[tokio::test]
async fn only_the_event_that_makes_a_state_too_large_is_refused() {
    let intake = Intake::start().await;
    let fill = |member: &str| json!({"user_id": 1, "data": {member: "x".repeat(200_000)}});
    intake.publish_json("user.created", fill("a")).await;
    intake.publish_json("user.updated", fill("b")).await;
    let too_much = intake.publish_json("user.updated", fill("c")).await;
    let small = json!({"user_id": 1, "username": "ann"});
    let last = intake.publish_json("user.updated", small).await;

    let state = intake.state("1").await;
    let members: Vec<_> = state.data.as_object().unwrap().keys().collect();
    assert_eq!(members, ["a", "b"]);
    assert_eq!(state.username.as_deref(), Some("ann"));
    assert_eq!(state.event_seq, last);

    let letters = intake.dead_letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!(
        letters[0].subject.as_str(),
        subjects::refused_event(too_much)
    );
    assert_eq!(letters[0].payload, fill("c").to_string());
    assert_eq!(header_of(&letters[0].headers, header::CLASS), "invalid");
    let reason = header_of(&letters[0].headers, header::REASON);
    assert!(reason.contains("at most 524288"), "{reason}");
}

/// What a direct get answers when somebody has the answer sent to the subject of an event: an old event, which would be
/// merged a second time.
#[tokio::test]
async fn what_jetstream_wrote_is_no_event() {
    let intake = Intake::start().await;
    let answer = serde_json::to_vec(&json!({"user_id": 42, "username": "old"})).unwrap();
    let mut published = Vec::new();
    for name in [
        "Nats-Stream",
        "Nats-Sequence",
        "Nats-Subject",
        "Nats-Time-Stamp",
        "Nats-Last-Sequence",
    ] {
        let message = PublishMessage::build().payload(answer.clone().into());
        let sent = intake.publish_message("user.created", message.header(name, "1"));
        published.push((sent.await.sequence, name));
    }
    intake.all_taken_in().await;
    let letters = intake.dead_letters().await;
    assert_eq!(letters.len(), published.len());
    for (letter, (seq, name)) in letters.iter().zip(&published) {
        assert_eq!(letter.subject.as_str(), subjects::refused_event(*seq));
        assert_eq!(letter.payload, answer, "nothing that was promised is lost");
        let reason = header_of(&letter.headers, header::REASON);
        assert!(reason.contains(name), "{reason}");
    }
    assert!(intake.state_message("42").await.is_none());
}

#[tokio::test]
async fn an_event_that_is_refused_again_is_kept_once() {
    let intake = Intake::start().await;
    let seq = intake.publish("user.created", r#"{"user_id":null}"#).await;
    intake.all_taken_in().await;
    let first = intake.dead_letters().await;
    assert_eq!(first.len(), 1);
    // As after a gateway that died before it acknowledged.
    let events = intake.stream(USER_EVENTS).await;
    events.reset_consumer(INTAKE, Some(seq)).await.unwrap();
    intake
        .publish_json("user.created", json!({"user_id": 1}))
        .await;
    intake.all_taken_in().await;
    // In its place another copy would have another sequence, and the bytes of the first would stay on the disk.
    let again = intake.dead_letters().await;
    assert_eq!((again.len(), again[0].sequence), (1, first[0].sequence));
    assert_eq!(intake.size(USER_REFUSED).await.1, first[0].sequence);
}
