//! Events come in over HTTP and NATS and become states.

#![allow(clippy::unwrap_used, reason = "a test fails where its set-up fails")]

use async_nats::jetstream::{message::PublishMessage, stream};
use reqwest::Method;
use serde_json::{Value, json};
use usersync_core::event::EventType;
use usersync_core::event_key::EventKey;
use usersync_core::subjects::{USER_EVENTS, USER_STATE};

use crate::intake::{Answer, Intake, assert_problem, header_of};

fn ann() -> Value {
    json!({
        "id": "e-1", "type": "user.created", "user_id": 42, "username": "ann", "email": "ann@example.com",
        "data": {"phone": "1"}, "timestamp": "2026-01-31T12:00:00Z", "source": "basic-server",
    })
}

#[tokio::test]
async fn an_event_posted_is_stored_and_becomes_the_state_of_its_user() {
    let intake = Intake::start().await;
    let answer = intake.post(&ann()).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let seq = answer.body["seq"].as_u64().unwrap();
    assert_eq!(
        answer.body,
        json!({"id": "e-1", "seq": seq, "duplicate": false})
    );

    let events = intake.stream(USER_EVENTS).await;
    let stored = events.get_raw_message(seq).await.unwrap();
    assert_eq!(stored.subject.as_str(), "user.created");
    let key = EventKey::new(Some("basic-server"), "e-1");
    assert_eq!(header_of(&stored.headers, "Nats-Msg-Id"), key.message_id());
    let event: Value = serde_json::from_slice(&stored.payload).unwrap();
    assert_eq!(event, ann());

    let state = intake.state("42").await;
    assert_eq!(state.username.as_deref(), Some("ann"));
    assert_eq!(state.email.as_deref(), Some("ann@example.com"));
    assert_eq!(state.data, json!({"phone": "1"}));
    assert_eq!((state.deleted, state.partial), (false, false));
    assert_eq!(state.event_seq, seq);
    assert_eq!(state.event.id, "e-1");
    assert_eq!(state.event.kind, EventType::Created);
    assert_eq!(state.event.source.as_deref(), Some("basic-server"));
    assert_eq!(state.event.timestamp.to_string(), "2026-01-31T12:00:00Z");
    assert!(state.seen.contains(&key));
    assert!(
        state.version > 1_700_000_000_000_000 && state.version < 1 << 53,
        "{}",
        state.version
    );

    let shown = intake.get("/v1/users/42").await;
    assert_eq!(
        (shown.status, shown.header("content-type")),
        (200, "application/json")
    );
    assert_eq!(shown.body, serde_json::to_value(&state).unwrap());
}

#[tokio::test]
async fn an_event_posted_may_leave_out_id_and_timestamp() {
    let intake = Intake::start().await;
    let answer = intake
        .post(&json!({"type": "user.created", "user_id": "u-1"}))
        .await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let state = intake.state("u-1").await;
    assert_eq!(state.event.id, answer.body["id"].as_str().unwrap());
    assert!(
        !state.event.id.is_empty() && state.event.timestamp.as_second() > 1_700_000_000,
        "{state:?}"
    );
}

#[tokio::test]
async fn an_array_is_answered_item_by_item_and_stored_in_its_order() {
    let intake = Intake::start().await;
    let array = json!([
        {"id": "a", "type": "user.created", "user_id": 1, "username": "ann"},
        {"id": "b", "type": "user.exploded", "user_id": 2},
        {"id": "c", "type": "user.updated", "user_id": 1, "username": "bob"},
        {"id": "a", "type": "user.created", "user_id": 1, "username": "ann"},
    ]);
    let answer = intake.post(&array).await;
    assert_eq!(answer.status, 207, "{answer:?}");
    assert_eq!(
        (&answer.body["accepted"], &answer.body["refused"]),
        (&json!(3), &json!(1))
    );
    let results = answer.body["results"].as_array().unwrap();
    assert_eq!(
        results[0],
        json!({"status": 202, "id": "a", "seq": 1, "duplicate": false})
    );
    assert_problem(&results[1], 422, "/type", "the second item");
    assert_eq!(
        results[2],
        json!({"status": 202, "id": "c", "seq": 2, "duplicate": false})
    );
    assert_eq!(
        results[3],
        json!({"status": 202, "id": "a", "seq": 1, "duplicate": true})
    );
    assert_eq!(intake.state("1").await.username.as_deref(), Some("bob"));
    assert!(intake.state_message("2").await.is_none());

    let all_good = intake
        .post(&json!([{"type": "user.deleted", "user_id": 1}]))
        .await;
    assert_eq!(all_good.status, 202, "{all_good:?}");
    assert!(intake.state("1").await.deleted);
    let all_bad = intake
        .post(&json!([{"type": "user.deleted"}, 7, null]))
        .await;
    assert_eq!(all_bad.status, 422, "{all_bad:?}");
    assert_problem(&all_bad.body["results"][0], 422, "/user_id", "no user_id");
    assert_problem(&all_bad.body["results"][2], 422, "", "null");
    let empty = intake.post(&json!([])).await;
    assert_eq!((empty.status, &empty.body["results"]), (202, &json!([])));
}

#[tokio::test]
async fn a_cloud_event_becomes_the_state_of_its_subject() {
    let intake = Intake::start().await;
    let event = json!({
        "specversion": "1.0", "id": "ce-1", "type": "user.created", "source": "/basic-server", "subject": "42",
        "time": "2026-01-31T12:00:00Z", "datacontenttype": "application/json",
        "data": {"username": "ann", "email": "ann@example.com", "data": {"phone": "1"}},
    });
    let answer = intake
        .post_raw(
            "application/cloudevents+json; charset=utf-8",
            event.to_string(),
        )
        .await;
    assert_eq!((answer.status, &answer.body["id"]), (202, &json!("ce-1")));
    let state = intake.state("42").await;
    assert_eq!(state.username.as_deref(), Some("ann"));
    assert_eq!(state.data, json!({"phone": "1"}));
    assert_eq!(state.event.source.as_deref(), Some("/basic-server"));
    assert_eq!(state.event.timestamp.to_string(), "2026-01-31T12:00:00Z");

    let batch = json!([
        {"specversion": "1.0", "id": "ce-2", "type": "user.updated", "source": "s", "data": {"user_id": 42, "email": null}},
        {"specversion": "0.3", "id": "ce-3", "type": "user.updated", "source": "s", "subject": "42"},
    ]);
    let answer = intake
        .post_raw("application/cloudevents-batch+json", batch.to_string())
        .await;
    assert_eq!(answer.status, 207, "{answer:?}");
    assert_problem(&answer.body["results"][1], 422, "/specversion", "0.3");
    assert_eq!(intake.state("42").await.email, None);
}

#[tokio::test]
async fn an_event_published_in_full_keeps_what_it_says() {
    let intake = Intake::start().await;
    let seq = intake.publish_json("user.created", ann()).await;
    let state = intake.state("42").await;
    assert_eq!((state.event.id.as_str(), state.event_seq), ("e-1", seq));
    assert_eq!(state.event.timestamp.to_string(), "2026-01-31T12:00:00Z");
    assert_eq!(state.event.source.as_deref(), Some("basic-server"));
}

#[tokio::test]
async fn an_event_published_without_id_type_and_timestamp_takes_them_from_its_message() {
    let intake = Intake::start().await;
    let seq = intake
        .publish_json("user.created", json!({"user_id": 42}))
        .await;
    let state = intake.state("42").await;
    assert_eq!(state.event.id, seq.to_string());
    assert_eq!(state.event.kind, EventType::Created);
    let stored = &intake.events().await[0];
    let stored_us = stored.time.unix_timestamp_nanos() / 1_000;
    assert_eq!(i128::from(state.event.stored_us), stored_us);
    assert_eq!(
        i128::from(state.event.timestamp.as_microsecond()),
        stored_us
    );

    // With a message id, that is the event's.
    let message = PublishMessage::build()
        .message_id("m-1")
        .payload(r#"{"user_id":42,"username":"ann"}"#.into());
    intake.publish_message("user.updated", message).await;
    assert_eq!(intake.state("42").await.event.id, "m-1");
}

#[tokio::test]
async fn an_event_sent_twice_within_the_window_is_stored_once() {
    let intake = Intake::start().await;
    let first = intake.post(&ann()).await;
    let before = intake.state("42").await;
    let second = intake.post(&ann()).await;
    assert_eq!(
        (first.status, &first.body["duplicate"]),
        (202, &json!(false))
    );
    assert_eq!(
        (second.status, &second.body["duplicate"]),
        (202, &json!(true))
    );
    assert_eq!(second.body["seq"], first.body["seq"]);
    assert_eq!(
        intake.state("42").await,
        before,
        "one event, one state version"
    );
    assert_eq!(intake.size(USER_EVENTS).await, (1, 1));
    assert_eq!(intake.size(USER_STATE).await, (1, 1));
}

#[tokio::test]
async fn an_event_sent_again_after_the_window_is_known_by_its_id() {
    let intake = Intake::start().await;
    intake.post(&ann()).await;
    let before = intake.state("42").await;
    // The stream forgets an id after the window; another message id has the same effect at once.
    let message = PublishMessage::build()
        .message_id("something else")
        .payload(ann().to_string().into());
    let again = intake.publish_message("user.created", message).await;
    assert!(!again.duplicate);
    intake.publish_json("user.created", ann()).await;
    assert_eq!(
        intake.state("42").await,
        before,
        "one event, one state version"
    );
    assert_eq!(
        intake.size(USER_EVENTS).await.0,
        3,
        "the stream did not recognise them"
    );
    assert_eq!(intake.size(USER_STATE).await, (1, 1));
    assert_eq!(intake.counted("known").await, 2.0);
    assert_eq!(intake.counted("changed").await, 1.0);
}

#[tokio::test]
async fn nothing_is_accepted_that_jetstream_did_not_store() {
    let intake = Intake::start().await;
    assert_eq!(intake.post(&ann()).await.status, 202);
    // By then the gateway has named the epoch in the stream's metadata.
    intake.state("42").await;
    let events = intake.stream(USER_EVENTS).await;
    let config = events.get_info().await.unwrap().config;
    let full = stream::Config {
        max_messages: 1,
        ..config.clone()
    };
    intake.jetstream.update_stream(full).await.unwrap();

    let more = json!({"id": "e-2", "type": "user.updated", "user_id": 42, "username": "bob"});
    let answer = intake.post(&more).await;
    answer.is_problem(503, "", "a full stream");
    assert_eq!(answer.header("retry-after"), "1");
    let answer = intake.post(&json!([more.clone()])).await;
    assert_eq!((answer.status, &answer.body["accepted"]), (503, &json!(0)));
    assert_eq!(intake.size(USER_EVENTS).await, (1, 1));

    intake.jetstream.update_stream(config).await.unwrap();
    let answer = intake.post(&more).await;
    assert_eq!(
        (answer.status, &answer.body["duplicate"]),
        (202, &json!(false)),
        "{answer:?}"
    );
    assert_eq!(intake.state("42").await.username.as_deref(), Some("bob"));
}

#[tokio::test]
async fn request_ids_are_echoed_and_made_where_there_are_none() {
    let intake = Intake::start().await;
    for (path, status) in [
        ("/v1/users/42", 404),
        ("/nowhere", 404),
        ("/v1/events", 405),
    ] {
        let request = intake.request(Method::GET, path);
        let answer = Answer::to(request.header("x-request-id", "req-7")).await;
        assert_eq!(
            (answer.status, answer.header("x-request-id")),
            (status, "req-7"),
            "{path}"
        );
    }
    let (one, other) = (intake.post(&ann()).await, intake.post(&ann()).await);
    assert!(!one.header("x-request-id").is_empty(), "{one:?}");
    assert_ne!(one.header("x-request-id"), other.header("x-request-id"));
}

#[tokio::test]
async fn a_trace_goes_on_from_the_request_to_the_state() {
    let intake = Intake::start().await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let request = intake.request(Method::POST, "/v1/events").json(&ann());
    let answer = Answer::to(request.header("traceparent", trace)).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    intake.all_taken_in().await;
    let state = intake.state_message("42").await.unwrap();
    assert_eq!(header_of(&state.headers, "traceparent"), trace);
}

#[tokio::test]
async fn what_can_not_be_shown_is_a_problem_document() {
    let intake = Intake::start().await;
    let answer = intake.get("/v1/users/42").await;
    answer.is_problem(404, "", "a user nobody has heard of");
    let answer = intake.get("/v1/users/a%20b").await;
    answer.is_problem(400, "", "no user id");
    let answer = intake.get("/v2/users").await;
    answer.is_problem(404, "", "no such path");
    let answer = Answer::to(intake.request(Method::DELETE, "/v1/users/42")).await;
    answer.is_problem(405, "", "another method");
}

/// serde_json takes an object whose first member is named so for something else.
#[tokio::test]
async fn a_member_named_as_the_parser_names_its_own_is_refused_and_changes_nobody() {
    const NAME: &str = "$serde_json::private::RawValue";
    let intake = Intake::start().await;
    intake.post(&ann()).await;
    let before = intake.state("42").await;
    let hostile = [
        json!({"x": {NAME: "3"}}),
        json!({"x": {"a": 1, NAME: "3"}}),
        json!({"x": [{NAME: "{\"a\": 1}"}]}),
        json!({NAME: 5}),
        json!({"$serde_json::private::Number": "1"}),
    ];
    for (at, data) in hostile.iter().enumerate() {
        let event = json!({"type": "user.updated", "user_id": 42, "data": data});
        let answer = intake.post(&event).await;
        answer.is_problem(422, "", &data.to_string());
        let detail = answer.body["detail"].as_str().unwrap();
        assert!(detail.contains("$serde_json::private::"), "{detail}");
        let answer = intake.post(&json!([event])).await;
        assert_eq!(answer.body["results"][0]["status"], 422, "{answer:?}");
        let spelled = event.to_string().replace("$serde", "\\u0024serde");
        let seq = intake.publish("user.updated", spelled).await;
        assert_eq!(seq, 2 + at as u64);
    }
    intake.all_taken_in().await;
    assert_eq!(intake.dead_letters().await.len(), hostile.len());
    assert_eq!(intake.state("42").await, before);
}
