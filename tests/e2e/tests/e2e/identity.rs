//! An event is known by its source and its id, whichever way it comes, for as long as the duplicate window.

#![allow(clippy::unwrap_used, reason = "a test fails where its set-up fails")]

use std::time::Duration;

use anyhow::ensure;
use async_nats::jetstream::message::PublishMessage;
use jiff::Timestamp;
use serde_json::{Value, json};
use usersync_core::subjects::USER_EVENTS;
use usersync_stack::eventually;

use crate::{
    intake::Intake,
    support::{LATER, SOON},
};

fn event(source: &str, id: &str, user: u64) -> Value {
    json!({"id": id, "type": "user.created", "user_id": user, "source": source})
}

fn cloud_event(source: &str, id: &str, user: u64) -> Value {
    json!({"specversion": "1.0", "id": id, "source": source, "type": "user.created", "subject": user.to_string(), "data": {}})
}

/// What the answers to `bodies`, posted one after the other, say of duplicates.
async fn duplicates(intake: &Intake, content_type: &str, bodies: &[Value]) -> Vec<bool> {
    let mut duplicates = Vec::new();
    for body in bodies {
        let answer = intake.post_raw(content_type, body.to_string()).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        duplicates.push(answer.body["duplicate"].as_bool().unwrap());
    }
    duplicates
}

#[tokio::test]
async fn equal_ids_of_two_sources_are_two_events() {
    let intake = Intake::start().await;
    let of = |make: fn(&str, &str, u64) -> Value, first: u64| {
        [
            make("/crm", "1", first),
            make("/shop", "1", first + 1),
            make("/crm", "1", first),
            // Both may hold whatever could stand between them.
            make("a:b", "c", first + 2),
            make("a", "b:c", first + 3),
        ]
    };
    let expected = [false, false, true, false, false];
    let plain = duplicates(&intake, "application/json", &of(event, 10)).await;
    assert_eq!(plain, expected, "over HTTP");
    let bodies = of(
        |source, id, user| cloud_event(source, &format!("ce-{id}"), user),
        20,
    );
    let told = duplicates(&intake, "application/cloudevents+json", &bodies).await;
    assert_eq!(told, expected, "as CloudEvents");
    for body in of(
        |source, id, user| event(source, &format!("n-{id}"), user),
        30,
    ) {
        intake.publish_json("user.created", body).await;
    }
    intake.all_taken_in().await;
    for user in (10..14).chain(20..24).chain(30..34) {
        assert!(
            intake.state_message(&user.to_string()).await.is_some(),
            "user {user}"
        );
    }
    assert_eq!(
        intake.counted("known").await,
        1.0,
        "over NATS, where the stream knows no id"
    );
}

#[tokio::test]
async fn one_event_is_the_same_over_http_and_nats() {
    let intake = Intake::start().await;
    intake.post(&event("/crm", "1", 7)).await;
    let before = intake.state("7").await;
    intake
        .publish_json("user.created", event("/crm", "1", 7))
        .await;
    assert_eq!(intake.state("7").await, before);
}

#[tokio::test]
async fn a_repetition_never_brings_an_old_value_back() {
    let intake = Intake::start().await;
    let say = |id: &str, value: &str| json!({"id": id, "user_id": 1, "source": "s", "data": {"k": value}});
    let mut events = vec![say("evt-A", "old"), say("evt-B", "new")];
    events.extend((0..20).map(|n| say(&format!("evt-{n}"), &format!("v{n}"))));
    events.push(say("evt-last", "newest"));
    let events = events;
    for event in &events {
        intake.publish_json("user.updated", event.clone()).await;
    }
    let before = intake.state("1").await;
    assert_eq!(before.data["k"], "newest");
    for event in &events {
        intake.publish_json("user.updated", event.clone()).await;
    }
    assert_eq!(intake.state("1").await, before);
    assert_eq!(intake.counted("known").await, events.len() as f64);
}

/// The first time it changed nothing, or came to a deleted user: the next time it would change something.
#[tokio::test]
async fn a_repetition_under_another_message_id_is_known_although_the_first_was_of_no_use() {
    let intake = Intake::start().await;
    let publish = async |kind: &str, event: Value, message_id: Option<&str>| {
        let message = PublishMessage::build().payload(event.to_string().into());
        let message = match message_id {
            Some(id) => message.message_id(id),
            None => message,
        };
        let taken = intake
            .publish_message(&format!("user.{kind}"), message)
            .await;
        assert!(!taken.duplicate);
    };
    let say = |id: &str, value: &str| json!({"id": id, "user_id": 1, "source": "s", "data": {"k": value}});
    let created = || json!({"user_id": 1, "data": {"k": "old"}});
    let ids = [
        (Some("a-1"), Some("a-2")),
        (None, Some("a-3")),
        (Some("a-4"), None),
    ];
    for (round, (first, again)) in ids.into_iter().enumerate() {
        let event = |name: &str| format!("{round}-{name}");
        publish("created", created(), None).await;
        publish("updated", say(&event("same"), "old"), first).await;
        publish("updated", say(&event("other"), "new"), None).await;
        publish("updated", say(&event("same"), "old"), again).await;
        assert_eq!(intake.state("1").await.data["k"], "new", "round {round}");

        let late = |id: Option<&str>| id.map(|id| format!("late-{id}"));
        publish("deleted", json!({"user_id": 1}), None).await;
        publish(
            "updated",
            say(&event("late"), "late"),
            late(first).as_deref(),
        )
        .await;
        publish("created", created(), None).await;
        publish(
            "updated",
            say(&event("late"), "late"),
            late(again).as_deref(),
        )
        .await;
        assert_eq!(intake.state("1").await.data["k"], "old", "round {round}");
    }
    assert_eq!(intake.counted("after_delete").await, 3.0);
    assert_eq!(intake.counted("known").await, 6.0);
}

#[tokio::test]
async fn a_duplicate_window_that_is_changed_holds_at_once() {
    let intake = Intake::start().await;
    let say = async |n: u64| {
        let event = json!({"id": format!("e-{n}"), "user_id": 1, "data": {"n": n}});
        intake.publish_json("user.updated", event).await;
        serde_json::to_value(intake.state("1").await).unwrap()
    };
    let mut state = say(0).await;
    // Remembered since four minutes.
    let minute = Timestamp::now().as_second() / 60 - 4;
    state["seen"] = json!({ minute.to_string(): "a".repeat(16) });
    intake.publish("user.state.1", state.to_string()).await;
    assert!(say(1).await["seen"][minute.to_string()].is_string());

    let mut config = intake
        .stream(USER_EVENTS)
        .await
        .get_info()
        .await
        .unwrap()
        .config;
    config.duplicate_window = Duration::from_secs(120);
    intake.jetstream.update_stream(config).await.unwrap();
    let mut n = 1;
    eventually(SOON, async || {
        n += 1;
        let state = say(n).await;
        ensure!(
            state["seen"][minute.to_string()].is_null(),
            "{}",
            state["seen"]
        );
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn an_event_that_changes_nothing_stores_nothing() {
    let intake = Intake::start().await;
    intake
        .post(&json!({"type": "user.created", "user_id": 1, "username": "ann"}))
        .await;
    let before = intake.state("1").await;
    for member in [json!({"username": "ann"}), json!({"data": null}), json!({})] {
        let mut event = member;
        event["type"] = json!("user.updated");
        event["user_id"] = json!(1);
        intake.post(&event).await;
    }
    assert_eq!(intake.state("1").await, before);
    assert_eq!(intake.counted("unchanged").await, 3.0);
}

#[tokio::test]
async fn what_another_writer_has_changed_meanwhile_is_no_reason_to_drop_an_event() {
    let intake = Intake::start().await;
    let say = |value: &str| json!({"type": "user.updated", "user_id": 1, "data": {"k": value}});
    intake.post(&say("mine")).await;
    let mut state = intake.state("1").await;
    // A load or a repair, which the gateway doesn't hear of.
    state.data["k"] = json!("theirs");
    state.version += 1;
    let body = serde_json::to_vec(&state).unwrap();
    intake.publish("user.state.1", body).await;
    intake.post(&say("mine")).await;
    assert_eq!(intake.state("1").await.data["k"], "mine");
}

#[tokio::test]
async fn users_with_too_many_events_are_counted() {
    let intake = Intake::start().await;
    let message = |n: u32| {
        let body = json!({"user_id": 1, "data": {"n": n}}).to_string();
        PublishMessage::build()
            .message_id(format!("m-{n}"))
            .payload(body.into())
    };
    for n in 0..260 {
        intake.publish_message("user.updated", message(n)).await;
    }
    assert_eq!(intake.state("1").await.seen.len(), 256);
    let metrics = intake.stack.gateway_metrics().await.unwrap();
    assert_eq!(metrics.sum("usersync_intake_forgotten_total", &[]), 4.0);
    eventually(LATER, async || {
        let answer = intake.get("/v1/alerts").await;
        let alerts = answer.body["alerts"].as_array().into_iter().flatten();
        let mut kinds = alerts.map(|alert| &alert["kind"]);
        ensure!(kinds.any(|kind| kind == "crowded"), "{}", answer.body);
        Ok(())
    })
    .await
    .unwrap();
}
