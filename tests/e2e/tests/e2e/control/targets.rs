//! Targets live in KV: added, changed, paused, removed while everything runs.

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use usersync_core::subjects::{BREAKERS_BUCKET, TARGETS_BUCKET, USER_REPAIR, USER_STATE};
use usersync_stack::eventually;

use crate::support::{Api, Bus, Recorder, SOON, answer, only};

fn created(users: std::ops::RangeInclusive<u64>) -> impl Iterator<Item = (&'static str, Value)> {
    users.map(|user| ("user.created", json!({"user_id": user, "data": {"n": 1}})))
}

#[tokio::test]
async fn a_bad_value_keeps_the_last_good_one_and_shows_why() -> Result<()> {
    let stack = only("[t]\nurl = \"http://127.0.0.1:1/good\"")
        .workers("t", 0)
        .start()
        .await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    for (bad, told) in [
        ("{\"url\":", "not valid JSON"),
        (
            r#"{"url":"http://h/","timeout":"soon"}"#,
            "timeout: expected a duration",
        ),
        (
            r#"{"url":"http://h/","colour":"red"}"#,
            "colour: is no key of a target",
        ),
        (r#"{"url":"gopher://h/"}"#, "is no kind of target"),
        (r#"{"url":"http://h/","method":"SET"}"#, "method: "),
        (
            r#"{"url":"redis://h/","filter":"user.statu =="}"#,
            "filter: ",
        ),
    ] {
        let revision = bus.kv_put(TARGETS_BUCKET, "t", bad).await?;
        let target = api.target("t").await?;
        assert_eq!(target["revision"], revision);
        let problem = target["problem"].as_str().unwrap_or_default();
        assert!(problem.contains(told), "{bad}: {problem}");
        assert_eq!(target["entry"]["url"], "http://127.0.0.1:1/good", "{bad}");
        let list = api.get("/v1/targets").await?;
        let listed = list["targets"].as_array().into_iter().flatten();
        let listed = listed.filter(|target| target["name"] == "t");
        assert!(
            listed
                .into_iter()
                .all(|listed| listed["problem"] == problem),
            "{list}"
        );
    }
    bus.kv_put(
        TARGETS_BUCKET,
        "t",
        r#"{"url":"http://127.0.0.1:1/better"}"#,
    )
    .await?;
    let target = api.target("t").await?;
    assert_eq!(target["problem"], Value::Null);
    assert_eq!(target["entry"]["url"], "http://127.0.0.1:1/better");
    eventually(SOON, async || {
        let log = stack.gateway().process().log_tail();
        ensure!(log.contains("the newest entry can't be used"), "{log}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_preview_says_that_it_follows_an_older_value() -> Result<()> {
    let stack = only("[t]\nurl = \"http://127.0.0.1:1/x\"")
        .workers("t", 0)
        .start()
        .await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    let user = json!({"user": {"user_id": 1, "username": "ann"}});
    let fine = api.post("/v1/targets/t/preview", user.clone()).await?;
    assert_eq!(fine.get("problem"), None, "{fine}");
    let bad = r#"{"url":"http://127.0.0.1:1/x","filter":"user."}"#;
    bus.kv_put(TARGETS_BUCKET, "t", bad).await?;
    let shown = api.post("/v1/targets/t/preview", user).await?;
    assert_eq!(shown["sent"], true, "{shown}");
    let problem = shown["problem"].as_str().unwrap_or_default();
    assert!(problem.starts_with("filter: "), "{shown}");
    Ok(())
}

#[tokio::test]
async fn a_test_says_that_it_follows_an_older_value() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let stack = only("").start().await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    let good = json!({"url": recorder.url()});
    bus.kv_put(TARGETS_BUCKET, "t", &good.to_string()).await?;
    let fine = api.post("/v1/targets/t/test", json!({})).await?;
    assert_eq!(fine["reachable"], true, "{fine}");
    assert_eq!(fine.get("problem"), None, "{fine}");
    let bad = r#"{"url":"http://127.0.0.1:1/x","method":"SET"}"#;
    bus.kv_put(TARGETS_BUCKET, "t", bad).await?;
    let http = api.post("/v1/targets/t/test", json!({})).await?;
    let nats = api.request("usersync.targets.test", json!({"name": "t"}));
    let nats = nats.await.unwrap_or_default();
    for tested in [http, nats] {
        assert_eq!(tested["reachable"], true, "{tested}");
        let problem = tested["problem"].as_str().unwrap_or_default();
        assert!(problem.starts_with("method: "), "{tested}");
    }
    Ok(())
}

#[tokio::test]
async fn a_target_added_while_everything_runs_is_filled_with_every_user() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let mut stack = only("").start().await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    bus.publish_all(created(1..=300)).await?;
    bus.until_taken_in().await?;

    let entry = json!({"url": recorder.url()});
    let saved = api.put("/v1/targets/late", &[], entry).await?;
    assert_eq!(saved.status, 201, "{saved:?}");
    let waits = api.target("late").await?;
    assert_eq!(waits["live"]["pending"], 300);
    assert_eq!(
        waits["backfill"],
        json!({"done": 0, "total": 300, "ratio": 0.0})
    );

    stack.add_worker("late").await?;
    bus.until_settled("late").await?;
    assert_eq!(recorder.arrived(), 300);
    let filled = api.target("late").await?;
    assert_eq!(
        filled["backfill"],
        json!({"done": 300, "total": 300, "ratio": 1.0})
    );
    assert_eq!(filled["live"]["ack_floor"], 300);
    Ok(())
}

/// Also proves that every change makes its consumers, whoever has written it.
#[tokio::test]
async fn a_target_put_into_kv_by_hand_has_its_consumers_at_once() -> Result<()> {
    let stack = only("").gateways(2).start().await?;
    let bus = Bus::connect(&stack).await?;
    let entry = r#"{"url":"http://127.0.0.1:1/x","enabled":false,"retry":{"max_deliver":3}}"#;
    bus.kv_put(TARGETS_BUCKET, "by-hand", entry).await?;
    let max_deliver = async |expected: i64| {
        eventually(SOON, async || {
            for stream in [USER_STATE, USER_REPAIR] {
                let stream = bus.jetstream().get_stream_no_info(stream).await?;
                let info = stream.consumer_info("by-hand").await?;
                let found = info.config.max_deliver;
                ensure!(found == expected, "max_deliver is {found}");
            }
            Ok(())
        })
        .await
    };
    max_deliver(11).await?;
    bus.kv_put(TARGETS_BUCKET, "by-hand", &entry.replace('3', "5"))
        .await?;
    max_deliver(13).await?;
    bus.kv_delete(TARGETS_BUCKET, "by-hand").await?;
    let api = Api::of(&stack).await?;
    eventually(SOON, async || {
        let gone = api
            .call(Method::GET, "/v1/targets/by-hand", &[], None)
            .await?;
        ensure!(gone.status == 404, "{gone:?}");
        Ok(())
    })
    .await?;
    assert!(
        bus.has_consumer(USER_STATE, "by-hand").await?,
        "it remembers how far it is"
    );
    Ok(())
}

#[tokio::test]
async fn who_writes_on_top_of_an_old_revision_is_told_so() -> Result<()> {
    let stack = only("").start().await?;
    let api = Api::of(&stack).await?;
    let (path, entry) = (
        "/v1/targets/t",
        |n: u8| json!({"url": format!("http://127.0.0.1:1/{n}")}),
    );
    let first = api.put(path, &[("if-none-match", "*")], entry(1)).await?;
    assert_eq!(first.status, 201, "{first:?}");
    let again = api.put(path, &[("if-none-match", "*")], entry(2)).await?;
    assert_eq!(again.status, 412, "{again:?}");
    assert!(again.detail().contains("read it again"), "{again:?}");
    let second = api
        .put(path, &[("if-match", &first.etag)], entry(2))
        .await?;
    assert_eq!(second.status, 200, "{second:?}");
    let stale = api
        .put(path, &[("if-match", &first.etag)], entry(3))
        .await?;
    assert_eq!(stale.status, 412, "{stale:?}");
    let shown = api.call(Method::GET, path, &[], None).await?;
    assert_eq!(shown.etag, second.etag);
    assert_eq!(shown.body["entry"]["url"], "http://127.0.0.1:1/2");
    let stale = api
        .call(Method::DELETE, path, &[("if-match", &first.etag)], None)
        .await?;
    assert_eq!(stale.status, 412, "{stale:?}");
    let whatever = api
        .call(
            Method::POST,
            &format!("{path}/pause"),
            &[("if-match", "*")],
            None,
        )
        .await?;
    assert_eq!(whatever.status, 200, "{whatever:?}");
    for (tag, status) in [
        ("yesterday", 400),
        ("\u{e9}", 400),
        (&*format!("W/{}", whatever.etag), 412),
        (&*format!("{}, {}", first.etag, second.etag), 412),
        (&*format!("{}, {}", first.etag, whatever.etag), 200),
    ] {
        let answer = api.put(path, &[("if-match", tag)], entry(4)).await?;
        assert_eq!(answer.status, status, "{tag}: {answer:?}");
    }
    let long = json!({"url": "http://127.0.0.1:1/x", "note": "x".repeat(65_536)});
    let long = api.put(path, &[], long).await?;
    assert_eq!(long.status, 422, "{long:?}");

    let code = async |revision: u64| {
        let put = json!({"name": "t", "entry": entry(5), "revision": revision});
        api.request("usersync.targets.put", put)
            .await
            .err()
            .map(|(code, _)| code)
    };
    assert_eq!(code(1).await, Some(412));
    let current = api.target("t").await?["revision"]
        .as_u64()
        .unwrap_or_default();
    assert_eq!(code(current).await, None);
    Ok(())
}

#[tokio::test]
async fn an_entry_is_checked_by_its_kind_and_tested_before_it_is_saved() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let stack = only("").start().await?;
    let api = Api::of(&stack).await?;
    for (entry, pointer) in [
        (json!({"url": "gopher://h/"}), "/url"),
        (json!({"url": "http://h/", "method": "SET"}), "/method"),
        (
            json!({"url": "http://h/", "retry": {"max_deliver": 0}}),
            "/retry/max_deliver",
        ),
        (json!({"url": "http://h/", "colour": "red"}), "/colour"),
        (json!({"url": "http://h/", "secret": "hunter2"}), "/secret"),
        (
            json!({"url": "http://h/", "headers": {"Authorization": "Bearer hunter2"}}),
            "/headers/Authorization",
        ),
        (json!({"url": "http://u:hunter2@h/"}), "/url"),
        (
            json!({"url": "http://h/", "read_url": "http://u:hunter2@h/{id}", "verify": true}),
            "/read_url",
        ),
        (json!({"url": "redis://:hunter2@h"}), "/url"),
        (json!({"url": "postgres://u:hunter2@h/d"}), "/url"),
    ] {
        let refused = api.put("/v1/targets/t", &[], entry).await?;
        assert_eq!(refused.status, 422, "{refused:?}");
        assert_eq!(refused.body["pointer"], pointer, "{refused:?}");
        assert!(!refused.body.to_string().contains("hunter2"), "{refused:?}");
    }
    let away = json!({"url": "http://127.0.0.1:1/x"});
    let untested = api.put("/v1/targets/t?test=true", &[], away).await?;
    assert_eq!(untested.status, 422, "{untested:?}");
    assert!(
        untested.detail().contains("connection test"),
        "{untested:?}"
    );
    for (key, mut there) in [
        ("secret", json!({"secret": "env:NOT_ON_THIS_GATEWAY"})),
        (
            "headers.X-Api-Key",
            json!({"headers": {"X-Api-Key": "env:NOT_ON_THIS_GATEWAY"}}),
        ),
    ] {
        there["url"] = recorder.url().into();
        let dry = api.put("/v1/targets/t?dry_run=true", &[], there).await?;
        assert_eq!(
            (dry.status, &dry.body["dry_run"]),
            (200, &json!(true)),
            "{dry:?}"
        );
        let warning = dry.body["warnings"][0].as_str().unwrap_or_default();
        assert!(
            warning.starts_with(key) && warning.contains("NOT_ON_THIS_GATEWAY"),
            "{dry:?}"
        );
    }
    let missing = api.call(Method::GET, "/v1/targets/t", &[], None).await?;
    assert_eq!(missing.status, 404, "nothing was saved");

    let entry = json!({"url": recorder.url()});
    let saved = api.put("/v1/targets/t?test=true", &[], entry).await?;
    assert_eq!(saved.status, 201, "{saved:?}");
    let tested = api.post("/v1/targets/t/test", json!({})).await?;
    assert_eq!(tested["reachable"], true, "{tested}");
    Ok(())
}

#[tokio::test]
async fn pausing_is_enabled_false_and_resuming_follows_the_file_again() -> Result<()> {
    let stack = only("[t]\nurl = \"http://127.0.0.1:1/x\"")
        .workers("t", 0)
        .start()
        .await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    assert_eq!(api.target("t").await?["from_file"], true);
    api.post("/v1/targets/t/pause", json!({"note": "moving house"}))
        .await?;
    let paused = api.target("t").await?;
    assert_eq!(paused["enabled"], false);
    assert_eq!(paused["from_file"], false);
    assert_eq!(paused["entry"]["note"], "moving house");
    let kept = bus.kv_get(TARGETS_BUCKET, "t").await?.unwrap_or_default();
    assert_eq!(kept["enabled"], false);
    assert!(bus.has_consumer(USER_STATE, "t").await?);

    let resumed = api
        .request("usersync.targets.resume", json!({"name": "t"}))
        .await;
    assert_eq!(
        resumed.map(|saved| saved["entry"]["enabled"].clone()),
        Ok(json!(true))
    );
    let resumed = api.target("t").await?;
    assert_eq!(resumed["from_file"], true, "{resumed}");
    assert_eq!(resumed["entry"]["note"], Value::Null);
    Ok(())
}

#[tokio::test]
async fn a_deleted_target_keeps_its_consumers_unless_asked() -> Result<()> {
    let stack = only("").start().await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    let entry = json!({"url": "http://127.0.0.1:1/x"});
    for (query, stay) in [("", true), ("?consumers=delete", false)] {
        api.put("/v1/targets/t", &[], entry.clone()).await?;
        bus.repair("t", 1).await?;
        let nothing = api.delete("/v1/targets/t?dry_run=true").await?;
        assert_eq!(nothing.status, 200, "{nothing:?}");
        let deleted = api.delete(&format!("/v1/targets/t{query}")).await?;
        assert_eq!(deleted.status, 200, "{deleted:?}");
        for stream in [USER_STATE, USER_REPAIR] {
            assert_eq!(
                bus.has_consumer(stream, "t").await?,
                stay,
                "{stream} {query}"
            );
        }
        assert_eq!(bus.count(USER_REPAIR).await?, u64::from(stay), "{query}");
    }
    let missing = api.delete("/v1/targets/t").await?;
    assert_eq!(missing.status, 404, "{missing:?}");
    let again = api.delete("/v1/targets/t?consumers=delete").await?;
    assert_eq!(again.status, 200, "{again:?}");
    let never = api.delete("/v1/targets/u?consumers=delete").await?;
    assert_eq!(never.status, 404, "{never:?}");
    Ok(())
}

#[tokio::test]
async fn a_target_that_is_gone_is_disabled_once_with_one_alert() -> Result<()> {
    let (t, u) = (
        "[t]\nurl = \"http://127.0.0.1:1/x\"\n",
        "[u]\nurl = \"http://127.0.0.1:1/x\"\n",
    );
    let stack = only([t, u].concat())
        .workers("t", 0)
        .workers("u", 0)
        .gateways(2)
        .start()
        .await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    let gone = || {
        let since = jiff::Timestamp::now();
        json!({"state": "gone", "since": since, "reason": "the target answered 410"}).to_string()
    };
    // Two workers say so, and say it again.
    let before = gone();
    for worker in ["w1", "w2", "w1"] {
        bus.kv_put(BREAKERS_BUCKET, &format!("t.{worker}"), &before)
            .await?;
    }
    let until_disabled = async || {
        eventually(SOON, async || {
            let target = api.target("t").await?;
            ensure!(target["enabled"] == false, "{target}");
            Ok(target)
        })
        .await
    };
    let target = until_disabled().await?;
    let note = target["entry"]["note"].as_str().unwrap_or_default();
    assert!(note.contains("410"), "{note}");
    assert_eq!(
        target["breakers"].as_array().map(Vec::len),
        Some(2),
        "{target}"
    );
    assert_eq!(told(&bus, "t").await?.len(), 1);

    // A worker that hasn't noticed yet renews what it said before; it must not disable it again.
    api.post("/v1/targets/t/resume", json!({})).await?;
    bus.kv_put(BREAKERS_BUCKET, "t.w1", &before).await?;
    bus.kv_put(BREAKERS_BUCKET, "u.w1", &gone()).await?;
    eventually(SOON, async || {
        let other = api.target("u").await?;
        ensure!(other["enabled"] == false, "{other}");
        Ok(())
    })
    .await?;
    assert_eq!(api.target("t").await?["enabled"], true);
    // What counts is the entry's revision, whatever the clocks of workers say.
    let revision = api.target("t").await?["revision"]
        .as_u64()
        .unwrap_or_default();
    let at = |revision: u64, since: &str| {
        json!({"state": "gone", "since": since, "revision": revision}).to_string()
    };
    let ahead = at(revision - 1, "2100-01-01T00:00:00Z");
    bus.kv_put(BREAKERS_BUCKET, "t.w1", &ahead).await?;
    let never = at(revision + 1_000, "2100-01-01T00:00:00Z");
    bus.kv_put(BREAKERS_BUCKET, "t.w2", &never).await?;
    let behind = at(
        api.target("u").await?["revision"]
            .as_u64()
            .unwrap_or_default()
            + 1,
        "2000-01-01T00:00:00Z",
    );
    api.post("/v1/targets/u/resume", json!({})).await?;
    bus.kv_put(BREAKERS_BUCKET, "u.w1", &behind).await?;
    eventually(SOON, async || {
        let other = api.target("u").await?;
        ensure!(other["enabled"] == false, "{other}");
        Ok(())
    })
    .await?;
    assert_eq!(api.target("t").await?["enabled"], true);
    // It says so again.
    bus.kv_put(BREAKERS_BUCKET, "t.w1", &gone()).await?;
    until_disabled().await?;
    eventually(SOON, async || {
        let (t, u) = (told(&bus, "t").await?, told(&bus, "u").await?);
        let raised = |alerts: &[Value]| {
            let raised = alerts.iter().filter(|alert| alert["status"] == "raised");
            raised.count()
        };
        ensure!(raised(&t) == 2 && raised(&u) == 2, "{t:?} {u:?}");
        Ok(())
    })
    .await?;
    // Enabled again, it is resolved.
    api.post("/v1/targets/t/resume", json!({})).await?;
    eventually(SOON, async || {
        let alerts = told(&bus, "t").await?;
        let last = alerts.last().context("no alert")?;
        ensure!(last["status"] == "resolved", "{last}");
        Ok(())
    })
    .await
}

/// Every alert that said that a target is gone, or isn't any more.
async fn told(bus: &Bus, target: &str) -> Result<Vec<Value>> {
    crate::alerts::history(bus, "gone", target).await
}

#[tokio::test]
async fn a_gone_target_whose_newest_value_is_bad_is_disabled_as_it_runs() -> Result<()> {
    let stack = only("[t]\nurl = \"http://127.0.0.1:1/good\"")
        .workers("t", 0)
        .start()
        .await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    for bad in ["[]", "5", r#"{"url":"gopher://h/"}"#] {
        bus.kv_put(TARGETS_BUCKET, "t", bad).await?;
        let gone = json!({"state": "gone", "since": jiff::Timestamp::now(), "reason": "410"});
        bus.kv_put(BREAKERS_BUCKET, "t.w1", &gone.to_string())
            .await?;
        eventually(SOON, async || {
            let target = api.target("t").await?;
            ensure!(target["enabled"] == false, "{bad}: {target}");
            ensure!(target["problem"] == Value::Null, "{bad}: {target}");
            Ok(())
        })
        .await?;
        let target = api.target("t").await?;
        assert_eq!(target["entry"]["url"], "http://127.0.0.1:1/good", "{bad}");
        api.post("/v1/targets/t/resume", json!({})).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_target_with_an_odd_consumer_keeps_no_gateway_from_starting() -> Result<()> {
    let mut stack = only("").start().await?;
    let bus = Bus::connect(&stack).await?;
    let states = bus.jetstream().get_stream_no_info(USER_STATE).await?;
    let odd = async_nats::jetstream::consumer::push::Config {
        durable_name: Some("odd".to_owned()),
        deliver_subject: "somewhere".to_owned(),
        ..Default::default()
    };
    states.create_consumer(odd).await?;
    for name in ["odd", "t"] {
        let entry = r#"{"url":"http://127.0.0.1:1/x"}"#;
        bus.kv_put(TARGETS_BUCKET, name, entry).await?;
    }
    stack.gateway().kill9().await;
    stack.gateways[0].restart().await?;
    assert!(bus.has_consumer(USER_STATE, "t").await?);
    bus.publish_all(created(1..=3)).await?;
    bus.until_taken_in().await
}

#[tokio::test]
async fn breakers_are_listed_and_reset() -> Result<()> {
    let stack = only("[t]\nurl = \"http://127.0.0.1:1/x\"")
        .workers("t", 0)
        .start()
        .await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    for worker in ["w1", "w2"] {
        let open = r#"{"state":"open","since":"2026-01-01T00:00:00Z","reason":"no connection"}"#;
        bus.kv_put(BREAKERS_BUCKET, &format!("t.{worker}"), open)
            .await?;
    }
    let list = api.get("/v1/breakers?target=t").await?;
    assert_eq!(list["breakers"][0]["worker"], "w1");
    assert_eq!(list["breakers"][1]["reason"], "no connection");
    let reset = api
        .post("/v1/targets/t/breakers/reset?worker=w1", json!({}))
        .await?;
    assert_eq!(reset["matched"], 1);
    assert_eq!(bus.kv_get(BREAKERS_BUCKET, "t.w1").await?, None);
    let reset = api
        .request("usersync.breakers.reset", json!({"target": "t"}))
        .await;
    assert_eq!(reset.map(|reset| reset["matched"].clone()), Ok(json!(1)));
    let told = bus
        .jetstream()
        .get_key_value(BREAKERS_BUCKET)
        .await?
        .get("t")
        .await?;
    assert_eq!(told.as_deref(), Some(&b"reset"[..]));
    let nobody = api
        .call(
            Method::POST,
            "/v1/targets/t/breakers/reset?worker=w9",
            &[],
            None,
        )
        .await?;
    assert_eq!(nobody.status, 404, "{nobody:?}");
    Ok(())
}

#[tokio::test]
async fn a_preview_shows_what_a_target_would_be_told() -> Result<()> {
    let stack = only("[t]\nurl = \"http://127.0.0.1:1/x\"\nfields = { include = [\"username\"] }")
        .workers("t", 0)
        .start()
        .await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    let user = json!({"user_id": 7, "username": "ann", "email": "a@x"});
    bus.publish("user.created", user.clone()).await?;
    bus.until_taken_in().await?;
    let path = "/v1/targets/t/preview";
    let stored = api.post(path, json!({"user_id": 7})).await?;
    assert_eq!(stored["sent"], true);
    assert_eq!(
        (&stored["action"], &stored["members"]),
        (&json!("upsert"), &json!({"username": "ann"}))
    );
    let other = json!({"url": "http://h/", "fields": {"include": ["email"]}});
    let tried = api
        .post(path, json!({"user": user, "entry": other}))
        .await?;
    assert_eq!(tried["members"], json!({"email": "a@x"}));
    let gone = json!({"name": "t", "user": {"user_id": 7, "deleted": true}});
    let gone = api.request("usersync.targets.preview", gone).await;
    assert_eq!(gone.map(|gone| gone["action"].clone()), Ok(json!("delete")));
    for (body, status) in [
        (json!({"user_id": 8}), 404),
        (json!({}), 422),
        (json!({"user": {"user_id": "a b"}}), 422),
        (json!({"user_id": 7, "entry": {"url": 5}}), 422),
    ] {
        let refused = api
            .call(Method::POST, path, &[], Some(body.clone()))
            .await?;
        assert_eq!(refused.status, status, "{body}: {refused:?}");
    }
    Ok(())
}
