//! USER_STATE is gone: the states are made again from the events, or intake says how to go on.

#![allow(clippy::unwrap_used, reason = "a test fails where its set-up fails")]

use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use usersync_core::subjects::{USER_EVENTS, USER_STATE};
use usersync_stack::{Signal, eventually, http};

use crate::intake::{Answer, Intake};
use crate::support::SOON;

const GRACE: Duration = Duration::from_secs(10);

/// Creates, updates and deletes 30 users.
async fn publish_history(intake: &Intake) {
    for user in 0..30 {
        let created =
            json!({"id": format!("c-{user}"), "user_id": user, "username": format!("u{user}")});
        intake.publish_json("user.created", created).await;
        let updated = json!({"user_id": user, "data": {"n": user}});
        intake.publish_json("user.updated", updated).await;
        if user % 5 == 0 {
            intake
                .publish_json("user.deleted", json!({"user_id": user}))
                .await;
        }
    }
}

#[tokio::test]
async fn states_are_made_again_while_every_event_is_there() {
    let mut intake = Intake::start().await;
    publish_history(&intake).await;
    intake.equals_the_reference().await;
    let before = intake.states().await;

    intake.stack.gateways[0].stop(GRACE).await.unwrap();
    let states = intake.stream(USER_STATE).await;
    states.purge().await.unwrap();
    assert_eq!(intake.size(USER_STATE).await.0, 0);
    intake.stack.gateways[0].restart().await.unwrap();

    eventually(SOON, async || {
        let (users, _) = intake.size(USER_STATE).await;
        ensure!(users == 30, "{users} users");
        Ok(())
    })
    .await
    .unwrap();
    intake.equals_the_reference().await;
    for (user, state) in intake.states().await {
        assert!(state.version > before[&user].version, "user {user}");
    }
}

#[tokio::test]
async fn states_are_made_again_when_their_stream_was_removed() {
    let mut intake = Intake::start().await;
    publish_history(&intake).await;
    intake.all_taken_in().await;
    intake.stack.gateways[0].stop(GRACE).await.unwrap();
    intake.jetstream.delete_stream(USER_STATE).await.unwrap();
    // What comes meanwhile counts too.
    intake
        .publish_json("user.updated", json!({"user_id": 1, "username": "new"}))
        .await;
    intake.stack.gateways[0].restart().await.unwrap();
    eventually(SOON, async || {
        let (users, _) = intake.size(USER_STATE).await;
        ensure!(users == 30, "{users} users");
        Ok(())
    })
    .await
    .unwrap();
    intake.equals_the_reference().await;
    assert_eq!(intake.state("1").await.username.as_deref(), Some("new"));
}

#[tokio::test]
async fn intake_stops_and_names_the_way_back_when_older_events_are_gone() {
    let intake = Intake::start().await;
    publish_history(&intake).await;
    intake.all_taken_in().await;
    intake.stack.gateways[0].stop(GRACE).await.unwrap();
    let events = intake.stream(USER_EVENTS).await;
    events.purge().sequence(11).await.unwrap();
    let states = intake.stream(USER_STATE).await;
    states.purge().await.unwrap();

    let refusing = intake.spawn_gateway("refusing", &[]);
    let client = http::client();
    let url = refusing.url().to_owned();
    eventually(SOON, async || {
        let ready = Answer::of(client.get(format!("{url}/readyz")).send().await?).await;
        ensure!(ready.status == 503, "{ready:?}");
        let told = ready.body["parts"]["intake"].as_str().unwrap_or_default();
        for part in [
            "USER_STATE is empty",
            "USER_EVENTS begins at 11",
            "nats stream restore",
            "--accept-empty-state",
        ] {
            ensure!(told.contains(part), "no {part:?} in {ready:?}");
        }
        Ok(())
    })
    .await
    .unwrap();

    let event = json!({"type": "user.updated", "user_id": 7, "data": {"late": true}});
    let request = client.post(format!("{url}/v1/events")).json(&event);
    assert_eq!(
        Answer::to(request).await.status,
        202,
        "events are accepted still"
    );
    assert_eq!(
        intake.size(USER_STATE).await.0,
        0,
        "nothing is made of them yet"
    );
    refusing.signal(Signal::SIGTERM).unwrap();
    let ended = refusing.process().wait_exit(GRACE).await.unwrap();
    assert!(ended.success(), "{ended}");

    let going_on = intake.spawn_gateway("going-on", &["--accept-empty-state"]);
    going_on.until_ready().await.unwrap();
    let user = intake.state("7").await;
    assert_eq!(user.data["late"], true);
    assert!(intake.size(USER_STATE).await.0 > 0);
}

/// A state that says what no stream and no clock can have said costs its user nothing but what was in it, and nobody else anything.
#[tokio::test]
async fn states_that_say_what_can_not_be_hold_up_nobody() {
    let mut intake = Intake::start().await;
    let forged = [
        ("1", "version", json!(u64::MAX)),
        ("2", "event_seq", json!(1_000_000_000_000_u64)),
        ("3", "event_seq", json!(u64::MAX)),
        ("4", "epoch", json!("18446744073709551614-aaaaaaaaaaaa")),
    ];
    for (user, _, _) in &forged {
        let created = json!({"user_id": user, "username": "before"});
        intake.publish_json("user.created", created).await;
    }
    let update = async |intake: &Intake, user: &str, round: u64| {
        let updated = json!({"user_id": user, "email": "new@x", "data": {"round": round}});
        intake.publish_json("user.updated", updated).await;
    };
    for round in [1, 2] {
        intake.all_taken_in().await;
        for (user, member, value) in &forged {
            let message = intake.state_message(user).await.unwrap();
            let mut state: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
            state[member] = value.clone();
            let body = state.to_string();
            intake.publish(&format!("user.state.{user}"), body).await;
        }
        if round == 2 {
            intake.stack.gateways[0].stop(GRACE).await.unwrap();
            intake.stack.gateways[0].restart().await.unwrap();
        }
        for (user, _, _) in &forged {
            update(&intake, user, round).await;
        }
        for (user, member, value) in &forged {
            let state = intake.state(user).await;
            let state = serde_json::to_value(state).unwrap();
            assert_eq!(state["data"]["round"], round, "{user} {state}");
            assert_eq!(state["email"], "new@x", "{user} {state}");
            assert_ne!(state[member], *value, "{user} {state}");
        }
    }
    assert_eq!(intake.get("/readyz").await.status, 200);
}
