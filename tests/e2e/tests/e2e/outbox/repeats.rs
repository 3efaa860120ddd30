//! A gateway that dies between PubAck and mark leaves rows that are published again, also when JetStream has
//! forgotten their ids meanwhile: what is said twice counts once, for states know the notes they contain.

use std::time::Duration;

use anyhow::{Result, ensure};
use async_nats::{HeaderMap, header::NATS_MESSAGE_ID};
use serde_json::{Value, json};
use usersync_core::{event_key::EventKey, subjects::USER_EVENTS, user_id::UserId};
use usersync_stack::eventually;

use super::Main;
use crate::support::{Bus, SOON};

/// For how long the stream knows ids here; ten minutes otherwise.
const WINDOW: Duration = Duration::from_millis(100);

#[tokio::test]
async fn rows_repeated_after_the_dedup_window_change_nothing_in_mariadb() -> Result<()> {
    repeated_rows_change_nothing(Main::mariadb().await?).await
}

#[tokio::test]
async fn rows_repeated_after_the_dedup_window_change_nothing_in_postgres() -> Result<()> {
    repeated_rows_change_nothing(Main::postgres().await?).await
}

#[tokio::test]
async fn rows_stored_long_ago_are_marked_and_not_stored_again_in_mariadb() -> Result<()> {
    stored_rows_are_marked(Main::mariadb().await?).await
}

#[tokio::test]
async fn rows_stored_long_ago_are_marked_and_not_stored_again_in_postgres() -> Result<()> {
    stored_rows_are_marked(Main::postgres().await?).await
}

/// Whatever a service writes into its rows, nobody can have used the id before under which they are published.
#[tokio::test]
async fn an_id_in_a_payload_takes_nobody_elses_event_away() -> Result<()> {
    let main = Main::mariadb().await?;
    main.install().await?;
    let stack = main.stack(1).await?;
    let bus = Bus::connect(&stack).await?;
    let write = async |user: &str, id: &str| {
        let payload = json!({"user_id": user, "id": id, "username": user});
        main.run(&format!(
            "INSERT INTO user_outbox (user_id, event, payload) VALUES ('{user}', 'user.created', '{payload}')"
        ))
        .await
    };
    let publish = async |user: &str, id: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, id);
        let event = json!({"user_id": user, "source": "shop", "id": "order-1", "username": user});
        bus.publish_with("user.created", headers, event).await
    };
    // Who may publish has taken it before, and the other way round.
    publish("first", "taken").await?;
    write("a", "taken").await?;
    let of_shop = EventKey::new(Some("shop"), "order-1").message_id();
    write("b", &of_shop).await?;
    main.until_published().await?;
    publish("second", &of_shop).await?;
    bus.until_taken_in().await?;
    for user in ["first", "a", "b", "second"] {
        let state = bus.state(user.parse::<UserId>()?).await?;
        ensure!(state["username"] == user, "{state}");
    }
    // The same id of the same source and user is the same event still.
    let twice = r#"{"user_id": "c", "id": "once", "data": {"n": NUMBER}}"#;
    for number in ["1", "2"] {
        let payload = twice.replace("NUMBER", number);
        main.run(&format!(
            "INSERT INTO user_outbox (user_id, event, payload) VALUES ('c', 'user.updated', '{payload}')"
        ))
        .await?;
    }
    main.until_published().await?;
    bus.until_taken_in().await?;
    let state = bus.state("c".parse::<UserId>()?).await?;
    ensure!(state["data"]["n"] == 1, "{state}");
    Ok(())
}

/// What intake knows by itself.
async fn repeated_rows_change_nothing(main: Main) -> Result<()> {
    main.install().await?;
    let stack = main.stack(1).await?;
    let bus = Bus::connect(&stack).await?;
    know_ids_shortly(&bus).await?;

    main.run("INSERT INTO people (uid, n) VALUES (1, 0), (2, 0), (3, 0), (4, 0)")
        .await?;
    main.run("DELETE FROM people WHERE uid = 2").await?;
    for n in 1..=4 {
        main.run(&format!("UPDATE people SET n = {n}")).await?;
    }
    // Five events of a user are known by their ids; these two have more.
    for n in 5..=9 {
        main.run(&format!("UPDATE people SET n = {n} WHERE uid >= 3"))
            .await?;
    }
    main.until_published().await?;
    // Another service has its say, on members that the main database knows nothing of.
    let plan = json!({"user_id": 3, "data": {"plan": "gold"}});
    bus.publish("user.updated", plan).await?;
    main.equals_the_states(&stack).await?;
    let mut before = Vec::new();
    for user in 1..=4 {
        before.push(content(&bus, user).await?);
    }
    ensure!(before[2]["data"]["plan"] == "gold", "{before:?}");

    until_ids_are_forgotten(&bus).await?;
    let stored = bus.count(USER_EVENTS).await?;
    main.run("UPDATE user_outbox SET state = 0").await?;
    main.until_published().await?;
    bus.until_taken_in().await?;
    main.equals_the_states(&stack).await?;
    for (user, before) in (1..).zip(before) {
        let now = content(&bus, user).await?;
        ensure!(now == before, "{now} was {before}");
    }
    ensure!(bus.count(USER_EVENTS).await? >= stored);
    Ok(())
}

/// What the relay finds out before it publishes rows that have been waiting for long.
async fn stored_rows_are_marked(main: Main) -> Result<()> {
    main.install().await?;
    let mut stack = main.stack(1).await?;
    let bus = Bus::connect(&stack).await?;
    know_ids_shortly(&bus).await?;
    main.run("INSERT INTO people (uid, n) VALUES (1, 0), (2, 0)")
        .await?;
    for n in 1..=9 {
        main.run(&format!("UPDATE people SET n = {n}")).await?;
    }
    main.until_published().await?;
    let plan = json!({"user_id": 1, "data": {"plan": "gold"}});
    bus.publish("user.updated", plan).await?;
    bus.until_taken_in().await?;
    let before = [content(&bus, 1).await?, content(&bus, 2).await?];

    // As two hours after a gateway has died, which left a row unpublished, and others unmarked.
    stack.gateways[0].process().kill9().await;
    until_ids_are_forgotten(&bus).await?;
    main.run("INSERT INTO people (uid, n) VALUES (3, 0)")
        .await?;
    main.run("UPDATE user_outbox SET state = 0, created_at = created_at - INTERVAL '2' HOUR")
        .await?;
    let stored = bus.count(USER_EVENTS).await?;
    stack.gateways[0].restart().await?;
    main.equals_the_states(&stack).await?;
    // One of the new row, and at most one of each user some of whose notes were settled by a later one.
    let again = bus.count(USER_EVENTS).await? - stored;
    ensure!((1..=3).contains(&again), "{again} events");
    ensure!([content(&bus, 1).await?, content(&bus, 2).await?] == before);
    ensure!(bus.state(1).await?["data"]["plan"] == "gold");
    Ok(())
}

/// Has the stream know ids for [`WINDOW`] only: a gateway leaves it so.
async fn know_ids_shortly(bus: &Bus) -> Result<()> {
    let stream = bus.jetstream().get_stream(USER_EVENTS).await?;
    let mut config = stream.cached_info().config.clone();
    config.duplicate_window = WINDOW;
    bus.jetstream().update_stream(config).await?;
    Ok(())
}

/// What a user's state says of the user, not where that is from: a note that said nothing new may be contained later.
async fn content(bus: &Bus, user: u64) -> Result<Value> {
    let mut state = bus.state(user).await?;
    if let Some(members) = state.as_object_mut() {
        for name in ["version", "event_seq", "event", "seen", "notes"] {
            members.remove(name);
        }
    }
    Ok(state)
}

/// Waits until the stream knows none of the ids so far: it forgets them in the order they came.
async fn until_ids_are_forgotten(bus: &Bus) -> Result<()> {
    let last = async || {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", "the last so far");
        let body = json!({"user_id": 999_999}).to_string();
        let sent =
            bus.jetstream()
                .publish_with_headers("user.deleted", headers, body.into_bytes().into());
        anyhow::Ok(sent.await?.await?.duplicate)
    };
    last().await?;
    eventually(SOON, async || {
        ensure!(!last().await?, "it is still known");
        Ok(())
    })
    .await
}
