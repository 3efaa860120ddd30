//! How events change the state of a user.

#![allow(clippy::unwrap_used, reason = "a test fails where its set-up fails")]

use std::collections::BTreeMap;

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::time::timeout;
use usersync_core::state::State;
use usersync_core::subjects::USER_STATE;

use crate::intake::Intake;
use crate::support::SOON;

/// Publishes events of user 42, then gives its state.
async fn after(intake: &Intake, events: &[(&str, Value)]) -> State {
    for (kind, members) in events {
        let mut event = members.clone();
        event["user_id"] = json!(42);
        intake.publish_json(&format!("user.{kind}"), event).await;
    }
    intake.state("42").await
}

fn ann() -> Value {
    json!({
        "username": "ann", "email": "ann@example.com",
        "data": {"phone": "1", "address": {"city": "Ulm", "zip": "89073", "geo": {"lat": 48.4}}, "tags": ["a", "b"]},
    })
}

#[tokio::test]
async fn created_replaces_everything() {
    let intake = Intake::start().await;
    let state = after(
        &intake,
        &[("created", ann()), ("created", json!({"username": "bob"}))],
    )
    .await;
    assert_eq!(state.username.as_deref(), Some("bob"));
    assert_eq!((state.email, state.data), (None, Value::Null));
}

#[tokio::test]
async fn updated_merges_as_rfc_7396_says() {
    let intake = Intake::start().await;
    let patch = json!({
        "email": null,
        "data": {"phone": null, "address": {"zip": null, "street": "Main", "geo": {"lon": 10.0}}, "tags": ["c"], "new": true},
    });
    let state = after(&intake, &[("created", ann()), ("updated", patch)]).await;
    assert_eq!(state.username.as_deref(), Some("ann"), "absent stays");
    assert_eq!(state.email, None, "null removes");
    let merged = json!({
        "address": {"city": "Ulm", "street": "Main", "geo": {"lat": 48.4, "lon": 10.0}}, "tags": ["c"], "new": true,
    });
    assert_eq!(state.data, merged);
    assert!(!state.partial);

    let state = after(&intake, &[("updated", json!({"data": null}))]).await;
    assert_eq!(state.data, Value::Null, "null clears all data");
}

#[tokio::test]
async fn the_status_is_kept_in_data_and_mirrored_beside_it() {
    let intake = Intake::start().await;
    let status = |text: &str| ("status_changed", json!({"status": text}));
    let state = after(&intake, &[("created", ann()), status("locked")]).await;
    assert_eq!(state.status.as_deref(), Some("locked"));
    assert_eq!(state.data["status"], "locked");
    assert_eq!(state.data["phone"], "1", "the rest stays");

    let in_data = ("updated", json!({"data": {"status": "active"}}));
    let state = after(&intake, &[in_data]).await;
    assert_eq!(state.status.as_deref(), Some("active"));

    let state = after(
        &intake,
        &[("status_changed", json!({"data": {"status": null}}))],
    )
    .await;
    assert_eq!((state.status, state.data.get("status")), (None, None));
}

#[tokio::test]
async fn deleted_leaves_a_tombstone_without_personal_data() {
    let intake = Intake::start().await;
    // Even where the event itself brings some.
    let state = after(&intake, &[("created", ann()), ("deleted", ann())]).await;
    assert!(state.deleted);
    let text = String::from_utf8(intake.state_message("42").await.unwrap().payload.into()).unwrap();
    for personal in ["ann", "example.com", "phone", "Ulm"] {
        assert!(!text.contains(personal), "{personal} in {text}");
    }
    let shown = intake.get("/v1/users/42").await;
    assert_eq!((shown.status, &shown.body["deleted"]), (200, &json!(true)));
}

#[tokio::test]
async fn after_a_tombstone_only_created_revives() {
    let intake = Intake::start().await;
    let tombstone = after(&intake, &[("created", ann()), ("deleted", json!({}))]).await;
    let stored = intake.size(USER_STATE).await;
    let late = [
        ("updated", json!({"username": "eve"})),
        ("status_changed", json!({"status": "locked"})),
        ("deleted", json!({})),
    ];
    assert_eq!(after(&intake, &late).await, tombstone);
    assert_eq!(intake.counted("after_delete").await, 3.0);
    assert_eq!(
        intake.size(USER_STATE).await,
        stored,
        "no state was stored for them"
    );

    let state = after(&intake, &[("created", json!({"username": "bob"}))]).await;
    assert_eq!(
        (state.deleted, state.username.as_deref()),
        (false, Some("bob"))
    );
    assert_eq!(state.data, Value::Null, "nothing of the past comes back");
    assert!(state.version > tombstone.version);
}

#[tokio::test]
async fn an_update_for_a_user_nobody_created_is_partial_until_created() {
    let intake = Intake::start().await;
    let state = after(&intake, &[("updated", json!({"email": "a@example.com"}))]).await;
    assert!(state.partial);
    assert_eq!(state.username, None);
    let shown = intake.get("/v1/users/42").await;
    assert_eq!(shown.body["partial"], true);
    assert!(
        after(&intake, &[("status_changed", json!({"status": "x"}))])
            .await
            .partial
    );
    let state = after(&intake, &[("created", json!({"username": "ann"}))]).await;
    assert!(!state.partial);
    assert_eq!(state.email, None);
}

#[tokio::test]
async fn a_number_and_its_text_are_one_user_and_case_tells_users_apart() {
    let intake = Intake::start().await;
    for (id, name) in [
        (json!(42), "number"),
        (json!("42"), "text"),
        (json!("042"), "leading zero"),
        (json!("aB"), "aB"),
        (json!("Ab"), "Ab"),
        (json!(u64::MAX), "largest"),
    ] {
        let member = json!({"user_id": id, "data": {name: true}});
        intake.publish_json("user.updated", member).await;
    }
    let names = async |id: &str| -> Vec<String> {
        let state = intake.state(id).await;
        state.data.as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(names("42").await, ["number", "text"]);
    assert_eq!(names("042").await, ["leading zero"]);
    assert_eq!(names("aB").await, ["aB"]);
    assert_eq!(names("Ab").await, ["Ab"]);
    assert_eq!(names("18446744073709551615").await, ["largest"]);
    assert_eq!(intake.get("/v1/users/42").await.body["user_id"], 42);
    assert_eq!(intake.get("/v1/users/aB").await.body["user_id"], "aB");
    assert_eq!(intake.size(USER_STATE).await.0, 5);
}

#[tokio::test]
async fn the_version_of_a_user_strictly_increases() {
    let intake = Intake::start().await;
    let client = intake.jetstream.client();
    let subscribing = usersync_stack::subscribe(&client, "user.state.*");
    let mut published = subscribing.await.unwrap();
    for round in 0..40 {
        for user in 0..5 {
            let kind = match (round + user) % 8 {
                0 => "user.deleted",
                1 => "user.created",
                _ => "user.updated",
            };
            let event = json!({"user_id": user, "data": {"round": round}});
            intake.publish_json(kind, event).await;
        }
        // What waits for each other is merged into one state.
        if round % 4 == 3 {
            intake.all_taken_in().await;
        }
    }

    let (_, stored) = intake.size(USER_STATE).await;
    assert!(stored >= 50, "{stored} states are too few to tell");
    let mut newest = BTreeMap::new();
    for _ in 0..stored {
        let message = timeout(SOON, published.next()).await.unwrap().unwrap();
        let state: State = serde_json::from_slice(&message.payload).unwrap();
        let before = newest.insert(state.user_id.clone(), (state.version, state.event_seq));
        if let Some((version, event_seq)) = before {
            assert!(state.version > version, "{state:?} after {version}");
            assert!(state.event_seq > event_seq, "{state:?} after {event_seq}");
        }
    }
    assert_eq!(newest.len(), 5);
    for (user, state) in intake.states().await {
        assert_eq!(newest[&user], (state.version, state.event_seq), "{user}");
    }
}
