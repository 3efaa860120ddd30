//! Repairs beside writers who change the very users that are being repaired: what is older never wins.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use async_nats::{
    Subscriber,
    jetstream::{
        context::PublishErrorKind,
        message::PublishMessage,
        stream::{self, Republish},
    },
};
use futures_util::{StreamExt as _, future::try_join_all};
use serde_json::{Value, json};
use sqlx::Row as _;
use tokio::time::interval;
use usersync_core::{check::Stage, state::State, subjects::USER_STATE};
use usersync_stack::{Stack, eventually};

use super::{
    check,
    states::{add, repaired},
};
use crate::{
    outbox::{Main, Server, fill, states},
    support::{Bus, LATER, SOON, only},
};

/// Users who are changed, tampered with and repaired all the time, and for how long.
const USERS: u64 = 200;
const LENGTH: Duration = Duration::from_secs(20);
/// How often each of the writers, and whoever tampers, changes a user.
const WRITERS: u64 = 2;
const EVERY: Duration = Duration::from_millis(10);
/// Everybody may be changed without asking, and nothing is rested for.
const CHECK: &str = "every = \"0s\"\nwait = \"0s\"\nload = 1.0\nbrake_users = 1000000";

/// A copy of the users that writes down every row it is given. It takes its time, so that what is on its way gets old.
const CRM: &str = "
    CREATE TABLE crm (id BIGINT PRIMARY KEY, username TEXT, email TEXT, state TEXT, city TEXT, n BIGINT,
        sync_version BIGINT NOT NULL DEFAULT 0, sync_deleted BOOLEAN NOT NULL DEFAULT FALSE);
    CREATE TABLE told (seq BIGSERIAL PRIMARY KEY, id BIGINT, version BIGINT, n BIGINT);
    CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO told (id, version, n) VALUES (NEW.id, NEW.sync_version, NEW.n);
        PERFORM pg_sleep(0.002 * random());
        RETURN NULL;
    END $$;
    CREATE TRIGGER tell AFTER INSERT OR UPDATE ON crm FOR EACH ROW EXECUTE FUNCTION tell();";

/// Main database, states and the copy hold the same; the copy has two workers.
async fn all_alike(main: &Main) -> Result<(Stack, Bus)> {
    add(main, &format!("[sources.main.check]\n{CHECK}\n"))?;
    main.install().await?;
    main.run(CRM).await?;
    let crm = format!(
        "[crm]\n{}\ntable = {{ name = \"crm\", columns = {{ username = \"username\", email = \"email\", \
         state = \"status\", city = \"data.city\", n = \"data.n\" }} }}\n[crm.check]\n{CHECK}\n",
        main.access_of_a_target()?
    );
    let settings = main.settings();
    let stack = only(crm)
        .gateway_args(["--config".as_ref(), settings.as_os_str()])
        .workers("crm", 2)
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    fill(main, USERS).await?;
    main.equals_the_states(&stack).await?;
    bus.until_settled("crm").await?;
    Ok((stack, bus))
}

/// Every state that is stored from now on, in the order of the stream.
async fn watched(bus: &Bus) -> Result<Subscriber> {
    let known = bus.jetstream().get_stream(USER_STATE).await?;
    let republish = Republish {
        source: ">".to_owned(),
        destination: "watched.>".to_owned(),
        headers_only: false,
    };
    let config = stream::Config {
        republish: Some(republish),
        ..known.cached_info().config.clone()
    };
    let watched = usersync_stack::subscribe(&bus.jetstream().client(), "watched.>").await?;
    bus.jetstream().update_stream(config).await?;
    Ok(watched)
}

/// Changes the e-mail of a state behind everybody's back, but nothing that is newer than what it has read.
async fn tamper_with_state(bus: &Bus, user: u64) -> Result<()> {
    let states = bus.jetstream().get_stream_no_info(USER_STATE).await?;
    let subject = format!("user.state.{user}");
    let stored = states.get_last_raw_message_by_subject(&subject).await?;
    let mut state: Value = serde_json::from_slice(&stored.payload)?;
    state["email"] = json!("mallory");
    state["version"] = json!(state["version"].as_u64().context("no version")? + 1);
    let message = PublishMessage::build()
        .payload(state.to_string().into())
        .expected_last_subject_sequence(stored.sequence);
    let sent = bus.jetstream().send_publish(subject, message);
    match sent.await?.await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Does something about a random user again and again until `end`; answers how often.
async fn keeps_on(end: Instant, act: impl AsyncFn(u64) -> Result<()>) -> Result<u64> {
    let (mut every, mut done) = (interval(EVERY), 0);
    while Instant::now() < end {
        every.tick().await;
        act(fastrand::u64(1..=USERS)).await?;
        done += 1;
    }
    Ok(done)
}

/// Checks `name` again and again until `end`; answers how many were repaired.
async fn checks(bus: &Bus, name: &str, end: Instant) -> Result<u64> {
    let mut all = 0;
    while Instant::now() < end {
        let report = check(bus, name, json!({})).await?;
        ensure!(report.stage == Stage::Done, "{report:?}");
        all += repaired(&report);
    }
    Ok(all)
}

/// Checks `name` until nothing differs.
async fn until_alike(bus: &Bus, name: &str) -> Result<()> {
    eventually(LATER, async || {
        let report = check(bus, name, json!({})).await?;
        ensure!(report.drifted() == 0 && report.pending == 0, "{report:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_repair_that_races_a_newer_write_never_wins() -> Result<()> {
    let main = Main::postgres().await?;
    let Server::Postgres(_, pool) = &main.server else {
        anyhow::bail!("another server");
    };
    let (stack, bus) = all_alike(&main).await?;
    let mut watched = watched(&bus).await?;
    let _scheduler = main.spawn_scheduler("scheduler", Some(&stack.nats), &[])?;

    let end = Instant::now() + LENGTH;
    let writers = (0..WRITERS).map(|_| {
        keeps_on(end, async |user| {
            main.run(&format!("UPDATE people SET n = n + 1 WHERE uid = {user}"))
                .await
        })
    });
    let tampering = keeps_on(end, async |user| tamper_with_state(&bus, user).await);
    let tampering_there = keeps_on(end, async |user| {
        main.run(&format!("UPDATE crm SET email = 'eve' WHERE id = {user}"))
            .await
    });
    let (written, .., states_mended, copies_mended) = tokio::try_join!(
        try_join_all(writers),
        tampering,
        tampering_there,
        checks(&bus, "gateway", end),
        checks(&bus, "crm", end),
    )?;
    let written: u64 = written.iter().sum();
    ensure!(
        written > 1_000 && states_mended > 50 && copies_mended > 50,
        "{written} writes, {states_mended} states and {copies_mended} copies mended"
    );

    // Each user equals the last write everywhere.
    main.until_published().await?;
    bus.until_taken_in().await?;
    until_alike(&bus, "gateway").await?;
    bus.until_settled("crm").await?;
    until_alike(&bus, "crm").await?;
    bus.until_settled("crm").await?;
    main.equals_the_states(&stack).await?;
    let rows = "SELECT id, email, n FROM crm ORDER BY id";
    let rows = sqlx::query(rows).fetch_all(pool).await?;
    let held = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2)));
    let held: Vec<(i64, Option<String>, Option<i64>)> = held.collect();
    let rows = "SELECT uid, email, n FROM people ORDER BY uid";
    let rows = sqlx::query(rows).fetch_all(pool).await?;
    let meant = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2)));
    ensure!(held == meant.collect::<Vec<_>>(), "the copy is another");

    // And none of them ever went back.
    let mut newest: BTreeMap<String, (u64, i64)> = BTreeMap::new();
    let all = states(bus.jetstream()).await?;
    while newest.len() < all.len() || all.values().any(|state| behind(&newest, state)) {
        let message = tokio::time::timeout(SOON, watched.next()).await?;
        let message = message.context("the end")?;
        let state: State = serde_json::from_slice(&message.payload)?;
        let now = (state.version, state.data["n"].as_i64().context("no n")?);
        let before = newest.insert(state.user_id.to_string(), now);
        let forward = before.is_none_or(|(version, n)| version <= now.0 && n <= now.1);
        ensure!(forward, "state {}: {now:?} after {before:?}", state.user_id);
    }
    let went_back = "SELECT count(*) FROM (SELECT version, n, lag(version) OVER before AS version_before, \
         lag(n) OVER before AS n_before FROM told WINDOW before AS (PARTITION BY id ORDER BY seq)) AS told \
         WHERE version < version_before OR n < n_before";
    let went_back = main.number(went_back).await?;
    ensure!(went_back == 0, "the copy went back {went_back} times");
    Ok(())
}

/// Whether the newest state hasn't been seen yet.
fn behind(seen: &BTreeMap<String, (u64, i64)>, newest: &State) -> bool {
    let seen = seen.get(&newest.user_id.to_string());
    seen.is_none_or(|(version, _)| *version < newest.version)
}
