//! Erasing a user: nothing of them is left in the streams or at the targets, whatever happens meanwhile.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use usersync_core::subjects::{USER_DEAD, USER_EVENTS, USER_REFUSED};
use usersync_stack::{Stack, eventually};

use super::marked;
use crate::{
    database_targets::Database,
    support::{Api, Bus, Call, LATER, Recorder, SOON, answer, only},
};

const NAME: &str = "planted-name-5e1f";
const EMAIL: &str = "planted-5e1f@example.com";
const PHONE: &str = "planted-phone-5e1f";
const MARKS: &[&str] = &[NAME, EMAIL, PHONE];
const OTHER: &str = "planted-other-77c0";
const QUICK: &str = "retry = { max_deliver = 100, base = \"100ms\", factor = 1.0, cap = \"200ms\" }\n\
                     breaker = { probe = \"100ms\", probe_cap = \"200ms\" }";

/// Asks for the erasure of a user, and waits until its job is done.
async fn erase(api: &Api, user: u64) -> Result<Value> {
    let path = format!("/v1/users/{user}/data");
    let job = eventually(LATER, async || {
        let answer = api.delete(&path).await?;
        ensure!(matches!(answer.status, 200 | 202), "{answer:?}");
        ensure!(
            (answer.status == 200) == (answer.body["state"] == "done"),
            "{answer:?}"
        );
        Ok(answer.body)
    })
    .await?;
    let id = job["id"].as_str().context("no id")?;
    eventually(LATER, async || {
        let job = api.get(&format!("/v1/repairs/{id}")).await?;
        ensure!(job["state"] == "done", "{job}");
        Ok(job["erasure"].clone())
    })
    .await
}

fn at<'a>(erasure: &'a Value, target: &str) -> (&'a str, &'a str) {
    let targets = erasure["targets"].as_array().into_iter().flatten();
    let found = targets.into_iter().find(|at| at["target"] == target);
    let text = |name: &str| found.and_then(|at| at[name].as_str()).unwrap_or_default();
    (text("state"), text("reason"))
}

#[tokio::test]
async fn an_erased_user_is_in_no_stream_and_at_no_target() -> Result<()> {
    let database = Database::start().await?;
    database.init("init", &[]).await?;
    let good = Recorder::start(async |_| answer(200)).await?;
    let soft = Recorder::start(async |_| answer(200)).await?;
    let keeps = Recorder::start(async |_| answer(200)).await?;
    let mut down = Recorder::start(async |_| answer(200)).await?;
    // Takes nobody in, but lets everybody go.
    let picky = Recorder::start(async |call: Call| match call.body["deleted"] == true {
        true => answer(200),
        false => answer(422),
    })
    .await?;
    let entries = [
        database.entry.clone(),
        good.target("good", QUICK),
        soft.target("soft", "on_delete = \"disable\""),
        keeps.target("keeps", "on_delete = \"ignore\""),
        down.target("down", QUICK),
        picky.target("picky", QUICK),
    ];
    let stack = Stack::builder()
        .examples(false)
        .targets_toml(move |_| entries.concat())
        .start()
        .await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    let user = json!({"user_id": 7, "username": NAME, "email": EMAIL});
    bus.publish("user.created", user).await?;
    let other = |n: u64| json!({"user_id": 8, "username": OTHER, "data": {"n": n}});
    bus.publish("user.created", other(1)).await?;
    bus.publish(
        "user.updated",
        json!({"user_id": "7", "data": {"phone": PHONE}}),
    )
    .await?;
    // Refused: a wrong type, bad UTF-8, cut off, another user's, and one that is nobody's.
    for refused in [
        &br#"{"user_id":7,"username":"planted-name-5e1f","email":3}"#[..],
        b"{\"user_id\":7,\"username\":\"planted-name-5e1f\",\"email\":\"\xff\"}",
        br#"{"user_id": "7", "email": "planted-5e1f@example.com"#,
        br#"{"user_id":8,"username":"planted-other-77c0","email":3}"#,
        br#"{"username":"planted-other-77c0"}"#,
    ] {
        let sent = bus.jetstream().publish("user.updated", refused.into());
        sent.await?.await?;
    }
    let targets = [
        "crm",
        "redis-cache",
        "good",
        "soft",
        "keeps",
        "down",
        "picky",
    ];
    for target in targets {
        bus.until_settled(target).await?;
    }
    down.stop().await;
    bus.publish(
        "user.updated",
        json!({"user_id": 7, "data": {"phone": null}}),
    )
    .await?;
    bus.until_settled("good").await?;
    eventually(SOON, async || {
        let dead = bus.count(USER_DEAD).await? + bus.count(USER_REFUSED).await?;
        let held = good.holds(7);
        ensure!(dead == 7, "{dead} dead letters and refused events");
        ensure!(
            held["username"] == NAME && held["data"]["phone"].is_null(),
            "{held}"
        );
        Ok(())
    })
    .await?;
    ensure!(
        redis_get(&stack, "user:7")
            .await?
            .is_some_and(|user| user.contains(NAME))
    );
    ensure!(
        database
            .number("COUNT(*) FILTER (WHERE email IS NOT NULL)")
            .await?
            == 1
    );
    let store = stack.dir().join("nats");
    let held = marked(&store, MARKS)?;
    for stream in [USER_EVENTS, USER_REFUSED] {
        let holds = held
            .iter()
            .any(|(path, _)| path.to_string_lossy().contains(stream));
        ensure!(holds, "nothing is planted in {stream}: {held:?}");
    }

    let dry = api.request(
        "usersync.users.erase",
        json!({"user_id": 7, "dry_run": true}),
    );
    let dry = dry.await.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let counted = |erasure: &Value| {
        ["events", "refused_events", "unclear", "dead_letters"].map(|name| erasure[name].clone())
    };
    assert_eq!(
        counted(&dry["erasure"]),
        [6, 3, 1, 1].map(Value::from),
        "{dry}"
    );
    ensure!(bus.state(7).await?["username"] == NAME, "a dry run erased");

    let erasure = erase(&api, 7).await?;
    assert_eq!(
        counted(&erasure),
        [6, 3, 1, 1].map(Value::from),
        "{erasure}"
    );
    assert_eq!(erasure["revived"], false);
    for target in ["crm", "redis-cache", "good", "soft", "picky"] {
        assert_eq!(at(&erasure, target), ("erased", ""), "{erasure}");
    }
    assert_eq!(at(&erasure, "down").0, "pending", "{erasure}");
    let (state, reason) = at(&erasure, "keeps");
    ensure!(
        state == "not_possible" && reason.contains("on_delete"),
        "{erasure}"
    );
    ensure!(redis_get(&stack, "user:7").await?.is_none());
    ensure!(
        database
            .number("COUNT(*) FILTER (WHERE sync_deleted AND username IS NULL)")
            .await?
            == 1
    );
    for gone in [good.holds(7), soft.holds(7), picky.holds(7)] {
        ensure!(
            gone["deleted"] == true && gone["action"].is_null(),
            "{gone}"
        );
    }
    ensure!(bus.dead_letter("picky", 7).await?.is_none());

    // Somebody publishes what they still have in hands: it counts for nothing, and goes with the next erasure.
    let late = json!({"user_id": 7, "email": EMAIL});
    bus.publish("user.updated", late).await?;
    let state = bus.state_after_intake(7).await?;
    ensure!(
        state["deleted"] == true && state["email"].is_null(),
        "{state}"
    );
    let again = erase(&api, 7).await?;
    assert_eq!(counted(&again), [1, 0, 1, 0].map(Value::from), "{again}");
    assert_eq!(again["event_seq"], erasure["event_seq"]);

    down.listen().await?;
    bus.publish("user.updated", other(2)).await?;
    eventually(LATER, async || {
        let (gone, other) = (down.holds(7), down.holds(8));
        ensure!(gone["deleted"] == true, "{gone}");
        ensure!(
            other["data"]["n"] == 2 && other["username"] == OTHER,
            "{other}"
        );
        Ok(())
    })
    .await?;
    bus.until_settled("down").await?;
    let last = erase(&api, 7).await?;
    assert_eq!(at(&last, "down"), ("erased", ""), "{last}");
    assert_eq!(bus.state(8).await?["username"], OTHER);

    // The bytes themselves, once the server has put everything down. States that newer ones have taken the place of are
    // no messages any more, so they can't be overwritten: docs/SECURITY.md.
    stack.nats.stop(SOON).await?;
    let mut held = marked(&store, MARKS)?;
    held.retain(|(path, _)| !path.to_string_lossy().contains("USER_STATE"));
    assert_eq!(held, []);
    ensure!(!marked(&store, &[OTHER])?.is_empty(), "the store is empty");
    Ok(())
}

async fn redis_get(stack: &Stack, key: &str) -> Result<Option<String>> {
    let client = redis::Client::open(stack.redis.url())?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    Ok(redis::cmd("GET")
        .arg(key)
        .query_async(&mut connection)
        .await?)
}

/// Events that an erasure has to look through.
const MANY: u64 = 60_000;

#[tokio::test]
async fn an_erasure_whose_gateway_dies_is_asked_for_again_and_done() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let mut stack = only(recorder.target("t", ""))
        .workers("t", 0)
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    let events = (0..MANY).map(|n| {
        let user = if n % 10_000 == 9_999 { 7 } else { n % 50 + 100 };
        let event = json!({"user_id": user, "username": format!("{NAME}-{user}")});
        ("user.updated", event)
    });
    bus.publish_all(events).await?;
    bus.until_taken_in().await?;
    let api = Api::of(&stack).await?;
    let asked = api.delete("/v1/users/7/data").await?;
    ensure!(asked.status == 202, "{asked:?}");
    let id = asked.body["id"].as_str().context("no id")?;
    let equal = api.delete("/v1/users/7/data").await?;
    ensure!(
        equal.status == 409 && equal.detail().contains(id),
        "{equal:?}"
    );
    stack.gateways[0].kill9().await;
    let half = bus.count(USER_EVENTS).await?;
    ensure!(half > MANY - 6 + 1, "nothing is left to erase: {half}");

    stack.gateways[0].restart().await?;
    let erasure = erase(&Api::of(&stack).await?, 7).await?;
    assert_eq!(
        erasure["event_seq"],
        MANY + 1,
        "the first event that said so is enough"
    );
    let left = bus.count(USER_EVENTS).await?;
    assert_eq!(left, MANY - 6 + 1, "{erasure}");
    assert_eq!(at(&erasure, "t").0, "pending");
    stack.add_worker("t").await?;
    bus.until_settled("t").await?;
    ensure!(recorder.holds(7)["deleted"] == true);
    ensure!(recorder.holds(100)["username"] == format!("{NAME}-100"));
    Ok(())
}

#[tokio::test]
async fn who_registers_again_meanwhile_is_somebody_new_and_stays() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let stack = only(recorder.target("t", "")).start().await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    let created = |n: u64| json!({"user_id": 7, "username": NAME, "data": {"n": n}});
    for n in 0..50 {
        bus.publish("user.created", created(n)).await?;
    }
    let registering = async {
        for n in 50..400 {
            bus.publish("user.created", created(n)).await?;
        }
        anyhow::Ok(())
    };
    let (erasure, registered) = tokio::join!(erase(&api, 7), registering);
    registered?;
    let erasure = erasure?;
    assert_eq!(erasure["revived"], true, "{erasure}");
    let said = erasure["event_seq"].as_u64().context("no sequence")?;
    ensure!(said > 50, "{erasure}");
    let erased = erasure["events"].as_u64().context("no count")?;
    assert_eq!(erased, said - 1, "what came before, and no more: {erasure}");
    let state = bus.state_after_intake(7).await?;
    ensure!(
        state["data"]["n"] == 399 && state["deleted"] == false,
        "{state}"
    );
    assert_eq!(bus.count(USER_EVENTS).await?, 401 - erased);
    bus.until_settled("t").await?;
    assert_eq!(recorder.holds(7)["data"]["n"], 399);

    let nobody = api
        .call(Method::DELETE, "/v1/users/a%20b/data", &[], None)
        .await?;
    assert_eq!(nobody.status, 400);
    eventually(Duration::from_secs(10), async || {
        let jobs = api.get("/v1/repairs").await?;
        ensure!(jobs["jobs"][0]["kind"] == "erase", "{jobs}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_event_of_another_that_can_not_be_merged_holds_up_no_erasure() -> Result<()> {
    let stack = only("").start().await?;
    let bus = Bus::connect(&stack).await?;
    for user in [1, 2] {
        let event = json!({"user_id": user, "username": format!("{NAME}-{user}")});
        bus.publish("user.created", event).await?;
    }
    bus.until_taken_in().await?;
    // As a newer gateway writes it.
    let mut newer = bus.state(1).await?;
    newer["format"] = json!(99);
    bus.put_state(&newer).await?;
    bus.publish("user.updated", json!({"user_id": 1, "email": EMAIL}))
        .await?;
    let erasure = erase(&Api::of(&stack).await?, 2).await?;
    assert_eq!(erasure["events"], 1, "{erasure}");
    Ok(())
}
