//! Streams that are lost, made anew, restored or moved while users are changed: nothing acknowledged is dropped, nothing
//! older comes back, and it is said what happened.

#![allow(clippy::unwrap_used, reason = "a test fails where its set-up fails")]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use usersync_core::{
    state::State,
    streams,
    subjects::{USER_EVENTS, USER_STATE},
};
use usersync_stack::{eventually, http};

use crate::intake::{Answer, Intake};
use crate::support::{Backup, SOON};

const GRACE: Duration = Duration::from_secs(10);
const USERS: u64 = 30;

/// Sets the member `k` of every user to `value`.
async fn say(intake: &Intake, value: &str) {
    for user in 0..USERS {
        let event = json!({"user_id": user, "data": {"k": value}});
        intake.publish_json("user.updated", event).await;
    }
}

/// Creates the users, and changes each a few times.
async fn history(intake: &Intake) {
    for user in 0..USERS {
        let event = json!({"user_id": user, "username": format!("u{user}"), "data": {"n": user}});
        intake.publish_json("user.created", event).await;
    }
    for value in ["a", "b", "c"] {
        say(intake, value).await;
    }
    intake.all_taken_in().await;
}

/// Waits until every user is whole and has `value`.
async fn until_all_say(intake: &Intake, value: &str) {
    eventually(SOON, async || {
        for user in 0..USERS {
            let message = intake.state_message(&user.to_string()).await;
            let message = message.with_context(|| format!("no user {user}"))?;
            let state = State::read(&message.payload)?;
            let name = state.username.as_deref().unwrap_or("nobody");
            let (k, n) = (&state.data["k"], &state.data["n"]);
            ensure!(
                *k == value && name.starts_with('u') && n.is_u64() && !state.partial,
                "user {user}: {name}, k {k}, n {n}"
            );
        }
        Ok(())
    })
    .await
    .unwrap();
}

/// Makes a stream as a gateway would.
async fn make(intake: &Intake, name: &str) {
    let mut all = streams::all(1).into_iter();
    let config = all.find(|config| config.name == name).unwrap();
    intake.jetstream.create_stream(config).await.unwrap();
}

/// The alert `streams`, once it is raised.
async fn alerted(intake: &Intake, part: &str) {
    eventually(SOON, async || {
        let answer = intake.get("/v1/alerts").await;
        let alerts = answer.body["alerts"].as_array().cloned();
        let summaries: Vec<Value> = alerts
            .unwrap_or_default()
            .into_iter()
            .filter(|alert| alert["kind"] == "streams")
            .map(|alert| alert["summary"].clone())
            .collect();
        let told = summaries
            .iter()
            .any(|text| text.as_str().unwrap().contains(part));
        ensure!(told, "no {part:?} in {summaries:?} of {}", answer.body);
        Ok(())
    })
    .await
    .unwrap();
}

async fn epoch(intake: &Intake) -> String {
    let info = intake.stream(USER_EVENTS).await.get_info().await.unwrap();
    info.config.metadata["usersync-epoch"].clone()
}

#[tokio::test]
async fn events_of_a_stream_made_anew_arrive() {
    let mut intake = Intake::start().await;
    history(&intake).await;
    intake.stack.gateways[0].stop(GRACE).await.unwrap();
    intake.jetstream.delete_stream(USER_EVENTS).await.unwrap();
    make(&intake, USER_EVENTS).await;
    say(&intake, "d").await;
    intake.stack.gateways[0].restart().await.unwrap();
    until_all_say(&intake, "d").await;
    assert!(epoch(&intake).await.starts_with("2-"));
    alerted(&intake, "USER_EVENTS is another stream than before").await;
    // Whoever starts again goes on in the same epoch.
    let before = epoch(&intake).await;
    intake.stack.gateways[0].stop(GRACE).await.unwrap();
    intake.stack.gateways[0].restart().await.unwrap();
    say(&intake, "e").await;
    until_all_say(&intake, "e").await;
    assert_eq!(epoch(&intake).await, before);
}

#[tokio::test]
async fn events_of_a_stream_made_anew_under_a_running_gateway_arrive() {
    let intake = Intake::start().await;
    history(&intake).await;
    intake.jetstream.delete_stream(USER_EVENTS).await.unwrap();
    make(&intake, USER_EVENTS).await;
    say(&intake, "d").await;
    until_all_say(&intake, "d").await;
    alerted(&intake, "USER_EVENTS is another stream than before").await;
}

#[tokio::test]
async fn after_an_older_backup_new_events_arrive_and_old_ones_do_not_come_back() {
    let intake = Intake::start().await;
    history(&intake).await;
    let backup = Backup::of(&intake.jetstream, USER_EVENTS).await.unwrap();
    for value in ["d", "e"] {
        say(&intake, value).await;
    }
    intake.all_taken_in().await;
    let before = intake.states().await;
    intake.jetstream.delete_stream(USER_EVENTS).await.unwrap();
    backup.restore(&intake.jetstream).await.unwrap();
    // Events that were merged before the backup, and whose acknowledgements it may miss, are known.
    let event = json!({"user_id": 0, "data": {"k": "f"}});
    intake.publish_json("user.updated", event).await;
    intake.all_taken_in().await;
    let mut after = intake.states().await;
    assert_eq!(after.remove(&0.into()).unwrap().data["k"], "f");
    let mut before = before;
    before.remove(&0.into());
    assert_eq!(after, before);
    alerted(&intake, "USER_EVENTS went back").await;
    say(&intake, "g").await;
    until_all_say(&intake, "g").await;
}

#[tokio::test]
async fn a_gateway_that_died_before_it_wrote_its_mark_is_known_by_the_states() {
    let mut intake = Intake::start().await;
    history(&intake).await;
    let backup = Backup::of(&intake.jetstream, USER_EVENTS).await.unwrap();
    let bucket = intake.jetstream.get_key_value("user_epochs").await.unwrap();
    let mark = bucket.get("intake").await.unwrap().unwrap();
    for value in ["d", "e"] {
        say(&intake, value).await;
    }
    intake.all_taken_in().await;
    intake.stack.gateways[0].kill9().await;
    bucket.put("intake", mark).await.unwrap();
    intake.jetstream.delete_stream(USER_EVENTS).await.unwrap();
    backup.restore(&intake.jetstream).await.unwrap();
    say(&intake, "f").await;
    intake.stack.gateways[0].restart().await.unwrap();
    until_all_say(&intake, "f").await;
}

/// What was restored may have more events than there were before anybody compares it.
#[tokio::test]
async fn a_restored_stream_that_has_grown_past_what_was_known_is_another() {
    for mark_is_old in [false, true] {
        let mut intake = Intake::start().await;
        history(&intake).await;
        let backup = Backup::of(&intake.jetstream, USER_EVENTS).await.unwrap();
        let bucket = intake.jetstream.get_key_value("user_epochs").await.unwrap();
        let mark = bucket.get("intake").await.unwrap().unwrap();
        say(&intake, "d").await;
        intake.all_taken_in().await;
        if mark_is_old {
            // Only the states know of the last events.
            intake.stack.gateways[0].kill9().await;
            bucket.put("intake", mark).await.unwrap();
        } else {
            intake.stack.gateways[0].stop(GRACE).await.unwrap();
        }
        intake.jetstream.delete_stream(USER_EVENTS).await.unwrap();
        backup.restore(&intake.jetstream).await.unwrap();
        for value in ["e", "f"] {
            say(&intake, value).await;
        }
        intake.stack.gateways[0].restart().await.unwrap();
        until_all_say(&intake, "f").await;
        alerted(&intake, "USER_EVENTS went back and has grown since").await;
        assert!(epoch(&intake).await.starts_with("2-"));
    }
}

/// It syncs each stream by itself: what it knows to be acknowledged may be in no state any more.
#[tokio::test]
async fn what_a_server_that_was_started_anew_has_lost_is_merged_again() {
    let mut intake = Intake::start().await;
    history(&intake).await;
    let before = intake.state_message("0").await.unwrap().payload;
    say(&intake, "d").await;
    until_all_say(&intake, "d").await;
    intake.stack.gateways[0].stop(GRACE).await.unwrap();
    intake.publish("user.state.0", before).await;
    // By itself that is an older state, and its event is acknowledged.
    intake.stack.gateways[0].restart().await.unwrap();
    let event = json!({"user_id": 1, "data": {"other": 1}});
    intake.publish_json("user.updated", event).await;
    intake.all_taken_in().await;
    assert_eq!(intake.state("0").await.data["k"], "c");

    intake.stack.nats.restart().await.unwrap();
    until_all_say(&intake, "d").await;
}

#[tokio::test]
async fn states_that_vanish_under_a_running_gateway_are_made_again() {
    for how in ["deleted", "purged", "emptied by half"] {
        let intake = Intake::start().await;
        history(&intake).await;
        let states = intake.stream(USER_STATE).await;
        match how {
            "deleted" => {
                intake.jetstream.delete_stream(USER_STATE).await.unwrap();
                make(&intake, USER_STATE).await;
            }
            "purged" => drop(states.purge().await.unwrap()),
            _ => drop(states.purge().keep(USERS / 2).await.unwrap()),
        }
        // An update would be all that is known of its user.
        say(&intake, "d").await;
        until_all_say(&intake, "d").await;
        intake.equals_the_reference().await;
        alerted(&intake, "made again from every event").await;
    }
}

#[tokio::test]
async fn states_gone_for_good_stop_intake_although_some_are_there_again() {
    let intake = Intake::start().await;
    history(&intake).await;
    let events = intake.stream(USER_EVENTS).await;
    events.purge().sequence(11).await.unwrap();
    intake.jetstream.delete_stream(USER_STATE).await.unwrap();
    make(&intake, USER_STATE).await;
    say(&intake, "d").await;
    eventually(SOON, async || {
        let ready = Answer::of(
            http::client()
                .get(format!("{}/readyz", intake.stack.gateway().url()))
                .send()
                .await?,
        )
        .await;
        let told = ready.body["parts"]["intake"].as_str().unwrap_or_default();
        ensure!(
            ready.status == 503 && told.contains("USER_EVENTS begins at 11"),
            "{ready:?}"
        );
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(
        intake.size(USER_STATE).await.0,
        0,
        "nothing is stored as all that is known"
    );
}

#[tokio::test]
async fn an_older_copy_of_the_states_is_brought_up_to_date_from_the_events() {
    let intake = Intake::start().await;
    history(&intake).await;
    let backup = Backup::of(&intake.jetstream, USER_STATE).await.unwrap();
    // The first events are gone since long: what came after the copy is there.
    let events = intake.stream(USER_EVENTS).await;
    events.purge().sequence(USERS + 1).await.unwrap();
    say(&intake, "d").await;
    intake.all_taken_in().await;
    intake.jetstream.delete_stream(USER_STATE).await.unwrap();
    backup.restore(&intake.jetstream).await.unwrap();
    until_all_say(&intake, "d").await;
    alerted(&intake, "USER_STATE is older than before").await;
}

/// Moves a stream to another place: backed up, deleted and restored.
async fn move_stream(intake: &Intake, name: &str) -> Result<()> {
    let backup = Backup::of(&intake.jetstream, name).await?;
    intake.jetstream.delete_stream(name).await?;
    backup.restore(&intake.jetstream).await
}

#[tokio::test]
async fn streams_that_are_moved_go_on_as_they_were() {
    let mut intake = Intake::start().await;
    history(&intake).await;
    let (before, states) = (epoch(&intake).await, intake.states().await);
    intake.stack.gateways[0].stop(GRACE).await.unwrap();
    for name in [USER_EVENTS, USER_STATE, "KV_user_epochs"] {
        move_stream(&intake, name).await.unwrap();
    }
    intake.stack.gateways[0].restart().await.unwrap();
    assert_eq!(intake.states().await, states);
    say(&intake, "d").await;
    until_all_say(&intake, "d").await;
    assert_eq!(epoch(&intake).await, before);
}
