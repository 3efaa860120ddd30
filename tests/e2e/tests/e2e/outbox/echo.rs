//! A main database that is a target too: what usersync writes there is no change of its own.

use anyhow::{Context as _, Result, ensure};
use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use serde_json::json;
use usersync_core::subjects::BREAKERS_BUCKET;
use usersync_stack::{Signal, Stack, eventually};

use super::{Main, Server};
use crate::{
    readiness::Asked,
    support::{Bus, SOON, only},
};

#[tokio::test]
async fn what_is_delivered_to_mariadb_does_not_come_back() -> Result<()> {
    deliveries_do_not_come_back(Main::mariadb().await?).await
}

#[tokio::test]
async fn what_is_delivered_to_postgres_does_not_come_back() -> Result<()> {
    deliveries_do_not_come_back(Main::postgres().await?).await
}

async fn deliveries_do_not_come_back(mut main: Main) -> Result<()> {
    let stack = both_ways(&main).await?;
    let bus = Bus::connect(&stack).await?;

    let ann = json!({"user_id": 1, "username": "ann", "data": {"city": "Ulm", "n": 1}});
    bus.publish("user.created", ann).await?;
    bus.publish("user.created", json!({"user_id": 2, "username": "bob"}))
        .await?;
    delivered(&main, &bus, "uid = 1 AND city = 'Ulm'").await?;
    delivered(&main, &bus, "uid = 2 AND username = 'bob'").await?;
    bus.publish("user.updated", json!({"user_id": 1, "data": {"n": 2}}))
        .await?;
    bus.publish("user.deleted", json!({"user_id": 2})).await?;
    delivered(&main, &bus, "uid = 1 AND n = 2").await?;
    delivered(&main, &bus, "uid = 2 AND state = 'disabled'").await?;
    ensure!(rows(&main).await? == 0);

    // On new connections too.
    main.restart().await?;
    bus.publish("user.updated", json!({"user_id": 1, "data": {"n": 3}}))
        .await?;
    delivered(&main, &bus, "uid = 1 AND n = 3").await?;
    ensure!(rows(&main).await? == 0);

    // What others write is an event, whose own delivery is none.
    main.run("UPDATE people SET city = 'Bonn' WHERE uid = 1")
        .await?;
    main.until_published().await?;
    let state = bus.state_after_intake(1).await?;
    ensure!(state["data"]["city"] == "Bonn", "{state}");
    delivered(&main, &bus, "uid = 1 AND city = 'Bonn' AND n = 3").await?;
    ensure!(rows(&main).await? == 1);
    Ok(())
}

#[tokio::test]
async fn a_change_in_mariadb_that_is_not_published_yet_is_not_written_over() -> Result<()> {
    changes_are_not_written_over(Main::mariadb().await?).await
}

#[tokio::test]
async fn a_change_in_postgres_that_is_not_published_yet_is_not_written_over() -> Result<()> {
    changes_are_not_written_over(Main::postgres().await?).await
}

/// An older state is on its way to a row that the application changes, before or after it arrives.
async fn changes_are_not_written_over(main: Main) -> Result<()> {
    let stack = both_ways(&main).await?;
    let bus = Bus::connect(&stack).await?;
    main.run("INSERT INTO people (uid, email, n) VALUES (1, 'first', 0), (2, 'first', 0)")
        .await?;
    main.until_published().await?;
    bus.until_taken_in().await?;
    bus.until_settled("people").await?;
    for round in 0..3 {
        let (old, new) = (format!("old{round}"), format!("new{round}"));
        // The states are stored while the worker sleeps; then the relay does, too.
        stack.workers["people"][0].signal(Signal::SIGSTOP)?;
        for user in 1..=2 {
            bus.publish("user.updated", json!({"user_id": user, "email": old}))
                .await?;
        }
        bus.until_taken_in().await?;
        stack.gateway().signal(Signal::SIGSTOP)?;
        main.run(&format!("UPDATE people SET email = '{new}' WHERE uid = 1"))
            .await?;
        stack.workers["people"][0].signal(Signal::SIGCONT)?;
        // The other user is written, so this one has been tried.
        eventually(SOON, async || {
            let written = format!("SELECT COUNT(*) FROM people WHERE uid = 2 AND email = '{old}'");
            ensure!(main.number(&written).await? == 1, "not delivered yet");
            Ok(())
        })
        .await?;
        stack.gateway().signal(Signal::SIGCONT)?;
        // After the delivery.
        main.run(&format!("UPDATE people SET email = '{new}' WHERE uid = 2"))
            .await?;
        main.until_published().await?;
        bus.until_taken_in().await?;
        bus.until_settled("people").await?;
        let kept = format!("SELECT COUNT(*) FROM people WHERE email = '{new}'");
        ensure!(main.number(&kept).await? == 2, "a change was undone");
        for user in 1..=2 {
            let state = bus.state(user).await?;
            ensure!(state["email"] == new, "{state}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn who_came_again_in_mariadb_is_not_disabled_for_having_left() -> Result<()> {
    who_came_again_is_not_disabled(Main::mariadb().await?).await
}

#[tokio::test]
async fn who_came_again_in_postgres_is_not_disabled_for_having_left() -> Result<()> {
    who_came_again_is_not_disabled(Main::postgres().await?).await
}

/// A tombstone is on its way to a row that the application has made anew.
async fn who_came_again_is_not_disabled(main: Main) -> Result<()> {
    let stack = both_ways(&main).await?;
    let bus = Bus::connect(&stack).await?;
    main.run("INSERT INTO people (uid, email, state) VALUES (1, 'first', 'active'), (2, 'first', 'active')")
        .await?;
    main.until_published().await?;
    bus.until_taken_in().await?;
    bus.until_settled("people").await?;

    stack.workers["people"][0].signal(Signal::SIGSTOP)?;
    for user in 1..=2 {
        bus.publish("user.deleted", json!({"user_id": user}))
            .await?;
    }
    bus.until_taken_in().await?;
    stack.gateway().signal(Signal::SIGSTOP)?;
    main.run("DELETE FROM people WHERE uid = 1").await?;
    main.run("INSERT INTO people (uid, email, state) VALUES (1, 'again', 'active')")
        .await?;
    stack.workers["people"][0].signal(Signal::SIGCONT)?;
    // The other user is disabled, so this one has been tried.
    eventually(SOON, async || {
        let disabled = "SELECT COUNT(*) FROM people WHERE uid = 2 AND state = 'disabled'";
        ensure!(main.number(disabled).await? == 1, "not delivered yet");
        Ok(())
    })
    .await?;
    stack.gateway().signal(Signal::SIGCONT)?;
    main.until_published().await?;
    bus.until_taken_in().await?;
    delivered(
        &main,
        &bus,
        "uid = 1 AND email = 'again' AND state = 'active'",
    )
    .await?;
    let state = bus.state(1).await?;
    ensure!(
        state["email"] == "again" && state["deleted"] == false,
        "{state}"
    );
    Ok(())
}

#[tokio::test]
async fn who_was_deleted_stays_so_where_the_table_of_mariadb_is_a_target() -> Result<()> {
    who_was_deleted_stays_so(Main::mariadb().await?).await
}

#[tokio::test]
async fn who_was_deleted_stays_so_where_the_table_of_postgres_is_a_target() -> Result<()> {
    who_was_deleted_stays_so(Main::postgres().await?).await
}

/// One whom the application deletes, and one who is deleted elsewhere: the first leaves no row that is in the way, and the row
/// of the second is none that makes a user.
async fn who_was_deleted_stays_so(main: Main) -> Result<()> {
    let entry = people(&main.access()).replace("on_delete = \"disable\"\n", "");
    let stack = both_ways_by(&main, entry).await?;
    let bus = Bus::connect(&stack).await?;
    main.run("INSERT INTO people (uid, email) VALUES (1, 'one'), (2, 'two'), (3, 'three')")
        .await?;
    main.until_published().await?;
    bus.until_taken_in().await?;
    bus.until_settled("people").await?;
    main.run("DELETE FROM people WHERE uid = 1").await?;
    bus.publish("user.deleted", json!({"user_id": 2})).await?;
    main.until_published().await?;
    bus.until_taken_in().await?;
    delivered(&main, &bus, "uid = 2 AND email IS NULL AND sync_deleted").await?;
    let left = main.number("SELECT COUNT(*) FROM people WHERE uid = 1");
    ensure!(left.await? == 0, "usersync made a row of its own");

    main.scheduler("load", Some(&stack.nats), &["load"]).await?;
    let check = ["check", "--once", "--target", "gateway"];
    main.scheduler("check", Some(&stack.nats), &check).await?;
    for user in [1, 2] {
        let state = bus.state_after_intake(user).await?;
        ensure!(state["deleted"] == true, "{state}");
    }
    main.run("INSERT INTO people (uid, email) VALUES (1, 'again')")
        .await?;
    main.until_published().await?;
    let state = bus.state_after_intake(1).await?;
    ensure!(
        state["deleted"] == false && state["email"] == "again",
        "{state}"
    );
    delivered(
        &main,
        &bus,
        "uid = 1 AND email = 'again' AND NOT sync_deleted",
    )
    .await
}

#[tokio::test]
async fn whoever_does_not_see_the_outbox_in_mariadb_writes_over_nothing() -> Result<()> {
    nothing_is_written_over_unseen(Main::mariadb().await?).await
}

#[tokio::test]
async fn whoever_does_not_see_the_outbox_in_postgres_writes_over_nothing() -> Result<()> {
    nothing_is_written_over_unseen(Main::postgres().await?).await
}

/// A login that may write to the table and knows nothing of the outbox that it gets.
async fn nothing_is_written_over_unseen(main: Main) -> Result<()> {
    let (make, see) = match main.server {
        Server::MariaDb(..) => (
            "CREATE USER 'back'@'%' IDENTIFIED BY 'of-a-test'; GRANT SELECT, INSERT, UPDATE ON people TO 'back'@'%'",
            "GRANT SELECT ON user_outbox TO 'back'@'%'; GRANT TRIGGER ON people TO 'back'@'%'",
        ),
        Server::Postgres(..) => (
            "CREATE ROLE back LOGIN PASSWORD 'of-a-test'; GRANT SELECT, INSERT, UPDATE ON people TO back",
            "GRANT SELECT ON user_outbox TO back",
        ),
    };
    main.run(SYNC).await?;
    for statement in make.split("; ") {
        main.run(statement).await?;
    }
    let password = main.dir.path().join("back");
    std::fs::write(&password, "of-a-test")?;
    let access = main.access();
    let url = access.split('"').nth(1).context("a url")?;
    let mut url: reqwest::Url = url.parse()?;
    url.set_username("back")
        .map_err(|()| anyhow::anyhow!("no user"))?;
    let access = format!("url = \"{url}\"\nsecret = \"file:{}\"", password.display());
    let stack = only(people(&access)).start().await?;
    let (bus, began) = (Bus::connect(&stack).await?, Timestamp::now());
    bus.publish("user.created", json!({"user_id": 1, "email": "old"}))
        .await?;
    delivered(&main, &bus, "uid = 1 AND email = 'old'").await?;

    main.install().await?;
    main.run("UPDATE people SET email = 'new' WHERE uid = 1")
        .await?;
    bus.publish("user.updated", json!({"user_id": 1, "data": {"n": 5}}))
        .await?;
    let worker = Asked::of(&stack.workers["people"][0]);
    worker
        .until_wrong(200, "people", "nothing is delivered", began)
        .await?;
    eventually(SOON, async || {
        let breakers = bus.jetstream().get_key_value(BREAKERS_BUCKET).await?;
        let keys: Vec<String> = breakers.keys().await?.try_collect().await?;
        let key = keys.first().context("no breaker is open")?;
        let notice = breakers.get(key).await?.context("it is closed again")?;
        let said = String::from_utf8_lossy(&notice).into_owned();
        ensure!(said.contains("GRANT SELECT ON"), "{said}");
        Ok(())
    })
    .await?;
    let kept = "SELECT COUNT(*) FROM people WHERE uid = 1 AND email = 'new' AND n IS NULL";
    ensure!(main.number(kept).await? == 1, "it was written over");

    for statement in see.split("; ") {
        main.run(statement).await?;
    }
    worker.until_well().await?;
    ensure!(main.number(kept).await? == 1, "it was written over");
    // Nobody relays here: as if it had been.
    main.run("UPDATE user_outbox SET state = 1").await?;
    delivered(&main, &bus, "uid = 1 AND email = 'old' AND n = 5").await
}

const SYNC: &str = "ALTER TABLE people ADD sync_version BIGINT NOT NULL DEFAULT 0, ADD sync_deleted BOOLEAN NOT NULL DEFAULT FALSE";

/// The entry of the table as a target.
fn people(access: &str) -> String {
    format!(
        "[people]\n{access}\non_delete = \"disable\"\n\
         breaker = {{ probe = \"100ms\", probe_cap = \"200ms\" }}\n\
         table = {{ name = \"people\", id = \"uid\", columns = {{ username = \"username\", email = \"email\", \
         state = \"status\", city = \"data.city\", n = \"data.n\" }} }}\n"
    )
}

/// The table `people` as source and target of a stack.
async fn both_ways(main: &Main) -> Result<Stack> {
    both_ways_by(main, people(&main.access())).await
}

async fn both_ways_by(main: &Main, entry: String) -> Result<Stack> {
    main.run(SYNC).await?;
    main.install().await?;
    let settings = main.settings();
    only(entry)
        .gateway_args(["--config".as_ref(), settings.as_os_str()])
        .start()
        .await
}

/// Asserts that, once everything is delivered, one user is as `expected`.
async fn delivered(main: &Main, bus: &Bus, expected: &str) -> Result<()> {
    bus.until_settled("people").await?;
    let found = format!("SELECT COUNT(*) FROM people WHERE {expected}");
    ensure!(main.number(&found).await? == 1, "nobody has {expected}");
    Ok(())
}

/// How many rows the outbox has, published or not.
async fn rows(main: &Main) -> Result<i64> {
    main.number("SELECT COUNT(*) FROM user_outbox").await
}
