//! What becomes of a delivery that fails, waits or is asked for again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use axum::response::IntoResponse as _;
use serde_json::{Value, json};
use usersync_core::subjects::{USER_DEAD, USER_STATE};
use usersync_stack::{NatsServer, eventually, http};

use crate::support::{Bus, Call, Gate, LATER, Recorder, SOON, answer, only};

/// A user with a number that tells the changes apart, and personal data that must not leak.
fn change(user: u64, n: u64) -> Value {
    json!({"user_id": user, "username": format!("name-{user}"), "email": "ann@example.com", "data": {"n": n}})
}

/// The changes of one user that a recorder was called with, in order.
fn told(recorder: &Recorder, user: u64) -> Vec<u64> {
    recorder.calls_for(user).iter().map(Call::n).collect()
}

async fn until_told(recorder: &Recorder, user: u64, n: u64) -> Result<()> {
    eventually(SOON, async || {
        let told = told(recorder, user);
        ensure!(told.contains(&n), "user {user}: told {told:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_older_version_never_arrives_after_a_newer_one() -> Result<()> {
    let fails_first = |call: Call| async move { answer(if call.n() == 1 { 503 } else { 200 }) };
    let recorder = Recorder::start(fails_first).await?;
    // Long enough that the newer one is there before the older one may be tried again.
    let retry = "retry = { base = \"3s\", factor = 1.0, cap = \"3s\" }";
    let stack = only(recorder.target("audit", retry)).start().await?;
    let bus = Bus::connect(&stack).await?;

    bus.publish("user.created", change(7, 1)).await?;
    until_told(&recorder, 7, 1).await?;
    bus.publish("user.updated", change(7, 2)).await?;
    until_told(&recorder, 7, 2).await?;
    bus.publish("user.updated", change(7, 3)).await?;
    // Settled: nothing is left that could still come.
    bus.until_settled("audit").await?;

    assert_eq!(told(&recorder, 7), [1, 2, 3]);
    let versions: Vec<_> = recorder.calls_for(7).iter().map(Call::version).collect();
    assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
    assert_eq!(recorder.holds(7)["data"]["n"], 3);
    assert_eq!(bus.count(USER_DEAD).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_version_that_fails_while_the_newer_one_waits_is_not_tried_again() -> Result<()> {
    let gate = Gate::closed();
    let recorder = Recorder::start({
        let gate = gate.clone();
        move |call| {
            let gate = gate.clone();
            async move {
                if call.n() != 1 {
                    return answer(200);
                }
                gate.pass().await;
                answer(503)
            }
        }
    })
    .await?;
    let retry = "retry = { base = \"50ms\", factor = 1.0, cap = \"50ms\" }";
    let stack = only(recorder.target("audit", retry)).start().await?;
    let bus = Bus::connect(&stack).await?;

    bus.publish("user.created", change(7, 1)).await?;
    until_told(&recorder, 7, 1).await?;
    bus.publish("user.updated", change(7, 2)).await?;
    // The newer one is in the worker's hands and waits for the call under way.
    eventually(SOON, async || {
        let handed_out = bus.handed_out(USER_STATE, "audit").await?;
        ensure!(handed_out == 2, "{handed_out} messages handed out");
        Ok(())
    })
    .await?;
    gate.open();
    bus.until_settled("audit").await?;
    assert_eq!(told(&recorder, 7), [1, 2]);
    Ok(())
}

#[tokio::test]
async fn retry_after_is_waited_for() -> Result<()> {
    let busy = |call: Call| async move {
        match call.n() {
            1 => (
                axum::http::StatusCode::TOO_MANY_REQUESTS,
                [("retry-after", "2")],
            )
                .into_response(),
            _ => answer(503),
        }
    };
    let recorder = Recorder::start(busy).await?;
    let retry = "retry = { max_deliver = 2, base = \"50ms\", factor = 1.0, cap = \"50ms\" }";
    let stack = only(recorder.target("audit", retry)).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", change(1, 1)).await?;
    bus.publish("user.created", change(2, 2)).await?;
    bus.until_settled("audit").await?;

    let pause = |user| match recorder.calls_for(user).as_slice() {
        [first, second] => second.at - first.at,
        calls => panic!("{} calls about user {user}", calls.len()),
    };
    assert!(pause(1) >= Duration::from_millis(1_950), "{:?}", pause(1));
    // The same failure without the header is tried again sooner, so it is the header that counts.
    assert!(pause(2) < Duration::from_millis(1_500), "{:?}", pause(2));
    Ok(())
}

#[tokio::test]
async fn a_refused_user_becomes_one_dead_letter_and_no_other_suffers() -> Result<()> {
    let refuses_7 = |call: Call| async move {
        let refused = call.user() == "7" && call.n() == 1;
        answer(if refused { 422 } else { 200 })
    };
    let recorder = Recorder::start(refuses_7).await?;
    let stack = only(recorder.target("audit", "")).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish_all((1..=20).map(|user| ("user.created", change(user, 1))))
        .await?;
    bus.until_settled("audit").await?;

    let version = bus.state(7).await?["version"].clone();
    let letter = bus.dead_letter("audit", 7).await?.unwrap();
    for (name, value) in [
        ("Usersync-Class", "permanent"),
        ("Usersync-Attempts", "1"),
        ("Usersync-Version", &version.to_string()),
        ("Usersync-Status-Code", "422"),
    ] {
        assert_eq!(letter.header(name), value, "{name}");
    }
    let reason = letter.header("Usersync-Reason");
    assert!(reason.contains("422"), "{reason:?}");
    let (target, user_id) = (&letter.body["target"], &letter.body["user_id"]);
    assert_eq!((target, user_id), (&json!("audit"), &json!(7)));
    assert_eq!(letter.body["version"], version);
    let text = letter.body.to_string();
    assert!(
        !text.contains("name-7") && !text.contains("example.com"),
        "{text}"
    );

    assert_eq!(told(&recorder, 7), [1], "it is not delivered again");
    assert_eq!(bus.count(USER_DEAD).await?, 1);
    for user in (1..=20).filter(|user| *user != 7) {
        assert_eq!(recorder.holds(user)["data"]["n"], 1, "user {user}");
    }

    bus.publish("user.updated", change(7, 2)).await?;
    bus.until_settled("audit").await?;
    assert_eq!(told(&recorder, 7), [1, 2], "a newer state is delivered");
    assert_eq!(recorder.holds(7)["data"]["n"], 2);
    Ok(())
}

#[tokio::test]
async fn used_up_attempts_become_a_dead_letter() -> Result<()> {
    let busy = |call: Call| async move { answer(if call.n() == 1 { 500 } else { 200 }) };
    let recorder = Recorder::start(busy).await?;
    let retry = "retry = { max_deliver = 3, base = \"50ms\", factor = 1.0, cap = \"50ms\" }";
    let stack = only(recorder.target("audit", retry)).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", change(7, 1)).await?;
    bus.until_settled("audit").await?;

    assert_eq!(told(&recorder, 7), [1, 1, 1]);
    let letter = bus.dead_letter("audit", 7).await?.unwrap();
    for (name, value) in [
        ("Usersync-Class", "transient"),
        ("Usersync-Attempts", "3"),
        ("Usersync-Status-Code", "500"),
    ] {
        assert_eq!(letter.header(name), value, "{name}");
    }

    bus.publish("user.updated", change(7, 2)).await?;
    bus.until_settled("audit").await?;
    assert_eq!(told(&recorder, 7), [1, 1, 1, 2]);
    Ok(())
}

#[tokio::test]
async fn a_target_that_does_not_answer_in_time_is_tried_again() -> Result<()> {
    let gate = Gate::closed();
    let recorder = Recorder::start({
        let (gate, calls) = (gate.clone(), AtomicUsize::new(0));
        move |_| {
            let first = calls.fetch_add(1, SeqCst) == 0;
            let gate = gate.clone();
            async move {
                if first {
                    gate.pass().await;
                }
                answer(200)
            }
        }
    })
    .await?;
    let settings = "timeout = \"500ms\"\nretry = { base = \"50ms\", factor = 1.0, cap = \"50ms\" }";
    let stack = only(recorder.target("audit", settings)).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", change(7, 1)).await?;
    bus.until_settled("audit").await?;
    // On a busy machine the second call may be late as well.
    let told = told(&recorder, 7);
    assert!(told.len() >= 2 && told.iter().all(|n| *n == 1), "{told:?}");
    assert_eq!(bus.count(USER_DEAD).await?, 0);
    Ok(())
}

#[tokio::test]
async fn after_an_outage_every_user_arrives_in_the_newest_state() -> Result<()> {
    let mut recorder = Recorder::start(async |_| answer(200)).await?;
    let retry = "retry = { max_deliver = 100, base = \"200ms\", factor = 1.0, cap = \"200ms\" }";
    let stack = only(recorder.target("audit", retry)).start().await?;
    let bus = Bus::connect(&stack).await?;
    let users = 1..=100_u64;
    let all = |kind: &'static str, n: u64| users.clone().map(move |user| (kind, change(user, n)));
    bus.publish_all(all("user.created", 1)).await?;
    bus.until_settled("audit").await?;

    recorder.stop().await;
    bus.publish_all(all("user.updated", 2)).await?;
    bus.publish_all(all("user.updated", 3)).await?;
    // The worker has met the closed door before it opens again.
    eventually(SOON, async || {
        let metrics = stack.worker_metrics("audit").await?;
        let breaker = metrics.sum("usersync_breaker_state", &[]);
        ensure!(breaker >= 2.0, "the breaker is at {breaker}");
        Ok(())
    })
    .await?;
    bus.publish_all(all("user.updated", 4)).await?;
    recorder.listen().await?;

    bus.until_settled("audit").await?;
    for user in users {
        assert_eq!(
            recorder.holds(user)["data"]["n"],
            4,
            "user {user}: {:?}",
            told(&recorder, user)
        );
    }
    assert_eq!(bus.count(USER_DEAD).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_repair_delivers_the_newest_state_again() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let other = Recorder::start(async |_| answer(200)).await?;
    let stack = only(recorder.target("audit", "") + &other.target("other", ""))
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish_all([
        ("user.created", change(7, 1)),
        ("user.created", change(8, 1)),
    ])
    .await?;
    bus.until_settled("audit").await?;
    bus.until_settled("other").await?;

    bus.repair("audit", 7).await?;
    bus.repair("audit", 99).await?; // Nobody has heard of that one.
    bus.until_settled("audit").await?;
    assert_eq!(told(&recorder, 7), [1, 1]);
    let [first, again] = recorder.calls_for(7).try_into().unwrap();
    assert_eq!(first.raw, again.raw);
    assert_eq!(recorder.arrived(), 3, "nobody else is delivered again");
    assert_eq!(other.arrived(), 2, "and no other target is called");
    Ok(())
}

/// A target that is slower than what comes in.
async fn slow() -> Result<Recorder> {
    Recorder::start(async |_| {
        tokio::time::sleep(Duration::from_millis(20)).await;
        answer(200)
    })
    .await
}

#[tokio::test]
async fn a_repair_goes_before_a_backlog() -> Result<()> {
    let recorder = slow().await?;
    let stack = only(recorder.target("audit", "concurrency = 1"))
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", change(0, 1)).await?;
    bus.until_settled("audit").await?;

    bus.publish_all((1..=300).map(|user| ("user.created", change(user, 1))))
        .await?;
    bus.until_taken_in().await?;
    bus.repair("audit", 0).await?;
    let asked = recorder.arrived();
    eventually(LATER, async || {
        ensure!(told(&recorder, 0).len() == 2, "the repair waits");
        Ok(())
    })
    .await?;
    let calls = recorder.calls();
    let at = calls.iter().rposition(|call| call.user() == "0").unwrap();
    assert!(
        asked < 200,
        "there was no backlog left to overtake: {asked} calls before"
    );
    assert!(at < asked + 30, "{} calls went first", at - asked);
    Ok(())
}

#[tokio::test]
async fn live_states_flow_under_many_repairs() -> Result<()> {
    let slow = Arc::new(AtomicBool::new(false));
    let recorder = Recorder::start({
        let slow = slow.clone();
        move |_| {
            let slow = slow.load(SeqCst);
            async move {
                if slow {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                answer(200)
            }
        }
    })
    .await?;
    let stack = only(recorder.target("audit", "concurrency = 1"))
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    // More than a worker takes in hand.
    let users = 1..=1_500_u64;
    let created = users.clone().map(|user| ("user.created", change(user, 1)));
    bus.publish_all(created).await?;
    bus.until_settled("audit").await?;

    slow.store(true, SeqCst);
    let repairs = users.map(|user| (format!("user.repair.audit.{user}"), Value::Null));
    bus.publish_all(repairs).await?;
    // The worker has taken in hand what it can, and looks again at many whom it has repaired.
    eventually(SOON, async || {
        let arrived = recorder.arrived();
        ensure!(arrived >= 1_900, "{arrived} calls");
        Ok(())
    })
    .await?;
    bus.publish("user.created", change(10_000, 1)).await?;
    bus.until_taken_in().await?;
    let asked = recorder.arrived();
    until_told(&recorder, 10_000, 1).await?;
    slow.store(false, SeqCst);

    let calls = recorder.calls();
    let at = calls
        .iter()
        .position(|call| call.user() == "10000")
        .unwrap();
    assert!(at < asked + 100, "{} repairs went first", at - asked);
    bus.until_settled("audit").await?;
    assert_eq!(recorder.arrived(), 3_001, "and no repair is forgotten");
    Ok(())
}

/// Whoever wrote it, nobody is told of one user under the name of another.
#[tokio::test]
async fn a_state_about_somebody_else_than_its_subject_is_delivered_to_nobody() -> Result<()> {
    let recorder = Recorder::start(|_| async { answer(200) }).await?;
    let stack = only(recorder.target("audit", "")).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", change(42, 1)).await?;
    bus.publish("user.created", change(43, 1)).await?;
    bus.until_settled("audit").await?;
    let state = bus.state(43).await?.to_string();
    let stored = bus.jetstream().publish("user.state.42", state.into());
    stored.await?.await?;
    bus.until_settled("audit").await?;
    assert_eq!(told(&recorder, 43), [1]);
    assert_eq!(told(&recorder, 42), [1]);
    let letter = bus.dead_letter("audit", 42).await?;
    let reason = letter
        .as_ref()
        .map(|letter| letter.header("Usersync-Reason"));
    ensure!(
        reason.is_some_and(|reason| reason.contains("isn't that of its subject")),
        "{reason:?}"
    );
    Ok(())
}

/// How often the server has cut somebody off who didn't read what it sent.
async fn slow_consumers(nats: &NatsServer) -> Result<u64> {
    let url = format!("{}/varz", nats.monitor_url());
    let varz: Value = http::client().get(url).send().await?.json().await?;
    varz["slow_consumers"].as_u64().context("no such figure")
}

#[tokio::test]
async fn large_users_cut_nobody_off() -> Result<()> {
    const USERS: u64 = 800;
    let mut recorder = Recorder::start(async |_| answer(200)).await?;
    let mut stack = only(recorder.target("audit", "")).start().await?;
    let bus = Bus::connect(&stack).await?;
    recorder.stop().await;
    stack.gateways[0].stop(SOON).await?;
    let large = "x".repeat(200_000);
    let users = (1..=USERS).map(|user| {
        let event = json!({"user_id": user, "data": {"n": 1, "large": large}});
        ("user.created", event)
    });
    bus.publish_all(users).await?;
    let before = slow_consumers(&stack.nats).await?;
    stack.gateways[0].restart().await?;
    bus.until_taken_in().await?;
    recorder.listen().await?;
    bus.until_settled("audit").await?;
    for user in 1..=USERS {
        assert_eq!(recorder.holds(user)["data"]["n"], 1, "user {user}");
    }
    assert_eq!(slow_consumers(&stack.nats).await?, before);
    Ok(())
}

/// What only remembers an event is stored long after the change, and says nothing of how long that took.
#[tokio::test]
async fn a_state_that_only_remembers_an_event_is_no_late_change() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let entry = recorder.target("audit", "suppress_unchanged = false");
    let stack = only(entry).start().await?;
    let bus = Bus::connect(&stack).await?;
    for (id, calls) in [("a", 1), ("b", 2)] {
        let event = json!({"id": id, "user_id": 7, "username": "ann"});
        bus.publish("user.updated", event).await?;
        bus.until_settled("audit").await?;
        assert_eq!(recorder.arrived(), calls);
    }
    let metrics = stack.worker_metrics("audit").await?;
    assert_eq!(metrics.sum("usersync_sync_latency_seconds_count", &[]), 1.0);
    Ok(())
}
