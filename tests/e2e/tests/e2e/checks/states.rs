//! The states against the main database: what differs is found and mended, and what is on its way is left alone.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream;
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use usersync_core::{
    check::{Report, Stage},
    subjects::{USER_EVENTS, USER_STATE},
};
use usersync_stack::{Metrics, Signal, Stack, eventually, free_port, http};

use super::{check, counts, ended};
use crate::{
    outbox::{Main, Server, fill, states},
    support::{Bus, LATER},
};

/// A main database with `users` who are all in the states, checked as `check` says.
pub(super) async fn taken_in(main: &Main, users: u64, check: &str) -> Result<(Stack, Bus)> {
    add(main, &format!("[sources.main.check]\n{check}\n"))?;
    main.install().await?;
    let stack = main.stack(1).await?;
    let bus = Bus::connect(&stack).await?;
    fill(main, users).await?;
    main.equals_the_states(&stack).await?;
    bus.until_taken_in().await?;
    // As after a week: else intake itself would make states again that are missing.
    let events = bus.jetstream().get_stream_no_info(USER_EVENTS).await?;
    events.purge().await?;
    Ok((stack, bus))
}

/// More settings.
pub(super) fn add(main: &Main, settings: &str) -> Result<()> {
    let text = std::fs::read_to_string(main.settings())?;
    Ok(std::fs::write(main.settings(), text + settings)?)
}

/// A second main database, the table `staff` beside the first one, with users 1, 501 and 502 and no outbox.
pub(super) async fn add_staff(main: &Main, check: &str) -> Result<()> {
    main.run("CREATE TABLE staff (id BIGINT PRIMARY KEY, username VARCHAR(100))")
        .await?;
    main.run("INSERT INTO staff VALUES (1, 'user-1'), (501, 'ann'), (502, 'bob')")
        .await?;
    let (access, table) = (main.access(), "table = \"staff\"\noutbox = false");
    let check = format!("[sources.staff.check]\n{check}");
    add(
        main,
        &format!("[sources.staff]\n{access}\n{table}\n{check}\n"),
    )
}

/// The report of `usersync-scheduler check --target gateway --once`.
pub(super) async fn once(main: &Main, stack: &Stack, more: &[&str]) -> Result<Report> {
    let args = ["check", "--target", "gateway", "--once", "--json"];
    let args = [&args, more].concat();
    let said = main.scheduler("check", Some(&stack.nats), &args).await?;
    // The log goes to the same file, and so did earlier reports.
    let report = said.rfind("{\n  \"target\"").map_or("", |at| &said[at..]);
    serde_json::from_str(report).with_context(|| said.clone())
}

/// Removes a state, as if it had never been.
pub(super) async fn forget(bus: &Bus, user: u64) -> Result<()> {
    let states: jetstream::stream::Stream<()> =
        bus.jetstream().get_stream_no_info(USER_STATE).await?;
    let purge = states.purge().filter(format!("user.state.{user}"));
    purge.await?;
    Ok(())
}

/// Changes a state behind everybody's back.
pub(super) async fn tamper(bus: &Bus, user: u64, change: impl FnOnce(&mut Value)) -> Result<()> {
    let mut state = bus.state(user).await?;
    change(&mut state);
    bus.put_state(&state).await
}

pub(super) fn repaired(report: &Report) -> u64 {
    report.found.values().map(|found| found.repaired).sum()
}

#[tokio::test]
async fn every_difference_is_found_and_mended() -> Result<()> {
    for main in [Main::mariadb().await?, Main::postgres().await?] {
        let (stack, bus) = taken_in(&main, 300, "every = \"0s\"").await?;
        let alike = once(&main, &stack, &[]).await?;
        ensure!(
            counts(&alike) == [0; 4] && alike.users == 300 && alike.against == "main",
            "{alike:?}"
        );

        forget(&bus, 1).await?;
        tamper(&bus, 2, |state| {
            state["email"] = json!("other");
            state["data"]["more"] = json!(1);
        })
        .await?;
        tamper(&bus, 3, |state| state["partial"] = json!(true)).await?;
        tamper(&bus, 4, |state| {
            *state = json!({"user_id": 4, "deleted": true, "version": 1, "event_seq": 1, "event": state["event"]});
        })
        .await?;
        // As the row says, and still no state that a worker could read.
        tamper(&bus, 8, |state| {
            state.as_object_mut().map(|state| state.remove("version"));
        })
        .await?;
        // What isn't mapped is somebody else's.
        tamper(&bus, 5, |state| state["data"]["more"] = json!(1)).await?;
        tamper(&bus, 6, |state| state["user_id"] = json!(9_000)).await?;
        // Gone in both.
        main.run("DELETE FROM people WHERE uid = 7").await?;
        main.until_published().await?;
        bus.until_taken_in().await?;

        let seen = once(&main, &stack, &["--dry-run"]).await?;
        ensure!(counts(&seen) == [1, 0, 4, 1], "{seen:?}");
        ensure!(bus.state(1).await? == Value::Null, "a dry run wrote");
        let one = once(&main, &stack, &["--user", "2", "--dry-run"]).await?;
        ensure!(counts(&one) == [0, 0, 1, 0] && one.users == 1, "{one:?}");
        let range = once(&main, &stack, &["--from", "2", "--to", "3", "--dry-run"]).await?;
        ensure!(counts(&range) == [0, 0, 2, 0], "{range:?}");

        let mended = once(&main, &stack, &[]).await?;
        ensure!(
            counts(&mended) == [1, 0, 4, 1] && repaired(&mended) == 5,
            "{mended:?}"
        );
        let two = bus.state(2).await?;
        ensure!(
            two["email"] == "2@example.com" && two["data"]["more"] == 1,
            "{two}"
        );
        ensure!(bus.state(8).await?["version"].is_u64(), "still no state");
        ensure!(
            bus.state(9_000).await?["deleted"] == false,
            "an orphan went"
        );

        add(&main, "orphan = \"repair\"\n")?;
        let gone = once(&main, &stack, &[]).await?;
        ensure!(
            counts(&gone) == [0, 0, 0, 1] && repaired(&gone) == 1,
            "{gone:?}"
        );
        let orphan = bus.state(9_000).await?;
        ensure!(
            orphan["deleted"] == true && orphan.get("email").is_none(),
            "{orphan}"
        );
        let alike = once(&main, &stack, &[]).await?;
        ensure!(counts(&alike) == [0; 4], "{alike:?}");
        main.equals_the_states(&stack).await?;
    }
    Ok(())
}

#[tokio::test]
async fn rows_that_can_be_no_users_are_counted_and_never_shown() -> Result<()> {
    for main in [Main::mariadb().await?, Main::postgres().await?] {
        let (stack, bus) = taken_in(&main, 20, "every = \"0s\"").await?;
        let report = once(&main, &stack, &[]).await?;
        ensure!(
            report.unusable == 0 && report.unusable_because.is_none(),
            "{report:?}"
        );
        // An id out of range, and a user who is longer than an event may be.
        main.run("INSERT INTO people (uid, username) VALUES (-7171717, 'mallory')")
            .await?;
        main.run("UPDATE people SET city = REPEAT('x', 300000) WHERE uid = 5")
            .await?;
        main.until_published().await?;
        bus.until_taken_in().await?;
        // One that differs has both sides read again.
        forget(&bus, 9).await?;

        let report = once(&main, &stack, &[]).await?;
        ensure!(report.unusable == 2, "{report:?}");
        let because = report.unusable_because.as_deref().unwrap_or_default();
        ensure!(because.starts_with("/user_id: must be"), "{report:?}");
        ensure!(
            counts(&report) == [1, 0, 0, 0] && report.users == 19,
            "{report:?}"
        );
        for (more, unusable) in [
            (["--user", "5"].as_slice(), 1),
            (&["--user", "6"], 0),
            (&["--from", "1", "--to", "10"], 1),
            (&["--from", "6", "--to", "10"], 0),
        ] {
            let report = once(&main, &stack, more).await?;
            ensure!(report.unusable == unusable, "{more:?}: {report:?}");
        }
        let args = ["check", "--target", "gateway", "--once"];
        let table = main.scheduler("table", Some(&stack.nats), &args).await?;
        ensure!(table.contains("2 rows can't be users"), "{table}");

        let address = format!("127.0.0.1:{}", free_port()?);
        let listen = ["--listen", &address];
        let _scheduler = main.spawn_scheduler("running", Some(&stack.nats), &listen)?;
        let report = check(&bus, "gateway", json!({})).await?;
        ensure!(report.unusable == 2 && report.drifted() == 0, "{report:?}");
        eventually(LATER, async || {
            let url = format!("http://{address}/metrics");
            let metrics = Metrics::parse(&http::get_text(&http::client(), &url).await?)?;
            let rows = metrics.sum("usersync_unusable_rows_total", &[("target", "gateway")]);
            ensure!(rows == 2.0, "{rows} rows");
            Ok(())
        })
        .await?;
        for log in ["check", "table", "running"] {
            let said = std::fs::read_to_string(main.dir.path().join(format!("{log}.log")))?;
            ensure!(
                said.contains("rows that can't be users are left out"),
                "{said}"
            );
            ensure!(
                !said.contains("mallory") && !said.contains("7171717") && !said.contains("xxx")
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_is_on_its_way_from_the_main_database_is_no_difference() -> Result<()> {
    for main in [Main::mariadb().await?, Main::postgres().await?] {
        let (stack, bus) = taken_in(&main, 50, "every = \"0s\"\nwait = \"1s\"").await?;
        let gateway = stack.gateway().process();
        gateway.freeze().await?;
        main.run("UPDATE people SET email = 'new' WHERE uid = 1")
            .await?;
        main.run("INSERT INTO people (uid, username) VALUES (51, 'late')")
            .await?;
        main.run("DELETE FROM people WHERE uid = 2").await?;
        let waits = once(&main, &stack, &[]).await?;
        ensure!(counts(&waits) == [0; 4] && waits.pending == 3, "{waits:?}");

        // Relayed, and not taken in.
        main.run(
            "UPDATE user_outbox SET state = 1, published_at = CURRENT_TIMESTAMP WHERE state = 0",
        )
        .await?;
        let told = [
            ("user.updated", json!({"user_id": 1, "email": "new"})),
            ("user.created", json!({"user_id": 51, "username": "late"})),
            ("user.deleted", json!({"user_id": 2})),
        ];
        bus.publish_all(told).await?;
        let waits = once(&main, &stack, &[]).await?;
        ensure!(counts(&waits) == [0; 4] && waits.pending == 3, "{waits:?}");
        gateway.signal(Signal::SIGCONT)?;
        bus.until_taken_in().await?;
        let alike = once(&main, &stack, &[]).await?;
        ensure!(counts(&alike) == [0; 4] && alike.pending == 0, "{alike:?}");
    }
    Ok(())
}

#[tokio::test]
async fn writers_through_the_outbox_raise_no_alarm() -> Result<()> {
    for main in [Main::mariadb().await?, Main::postgres().await?] {
        let (stack, _bus) =
            taken_in(&main, 200, "every = \"0s\"\nload = 1.0\nwait = \"2s\"").await?;
        let end = Instant::now() + Duration::from_secs(8);
        let write = async |writer: u64| {
            let mut written = 0;
            while Instant::now() < end {
                let user = fastrand::u64(1..=200);
                // Back and forth, so that a row is soon what it was before.
                let statement = match written % 10 {
                    0 => format!("DELETE FROM people WHERE uid = {}", 1_000 + writer),
                    1 => format!(
                        "INSERT INTO people (uid, username) VALUES ({}, 'x')",
                        1_000 + writer
                    ),
                    _ => format!("UPDATE people SET n = 1 - COALESCE(n % 2, 0) WHERE uid = {user}"),
                };
                main.run(&statement).await?;
                written += 1;
            }
            anyhow::Ok(written)
        };
        let checking = async {
            let mut checks = 0;
            while Instant::now() < end {
                let report = once(&main, &stack, &[]).await?;
                ensure!(counts(&report) == [0; 4], "{report:?}");
                checks += 1;
            }
            Ok(checks)
        };
        let (written, checks) = futures_util::try_join!(try_join_all((0..6).map(write)), checking)?;
        let written: u64 = written.iter().sum();
        ensure!(
            written > 200 && checks > 0,
            "{written} writes, {checks} checks"
        );
        main.equals_the_states(&stack).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_newer_event_is_never_overwritten() -> Result<()> {
    let main = Main::postgres().await?;
    let (stack, bus) = taken_in(&main, 10, "every = \"0s\"").await?;
    tamper(&bus, 1, |state| state["email"] = json!("other")).await?;
    let Server::Postgres(_, pool) = &main.server else {
        anyhow::bail!("another server");
    };
    // The check has read the state when it waits for the row.
    let mut lock = pool.begin().await?;
    sqlx::query("LOCK TABLE people IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *lock)
        .await?;
    let racing = async {
        eventually(LATER, async || {
            let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
            ensure!(main.number(waiting).await? == 1, "nobody waits");
            Ok(())
        })
        .await?;
        bus.publish("user.updated", json!({"user_id": 1, "data": {"more": 2}}))
            .await?;
        bus.until_taken_in().await?;
        lock.rollback().await?;
        Ok(())
    };
    let arguments = ["--user", "1"];
    let (report, ()) = futures_util::try_join!(once(&main, &stack, &arguments), racing)?;
    ensure!(counts(&report) == [0, 0, 1, 0], "{report:?}");
    let state = bus.state(1).await?;
    ensure!(
        state["email"] == "1@example.com" && state["data"]["more"] == 2,
        "{state}"
    );
    Ok(())
}

#[tokio::test]
async fn the_states_are_checked_by_themselves_braked_and_approved() -> Result<()> {
    let main = Main::mariadb().await?;
    let (stack, bus) = taken_in(&main, 150, "every = \"10s\"\nload = 1.0").await?;
    for user in 1..=120 {
        forget(&bus, user).await?;
    }
    let _scheduler = main.spawn_scheduler("scheduler", Some(&stack.nats), &[])?;
    let braked = ended(&bus, "gateway", None).await?;
    ensure!(
        braked.stage == Stage::Braked && counts(&braked)[0] == 120,
        "{braked:?}"
    );
    ensure!(repaired(&braked) == 0, "{braked:?}");
    let url = format!("{}/v1/checks/gateway", stack.gateway().url());
    let shown = http::get_text(&http::client(), &url).await?;
    ensure!(shown.contains("\"target\":\"gateway\""), "{shown}");
    let alerts = bus.jetstream().get_stream_no_info("USER_ALERT").await?;
    alerts
        .get_last_raw_message_by_subject("user.alert.drift.gateway")
        .await?;

    let client = bus.jetstream().client();
    let body = r#"{"target":"gateway"}"#.into();
    let asked = client.request("usersync.check.approve", body).await?;
    let asked: Value = serde_json::from_slice(&asked.payload)?;
    ensure!(asked["target"] == "gateway", "{asked}");
    eventually(LATER, async || {
        let states = states(bus.jetstream()).await?;
        ensure!(states.len() == 150, "{} states", states.len());
        Ok(())
    })
    .await?;
    main.equals_the_states(&stack).await
}

#[tokio::test]
async fn without_a_main_database_the_check_says_what_is_missing() -> Result<()> {
    let stack = Stack::builder().examples(false).schedulers(1);
    let stack = stack.workers("redis-cache", 0).start().await?;
    let bus = Bus::connect(&stack).await?;
    let report = check(&bus, "gateway", json!({})).await?;
    let error = report.error.as_deref().unwrap_or_default();
    ensure!(
        report.stage == Stage::Failed && error.contains("[sources.NAME]"),
        "{report:?}"
    );
    Ok(())
}

#[tokio::test]
async fn the_outbox_of_basic_server_is_checked_too() -> Result<()> {
    let stack = Stack::builder().schedulers(1).start().await?;
    let bus = Bus::connect(&stack).await?;
    let url = stack.example("basic-server").url();
    let url = format!("{url}/api/v1/auth/register");
    let user = json!({"username": "ann", "email": "ann@example.com", "password": "correct horse", "phone": "1"});
    let user: Value = http::client()
        .post(url)
        .json(&user)
        .send()
        .await?
        .json()
        .await?;
    let id = user["id"].as_u64().context("no id")?;
    eventually(LATER, async || {
        ensure!(bus.state(id).await? != Value::Null, "not taken in");
        Ok(())
    })
    .await?;
    let alike = check(&bus, "gateway", json!({})).await?;
    ensure!(
        alike.stage == Stage::Done && counts(&alike) == [0; 4] && alike.users == 1,
        "{alike:?}"
    );
    tamper(&bus, id, |state| state["username"] = json!("eve")).await?;
    let mended = check(&bus, "gateway", json!({})).await?;
    ensure!(counts(&mended) == [0, 0, 1, 0], "{mended:?}");
    let state = bus.state(id).await?;
    ensure!(state["username"] == "ann", "{state}");
    Ok(())
}

#[tokio::test]
async fn whoever_is_in_another_main_database_is_no_orphan() -> Result<()> {
    let main = Main::mariadb().await?;
    let (stack, bus) = taken_in(&main, 20, "every = \"0s\"").await?;
    add_staff(&main, "").await?;
    let told = [
        ("user.created", json!({"user_id": 501, "username": "ann"})),
        ("user.created", json!({"user_id": 9_000, "username": "eve"})),
    ];
    bus.publish_all(told).await?;
    bus.until_taken_in().await?;
    let mended = once(&main, &stack, &[]).await?;
    ensure!(
        counts(&mended) == [1, 0, 0, 1] && repaired(&mended) == 1,
        "{mended:?}"
    );
    ensure!(mended.against == "main, staff", "{mended:?}");
    ensure!(bus.state(502).await?["username"] == "bob", "not mended");
    let left = once(&main, &stack, &[]).await?;
    ensure!(counts(&left) == [0, 0, 0, 1], "{left:?}");
    Ok(())
}
