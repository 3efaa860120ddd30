//! Dead letters and refused events: list, show, replay, discard.

use std::sync::{
    Arc,
    atomic::{AtomicU16, Ordering::SeqCst},
};

use anyhow::{Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use usersync_core::subjects::{USER_DEAD, USER_REPAIR};
use usersync_stack::{Stack, eventually};

use crate::support::{Api, Bus, Call, Recorder, SOON, answer, only};

/// Users 1 to 6 are dead at `audit`: even ones because they are refused for good, odd ones because
/// their attempts were used up.
struct Dead {
    _stack: Stack,
    api: Api,
    bus: Bus,
    recorder: Recorder,
    /// What the target answers from now on, 0 for what made them dead.
    answers: Arc<AtomicU16>,
}

async fn dead() -> Result<Dead> {
    let answers = Arc::new(AtomicU16::new(0));
    let recorder = Recorder::start({
        let answers = answers.clone();
        move |call: Call| {
            let status = match answers.load(SeqCst) {
                0 if call.user().parse::<u64>().is_ok_and(|user| user % 2 == 0) => 422,
                0 => 500,
                status => status,
            };
            async move { answer(status) }
        }
    })
    .await?;
    let brief = "retry = { max_deliver = 1, base = \"10ms\" }\nbreaker = { least = 10000, permanent = 10000 }";
    let stack = only(recorder.target("audit", brief)).start().await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    let created = (1..=6).map(|user| ("user.created", json!({"user_id": user})));
    bus.publish_all(created).await?;
    bus.until_settled("audit").await?;
    eventually(SOON, async || {
        let count = bus.count(USER_DEAD).await?;
        ensure!(count == 6, "{count} dead letters");
        Ok(())
    })
    .await?;
    Ok(Dead {
        _stack: stack,
        api,
        bus,
        recorder,
        answers,
    })
}

fn users(letters: &Value) -> Vec<u64> {
    let letters = letters["dead_letters"].as_array().into_iter().flatten();
    let mut users: Vec<_> = letters
        .filter_map(|letter| letter["user_id"].as_u64())
        .collect();
    users.sort_unstable();
    users
}

#[tokio::test]
async fn dead_letters_are_listed_by_target_class_and_reason_in_pages() -> Result<()> {
    let dead = dead().await?;
    let api = &dead.api;
    assert_eq!(api.target("audit").await?["dead_letters"], 6);
    for (query, expected) in [
        ("", vec![1, 2, 3, 4, 5, 6]),
        ("?target=audit", vec![1, 2, 3, 4, 5, 6]),
        ("?target=other", vec![]),
        ("?class=permanent", vec![2, 4, 6]),
        ("?class=transient&user_id=3", vec![3]),
        ("?reason=422", vec![2, 4, 6]),
        ("?reason=nothing", vec![]),
    ] {
        let letters = api.get(&format!("/v1/dead-letters{query}")).await?;
        assert_eq!(users(&letters), expected, "{query}: {letters}");
        assert_eq!(letters["next"], Value::Null);
    }
    let (mut seen, mut from) = (Vec::new(), json!(1));
    while !from.is_null() {
        let page = api
            .get(&format!(
                "/v1/dead-letters?class=permanent&limit=2&from={from}"
            ))
            .await?;
        assert!(users(&page).len() <= 2);
        seen.extend(users(&page));
        from = page["next"].clone();
    }
    seen.sort_unstable();
    assert_eq!(seen, [2, 4, 6]);

    let one = api.get("/v1/dead-letters/audit/2").await?;
    assert_eq!(
        (&one["class"], &one["attempts"]),
        (&json!("permanent"), &json!(1))
    );
    let by_nats = json!({"target": "audit", "user_id": "2"});
    assert_eq!(api.request("usersync.dead.show", by_nats).await, Ok(one));
    let task = api.task(2, "audit").await?;
    assert_eq!(task["status"], "dead", "{task}");
    let missing = api
        .call(Method::GET, "/v1/dead-letters/audit/9", &[], None)
        .await?;
    assert_eq!(missing.status, 404);
    let odd = api
        .call(Method::GET, "/v1/dead-letters?class=odd", &[], None)
        .await?;
    assert_eq!(odd.status, 400, "{odd:?}");
    Ok(())
}

#[tokio::test]
async fn a_replay_is_counted_first_and_then_delivers() -> Result<()> {
    let dead = dead().await?;
    let api = &dead.api;
    dead.answers.store(200, SeqCst);
    let path = "/v1/dead-letters/replay";
    let mut calls = dead.recorder.answered();
    let mut left = 6;
    for (replay, expected) in [
        (json!({"target": "audit", "user_id": 1}), 1),
        (json!({"class": "permanent"}), 3),
    ] {
        let mut dry = replay.clone();
        dry["dry_run"] = json!(true);
        let counted = api.post(path, dry).await?;
        assert_eq!(counted["matched"], expected, "{replay}: {counted}");
        assert_eq!(dead.recorder.answered(), calls);
        let asked = api.post(path, replay).await?;
        assert_eq!(asked["published"], expected, "{asked}");
        calls += expected as usize;
        eventually(SOON, async || {
            let answered = dead.recorder.answered();
            ensure!(answered == calls, "{answered} calls");
            let waiting = dead.bus.count(USER_REPAIR).await?;
            ensure!(waiting == 0, "{waiting} repairs wait");
            Ok(())
        })
        .await?;
        left -= expected;
        eventually(SOON, async || {
            let letters = dead.bus.count(USER_DEAD).await?;
            ensure!(letters == left, "{letters} letters of {left}");
            Ok(())
        })
        .await?;
    }
    let careless = api.call(Method::POST, path, &[], Some(json!({}))).await?;
    assert_eq!(careless.status, 422, "{careless:?}");
    let asked = api
        .request("usersync.dead.replay", json!({"all": true}))
        .await;
    assert!(asked.is_ok_and(|asked| asked["matched"].as_u64() >= Some(2)));
    Ok(())
}

#[tokio::test]
async fn what_is_discarded_is_gone_and_the_rest_stays() -> Result<()> {
    let dead = dead().await?;
    let api = &dead.api;
    let path = "/v1/dead-letters/discard";
    let left = async |expected: Vec<u64>| {
        let letters = api.get("/v1/dead-letters").await?;
        assert_eq!(users(&letters), expected, "{letters}");
        // The messages that take their place go away by themselves.
        eventually(SOON, async || {
            let count = dead.bus.count(USER_DEAD).await?;
            ensure!(count == expected.len() as u64, "{count} messages");
            Ok(())
        })
        .await
    };
    let dry = api
        .post(path, json!({"all": true, "dry_run": true}))
        .await?;
    assert_eq!(
        (&dry["matched"], &dry["dry_run"]),
        (&json!(6), &json!(true))
    );
    left(vec![1, 2, 3, 4, 5, 6]).await?;
    let one = api
        .post(path, json!({"target": "audit", "user_id": 1}))
        .await?;
    assert_eq!(one["matched"], 1);
    left(vec![2, 3, 4, 5, 6]).await?;
    let class = api
        .post(path, json!({"class": "permanent", "target": "audit"}))
        .await?;
    assert_eq!(class["matched"], 3);
    left(vec![3, 5]).await?;
    let careless = api.call(Method::POST, path, &[], Some(json!({}))).await?;
    assert_eq!(careless.status, 422, "{careless:?}");
    let rest = api
        .request("usersync.dead.discard", json!({"all": true}))
        .await;
    assert_eq!(rest.map(|rest| rest["matched"].clone()), Ok(json!(2)));
    left(vec![]).await
}

#[tokio::test]
async fn refused_events_are_listed_shown_and_discarded() -> Result<()> {
    let stack = only("").start().await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    for n in 0..3 {
        bus.publish("user.created", json!({"user_id": "a b", "n": n}))
            .await?;
    }
    bus.until_taken_in().await?;
    let list = api.get("/v1/refused-events?limit=2").await?;
    assert_eq!(
        list["refused_events"].as_array().map(Vec::len),
        Some(2),
        "{list}"
    );
    assert_eq!(list["refused_events"][0]["pointer"], "/user_id");
    let rest = api
        .get(&format!("/v1/refused-events?from={}", list["next"]))
        .await?;
    assert_eq!(rest["refused_events"][0]["seq"], 3, "{rest}");
    let one = api.get("/v1/refused-events/2").await?;
    assert!(
        one["body"]
            .as_str()
            .is_some_and(|body| body.contains("\"n\":1")),
        "{one}"
    );
    let dead = api.get("/v1/dead-letters").await?;
    assert_eq!(
        dead["dead_letters"],
        json!([]),
        "they are no dead letters of a target"
    );
    let gone = api
        .request("usersync.refused.discard", json!({"seq": 2}))
        .await;
    assert_eq!(gone.map(|gone| gone["matched"].clone()), Ok(json!(1)));
    let missing = api
        .call(Method::GET, "/v1/refused-events/2", &[], None)
        .await?;
    assert_eq!(missing.status, 404);
    let rest = json!({"all": true, "dry_run": true});
    let rest = api.post("/v1/refused-events/discard", rest).await?;
    assert_eq!(rest["matched"], 2);
    Ok(())
}
