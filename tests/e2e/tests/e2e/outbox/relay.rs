//! What commits in the main database becomes events, each once and in order, whatever dies meanwhile.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::{
    StreamExt as _,
    future::{join, try_join_all},
};
use serde_json::json;
use usersync_stack::{Service, eventually, http};

use super::Main;
use crate::support::{Api, Bus, SOON};

const WRITERS: u64 = 20;
const USERS: u64 = 40;

#[tokio::test]
async fn changes_in_mariadb_become_states() -> Result<()> {
    changes_become_states(Main::mariadb().await?).await
}

#[tokio::test]
async fn changes_in_postgres_become_states() -> Result<()> {
    changes_become_states(Main::postgres().await?).await
}

#[tokio::test]
async fn a_column_of_another_type_in_mariadb_is_read_anew() -> Result<()> {
    a_column_is_read_anew(Main::mariadb().await?, "ALTER TABLE people MODIFY city INT").await
}

#[tokio::test]
async fn a_column_of_another_type_in_postgres_is_read_anew() -> Result<()> {
    a_column_is_read_anew(
        Main::postgres().await?,
        "ALTER TABLE people ALTER city TYPE INT USING city::int",
    )
    .await
}

async fn a_column_is_read_anew(main: Main, change: &str) -> Result<()> {
    main.install().await?;
    let stack = main.stack(1).await?;
    let bus = Bus::connect(&stack).await?;
    main.run(
        "INSERT INTO people (uid, username, city) VALUES (1, 'ann', '825373492'), (2, 'ben', '5')",
    )
    .await?;
    main.until_published().await?;
    ensure!(bus.state_after_intake(1).await?["data"]["city"] == "825373492");
    main.run(change).await?;
    main.run("UPDATE people SET username = 'other'").await?;
    main.until_published().await?;
    for (user, city) in [(1_u64, 825_373_492), (2, 5)] {
        let state = bus.state_after_intake(user).await?;
        ensure!(state["data"]["city"] == city, "{state}");
    }
    ensure!(
        main.number("SELECT COUNT(*) FROM user_outbox WHERE state = 2")
            .await?
            == 0
    );
    Ok(())
}

#[tokio::test]
async fn a_table_that_nobody_may_read_shows_how_long_its_changes_wait() -> Result<()> {
    let main = Main::postgres().await?;
    main.install().await?;
    let stack = main.stack(1).await?;
    main.run("INSERT INTO people (uid, username) VALUES (1, 'ann')")
        .await?;
    main.until_published().await?;
    let locked =
        main.run("BEGIN; LOCK TABLE people IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(80); COMMIT");
    let noted = async {
        // The lock is there first, so that the note can't be published.
        eventually(SOON, async || {
            let locks = "SELECT COUNT(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted AND relation = 'people'::regclass";
            ensure!(main.number(locks).await? > 0);
            Ok(())
        })
        .await?;
        main.run("INSERT INTO user_outbox (user_id, event) VALUES ('1', 'U')")
            .await?;
        eventually(Duration::from_secs(60), async || {
            let metrics = stack.gateway_metrics().await?;
            let oldest = metrics.sum("usersync_outbox_oldest_seconds", &[("source", "main")]);
            ensure!(oldest > 14.0, "{oldest} s");
            Ok(())
        })
        .await
    };
    tokio::select! {
        ran = locked => ran.and(anyhow::Ok(())),
        noted = noted => noted,
    }
}

/// Every publisher may, and the server takes a thousand of them at a time.
#[tokio::test]
async fn many_batches_of_others_hold_no_outbox_up() -> Result<()> {
    const BATCHES: u32 = 1_100;
    let main = Main::postgres().await?;
    main.install().await?;
    let stack = main.stack(1).await?;
    let bus = Bus::connect(&stack).await?;
    let client = bus.jetstream.client();
    let crowd = async |number: u32| {
        for batch in 0..BATCHES {
            let operation = u8::from(number > 1);
            let reply = format!("_INBOX.crowd.b{batch}.1.ok.{number}.{operation}.$FI");
            let event =
                json!({"user_id": 7_000_000 + u64::from(batch), "id": format!("{batch}.{number}")});
            let event = event.to_string().into();
            client
                .publish_with_reply("user.updated", reply, event)
                .await?;
        }
        client.flush().await?;
        anyhow::Ok(())
    };
    let mut answers = client.subscribe("_INBOX.crowd.>").await?;
    crowd(1).await?;
    let refused = async {
        while let Some(answer) = answers.next().await {
            if answer.payload.windows(5).any(|bytes| bytes == b"10211") {
                return true;
            }
        }
        false
    };
    ensure!(
        tokio::time::timeout(SOON, refused).await?,
        "the server took all of them"
    );
    // The server forgets a batch that is left alone for 10 s.
    let keep_open = async {
        for number in 2.. {
            crowd(number).await?;
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        anyhow::Ok(())
    };
    let rows = async {
        for uid in 1..=5_u64 {
            main.run(&format!(
                "INSERT INTO people (uid, username) VALUES ({uid}, 'ann'), ({uid}0, 'ben')"
            ))
            .await?;
            main.until_published().await?;
            ensure!(bus.state_after_intake(10 * uid).await?["username"] == "ben");
        }
        Ok(())
    };
    tokio::select! {
        kept = keep_open => kept,
        published = rows => published,
    }
}

async fn changes_become_states(main: Main) -> Result<()> {
    let mut stack = main.stack(0).await?;
    // A gateway that is there first becomes ready once the outbox is there.
    let (early, installed) = join(stack.add_gateway(), main.install()).await;
    early?;
    installed?;

    main.run("INSERT INTO people VALUES (1, 'ann', 'a@x', 'new', 'Ulm', 1), (2, 'bob', NULL, NULL, NULL, NULL)").await?;
    main.until_published().await?;
    main.run("UPDATE people SET state = 'active' WHERE uid = 1")
        .await?;
    main.run("UPDATE people SET city = NULL, email = '🦀@x' WHERE uid = 1")
        .await?;
    main.run("DELETE FROM people WHERE uid = 2").await?;
    main.equals_the_states(&stack).await?;
    main.every_user_is_told_of_in_order(&stack).await?;
    let bus = Bus::connect(&stack).await?;
    let state = bus.state(1).await?;
    ensure!(
        state["event"]["source"] == "main" && state["event"]["type"] == "user.updated",
        "{state}"
    );
    ensure!(bus.state(2).await?["deleted"] == true);
    eventually(SOON, async || {
        let metrics = stack.gateway_metrics().await?;
        ensure!(metrics.sum("usersync_outbox_active", &[("source", "main")]) == 1.0);
        let rows = |result| metrics.sum("usersync_outbox_rows_total", &[("result", result)]);
        ensure!(rows("published") + rows("silent") == 5.0);
        ensure!(metrics.sum("usersync_outbox_unpublished", &[]) == 0.0);
        Ok(())
    })
    .await
}

/// Intake takes no change of an outbox that it hasn't heard of, and whoever takes over has only the bucket to hear from.
#[tokio::test]
async fn the_key_of_an_outbox_that_somebody_deletes_comes_again() -> Result<()> {
    let main = Main::mariadb().await?;
    main.install().await?;
    let mut stack = main.stack(1).await?;
    let bus = Bus::connect(&stack).await?;
    let key = async || bus.kv_get("user_sources", "main").await;
    eventually(SOON, async || {
        ensure!(key().await?.is_some(), "no key yet");
        Ok(())
    })
    .await?;
    let before = key().await?;
    bus.kv_delete("user_sources", "main").await?;
    eventually(SOON, async || {
        let now = key().await?;
        ensure!(now == before, "{now:?}");
        Ok(())
    })
    .await?;
    // One that has never heard of it takes the changes.
    stack.gateways[0].restart().await?;
    main.run("INSERT INTO people VALUES (1, 'ann', 'a@x', 'new', 'Ulm', 1)")
        .await?;
    main.until_published().await?;
    main.equals_the_states(&stack).await
}

#[tokio::test]
async fn the_status_tells_how_an_outbox_stands() -> Result<()> {
    let main = Main::mariadb().await?;
    main.install().await?;
    let stack = main.stack(1).await?;
    let api = Api::of(&stack).await?;
    let stands = async |state: &str, failed: u64| {
        eventually(SOON, async || {
            let status = api.get("/v1/status").await?;
            let source = &status["sources"][0];
            let (name, is, rows) = (&source["source"], &source["state"], &source["failed"]);
            ensure!(name == "main" && is == state && *rows == failed, "{status}");
            Ok(())
        })
        .await
    };
    main.run("INSERT INTO people (uid) VALUES (-5)").await?;
    stands("ok", 1).await?;
    main.run("RENAME TABLE user_outbox TO elsewhere").await?;
    // As it was seen last.
    stands("stopped", 1).await?;
    main.run("RENAME TABLE elsewhere TO user_outbox").await?;
    stands("ok", 1).await
}

#[tokio::test]
async fn a_row_that_can_never_be_published_holds_nobody_back() -> Result<()> {
    let main = Main::mariadb().await?;
    main.install().await?;
    let stack = main.stack(1).await?;
    main.run("INSERT INTO people (uid) VALUES (1), (-5), (2)")
        .await?;
    main.until_published().await?;
    main.run("UPDATE people SET city = REPEAT('x', 300000) WHERE uid = 1")
        .await?;
    main.until_published().await?;
    let said = main
        .scheduler("status", None, &["outbox", "status", "--json"])
        .await?;
    let standing: serde_json::Value = serde_json::from_str(&said)?;
    ensure!(
        standing["failed"] == 2 && standing["unpublished"] == 0,
        "{standing}"
    );
    let reasons = standing["reasons"].to_string();
    ensure!(
        reasons.contains("at most 262144 are taken")
            && reasons.contains("its id is none that a user can have"),
        "{reasons}"
    );
    ensure!(!reasons.contains("-5"), "{reasons}");
    main.run("UPDATE people SET city = 'Bonn' WHERE uid = 1; DELETE FROM people WHERE uid = -5")
        .await?;
    main.equals_the_states(&stack).await
}

#[tokio::test]
async fn nothing_is_lost_when_gateways_are_killed_while_many_write_to_mariadb() -> Result<()> {
    killed_gateways_lose_nothing(Main::mariadb().await?).await
}

#[tokio::test]
async fn nothing_is_lost_when_gateways_are_killed_while_many_write_to_postgres() -> Result<()> {
    killed_gateways_lose_nothing(Main::postgres().await?).await
}

async fn killed_gateways_lose_nothing(main: Main) -> Result<()> {
    main.install().await?;
    let mut stack = main.stack(1).await?;
    let written = write_while(&main, 250, async {
        for _ in 0..6 {
            let pause = Duration::from_millis(fastrand::u64(50..400));
            tokio::time::sleep(pause).await;
            stack.gateways[0].restart().await?;
        }
        Ok(())
    });
    written.await?;
    main.equals_the_states(&stack).await?;
    main.every_user_is_told_of_in_order(&stack).await
}

#[tokio::test]
async fn a_long_backlog_comes_in_order_while_others_write_to_mariadb() -> Result<()> {
    long_backlog_comes_in_order(Main::mariadb().await?, "DO SLEEP(0.01)").await
}

#[tokio::test]
async fn a_long_backlog_comes_in_order_while_others_write_to_postgres() -> Result<()> {
    long_backlog_comes_in_order(Main::postgres().await?, "SELECT pg_sleep(0.01)").await
}

/// More rows than the relay reads at once, most of them several of one user, and more to come meanwhile.
async fn long_backlog_comes_in_order(main: Main, pause: &str) -> Result<()> {
    main.install().await?;
    let users: Vec<String> = (0..USERS).map(|user| format!("({user})")).collect();
    main.run(&format!(
        "INSERT INTO people (uid) VALUES {}",
        users.join(", ")
    ))
    .await?;
    for n in 0..400 {
        main.run(&format!("UPDATE people SET n = {n}")).await?;
    }
    let late = async |user: u64| {
        for n in 1_000..1_100 {
            let update = format!("UPDATE people SET n = {n} WHERE uid = {user}");
            main.run(&format!("BEGIN; {update}; {pause}; COMMIT"))
                .await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let late = try_join_all((0..WRITERS).map(late));
    let (stack, written) = join(main.stack(1), late).await;
    written?;
    let stack = stack?;
    main.equals_the_states(&stack).await?;
    main.every_user_is_told_of_in_order(&stack).await
}

#[tokio::test]
async fn twenty_writers_end_in_what_they_wrote() -> Result<()> {
    for main in [Main::mariadb().await?, Main::postgres().await?] {
        main.install().await?;
        let stack = main.stack(1).await?;
        write(&main, 1_000, &Cell::new(true)).await?;
        main.equals_the_states(&stack).await?;
        main.every_user_is_told_of_in_order(&stack).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_mariadb_that_is_killed_is_said_to_be_down_and_catches_up() -> Result<()> {
    killed_database_catches_up(Main::mariadb().await?).await
}

#[tokio::test]
async fn a_postgres_that_is_killed_is_said_to_be_down_and_catches_up() -> Result<()> {
    killed_database_catches_up(Main::postgres().await?).await
}

async fn killed_database_catches_up(mut main: Main) -> Result<()> {
    main.install().await?;
    let stack = main.stack(1).await?;
    write(&main, 20, &Cell::new(true)).await?;
    main.kill9().await;
    let ready = format!("{}/readyz", stack.gateway().url());
    eventually(SOON, async || {
        let answer = http::client().get(&ready).send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(
            status == 503 && text.contains("\"source main\":\"connecting to 127.0.0.1"),
            "{text}"
        );
        Ok(())
    })
    .await?;
    // Everything else goes on.
    let bus = Bus::connect(&stack).await?;
    bus.publish(
        "user.created",
        json!({"user_id": 999_999, "username": "other"}),
    )
    .await?;
    ensure!(bus.state_after_intake(999_999).await?["username"] == "other");
    bus.publish("user.deleted", json!({"user_id": 999_999}))
        .await?;

    main.restart().await?;
    write(&main, 20, &Cell::new(true)).await?;
    stack.gateway().until_ready().await?;
    main.equals_the_states(&stack).await
}

#[tokio::test]
async fn nothing_is_lost_when_the_nats_server_is_killed() -> Result<()> {
    let main = Main::mariadb().await?;
    main.install().await?;
    let mut stack = main.stack(1).await?;
    let written = write_while(&main, 100, async {
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            stack.nats.restart().await?;
        }
        Ok(())
    });
    written.await?;
    main.equals_the_states(&stack).await?;
    main.every_user_is_told_of_in_order(&stack).await
}

#[tokio::test]
async fn one_gateway_relays_mariadb_and_another_takes_over() -> Result<()> {
    another_gateway_takes_over(Main::mariadb().await?).await
}

#[tokio::test]
async fn one_gateway_relays_postgres_and_another_takes_over() -> Result<()> {
    another_gateway_takes_over(Main::postgres().await?).await
}

async fn another_gateway_takes_over(main: Main) -> Result<()> {
    main.install().await?;
    let stack = main.stack(2).await?;
    let first = relaying(&stack.gateways).await?;
    write(&main, 10, &Cell::new(true)).await?;
    main.until_published().await?;
    stack.gateways[first].kill9().await;
    let alive = std::slice::from_ref(&stack.gateways[1 - first]);
    ensure!(relaying(alive).await? == 0);
    write(&main, 10, &Cell::new(true)).await?;
    main.equals_the_states(&stack).await?;
    main.every_user_is_told_of_in_order(&stack).await
}

/// Which gateway relays; one does.
async fn relaying(gateways: &[Service]) -> Result<usize> {
    eventually(SOON, async || {
        let mut found = Vec::new();
        for (number, gateway) in gateways.iter().enumerate() {
            if gateway.metrics().await?.sum("usersync_outbox_active", &[]) == 1.0 {
                found.push(number);
            }
        }
        ensure!(found.len() == 1, "{found:?} relay");
        Ok(found[0])
    })
    .await
}

/// Writes at least so often with each of the writers, and until `trouble` is over.
async fn write_while(
    main: &Main,
    least: u64,
    trouble: impl Future<Output = Result<()>>,
) -> Result<()> {
    let over = Cell::new(false);
    let trouble = async {
        let done = trouble.await;
        over.set(true);
        done
    };
    let (troubled, written) = join(trouble, write(main, least, &over)).await;
    troubled.and(written)
}

/// Inserts, updates and deletes users who are shared between the writers.
async fn write(main: &Main, least: u64, over: &Cell<bool>) -> Result<()> {
    let writer = async |_: u64| {
        let mut step = 0;
        while step < least || !over.get() {
            let user = fastrand::u64(0..USERS);
            let n = fastrand::u32(..);
            let statement = match fastrand::u8(0..10) {
                0 => format!("DELETE FROM people WHERE uid = {user}"),
                1..4 => format!("UPDATE people SET state = 's{n}' WHERE uid = {user}"),
                4..7 => format!("UPDATE people SET city = NULL, n = {n} WHERE uid = {user}"),
                _ => match main.server {
                    super::Server::MariaDb(..) => format!(
                        "INSERT INTO people (uid, username, n) VALUES ({user}, 'u{n}', {n}) ON DUPLICATE KEY UPDATE username = VALUES(username), n = VALUES(n)"
                    ),
                    super::Server::Postgres(..) => format!(
                        "INSERT INTO people (uid, username, n) VALUES ({user}, 'u{n}', {n}) ON CONFLICT (uid) DO UPDATE SET username = excluded.username, n = excluded.n"
                    ),
                },
            };
            match main.run(&statement).await {
                // The server breaks deadlocks between writers; theirs is the trouble.
                Err(error) if error.to_string().contains("eadlock") => {}
                done => done?,
            }
            step += 1;
        }
        Ok::<_, anyhow::Error>(())
    };
    try_join_all((0..WRITERS).map(writer)).await?;
    Ok(())
}
