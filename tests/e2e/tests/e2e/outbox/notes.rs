//! What notes come to: a source owns what it maps and nothing else, nobody is deleted by accident, and late copies and
//! strangers' claims count for nothing.

use anyhow::{Context as _, Result, ensure};
use async_nats::HeaderMap;
use serde_json::{Value, json};
use usersync_core::subjects::{USER_EVENTS, USER_REFUSED};
use usersync_stack::{Stack, eventually, http};

use super::Main;
use crate::support::{Bus, SOON};

/// Waits until all that is noted is in the states.
async fn settled(main: &Main, bus: &Bus) -> Result<()> {
    main.until_published().await?;
    bus.until_taken_in().await
}

#[tokio::test]
async fn a_row_owns_what_is_mapped_in_mariadb() -> Result<()> {
    rows_own_what_is_mapped(Main::mariadb().await?).await
}

#[tokio::test]
async fn a_row_owns_what_is_mapped_in_postgres() -> Result<()> {
    rows_own_what_is_mapped(Main::postgres().await?).await
}

async fn rows_own_what_is_mapped(main: Main) -> Result<()> {
    main.run("ALTER TABLE people ADD last_seen BIGINT").await?;
    main.install().await?;
    let stack = main.stack(1).await?;
    let bus = Bus::connect(&stack).await?;
    main.run("INSERT INTO people (uid, username, email, city) VALUES (1, 'ann', 'a@x', 'Ulm')")
        .await?;
    settled(&main, &bus).await?;
    let plan = json!({"user_id": 1, "data": {"plan": "gold"}});
    bus.publish("user.updated", plan).await?;
    bus.until_taken_in().await?;

    // What is NULL leaves the state, and what another service says of it stays.
    main.run("UPDATE people SET city = NULL, email = 'b@x' WHERE uid = 1")
        .await?;
    settled(&main, &bus).await?;
    let state = bus.state(1).await?;
    ensure!(
        state["data"] == json!({"plan": "gold"}) && state["email"] == "b@x",
        "{state}"
    );

    // What isn't mapped costs no event.
    let events = bus.count(USER_EVENTS).await?;
    for seen in 0..5 {
        main.run(&format!("UPDATE people SET last_seen = {seen}"))
            .await?;
        main.until_published().await?;
    }
    ensure!(bus.count(USER_EVENTS).await? == events);
    main.run("UPDATE people SET state = 'locked'").await?;
    settled(&main, &bus).await?;
    let state = bus.state(1).await?;
    ensure!(
        state["event"]["type"] == "user.status_changed" && state["status"] == "locked",
        "{state}"
    );
    // There and back again, faster than anybody merges.
    main.run("UPDATE people SET n = 1; UPDATE people SET n = 2; UPDATE people SET n = 1; UPDATE people SET n = NULL")
        .await?;
    settled(&main, &bus).await?;
    ensure!(bus.state(1).await?["data"]["n"].is_null());

    if matches!(main.server, super::Server::MariaDb(..)) {
        main.run("REPLACE INTO people (uid, username) VALUES (1, 'eve')")
            .await?;
        settled(&main, &bus).await?;
        let state = bus.state(1).await?;
        ensure!(
            state["username"] == "eve" && state["data"] == json!({"plan": "gold"}),
            "{state}"
        );
    }

    // An id that is used again inherits nothing.
    main.run(
        "DELETE FROM people WHERE uid = 1; INSERT INTO people (uid, username) VALUES (1, 'bob')",
    )
    .await?;
    settled(&main, &bus).await?;
    let state = bus.state(1).await?;
    if matches!(main.server, super::Server::MariaDb(..)) {
        ensure!(
            state["username"] == "bob" && state["data"].is_null(),
            "{state}"
        );
    }

    // Erased by somebody else, a user comes back with a new row only.
    bus.publish("user.deleted", json!({"user_id": 1, "erase": true}))
        .await?;
    bus.until_taken_in().await?;
    main.run("UPDATE people SET username = 'carl' WHERE uid = 1")
        .await?;
    settled(&main, &bus).await?;
    ensure!(bus.state(1).await?["deleted"] == true);
    main.run("DELETE FROM people WHERE uid = 1").await?;
    main.run("INSERT INTO people (uid, username) VALUES (1, 'dan')")
        .await?;
    settled(&main, &bus).await?;
    let state = bus.state(1).await?;
    ensure!(
        state["deleted"] == false && state["username"] == "dan",
        "{state}"
    );
    main.equals_the_states(&stack).await
}

#[tokio::test]
async fn a_user_who_could_not_be_read_comes_with_the_next_change_in_mariadb() -> Result<()> {
    what_failed_comes_with_the_next_change(Main::mariadb().await?).await
}

#[tokio::test]
async fn a_user_who_could_not_be_read_comes_with_the_next_change_in_postgres() -> Result<()> {
    what_failed_comes_with_the_next_change(Main::postgres().await?).await
}

async fn what_failed_comes_with_the_next_change(main: Main) -> Result<()> {
    main.install().await?;
    let mut stack = main.stack(1).await?;
    main.run("INSERT INTO people (uid, username) VALUES (1, 'ann'), (2, 'ben')")
        .await?;
    main.equals_the_states(&stack).await?;
    main.run("DELETE FROM people").await?;
    main.equals_the_states(&stack).await?;
    main.run(
        "INSERT INTO people (uid, city) VALUES (1, REPEAT('x', 300000)), (2, REPEAT('x', 300000))",
    )
    .await?;
    main.until_published().await?;
    let failed = async || {
        main.number("SELECT COUNT(*) FROM user_outbox WHERE state = 2")
            .await
    };
    ensure!(failed().await? == 2);
    main.run("UPDATE people SET city = 'Bonn' WHERE uid = 1")
        .await?;
    main.until_published().await?;
    ensure!(failed().await? == 1);
    // Whoever takes over knows of it, too.
    stack.gateways[0].restart().await?;
    main.run("UPDATE people SET city = 'Ulm' WHERE uid = 2")
        .await?;
    main.equals_the_states(&stack).await?;
    ensure!(failed().await? == 0);
    Ok(())
}

#[tokio::test]
async fn many_deletions_wait_until_somebody_approves_them_in_mariadb() -> Result<()> {
    many_deletions_wait(Main::mariadb().await?).await
}

#[tokio::test]
async fn many_deletions_wait_until_somebody_approves_them_in_postgres() -> Result<()> {
    many_deletions_wait(Main::postgres().await?).await
}

async fn many_deletions_wait(main: Main) -> Result<()> {
    main.install().await?;
    let mut stack = main.stack(1).await?;
    super::fill(&main, 500).await?;
    main.equals_the_states(&stack).await?;
    main.run("DELETE FROM people WHERE uid <= 100").await?;
    main.equals_the_states(&stack).await?;
    // Whoever relays now has passed none of them on.
    stack.gateways[0].restart().await?;
    main.run("DELETE FROM people WHERE uid <= 101").await?;
    let ready = format!("{}/readyz", stack.gateway().url());
    eventually(SOON, async || {
        let text = http::client().get(&ready).send().await?.text().await?;
        ensure!(
            text.contains("101 users were deleted within an hour")
                && text.contains("outbox approve"),
            "{text}"
        );
        Ok(())
    })
    .await?;
    let bus = Bus::connect(&stack).await?;
    ensure!(bus.state(101).await?["deleted"] == false);
    main.scheduler("approve", None, &["outbox", "approve"])
        .await?;
    main.equals_the_states(&stack).await?;
    stack.gateway().until_ready().await
}

#[tokio::test]
async fn late_copies_and_claims_of_others_change_nothing() -> Result<()> {
    let main = Main::mariadb().await?;
    main.install().await?;
    let stack = main.stack(1).await?;
    let bus = Bus::connect(&stack).await?;
    main.run("INSERT INTO people (uid, username) VALUES (1, 'old')")
        .await?;
    main.until_published().await?;
    main.run("UPDATE people SET username = 'new' WHERE uid = 1")
        .await?;
    main.equals_the_states(&stack).await?;
    // As a relay does that was paused: the same event under another message id.
    let events = super::messages(&bus.jetstream, USER_EVENTS).await?;
    let first = events.first().context("no event")?;
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", "late");
    let mut late: Value = serde_json::from_slice(&first.payload)?;
    late["id"] = json!("late");
    bus.publish_with(&first.subject, headers, late.clone())
        .await?;
    main.equals_the_states(&stack).await?;
    ensure!(bus.state(1).await?["username"] == "new");

    // Whoever has seen an event can't claim another note, or speak of another user; nor can an honest caller.
    late["id"] = json!("forged");
    let mut other = late.clone();
    late["outbox"]["note"] = json!(9_000_000_000_000_000_u64);
    other["user_id"] = json!(2);
    for forged in [&late, &other] {
        bus.publish("user.created", forged.clone()).await?;
    }
    bus.until_taken_in().await?;
    ensure!(bus.state(1).await?["username"] == "new");
    ensure!(bus.state(2).await?.is_null());
    let refused = bus.count(USER_REFUSED).await?;
    ensure!(refused == 2, "{refused} refused");
    let posted = http::client()
        .post(format!("{}/v1/events", stack.gateway().url()))
        .json(&late)
        .send()
        .await?;
    let status = posted.status();
    let text = posted.text().await?;
    ensure!(
        status == 422 && text.contains("/outbox"),
        "{status}: {text}"
    );
    main.run("UPDATE people SET username = 'newer' WHERE uid = 1")
        .await?;
    main.equals_the_states(&stack).await
}

#[tokio::test]
async fn what_waits_in_an_older_outbox_comes_before_the_notes() -> Result<()> {
    let main = Main::mariadb().await?;
    // As an older version has made it, with a row that waits.
    main.run(
        "CREATE TABLE user_outbox (id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY, user_id VARCHAR(255) NOT NULL, \
           event VARCHAR(32) CHARACTER SET ascii NOT NULL, payload LONGTEXT NULL, previous LONGTEXT NULL, state TINYINT NOT NULL DEFAULT 0, \
           error VARCHAR(1000) NULL, created_at TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6), published_at TIMESTAMP(6) NULL DEFAULT NULL, \
           KEY user_outbox_state (state, id)) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 AUTO_INCREMENT = 1700000000000000",
    )
    .await?;
    let write = async |user: u64, name: &str| {
        let payload = json!({"user_id": user, "username": name, "data": {"city": "Ulm"}});
        main.run(&format!(
            "INSERT INTO user_outbox (user_id, event, payload) VALUES ('{user}', 'user.created', '{payload}')"
        ))
        .await
    };
    write(1, "ann").await?;
    // A gateway of this version relays it as it is.
    let stack: Stack = main.stack(1).await?;
    let bus = Bus::connect(&stack).await?;
    settled(&main, &bus).await?;
    let state = bus.state(1).await?;
    ensure!(
        state["username"] == "ann" && state["event"]["id"] == "main:1700000000000000",
        "{state}"
    );
    stack
        .gateway()
        .process()
        .signal(usersync_stack::Signal::SIGSTOP)?;
    write(1, "bob").await?;
    write(2, "eve").await?;
    main.scheduler("install", None, &["outbox", "install"])
        .await?;
    main.run("INSERT INTO people (uid, username) VALUES (1, 'carl'), (2, 'dan')")
        .await?;
    write(2, "own").await?;
    stack
        .gateway()
        .process()
        .signal(usersync_stack::Signal::SIGCONT)?;
    settled(&main, &bus).await?;
    let one = bus.state(1).await?;
    ensure!(
        one["username"] == "carl" && one["event"]["id"] != "main:1700000000000000",
        "{one}"
    );
    let two = bus.state(2).await?;
    ensure!(
        two["username"] == "own" && two["data"]["city"] == "Ulm",
        "{two}"
    );
    Ok(())
}

#[tokio::test]
async fn a_member_that_left_the_mapping_is_forgotten_when_asked_to() -> Result<()> {
    let main = Main::mariadb().await?;
    main.install().await?;
    let stack = main.stack(1).await?;
    let bus = Bus::connect(&stack).await?;
    main.run("INSERT INTO people (uid, username, city, n) VALUES (1, 'ann', 'Ulm', 1)")
        .await?;
    settled(&main, &bus).await?;
    let settings = std::fs::read_to_string(main.settings())?;
    std::fs::write(
        main.settings(),
        settings.replace("city = \"data.city\"\n", ""),
    )?;
    let load = async |name: &str, more: &[&str]| {
        main.scheduler(name, Some(&stack.nats), &[&["load"], more].concat())
            .await
    };
    load("load", &[]).await?;
    ensure!(bus.state(1).await?["data"]["city"] == "Ulm");
    let refused = load("refused", &["--forget", "data.n"]).await;
    ensure!(refused.is_err_and(|error| error.to_string().contains("`data.n` is mapped")));
    load("forget", &["--forget", "data.city"]).await?;
    let state = bus.state(1).await?;
    ensure!(state["data"] == json!({"n": 1}), "{state}");
    Ok(())
}

#[tokio::test]
async fn a_new_epoch_is_noticed_by_the_relay_of_mariadb() -> Result<()> {
    a_new_epoch_is_noticed(
        Main::mariadb().await?,
        "ALTER TABLE user_outbox AUTO_INCREMENT = 1",
    )
    .await
}

#[tokio::test]
async fn a_new_epoch_is_noticed_by_the_relay_of_postgres() -> Result<()> {
    a_new_epoch_is_noticed(
        Main::postgres().await?,
        "ALTER TABLE user_outbox ALTER COLUMN id RESTART WITH 1",
    )
    .await
}

/// After a database was put back, notes count from an earlier one again.
async fn a_new_epoch_is_noticed(main: Main, put_back: &str) -> Result<()> {
    main.install().await?;
    let stack = main.stack(1).await?;
    let bus = Bus::connect(&stack).await?;
    main.run("INSERT INTO people (uid, username) VALUES (1, 'ann'), (2, 'bob')")
        .await?;
    settled(&main, &bus).await?;
    main.run("DELETE FROM user_outbox").await?;
    main.run(put_back).await?;
    let renewed = main.scheduler("renew", None, &["outbox", "install", "--new-epoch"]);
    renewed.await?;
    main.run("UPDATE people SET username = 'new'").await?;
    main.equals_the_states(&stack).await?;
    ensure!(bus.state(2).await?["username"] == "new");
    Ok(())
}

/// MariaDB and MySQL have triggers run for what `IGNORE` then leaves undone.
#[tokio::test]
async fn what_mariadb_ignores_deletes_nobody() -> Result<()> {
    let main = Main::mariadb().await?;
    main.install().await?;
    let stack = main.stack(1).await?;
    let bus = Bus::connect(&stack).await?;
    main.run("INSERT INTO people (uid, username) VALUES (3, 'ann'), (4, 'bob')")
        .await?;
    settled(&main, &bus).await?;
    for user in [3, 4] {
        let plan = json!({"user_id": user, "data": {"plan": "gold"}});
        bus.publish("user.updated", plan).await?;
    }
    bus.until_taken_in().await?;
    let ignored = "UPDATE IGNORE people SET uid = 4 WHERE uid = 3";
    main.run(&format!(
        "BEGIN; {ignored}; UPDATE people SET city = 'Ulm' WHERE uid = 3; COMMIT"
    ))
    .await?;
    settled(&main, &bus).await?;
    main.run(ignored).await?;
    settled(&main, &bus).await?;
    for user in [3, 4] {
        let state = bus.state(user).await?;
        ensure!(
            state["deleted"] == false && state["data"]["plan"] == "gold",
            "{state}"
        );
    }
    ensure!(bus.state(3).await?["data"]["city"] == "Ulm");
    Ok(())
}

#[tokio::test]
async fn who_takes_an_id_that_another_gives_up_inherits_nothing() -> Result<()> {
    let main = Main::mariadb().await?;
    main.install().await?;
    let stack = main.stack(1).await?;
    let bus = Bus::connect(&stack).await?;
    main.run("INSERT INTO people (uid, username) VALUES (60, 'ann'), (61, 'bob')")
        .await?;
    settled(&main, &bus).await?;
    bus.publish(
        "user.updated",
        json!({"user_id": 61, "data": {"role": "admin"}}),
    )
    .await?;
    bus.until_taken_in().await?;
    main.run("UPDATE people SET uid = uid + 1 WHERE uid IN (60, 61) ORDER BY uid DESC")
        .await?;
    settled(&main, &bus).await?;
    let states = [
        bus.state(60).await?,
        bus.state(61).await?,
        bus.state(62).await?,
    ];
    ensure!(states[0]["deleted"] == true, "{}", states[0]);
    for (state, name) in states[1..].iter().zip(["ann", "bob"]) {
        let role = &state["data"]["role"];
        ensure!(state["username"] == name && role.is_null(), "{state}");
    }
    Ok(())
}
