//! A target that is read user by user, and states that nobody can read.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use axum::{Json, http::Method, response::IntoResponse as _};
use redis::AsyncTypedCommands as _;
use serde_json::{Value, json};
use usersync_core::check::{Class, Report, Stage};
use usersync_stack::{Stack, eventually};

use super::{check, counts, created, states::tamper};
use crate::support::{Bus, Call, Gate, Recorder, SOON, answer};

const USERS: u64 = 20;
const UNTIMED: &str = "check = { every = \"0s\" }";

/// What a service holds, by path.
type Held = Arc<Mutex<BTreeMap<String, Value>>>;

/// A service that takes users and shows them, and knows no digests.
async fn service(held: &Held) -> Result<Recorder> {
    let held = Arc::clone(held);
    Recorder::start(move |call: Call| {
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = match call.method {
            Method::GET => held.get(&call.path).cloned(),
            _ if held.contains_key(&format!("/refused/{}", call.user())) => {
                return std::future::ready(answer(422));
            }
            _ => {
                held.insert(format!("/users/{}", call.user()), call.body.clone());
                Some(json!({}))
            }
        };
        let response = shown.map_or_else(|| answer(404), |shown| Json(shown).into_response());
        std::future::ready(response)
    })
    .await
}

/// Redis, and the service as `crm`, which hold everybody; `settings` are of the service.
async fn filled(service: &Recorder, settings: &str) -> Result<(Stack, Bus)> {
    let entries = format!(
        "[redis-cache]\n{UNTIMED}\n{}",
        service.target("crm", &format!("{UNTIMED}\n{settings}"))
    );
    let stack = Stack::builder().examples(false).schedulers(1);
    let stack = stack.targets_toml(move |_| entries).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish_all((1..=USERS).map(created)).await?;
    until_settled(&bus).await?;
    Ok((stack, bus))
}

async fn until_settled(bus: &Bus) -> Result<()> {
    bus.until_settled("crm").await?;
    bus.until_settled("redis-cache").await
}

fn is_done(report: &Report, users: u64, expected: [u64; 4]) -> Result<()> {
    ensure!(
        report.stage == Stage::Done && report.users == users && counts(report) == expected,
        "{report:?}"
    );
    Ok(())
}

#[tokio::test]
async fn differences_are_found_and_repaired() -> Result<()> {
    let held = Held::default();
    let service = service(&held).await?;
    let read_url = format!("read_url = \"{}/{{id}}\"", service.url());
    let (_stack, bus) = filled(&service, &read_url).await?;
    is_done(&check(&bus, "crm", json!({})).await?, USERS, [0; 4])?;
    {
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove("/users/1").context("1 isn't there")?;
        let two = held.get_mut("/users/2").context("2 isn't there")?;
        (two["version"], two["email"]) = (json!(1), json!("old@example.com"));
        held.get_mut("/users/3").context("3 isn't there")?["email"] = json!("mallory");
    }
    let found = check(&bus, "crm", json!({})).await?;
    is_done(&found, USERS, [1, 1, 1, 0])?;
    until_settled(&bus).await?;
    is_done(&check(&bus, "crm", json!({})).await?, USERS, [0; 4])
}

/// Users whom a service refuses for good differ in every check; else nobody would be repaired any more.
#[tokio::test]
async fn who_has_a_dead_letter_uses_up_no_brake() -> Result<()> {
    let held = Held::default();
    let service = service(&held).await?;
    let lock = || held.lock().unwrap_or_else(PoisonError::into_inner);
    lock().extend((1..=8).map(|user| (format!("/refused/{user}"), Value::Null)));
    let settings = format!(
        "read_url = \"{}/{{id}}\"\n{}",
        service.url(),
        UNTIMED.replace('}', ", brake_users = 5, brake_share = 0.0 }")
    );
    let entries = service.target("crm", &settings);
    let stack = Stack::builder().examples(false).schedulers(1);
    let stack = stack.targets_toml(move |_| entries).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish_all((1..=USERS).map(created)).await?;
    bus.until_settled("crm").await?;
    ensure!(bus.count("USER_DEAD").await? == 8);
    let mallory = |users: std::ops::RangeInclusive<u64>| -> Result<()> {
        for user in users {
            let path = format!("/users/{user}");
            lock().get_mut(&path).context("isn't there")?["email"] = json!("mallory");
        }
        Ok(())
    };
    mallory(9..=13)?;
    let found = check(&bus, "crm", json!({})).await?;
    is_done(&found, USERS, [8, 0, 5, 0])?;
    bus.until_settled("crm").await?;
    mallory(9..=14)?;
    let braked = check(&bus, "crm", json!({})).await?;
    ensure!(braked.stage == Stage::Braked, "{braked:?}");
    Ok(())
}

#[tokio::test]
async fn a_state_that_is_none_keeps_nobody_else_from_being_checked() -> Result<()> {
    let held = Held::default();
    let service = service(&held).await?;
    let read_url = format!("read_url = \"{}/{{id}}\"", service.url());
    let (stack, bus) = filled(&service, &read_url).await?;
    tamper(&bus, 5, |state| {
        state.as_object_mut().map(|state| state.remove("version"));
    })
    .await?;
    until_settled(&bus).await?;
    {
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        held.get_mut("/users/7").context("7 isn't there")?["email"] = json!("mallory");
    }
    let client = redis::Client::open(stack.redis.url())?;
    let mut redis = client.get_multiplexed_async_connection().await?;
    let seven = redis.get("user:7").await?.context("7 isn't there")?;
    let tampered = seven.replace("7@example.com", "mallory");
    ensure!(seven != tampered, "{seven}");
    redis.set("user:7", tampered).await?;

    // One lists whom to look at by states, the other by digests, of which it has one more.
    for (target, users) in [("crm", USERS - 1), ("redis-cache", USERS)] {
        let found = check(&bus, target, json!({})).await?;
        is_done(&found, users, [0, 0, 1, 0]).context(target)?;
    }
    until_settled(&bus).await?;
    for (target, users) in [("crm", USERS - 1), ("redis-cache", USERS)] {
        let left = check(&bus, target, json!({})).await?;
        is_done(&left, users, [0; 4]).context(target)?;
    }
    Ok(())
}

#[tokio::test]
async fn one_that_cannot_be_read_says_so() -> Result<()> {
    let held = Held::default();
    let service = service(&held).await?;
    let (_stack, bus) = filled(&service, "").await?;
    let report = check(&bus, "crm", json!({})).await?;
    let error = report.error.as_deref().unwrap_or_default();
    ensure!(
        report.stage == Stage::Failed && error.contains("not checkable"),
        "{report:?}"
    );
    Ok(())
}

#[tokio::test]
async fn what_is_refused_again_was_not_repaired() -> Result<()> {
    let held = Held::default();
    let service = service(&held).await?;
    let read_url = format!("read_url = \"{}/{{id}}\"", service.url());
    let (_stack, bus) = filled(&service, &read_url).await?;
    // In a path this one is a step, so nobody can ask for it; nobody else is kept from being checked.
    bus.publish("user.created", json!({"user_id": "..", "username": "dots"}))
        .await?;
    until_settled(&bus).await?;
    let set = |path: &str, value: Option<Value>| {
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        match value {
            Some(value) => held.insert(path.to_owned(), value),
            None => held.remove(path),
        }
    };
    set("/users/3", Some(json!({"user_id": 3, "version": 1})));
    set("/refused/3", Some(json!(true)));
    set("/users/4", None);
    for repaired in [[1, 0], [0, 0]] {
        let report = check(&bus, "crm", json!({})).await?;
        let of = |class| {
            report
                .found
                .get(&class)
                .map_or((0, 0), |found| (found.repaired, found.unrepairable))
        };
        let stale = of(Class::Stale);
        ensure!(
            of(Class::Missing).0 == repaired[0] && stale == (repaired[1], 1) && report.pending == 0,
            "{report:?}"
        );
    }
    set("/refused/3", None);
    let report = check(&bus, "crm", json!({})).await?;
    ensure!(report.found[&Class::Stale].repaired == 1, "{report:?}");
    is_done(&check(&bus, "crm", json!({})).await?, USERS + 1, [0; 4])
}

#[tokio::test]
async fn targets_that_are_slow_to_read_keep_no_other_waiting() -> Result<()> {
    let (held, gate) = (Held::default(), Gate::closed());
    let slow = Recorder::start({
        let gate = gate.clone();
        move |call: Call| {
            let (held, gate) = (Arc::clone(&held), gate.clone());
            async move {
                let id = call.path.rsplit('/').next().unwrap_or_default().to_owned();
                if call.method == Method::GET {
                    gate.pass().await;
                    let held = held.lock().unwrap_or_else(PoisonError::into_inner);
                    return held
                        .get(&id)
                        .map_or_else(|| answer(404), |shown| Json(shown).into_response());
                }
                let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
                held.insert(call.user(), call.body.clone());
                answer(200)
            }
        }
    })
    .await?;
    let settings = format!(
        "{UNTIMED}\ntimeout = \"60s\"\nread_url = \"{}/{{id}}\"",
        slow.url()
    );
    let entries = format!(
        "[redis-cache]\n{UNTIMED}\n{}{}",
        slow.target("crm", &settings),
        slow.target("erp", &settings)
    );
    let stack = Stack::builder().examples(false).schedulers(1);
    let stack = stack.targets_toml(move |_| entries).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish_all((1..=USERS).map(created)).await?;
    for target in ["crm", "erp", "redis-cache"] {
        bus.until_settled(target).await?;
    }
    let jetstream = bus.jetstream();
    for target in ["crm", "erp"] {
        let subject = format!("user.check.{target}");
        jetstream.publish(subject, "{}".into()).await?.await?;
        eventually(SOON, async || {
            let under_way = bus.kv_get("user_checks", target).await?;
            ensure!(under_way.is_some(), "{target} has not begun");
            Ok(())
        })
        .await?;
    }
    // Both places are taken by checks that wait for their target.
    is_done(&check(&bus, "redis-cache", json!({})).await?, USERS, [0; 4])?;
    gate.open();
    for target in ["crm", "erp"] {
        is_done(&super::ended(&bus, target, None).await?, USERS, [0; 4])?;
    }
    Ok(())
}
