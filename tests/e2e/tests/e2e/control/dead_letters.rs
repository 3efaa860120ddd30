//! Dead letters and refused events: list, show, replay, discard.

use std::sync::{
    Arc,
    atomic::{AtomicU16, Ordering::SeqCst},
};

use anyhow::{Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _};
use reqwest::Method;
use serde_json::{Value, json};
use usersync_core::{
    dead_letter::{Class, DeadLetter, Same},
    subjects::{USER_DEAD, USER_REPAIR},
};
use usersync_stack::{Stack, eventually};

use crate::support::{Api, Bus, Call, LATER, Recorder, SOON, answer, only};

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

/// More letters than anybody should hold at once, of a target nobody serves; odd users' are permanent.
const MANY: u64 = 20_000;

async fn many() -> Result<(Stack, Api, Bus)> {
    let stack = only("[t]\nurl = \"http://127.0.0.1:1/x\"")
        .workers("t", 0)
        .start()
        .await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    store(&bus, "t", 1..=MANY).await?;
    Ok((stack, api, bus))
}

async fn store(bus: &Bus, target: &str, users: std::ops::RangeInclusive<u64>) -> Result<()> {
    let stored = users.map(async |user| {
        let letter = DeadLetter {
            target: target.parse()?,
            user_id: user.into(),
            version: user,
            attempts: 8,
            class: match user % 2 {
                0 => Class::Transient,
                _ => Class::Permanent,
            },
            reason: "the target answered 500".to_owned(),
            code: Some("500".to_owned()),
            first_failure: None,
            last_failure: None,
            waits_for: Vec::new(),
        };
        letter.store(bus.jetstream(), Same::Replace).await
    });
    let mut stored = futures_util::stream::iter(stored).buffer_unordered(500);
    while stored.try_next().await?.is_some() {}
    Ok(())
}

async fn until_done(api: &Api, asked: &Value) -> Result<Value> {
    let id = asked["job"]["id"].as_str().unwrap_or_default();
    eventually(LATER, async || {
        let job = api.get(&format!("/v1/repairs/{id}")).await?;
        ensure!(job["state"] == "done", "{job}");
        Ok(job)
    })
    .await
}

#[tokio::test]
async fn many_letters_are_replayed_by_one_job_that_takes_none_of_those_that_come_meanwhile()
-> Result<()> {
    let (_stack, api, bus) = many().await?;
    let path = "/v1/dead-letters/replay";
    let dry = api
        .post(path, json!({"all": true, "dry_run": true}))
        .await?;
    assert_eq!(dry["matched"], MANY, "{dry}");
    let slowly = json!({"target": "t", "per_second": 5_000});
    let asked = api.post(path, slowly.clone()).await?;
    let job = &asked["job"];
    assert_eq!(
        (&job["state"], &job["kind"], &asked["matched"]),
        (&json!("running"), &json!("replay"), &json!(MANY)),
        "{asked}"
    );
    let equal = api.request("usersync.dead.replay", slowly).await;
    let id = job["id"].as_str().unwrap_or_default();
    assert!(
        equal
            .as_ref()
            .is_err_and(|(code, told)| *code == 409 && told.contains(id)),
        "{equal:?}"
    );
    // New ones, and one that takes the place of one not looked at yet.
    store(&bus, "t", MANY..=MANY + 500).await?;
    let job = until_done(&api, &asked).await?;
    assert_eq!(
        (&job["done"], &job["total"]),
        (&json!(MANY - 1), &json!(MANY - 1)),
        "{job}"
    );
    assert_eq!(bus.count(USER_REPAIR).await?, MANY - 1);
    Ok(())
}

#[tokio::test]
async fn letters_of_a_target_that_is_no_more_are_not_replayed() -> Result<()> {
    let stack = only("[t]\nurl = \"http://127.0.0.1:1/x\"")
        .workers("t", 0)
        .start()
        .await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    store(&bus, "t", 1..=3).await?;
    store(&bus, "gone", 1..=2).await?;
    let path = "/v1/dead-letters/replay";
    let dry = api
        .post(path, json!({"all": true, "dry_run": true}))
        .await?;
    assert_eq!(dry["matched"], 3, "{dry}");
    for (replay, published) in [(json!({"user_id": 1}), 1), (json!({"all": true}), 3)] {
        let asked = api.post(path, replay).await?;
        assert_eq!(asked["published"], published, "{asked}");
    }
    assert_eq!(bus.count(USER_REPAIR).await?, 3, "one per target and user");
    let named = json!({"target": "gone"});
    let refused = api
        .call(Method::POST, path, &[], Some(named.clone()))
        .await?;
    assert_eq!(refused.status, 404, "{refused:?}");
    let gone = api.post("/v1/dead-letters/discard", named).await?;
    assert_eq!(gone["discarded"], 2, "{gone}");
    Ok(())
}

#[tokio::test]
async fn many_letters_are_discarded_by_a_job_that_shows_its_progress() -> Result<()> {
    let (_stack, api, bus) = many().await?;
    let path = "/v1/dead-letters/discard";
    let asked = api.post(path, json!({"class": "permanent"})).await?;
    let job = until_done(&api, &asked).await?;
    let half = json!(MANY / 2);
    assert_eq!(
        (&job["kind"], &job["done"], &job["total"]),
        (&json!("discard"), &half, &half),
        "{job}"
    );
    let left = api.get("/v1/dead-letters?limit=3").await?;
    assert_eq!(users(&left), [2, 4, 6], "{left}");
    let rest = api
        .request("usersync.dead.discard", json!({"all": true}))
        .await;
    let rest = rest.map_err(|(_, told)| anyhow::anyhow!(told))?;
    let job = until_done(&api, &rest).await?;
    assert_eq!(job["done"], half, "{job}");
    eventually(SOON, async || {
        let count = bus.count(USER_DEAD).await?;
        ensure!(count == 0, "{count} messages");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_letter_is_cleared_although_its_worker_still_reads_the_others() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let mut stack = only(recorder.target("t", ""))
        .workers("t", 0)
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    let users = 200;
    let created = (1..=users).map(|user| ("user.created", json!({"user_id": user})));
    bus.publish_all(created).await?;
    bus.until_taken_in().await?;
    // Theirs are the last that a worker reads.
    store(&bus, "t", users + 1..=MANY).await?;
    store(&bus, "t", 1..=users).await?;
    stack.add_worker("t").await?;
    bus.until_settled("t").await?;
    eventually(SOON, async || {
        let count = bus.count(USER_DEAD).await?;
        ensure!(count == MANY - users, "{count} messages");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_refused_event_of_any_length_can_be_shown() -> Result<()> {
    let stack = only("").start().await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    // As JSON, each of these bytes takes six.
    let length = 200 * 1024;
    let event = vec![1_u8; length];
    let sent = bus.jetstream().publish("user.created", event.into());
    sent.await?.await?;
    bus.until_taken_in().await?;
    let shown = api
        .request("usersync.refused.show", json!({"seq": 1}))
        .await
        .map_err(|(code, told)| anyhow::anyhow!("{code}: {told}"))?;
    assert_eq!(shown["truncated"], length);
    let body = shown["body"].as_str().unwrap_or_default();
    assert_eq!(body.len(), 128 * 1024);
    Ok(())
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

#[tokio::test]
async fn what_was_discarded_stays_away_when_the_server_is_killed() -> Result<()> {
    let mut stack = only("[t]\nurl = \"http://127.0.0.1:1/x\"")
        .workers("t", 0)
        .start()
        .await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    store(&bus, "t", 1..=4).await?;
    let path = "/v1/dead-letters/discard";
    for user in [1, 3] {
        let asked = api
            .post(path, json!({"target": "t", "user_id": user}))
            .await?;
        assert_eq!(asked["discarded"], 1, "{asked}");
    }
    // The marks are gone, too.
    eventually(SOON, async || {
        let left = bus.count(USER_DEAD).await?;
        ensure!(left == 2, "{left} are left");
        Ok(())
    })
    .await?;
    stack.nats.restart().await?;
    eventually(SOON, async || {
        let left = api.get("/v1/dead-letters").await?;
        ensure!(users(&left) == [2, 4], "{left}");
        Ok(())
    })
    .await
}
