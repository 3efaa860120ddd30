//! Bulk load: every user of the main database becomes a state, and nothing newer is overwritten.

use std::cell::Cell;

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::{self, stream};
use futures_util::future::join;
use serde_json::{Value, json};
use usersync_core::{
    streams,
    subjects::{USER_EVENTS, USER_STATE},
};
use usersync_stack::{NatsServer, eventually};

use super::{Main, Server, states};
use crate::support::{Bus, SOON};

/// The report of a load that ends well.
async fn load(main: &Main, name: &str, nats: &NatsServer, more: &[&str]) -> Result<Value> {
    let args = [&["load", "--json"], more].concat();
    report(&main.scheduler(name, Some(nats), &args).await?)
}

/// The report among what was said.
fn report(said: &str) -> Result<Value> {
    // The log goes to the same file.
    let report = said.find("{\n").map_or("", |at| &said[at..]);
    Ok(serde_json::from_str(report)?)
}

fn counts(report: &Value) -> [u64; 4] {
    ["created", "changed", "equal", "only_in_states"]
        .map(|key| report[key].as_u64().unwrap_or(u64::MAX))
}

/// Users 1 to `count`.
pub(crate) async fn fill(main: &Main, count: u64) -> Result<()> {
    let (row, numbers) = match main.server {
        Server::MariaDb(..) => (
            "n, CONCAT('user-', n), CONCAT(n, '@example.com'), 'active', NULL, n",
            format!("(SELECT seq AS n FROM seq_1_to_{count}) numbers"),
        ),
        Server::Postgres(..) => (
            "n, 'user-' || n, n || '@example.com', 'active', NULL, n",
            format!("generate_series(1, {count}) AS numbers (n)"),
        ),
    };
    main.run(&format!("INSERT INTO people SELECT {row} FROM {numbers}"))
        .await
}

#[tokio::test]
async fn a_stream_from_before_takes_batches_once_a_gateway_has_started() -> Result<()> {
    let main = Main::mariadb().await?;
    fill(&main, 3).await?;
    let mut stack = Main::bare_stack(0).await?;
    let client = usersync_stack::connect(&stack.nats.test_url()).await?;
    let mut streams = streams::all(1).into_iter();
    let before = streams.find(|stream| stream.name == USER_STATE);
    let before = stream::Config {
        allow_batch_publish: false,
        ..before.context("no such stream")?
    };
    jetstream::new(client).create_stream(before).await?;
    let early = main.spawn_scheduler("early", Some(&stack.nats), &["load"])?;
    let said = main.said("early", &early).await;
    let said = said.err().context("it ended well")?.to_string();
    ensure!(
        said.contains("USER_STATE takes no batches yet: start a usersync-gateway"),
        "{said}"
    );
    stack.add_gateway().await?;
    let report = load(&main, "late", &stack.nats, &[]).await?;
    ensure!(counts(&report) == [3, 0, 0, 0], "{report}");
    Ok(())
}

#[tokio::test]
async fn a_load_brings_in_everybody_and_the_second_finds_them_equal() -> Result<()> {
    for main in [Main::mariadb().await?, Main::postgres().await?] {
        // Without an outbox: this is for those who are there already.
        let mut stack = Main::bare_stack(0).await?;
        fill(&main, 900).await?;
        main.run("INSERT INTO people (uid, username) VALUES (-1, 'nobody')")
            .await?;
        // Streams are the gateway's to make: the load waits for them.
        let dry_run = ["load", "--json", "--dry-run"];
        let dry_run = main.spawn_scheduler("dry", Some(&stack.nats), &dry_run)?;
        stack.add_gateway().await?;
        let nats = &stack.nats;
        let early = report(&main.said("dry", &dry_run).await?)?;
        ensure!(
            counts(&early) == [900, 0, 0, 0] && early["unusable"] == 1,
            "{early}"
        );
        let bus = Bus::connect(&stack).await?;
        ensure!(bus.count(USER_STATE).await? == 0, "a dry run wrote");

        let first = load(&main, "first", nats, &["--rate", "5000"]).await?;
        ensure!(counts(&first) == [900, 0, 0, 0], "{first}");
        let state = bus.state(7).await?;
        ensure!(
            state["email"] == "7@example.com"
                && state["status"] == "active"
                && state["data"]["n"] == 7,
            "{state}"
        );
        ensure!(
            state["event"]["source"] == "main" && state["event_seq"] == 0,
            "{state}"
        );
        let second = load(&main, "second", nats, &[]).await?;
        ensure!(counts(&second) == [0, 0, 900, 0], "{second}");

        // One is another there, one is gone there, one is unknown here, one only partly known.
        bus.publish(
            "user.updated",
            json!({"user_id": 1, "email": "other", "data": {"more": 1}}),
        )
        .await?;
        bus.publish("user.deleted", json!({"user_id": 2})).await?;
        bus.publish(
            "user.created",
            json!({"user_id": 5_000, "username": "elsewhere"}),
        )
        .await?;
        main.run("INSERT INTO people (uid, username) VALUES (5001, 'late')")
            .await?;
        bus.publish(
            "user.updated",
            json!({"user_id": 5_001, "data": {"more": 1}}),
        )
        .await?;
        bus.until_taken_in().await?;
        let third = load(&main, "third", nats, &[]).await?;
        ensure!(counts(&third) == [1, 2, 898, 1], "{third}");
        let one = bus.state(1).await?;
        ensure!(
            one["email"] == "1@example.com" && one["data"]["more"] == 1,
            "what isn't mapped stays: {one}"
        );
        ensure!(one["event_seq"] == 1, "{one}");
        let late = bus.state(5_001).await?;
        ensure!(
            late["username"] == "late"
                && late.get("partial").is_none()
                && late["data"]["more"] == 1,
            "{late}"
        );
        ensure!(bus.state(2).await?["deleted"] == false);
        ensure!(bus.state(5_000).await?["username"] == "elsewhere");
    }
    Ok(())
}

#[tokio::test]
async fn a_load_that_was_killed_goes_on() -> Result<()> {
    let main = Main::mariadb().await?;
    let stack = Main::bare_stack(1).await?;
    fill(&main, 2_000).await?;
    let nats = &stack.nats;
    let bus = Bus::connect(&stack).await?;
    let slow = main.spawn_scheduler("slow", Some(nats), &["load", "--rate", "500"])?;
    eventually(SOON, async || {
        let done = bus.count(USER_STATE).await?;
        ensure!(done > 200, "{done} states");
        Ok(())
    })
    .await?;
    slow.kill9().await;
    let done = bus.count(USER_STATE).await?;
    ensure!(done < 2_000);
    let rest = load(&main, "rest", nats, &[]).await?;
    ensure!(
        rest["equal"].as_u64() >= Some(done) && rest["users"] == 2_000,
        "{done} were done: {rest}"
    );
    ensure!(rest["created"].as_u64() <= Some(2_000 - done), "{rest}");
    ensure!(bus.count(USER_STATE).await? == 2_000);
    Ok(())
}

/// A slow load has all rows in hand when every user changes: what it writes afterwards must not be older.
#[tokio::test]
async fn rows_in_hand_never_overwrite_newer_events() -> Result<()> {
    let main = Main::mariadb().await?;
    fill(&main, 300).await?;
    main.install().await?;
    let stack = main.stack(1).await?;
    let bus = Bus::connect(&stack).await?;
    let nats = &stack.nats;
    let slow = load(&main, "slow", nats, &["--rate", "100"]);
    let change = async {
        eventually(SOON, async || {
            let done = bus.count(USER_STATE).await?;
            ensure!(done > 20, "{done} states");
            Ok(())
        })
        .await?;
        main.run("UPDATE people SET email = 'newer', city = 'Ulm'")
            .await
    };
    let (report, changed) = join(slow, change).await;
    changed?;
    let report = report?;
    ensure!(
        report["equal"].as_u64() > Some(100),
        "nobody was overtaken: {report}"
    );
    main.equals_the_states(&stack).await
}

/// Users change in the database, and other services change what isn't mapped, while loads run: the states
/// end as the table, with all that the others wrote.
#[tokio::test]
async fn a_load_never_overwrites_a_newer_event() -> Result<()> {
    let main = Main::mariadb().await?;
    main.install().await?;
    let stack = main.stack(1).await?;
    let bus = Bus::connect(&stack).await?;
    let nats = &stack.nats;
    fill(&main, 300).await?;
    main.equals_the_states(&stack).await?;
    let over = Cell::new(false);
    let loads = async {
        let mut found = 0;
        for number in 0..4 {
            let report = load(&main, &format!("load{number}"), nats, &[]).await;
            found += report?["users"].as_u64().unwrap_or(0);
        }
        over.set(true);
        Ok::<_, anyhow::Error>(found)
    };
    let writes = async {
        let mut round = 0;
        while !over.get() {
            round += 1;
            let n = fastrand::u64(1..=300);
            main.run(&format!(
                "UPDATE people SET email = 'r{round}' WHERE uid % 7 = {}",
                n % 7
            ))
            .await?;
            main.run(&format!("DELETE FROM people WHERE uid = {n}"))
                .await?;
            main.run(&format!(
                "INSERT INTO people (uid, username, n) VALUES ({n}, 'back', {round})"
            ))
            .await?;
            let user = 1_000 + n;
            bus.publish(
                "user.updated",
                json!({"user_id": user, "data": {"round": round}}),
            )
            .await?;
            bus.publish(
                "user.updated",
                json!({"user_id": n, "data": {"seen": round}}),
            )
            .await?;
        }
        Ok::<_, anyhow::Error>(round)
    };
    let (found, rounds) = join(loads, writes).await;
    ensure!(found? >= 4 * 299 && rounds? > 10);
    main.until_published().await?;
    bus.until_taken_in().await?;
    for (id, state) in states(&bus.jetstream).await? {
        if state.partial {
            ensure!(id.to_string().parse::<u64>()? > 1_000, "{id} is partial");
            bus.publish("user.deleted", json!({"user_id": id})).await?;
        }
    }
    main.equals_the_states(&stack).await
}

#[tokio::test]
async fn a_load_is_the_way_back_when_the_states_are_lost() -> Result<()> {
    let main = Main::mariadb().await?;
    main.install().await?;
    let mut stack = main.stack(1).await?;
    fill(&main, 50).await?;
    main.equals_the_states(&stack).await?;
    let bus = Bus::connect(&stack).await?;
    let gateway = &stack.gateways[0];
    gateway.stop(SOON).await?;
    bus.jetstream.get_stream(USER_STATE).await?.purge().await?;
    let events = bus.jetstream.get_stream(USER_EVENTS).await?;
    events.purge().keep(10).await?;
    let ready = format!("{}/readyz", stack.gateway().url());
    let nats = &stack.nats;
    let back = async {
        eventually(SOON, async || {
            let answer = usersync_stack::http::client().get(&ready).send();
            let text = answer.await?.text().await?;
            ensure!(
                text.contains("usersync-scheduler load --source NAME"),
                "{text}"
            );
            Ok(())
        })
        .await?;
        load(&main, "load", nats, &[]).await
    };
    // It becomes ready by itself once the states are back.
    let (restarted, report) = join(stack.gateways[0].restart(), back).await;
    let report = report?;
    ensure!(counts(&report) == [50, 0, 0, 0], "{report}");
    restarted?;
    main.run("UPDATE people SET city = 'Ulm' WHERE uid = 1")
        .await?;
    main.equals_the_states(&stack).await
}
