//! Outage is not poison: what the circuit breaker does for a target that fails as a whole.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::SeqCst},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::kv;
use axum::http::Method;
use futures_util::TryStreamExt as _;
use serde_json::{Value, json};
use usersync_core::dead_letter::{Class, DeadLetter, Same};
use usersync_core::subjects::{BREAKERS_BUCKET, USER_ALERT, USER_DEAD};
use usersync_stack::{Stack, eventually};

use crate::support::{Api, Bus, Call, LATER, Recorder, SOON, answer, only};

const CLOSED: f64 = 0.0;
const OPEN: f64 = 2.0;

fn change(user: u64, n: u64) -> Value {
    json!({"user_id": user, "username": format!("name-{user}"), "email": "ann@example.com", "data": {"n": n}})
}

/// A target that answers with whatever status is set.
async fn moody() -> Result<(Recorder, Arc<AtomicU16>)> {
    let status = Arc::new(AtomicU16::new(200));
    let mood = status.clone();
    let recorder = Recorder::start(move |_| {
        let status = mood.load(SeqCst);
        async move { answer(status) }
    });
    Ok((recorder.await?, status))
}

async fn until_breaker(stack: &Stack, state: f64) -> Result<()> {
    eventually(LATER, async || {
        let metrics = stack.worker_metrics("audit").await?;
        let found = metrics.sum("usersync_breaker_state", &[("target", "audit")]);
        ensure!(found == state, "the breaker is at {found}, not at {state}");
        Ok(())
    })
    .await
}

async fn outcomes(stack: &Stack, outcome: &str) -> Result<f64> {
    let metrics = stack.worker_metrics("audit").await?;
    Ok(metrics.sum("usersync_deliveries_total", &[("outcome", outcome)]))
}

/// The notices of breakers, by key.
async fn notices(bus: &Bus) -> Result<Vec<(String, Value)>> {
    let bucket = bus.jetstream.get_key_value(BREAKERS_BUCKET).await?;
    let keys: Vec<String> = bucket.keys().await?.try_collect().await?;
    let mut notices = Vec::new();
    for key in keys {
        if let Some(value) = bucket.get(&key).await? {
            notices.push((key, serde_json::from_slice(&value)?));
        }
    }
    Ok(notices)
}

async fn bucket(bus: &Bus) -> Result<kv::Store> {
    let bucket = bus.jetstream.get_key_value(BREAKERS_BUCKET).await;
    bucket.context("the bucket of breakers")
}

#[tokio::test]
async fn an_outage_costs_no_attempt_and_each_user_arrives_once() -> Result<()> {
    const USERS: u64 = 5_000;
    let mut recorder = Recorder::start(async |_| answer(200)).await?;
    let stack = only(recorder.target("audit", "")).start().await?;
    let bus = Bus::connect(&stack).await?;

    recorder.stop().await;
    for n in 1..=4 {
        let kind = if n == 1 {
            "user.created"
        } else {
            "user.updated"
        };
        let users = (1..=USERS).map(|user| (kind, change(user, n)));
        bus.publish_all(users).await?;
    }
    bus.until_taken_in().await?;
    until_breaker(&stack, OPEN).await?;
    recorder.listen().await?;
    bus.until_settled("audit").await?;

    for user in 1..=USERS {
        assert_eq!(recorder.holds(user)["data"]["n"], 4, "user {user}");
    }
    let calls = recorder.arrived();
    assert!(calls as f64 <= 1.1 * USERS as f64, "{calls} deliveries");
    assert_eq!(bus.count(USER_DEAD).await?, 0);
    until_breaker(&stack, CLOSED).await?;
    assert_eq!(notices(&bus).await?, []);
    Ok(())
}

#[tokio::test]
async fn a_user_who_is_always_at_fault_keeps_nobody_else_waiting() -> Result<()> {
    const BAD: u64 = 86;
    let refusing = async |call: Call| match call.user() == BAD.to_string() {
        true => answer(403),
        false => answer(200),
    };
    let recorder = Recorder::start(refusing).await?;
    let settings = "retry = { max_deliver = 6, base = \"100ms\", factor = 1.0, cap = \"100ms\" }";
    let stack = only(recorder.target("audit", settings)).start().await?;
    let bus = Bus::connect(&stack).await?;
    for n in 1..=4 {
        bus.publish("user.updated", change(BAD, n)).await?;
    }
    until_breaker(&stack, OPEN).await?;
    bus.publish_all((1..=40).map(|user| ("user.created", change(user, 1))))
        .await?;
    bus.until_taken_in().await?;
    eventually(SOON, async || {
        let told = (1..=40).filter(|user| !recorder.calls_for(*user).is_empty());
        let told = told.count();
        ensure!(told == 40, "{told} of 40 users were told");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_probe_that_is_refused_keeps_no_target_shut() -> Result<()> {
    // Who asks without a user and a signature is refused, as by a gateway in front of the service, or a service that
    // looks at signatures first.
    for to_probes in [401, 403, 500, 503] {
        let status = Arc::new(AtomicU16::new(503));
        let mood = status.clone();
        let behaviour = move |call: Call| {
            let is_probe = call.method == Method::HEAD;
            let status = if is_probe {
                to_probes
            } else {
                mood.load(SeqCst)
            };
            async move { answer(status) }
        };
        let recorder = Recorder::start(behaviour).await?;
        let stack = only(recorder.target("audit", "")).start().await?;
        let bus = Bus::connect(&stack).await?;
        bus.publish_all((1..=40).map(|user| ("user.created", change(user, 1))))
            .await?;
        until_breaker(&stack, OPEN).await?;
        status.store(200, SeqCst);
        bus.until_settled("audit").await?;
        until_breaker(&stack, CLOSED).await?;
        for user in 1..=40 {
            assert_eq!(recorder.holds(user)["data"]["n"], 1, "user {user}");
        }
        assert_eq!(bus.count(USER_DEAD).await?, 0);
    }
    Ok(())
}

#[tokio::test]
async fn workers_that_are_restarted_in_an_outage_spend_no_attempt() -> Result<()> {
    const USERS: u64 = 300;
    // More than the server would hand out one message, with the few more it grants for letters.
    const RESTARTS: usize = 12;
    let mut recorder = Recorder::start(async |_| answer(200)).await?;
    // One call is enough to see the outage, so that only one user a restart is really tried.
    let settings = "concurrency = 1\nretry = { max_deliver = 3 }\nbreaker = { faults = 1 }";
    let mut stack = only(recorder.target("audit", settings)).start().await?;
    let bus = Bus::connect(&stack).await?;
    recorder.stop().await;
    bus.publish_all((1..=USERS).map(|user| ("user.created", change(user, 1))))
        .await?;
    bus.until_taken_in().await?;
    for _ in 0..RESTARTS {
        until_breaker(&stack, OPEN).await?;
        let worker = &mut stack.workers.get_mut("audit").context("no worker")?[0];
        worker.stop(Duration::from_secs(10)).await?;
        worker.restart().await?;
    }
    until_breaker(&stack, OPEN).await?;
    recorder.listen().await?;
    bus.until_settled("audit").await?;
    for user in 1..=USERS {
        assert_eq!(recorder.holds(user)["data"]["n"], 1, "user {user}");
    }
    assert_eq!(bus.count(USER_DEAD).await?, 0);
    let calls = recorder.arrived();
    assert!(calls as f64 <= 1.1 * USERS as f64, "{calls} deliveries");
    Ok(())
}

#[tokio::test]
async fn a_storm_of_errors_opens_it_and_it_closes_by_itself() -> Result<()> {
    let (recorder, status) = moody().await?;
    let settings = "retry = { max_deliver = 2, base = \"100ms\", factor = 1.0, cap = \"100ms\" }";
    let stack = only(recorder.target("audit", settings)).start().await?;
    let bus = Bus::connect(&stack).await?;
    status.store(500, SeqCst);
    bus.publish_all((1..=400).map(|user| ("user.created", change(user, 1))))
        .await?;
    until_breaker(&stack, OPEN).await?;
    status.store(200, SeqCst);
    bus.until_settled("audit").await?;
    for user in 1..=400 {
        // Those who were tried twice before it opened may have been given up.
        let delivered = recorder.calls_for(user).len();
        assert!(delivered >= 1, "user {user} was never tried");
    }
    let dead = bus.count(USER_DEAD).await?;
    assert!(dead <= 40, "{dead} dead letters");
    until_breaker(&stack, CLOSED).await
}

#[tokio::test]
async fn a_route_that_is_missing_for_a_while_refuses_nobody_for_good() -> Result<()> {
    let (recorder, status) = moody().await?;
    let stack = only(recorder.target("audit", "")).start().await?;
    let bus = Bus::connect(&stack).await?;
    status.store(404, SeqCst);
    bus.publish_all((1..=300).map(|user| ("user.created", change(user, 1))))
        .await?;
    until_breaker(&stack, OPEN).await?;
    let dead = bus.count(USER_DEAD).await?;
    assert!(dead < 20, "{dead} dead letters before it opened");
    status.store(200, SeqCst);
    bus.until_settled("audit").await?;
    until_breaker(&stack, CLOSED).await?;
    for user in 1..=300 {
        assert_eq!(recorder.holds(user)["data"]["n"], 1, "user {user}");
    }
    // The letters of those who were refused meanwhile are cleared.
    eventually(SOON, async || {
        let dead = bus.count(USER_DEAD).await?;
        ensure!(dead == 0, "{dead} dead letters are left");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn people_see_it_in_kv_and_reset_it_there() -> Result<()> {
    let (recorder, status) = moody().await?;
    // Left alone it would look again only after an hour.
    let settings = "breaker = { probe = \"1h\", probe_cap = \"1h\" }";
    let stack = only(recorder.target("audit", settings)).start().await?;
    let bus = Bus::connect(&stack).await?;
    for all_at_once in [true, false] {
        status.store(403, SeqCst);
        let user = if all_at_once { 1 } else { 50 };
        bus.publish_all((user..user + 20).map(|user| ("user.created", change(user, 1))))
            .await?;
        until_breaker(&stack, OPEN).await?;
        let seen = eventually(SOON, async || {
            let seen = notices(&bus).await?;
            ensure!(seen.len() == 1, "{seen:?}");
            Ok(seen)
        });
        let (key, notice) = seen.await?.remove(0);
        assert!(key.starts_with("audit."), "{key}");
        assert_eq!(notice["state"], "open");
        assert!(
            notice["reason"].as_str().unwrap().contains("403"),
            "{notice}"
        );

        status.store(200, SeqCst);
        let bucket = bucket(&bus).await?;
        if all_at_once {
            bucket.put("audit", "reset".into()).await?;
        } else {
            bucket.delete(&key).await?;
        }
        until_breaker(&stack, CLOSED).await?;
        bus.until_settled("audit").await?;
        bucket.delete("audit").await?;
    }
    assert_eq!(bus.count(USER_DEAD).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_target_that_is_gone_is_disabled_and_gets_everything_once_it_is_back() -> Result<()> {
    let (recorder, status) = moody().await?;
    let stack = only(recorder.target("audit", "")).start().await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    status.store(410, SeqCst);
    bus.publish("user.created", change(1, 1)).await?;
    eventually(SOON, async || {
        let target = api.target("audit").await?;
        ensure!(target["enabled"] == false, "{target}");
        let note = target["entry"]["note"].as_str().unwrap_or_default();
        ensure!(note.contains("gone"), "{note}");
        Ok(())
    })
    .await?;
    bus.publish_all((2..=50).map(|user| ("user.created", change(user, 1))))
        .await?;
    bus.until_taken_in().await?;
    assert_eq!((recorder.arrived(), bus.count(USER_DEAD).await?), (1, 0));
    assert_eq!(bus.count(USER_ALERT).await?, 1);

    status.store(200, SeqCst);
    api.post("/v1/targets/audit/resume", json!({})).await?;
    bus.until_settled("audit").await?;
    let missing = (1..=50)
        .filter(|user| recorder.holds(*user).is_null())
        .count();
    assert_eq!(missing, 0, "of 50 users");
    assert_eq!(api.target("audit").await?["enabled"], true);
    Ok(())
}

#[tokio::test]
async fn a_later_success_clears_the_dead_letter() -> Result<()> {
    let (recorder, status) = moody().await?;
    let stack = only(recorder.target("audit", "")).start().await?;
    let bus = Bus::connect(&stack).await?;
    status.store(422, SeqCst);
    bus.publish("user.created", change(7, 1)).await?;
    bus.publish("user.created", change(8, 1)).await?;
    bus.until_settled("audit").await?;
    let letter = bus.dead_letter("audit", 7).await?.context("no letter")?;
    assert_eq!(letter.header("Usersync-Class"), "permanent");
    assert_eq!(letter.header("Usersync-Status-Code"), "422");
    for name in ["Usersync-First-Failure", "Usersync-Last-Failure"] {
        assert!(
            letter.header(name).parse::<jiff::Timestamp>().is_ok(),
            "{name}"
        );
    }

    status.store(200, SeqCst);
    bus.publish("user.updated", change(7, 2)).await?;
    bus.repair("audit", 8).await?;
    bus.until_settled("audit").await?;
    eventually(SOON, async || {
        let left = bus.count(USER_DEAD).await?;
        ensure!(left == 0, "{left} dead letters");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_older_letter_never_replaces_a_newer_one() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let stack = only(recorder.target("audit", "")).start().await?;
    let bus = Bus::connect(&stack).await?;
    let store = async |version, attempts, same| {
        let letter = DeadLetter {
            target: "audit".parse()?,
            user_id: 7.into(),
            version,
            attempts,
            class: Class::Permanent,
            reason: "no".to_owned(),
            code: None,
            first_failure: None,
            last_failure: None,
            waits_for: Vec::new(),
        };
        letter.store(&bus.jetstream, same).await
    };
    assert!(store(5, 1, Same::Replace).await?);
    assert!(!store(4, 2, Same::Replace).await?, "older");
    assert!(!store(5, 3, Same::Keep).await?, "the backstop knows less");
    assert!(store(5, 4, Same::Replace).await?, "the worker tried again");
    assert!(store(6, 5, Same::Keep).await?, "newer");
    let letter = bus.dead_letter("audit", 7).await?.context("no letter")?;
    assert_eq!(letter.header("Usersync-Version"), "6");
    assert_eq!(letter.header("Usersync-Attempts"), "5");
    assert_eq!(bus.count(USER_DEAD).await?, 1);
    // Many at once: the newest wins, whatever the order.
    let many = (10..40).map(|version| store(60 - version, 1, Same::Replace));
    futures_util::future::try_join_all(many).await?;
    let letter = bus.dead_letter("audit", 7).await?.context("no letter")?;
    assert_eq!(letter.header("Usersync-Version"), "50");
    assert_eq!(bus.count(USER_DEAD).await?, 1);
    Ok(())
}

#[tokio::test]
async fn what_a_target_has_is_not_told_again() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let settings = "fields = { include = [\"email\"] }";
    let stack = only(recorder.target("audit", settings)).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", change(7, 1)).await?;
    bus.until_settled("audit").await?;
    for n in 2..=5 {
        bus.publish("user.updated", change(7, n)).await?;
        bus.until_settled("audit").await?;
    }
    assert_eq!(recorder.arrived(), 1, "only n changed, which it isn't told");
    assert_eq!(outcomes(&stack, "unchanged").await?, 4.0);
    bus.publish(
        "user.updated",
        json!({"user_id": 7, "email": "b@example.com"}),
    )
    .await?;
    bus.until_settled("audit").await?;
    bus.repair("audit", 7).await?;
    bus.until_settled("audit").await?;
    assert_eq!(
        recorder.arrived(),
        3,
        "a change, and a repair that asks no questions"
    );
    Ok(())
}

#[tokio::test]
async fn a_rate_limit_holds() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let stack = only(recorder.target("audit", "rate_limit = 100"))
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish_all((1..=300).map(|user| ("user.created", change(user, 1))))
        .await?;
    bus.until_settled("audit").await?;
    let calls = recorder.calls();
    let span = calls.last().context("no call")?.at - calls[0].at;
    let range = Duration::from_millis(2_500)..Duration::from_secs(6);
    assert!(range.contains(&span), "300 users took {span:?}");
    Ok(())
}

/// Enough that, at first, nothing tells it from an outage.
#[tokio::test]
async fn many_users_who_always_fail_keep_nobody_else_waiting_and_are_given_up() -> Result<()> {
    const POISON: u64 = 60;
    let recorder = Recorder::start(async |call: Call| {
        let poison = call.user().parse::<u64>().is_ok_and(|user| user <= POISON);
        answer(if poison { 500 } else { 200 })
    })
    .await?;
    let more = "retry = { max_deliver = 4, base = \"200ms\", factor = 1.0, cap = \"200ms\" }\n";
    let stack = only(recorder.target("t", more)).start().await?;
    let bus = Bus::connect(&stack).await?;
    let event = |user: u64| ("user.created", json!({"user_id": user, "username": "u"}));
    bus.publish_all((1..=POISON).map(event)).await?;
    let (kind, first) = event(1_000);
    bus.publish(kind, first).await?;
    for user in 1_001..=1_010 {
        eventually(SOON, async || {
            ensure!(recorder.holds(user - 1)["username"] == "u", "{user} waits");
            Ok(())
        })
        .await?;
        let (kind, next) = event(user);
        bus.publish(kind, next).await?;
    }
    // Attempts are made while the breaker is closed: how long that takes depends on the machine.
    eventually(LATER, async || {
        let letters = bus.count(USER_DEAD).await?;
        ensure!(letters == POISON, "{letters} of {POISON} were given up");
        Ok(())
    })
    .await?;
    bus.until_settled("t").await
}
