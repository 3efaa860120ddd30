//! Ids as identity providers spell them, and as programs hold them: from an event to targets, and in every answer.

use anyhow::{Context as _, Result, ensure};
use redis::AsyncTypedCommands as _;
use reqwest::Method;
use serde_json::{Value, json};
use usersync_core::{
    subjects::{self, TARGETS_BUCKET, USER_REFUSED, USER_STATE},
    user_id::UserId,
};
use usersync_stack::{Stack, eventually, http};

use crate::support::{Api, Bus, Call, Recorder, SOON, answer, only};

const IDS: [&str; 14] = [
    "auth0|6f1c",
    "f:3c1d:jane",
    "jane@example.com",
    "urn:uuid:0198c0de-0000-7000-8000-000000000000",
    "6F1C",
    "6f1c",
    "a/b?c=d&e#f%20+",
    "'\"`\\;--",
    "{a}{b}",
    "}{",
    "*",
    ">",
    "42:deleted",
    "a=7Cb",
];

fn encoded(id: &str) -> String {
    id.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

async fn ask(api: &Api, subject: &str, body: Value) -> Result<Value> {
    let answered = api.request(subject, body).await;
    answered.map_err(|(code, reason)| anyhow::anyhow!("{subject}: {code} {reason}"))
}

#[tokio::test]
async fn whatever_an_identity_provider_calls_a_user_every_door_takes_it() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let catalogue = recorder.target("audit", "");
    let stack = Stack::builder()
        .examples(false)
        .targets_toml(move |_| catalogue.clone())
        .start()
        .await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    for (n, id) in IDS.iter().enumerate() {
        let event = json!({"user_id": id, "username": id, "data": {"n": n}});
        match n % 2 {
            0 => bus.publish("user.created", event).await?,
            _ => {
                let mut event = event;
                event["type"] = json!("user.created");
                let taken = api
                    .call(Method::POST, "/v1/events", &[], Some(event))
                    .await?;
                ensure!(taken.status == 202, "{id}: {taken:?}");
            }
        }
    }
    bus.until_settled("audit").await?;
    bus.until_settled("redis-cache").await?;
    assert_eq!(bus.count(USER_STATE).await?, IDS.len() as u64);
    assert_eq!(bus.count(USER_REFUSED).await?, 0);

    let mut redis = redis::Client::open(stack.redis.url())?
        .get_multiplexed_async_connection()
        .await?;
    let target = "audit".parse()?;
    for id in IDS {
        let user: UserId = id.parse()?;
        let path = format!("/v1/users/{}", encoded(id));
        assert_eq!(api.get(&path).await?["username"], id);
        let shown = ask(&api, "usersync.users.show", json!({"user_id": id}));
        assert_eq!(shown.await?["username"], id);
        let tasks = api.get(&format!("{path}/targets")).await?;
        let mut task = tasks["targets"].as_array().into_iter().flatten();
        let task = task.find(|task| task["target"] == "audit");
        let task = task.context("no task")?.clone();
        assert_eq!(task["status"], "synced", "{id}: {task}");

        let calls = recorder.calls();
        let call = calls.iter().find(|call| call.body["user_id"] == id);
        let call = call.with_context(|| format!("no call about {id}"))?;
        let version = call.body["version"].as_u64().unwrap_or_default();
        let task_id = subjects::task(&target, &user, version);
        assert_eq!(call.body["task_id"], task_id.as_str());
        assert_eq!(call.header("idempotency-key"), task_id);
        assert_eq!(task["id"], task_id.as_str());

        let document = redis
            .get(format!("user:{id}"))
            .await?
            .context("no document")?;
        assert_eq!(serde_json::from_str::<Value>(&document)?["user_id"], id);
    }
    let arrived = recorder.arrived();
    bus.repair("audit", "auth0|6f1c".parse::<UserId>()?).await?;
    eventually(SOON, async || {
        ensure!(recorder.arrived() > arrived, "the repair hasn't come");
        Ok(())
    })
    .await?;
    let path = format!("/v1/users/{}/data", encoded("jane@example.com"));
    let erased = api.call(Method::DELETE, &path, &[], None).await?;
    ensure!(matches!(erased.status, 200 | 202), "{erased:?}");
    eventually(SOON, async || {
        let document = redis.clone().get("user:jane@example.com").await?;
        ensure!(document.is_none(), "it is there still");
        Ok(())
    })
    .await
}

/// What a target at `path` was told of the user with the largest id.
async fn told(recorder: &Recorder, path: &str) -> Result<Value> {
    eventually(SOON, async || {
        let calls = recorder.calls();
        let largest = |call: &&Call| {
            let id = UserId::try_from(&call.body["user_id"]);
            call.path == path && id == Ok(u64::MAX.into())
        };
        let call = calls.iter().find(largest);
        let call = call.with_context(|| format!("no call to {path}"))?;
        Ok(call.body["user_id"].clone())
    })
    .await
}

#[tokio::test]
async fn large_ids_are_strings_for_new_targets_and_stay_numbers_for_those_of_before() -> Result<()>
{
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let url = |path: &str| recorder.url().replace("/users", path);
    let file = format!("[new]\nurl = \"{}\"\n", url("/new"));
    let near = json!(["loopback", "private"]);
    let mut stack = only(file).start().await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    // As an older gateway left it.
    let old = json!({"url": url("/old"), "allow_networks": near});
    bus.kv_put(TARGETS_BUCKET, "old", &old.to_string()).await?;
    let put = async |name: &str, entry: Value| -> Result<Value> {
        let saved = api.put(&format!("/v1/targets/{name}"), &[], entry).await?;
        ensure!(saved.status < 300, "{saved:?}");
        Ok(saved.body["entry"]["ids"].clone())
    };
    let entry = |path: &str| json!({"url": url(path), "allow_networks": near});
    assert_eq!(put("saved", entry("/saved")).await?, "auto");
    let mut text = entry("/text");
    text["ids"] = json!("string");
    assert_eq!(put("text", text).await?, "string");
    // Who says nothing of it changes nothing of it.
    assert_eq!(put("old", entry("/old")).await?, "number");
    assert_eq!(put("text", entry("/text")).await?, "string");
    let by_nats = json!({"name": "asked", "entry": entry("/asked")});
    let by_nats = ask(&api, "usersync.targets.put", by_nats).await?;
    assert_eq!(by_nats["entry"]["ids"], "auto");
    let stored = async |name: &str| -> Result<Value> {
        let stored = bus.kv_get(TARGETS_BUCKET, name).await?;
        Ok(stored.context("no entry")?["ids"].clone())
    };
    assert_eq!(stored("new").await?, "auto");
    assert_eq!(stored("asked").await?, "auto");
    assert_eq!(stored("old").await?, Value::Null);

    for name in ["saved", "text", "asked", "old"] {
        stack.add_worker(name).await?;
    }
    let largest = json!(u64::MAX.to_string());
    bus.publish("user.created", json!({"user_id": u64::MAX}))
        .await?;
    bus.publish("user.created", json!({"user_id": 42})).await?;
    for name in ["new", "saved", "text", "asked", "old"] {
        bus.until_settled(name).await?;
        let expected = match name {
            "old" => json!(u64::MAX),
            _ => largest.clone(),
        };
        assert_eq!(
            told(&recorder, &format!("/{name}")).await?,
            expected,
            "{name}"
        );
        let calls = recorder.calls();
        let mut small = calls.iter().filter(|call| call.path == format!("/{name}"));
        let form = match name {
            "text" => json!("42"),
            _ => json!(42),
        };
        assert!(small.any(|call| call.body["user_id"] == form), "{name}");
    }
    let shown = api.get("/v1/users/18446744073709551615").await?;
    assert_eq!(shown["user_id"], largest);
    Ok(())
}

#[tokio::test]
async fn a_file_that_is_silent_about_ids_changes_nothing_of_them() -> Result<()> {
    let write = |stack: &Stack, n: u32| {
        let text = format!("[t]\nurl = \"http://127.0.0.1:1/{n}\"\n");
        std::fs::write(stack.catalogue().join("50-stack.toml"), text)
    };
    let mut stack = only("[t]\nurl = \"http://127.0.0.1:1/1\"\n")
        .workers("t", 0)
        .start()
        .await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    let entry = async || -> Result<(Value, Value)> {
        let entry = bus.kv_get(TARGETS_BUCKET, "t").await?.context("no entry")?;
        Ok((entry["url"].clone(), entry["ids"].clone()))
    };
    let until = async |url: &str, ids: Value| {
        eventually(SOON, async || {
            let found = entry().await?;
            ensure!(
                found == (json!(format!("http://127.0.0.1:1{url}")), ids.clone()),
                "{found:?}"
            );
            Ok(())
        })
        .await
    };
    until("/1", json!("auto")).await?;
    let cache = bus.kv_get(TARGETS_BUCKET, "redis-cache").await?;
    assert_eq!(cache.context("no entry")?["ids"], "auto");
    // Paused and resumed it follows its file as before.
    for switch in ["pause", "resume"] {
        let path = format!("/v1/targets/t/{switch}");
        api.post(&path, json!({})).await?;
    }
    assert_eq!(api.target("t").await?["from_file"], true);
    write(&stack, 2)?;
    until("/2", json!("auto")).await?;
    // As a gateway of before left it, and as its file was then.
    let file = "[t]\nurl = \"http://127.0.0.1:1/3\"\n";
    bus.kv_put(TARGETS_BUCKET, "t", r#"{"url":"http://127.0.0.1:1/3"}"#)
        .await?;
    std::fs::write(stack.catalogue().join("50-stack.toml"), file)?;
    stack.gateways[0].restart().await?;
    write(&stack, 4)?;
    until("/4", Value::Null).await?;
    let shown = http::client().get(format!("{}/v1/targets/t", stack.gateway().url()));
    let shown: Value = shown.send().await?.json().await?;
    assert_eq!(shown["entry"]["ids"], "number");
    Ok(())
}

#[tokio::test]
async fn integers_that_nobody_could_hold_are_refused_at_every_door_and_doubles_stay() -> Result<()>
{
    let stack = only("").start().await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    let post = async |kind: &str, body: &str| -> Result<(u16, Value)> {
        let url = format!("{}/v1/events", stack.gateway().url());
        let sent = http::client().post(url).header("content-type", kind);
        let answered = sent.body(body.to_owned()).send().await?;
        Ok((answered.status().as_u16(), answered.json().await?))
    };
    let event = |number: &str| {
        format!(r#"{{"type":"user.created","user_id":7,"data":{{"n":{{"m":[{number}]}}}}}}"#)
    };
    for number in ["18446744073709551616", "-9223372036854775809"] {
        let (status, problem) = post("application/json", &event(number)).await?;
        assert_eq!((status, &problem["pointer"]), (422, &json!("/data/n/m/0")));
        let both = format!("[{},{}]", event("1"), event(number));
        let (status, items) = post("application/json", &both).await?;
        let refused = &items["results"][1];
        assert_eq!((status, &refused["pointer"]), (207, &json!("/data/n/m/0")));
        let cloud = format!(
            r#"{{"specversion":"1.0","id":"c","type":"user.created","source":"s","data":{}}}"#,
            event(number)
        );
        let (status, problem) = post("application/cloudevents+json", &cloud).await?;
        assert_eq!(
            (status, &problem["pointer"]),
            (422, &json!("/data/data/n/m/0"))
        );
        let before = bus.count(USER_REFUSED).await?;
        let published = bus.jetstream.publish("user.created", event(number).into());
        let seq = published.await?.await?.sequence;
        bus.until_taken_in().await?;
        assert_eq!(bus.count(USER_REFUSED).await?, before + 1);
        let refused = api.get(&format!("/v1/refused-events/{seq}")).await?;
        assert_eq!(refused["pointer"], "/data/n/m/0", "{refused}");
    }
    let numbers =
        "-0.0,1e300,5e-324,0.1,18446744073709551615,-9223372036854775808,9007199254740993";
    let (status, _) = post("application/json", &event(numbers)).await?;
    assert_eq!(status, 202);
    let state = bus.state_after_intake(7).await?;
    let told: Value = serde_json::from_str(&format!("[{numbers}]"))?;
    assert_eq!(state["data"]["n"]["m"].to_string(), told.to_string());
    Ok(())
}
