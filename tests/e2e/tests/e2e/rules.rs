//! Rules: who a target is told of, what of them, and what becomes of those who go.

use std::sync::{Arc, Mutex};

use anyhow::{Result, ensure};
use axum::{Json, response::IntoResponse as _};
use redis::AsyncTypedCommands as _;
use serde_json::{Value, json};
use usersync_core::subjects::USER_DEAD;
use usersync_stack::{Stack, eventually, http};

use crate::support::{Bus, Gate, Recorder, SOON, answer, only};

fn user(id: u64, data: Value) -> Value {
    json!({"user_id": id, "username": format!("name-{id}"), "email": format!("u{id}@example.com"), "data": data})
}

#[tokio::test]
async fn a_target_hears_of_those_in_its_scope_and_of_those_who_leave_it() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let rule =
        "filter = \"user.data.plan == 'pro'\"\nfields = { include = [\"email\", \"data.plan\"] }";
    let stack = only(recorder.target("audit", rule)).start().await?;
    let bus = Bus::connect(&stack).await?;
    for (kind, event) in [
        (
            "user.created",
            user(1, json!({"plan": "pro", "phone": "1"})),
        ),
        (
            "user.updated",
            json!({"user_id": 1, "data": {"plan": "free"}}),
        ),
        (
            "user.updated",
            json!({"user_id": 1, "data": {"plan": "pro"}}),
        ),
    ] {
        let before = recorder.arrived();
        bus.publish(kind, event).await?;
        eventually(SOON, async || {
            ensure!(recorder.arrived() > before, "no call about {kind}");
            Ok(())
        })
        .await?;
        bus.until_settled("audit").await?;
    }
    let told: Vec<Value> = recorder
        .calls_for(1)
        .into_iter()
        .map(|call| {
            let told = |name: &str| call.body.get(name).cloned();
            json!([
                told("deleted"),
                told("email"),
                told("data"),
                told("username")
            ])
        })
        .collect();
    let there = json!([false, "u1@example.com", {"plan": "pro"}, null]);
    assert_eq!(
        told,
        [there.clone(), json!([true, null, null, null]), there]
    );

    // Nobody can say whether somebody without a plan is meant to be there.
    bus.publish("user.created", user(2, json!({}))).await?;
    bus.until_settled("audit").await?;
    let letter = bus.dead_letter("audit", 2).await?.expect("a dead letter");
    assert_eq!(letter.header("Usersync-Class"), "permanent");
    assert_eq!(
        letter.header("Usersync-Reason"),
        "filter: there is no member `plan`"
    );
    assert!(recorder.calls_for(2).is_empty());
    Ok(())
}

#[tokio::test]
async fn who_is_to_be_ignored_costs_no_call() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let rule = "filter = \"!user.data.test\"\non_out_of_scope = \"ignore\"\non_delete = \"ignore\"";
    let stack = only(recorder.target("audit", rule)).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", user(1, json!({"test": true})))
        .await?;
    bus.publish("user.created", user(2, json!({"test": false})))
        .await?;
    bus.until_settled("audit").await?;
    bus.publish("user.deleted", json!({"user_id": 2})).await?;
    bus.until_settled("audit").await?;
    let calls = recorder.calls();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].user(), "2");
    let metrics = stack.worker_metrics("audit").await?;
    let skipped = metrics.sum("usersync_deliveries_total", &[("outcome", "out_of_scope")]);
    assert_eq!(skipped, 2.0);
    assert_eq!(bus.count(USER_DEAD).await?, 0);
    Ok(())
}

#[tokio::test]
async fn members_are_computed_masked_and_renamed_on_the_way() -> Result<()> {
    let key = tempfile::NamedTempFile::new()?;
    std::fs::write(key.path(), "0123456789abcdef0123456789abcdef\n")?;
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let rule = format!(
        "[audit.fields]\ninclude = [\"username\", \"email\", \"data.phone\"]\nmask_key = \"file:{}\"\n\
         [audit.fields.compute]\n\"data.domain\" = \"user.email.split('@')[1]\"\n\
         [audit.fields.mask]\nemail = \"hash\"\n\"data.phone\" = \"last4\"\n\
         [audit.fields.rename]\nusername = \"data.login\"\n",
        key.path().display()
    );
    let stack = only(recorder.target("audit", &rule)).start().await?;
    let bus = Bus::connect(&stack).await?;
    let ann = json!({"user_id": 42, "username": "ann", "email": "ann@example.com",
                     "data": {"phone": "+491771234567", "card": "4111"}});
    bus.publish("user.created", ann).await?;
    bus.until_settled("audit").await?;
    let [call] = recorder.calls().try_into().unwrap();
    // printf ann@example.com | openssl dgst -sha256 -hmac 0123456789abcdef0123456789abcdef
    let hash = "093e3dd9df951c5008225d533a0175475075f7551ed269c5e61fa29bc2819ae4";
    assert_eq!(call.body["email"], hash);
    let data = json!({"phone": "*********4567", "domain": "example.com", "login": "ann"});
    assert_eq!(call.body["data"], data);
    assert_eq!(call.body.get("username"), None);
    let text = String::from_utf8_lossy(&call.raw);
    assert!(!text.contains("4111") && !text.contains("ann@"), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_deleted_user_can_be_disabled_instead() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let rule = "on_delete = \"disable\"";
    let stack = only(recorder.target("audit", rule)).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", user(1, json!({"status": "active"})))
        .await?;
    bus.until_settled("audit").await?;
    let gone = json!({"user_id": 1, "timestamp": "2026-01-31T12:00:00Z"});
    bus.publish("user.deleted", gone).await?;
    bus.until_settled("audit").await?;
    let version = bus.state(1).await?["version"].clone();
    let expected = json!({
        "task_id": format!("audit:1:{version}"), "event_type": "user.deleted", "user_id": 1,
        "data": {"status": "disabled"}, "deleted": false, "partial": true, "action": "disable",
        "version": version, "timestamp": "2026-01-31T12:00:00Z", "source": null,
    });
    assert_eq!(recorder.calls()[1].body, expected);
    Ok(())
}

#[tokio::test]
async fn redis_keeps_the_document_of_a_disabled_user() -> Result<()> {
    let rule = "[redis-cache]\non_delete = \"disable\"\nverify = true\n";
    let stack = Stack::builder()
        .examples(false)
        .targets_toml(move |_| rule.to_owned())
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    let client = redis::Client::open(stack.redis.url())?;
    let mut redis = client.get_multiplexed_async_connection().await?;
    // What Lua's JSON would spoil: an empty list, a large number.
    let data = json!({"status": "active", "roles": [], "big": 9_007_199_254_740_993_u64, "a": {"b": [1.5]}});
    bus.publish("user.created", user(1, data)).await?;
    bus.until_settled("redis-cache").await?;
    for id in [1, 2] {
        bus.publish("user.deleted", json!({"user_id": id})).await?;
    }
    bus.until_settled("redis-cache").await?;

    let text = redis.get("user:1").await?.expect("the document stays");
    let version = bus.state(1).await?["version"].clone();
    assert!(
        text.starts_with(&format!("{{\"version\":{version},")),
        "{text}"
    );
    let document: Value = serde_json::from_str(&text)?;
    assert_eq!(document["status"], "disabled");
    assert_eq!(document["username"], "name-1");
    assert_eq!(
        document["data"],
        json!({"status": "disabled", "roles": [], "big": 9_007_199_254_740_993_u64, "a": {"b": [1.5]}})
    );
    let ttl: i64 = redis::cmd("TTL")
        .arg("user:1")
        .query_async(&mut redis)
        .await?;
    assert!(ttl > 86_000, "{ttl}");
    assert_eq!(redis.get("user:2").await?, None);
    let remembered = redis.get("user: deleted:{user:2}:2").await?;
    assert_eq!(remembered, Some(bus.state(2).await?["version"].to_string()));

    bus.publish("user.created", user(1, json!({"status": "active"})))
        .await?;
    bus.until_settled("redis-cache").await?;
    let text = redis.get("user:1").await?.unwrap_or_default();
    assert_eq!(serde_json::from_str::<Value>(&text)?["status"], "active");
    assert_eq!(bus.count(USER_DEAD).await?, 0);
    Ok(())
}

#[tokio::test]
async fn one_bad_user_does_not_fail_its_batch() -> Result<()> {
    let gate = Gate::closed();
    let opened = gate.clone();
    let recorder = Recorder::start(move |call| {
        let gate = opened.clone();
        async move {
            gate.pass().await;
            let users = call.body.as_array().cloned().unwrap_or_default();
            let results: Vec<Value> = users
                .iter()
                .map(|user| match user["user_id"].as_u64() {
                    Some(7) => {
                        json!({"task_id": user["task_id"], "status": 422, "error": "no such plan"})
                    }
                    _ => json!({"task_id": user["task_id"], "status": 200}),
                })
                .collect();
            Json(results).into_response()
        }
    })
    .await?;
    let stack = only(recorder.target("audit", "batch = 50\nconcurrency = 1"))
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish_all((0..40).map(|id| ("user.created", user(id, json!({})))))
        .await?;
    bus.until_taken_in().await?;
    // The first call waits, the rest gathers behind it.
    eventually(SOON, async || {
        ensure!(recorder.arrived() > 0);
        Ok(())
    })
    .await?;
    gate.open();
    bus.until_settled("audit").await?;

    let calls = recorder.calls();
    assert!(calls.len() < 40, "{} calls", calls.len());
    let mut ids: Vec<u64> = Vec::new();
    for call in &calls {
        let users = call.body.as_array().expect("always an array");
        ids.extend(users.iter().filter_map(|user| user["user_id"].as_u64()));
        let id = call.header("idempotency-key");
        assert!(id.starts_with("batch-") && id.len() == 38, "{id}");
        assert_eq!(call.header("x-sync-task-id"), "");
        assert_eq!(call.header("x-sync-version"), "");
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..40).collect::<Vec<_>>(), "each user once");
    let letter = bus.dead_letter("audit", 7).await?.expect("a dead letter");
    assert_eq!(letter.header("Usersync-Status-Code"), "422");
    let reason = letter.header("Usersync-Reason");
    assert!(!reason.contains("plan"), "{reason}");
    assert_eq!(bus.count(USER_DEAD).await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_service_with_the_kit_takes_signed_batches() -> Result<()> {
    let rule = "[user-service]\nbatch = 20\nfilter = \"user.data.plan != 'none'\"\non_out_of_scope = \"disable\"\n";
    let stack = Stack::builder()
        .targets_toml(move |_| rule.to_owned())
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish_all((1..=100).map(|id| {
        (
            "user.created",
            user(id, json!({"plan": "pro", "status": "active"})),
        )
    }))
    .await?;
    bus.until_settled("user-service").await?;
    bus.publish_all((1..=100).step_by(10).map(|id| {
        (
            "user.updated",
            json!({"user_id": id, "data": {"plan": "none"}}),
        )
    }))
    .await?;
    bus.publish("user.created", user(101, json!({"plan": "none"})))
        .await?;
    bus.until_settled("user-service").await?;

    let service = stack.example("user-service").url();
    let show = async |id: u64| -> Result<(u16, Value)> {
        let url = format!("{service}/api/v1/users/{id}");
        let response = http::client().get(url).send().await?;
        Ok((response.status().as_u16(), response.json().await?))
    };
    for id in 1..=100 {
        let (_, shown) = show(id).await?;
        let (status, plan) = if id % 10 == 1 {
            ("disabled", "pro")
        } else {
            ("active", "pro")
        };
        assert_eq!(
            shown["data"],
            json!({"plan": plan, "status": status}),
            "{id}"
        );
        assert_eq!(shown["username"], format!("name-{id}"));
    }
    assert_eq!(show(101).await?.0, 404, "never there, so not there now");
    assert_eq!(bus.count(USER_DEAD).await?, 0);
    let metrics = stack.worker_metrics("user-service").await?;
    let calls = metrics.sum("usersync_deliveries_total", &[("outcome", "delivered")]);
    assert!(calls >= 111.0, "{calls}");
    Ok(())
}

#[tokio::test]
async fn what_is_not_there_when_read_back_is_delivered_again() -> Result<()> {
    // Says yes to the first call and forgets it.
    let written = Arc::new(Mutex::new(Vec::<Value>::new()));
    let store = Arc::clone(&written);
    let recorder = Recorder::start(move |call| {
        let store = Arc::clone(&store);
        async move {
            let mut written = store.lock().unwrap();
            if call.method.as_str() == "POST" {
                written.push(call.body);
                return answer(200);
            }
            match written.get(1) {
                Some(user) => Json(user.clone()).into_response(),
                None => answer(404),
            }
        }
    })
    .await?;
    let rule = format!(
        "verify = true\nread_url = \"{}/{{id}}\"\nretry = {{ base = \"50ms\", factor = 1.0, cap = \"50ms\" }}",
        recorder.url()
    );
    let stack = only(recorder.target("audit", &rule)).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", user(1, json!({"n": 1})))
        .await?;
    eventually(SOON, async || {
        ensure!(recorder.arrived() >= 4, "{} calls", recorder.arrived());
        Ok(())
    })
    .await?;
    bus.until_settled("audit").await?;
    let calls = recorder.calls();
    let made: Vec<_> = calls
        .iter()
        .map(|call| (call.method.as_str(), call.path.as_str()))
        .collect();
    let (told, read) = (("POST", "/users"), ("GET", "/users/1"));
    assert_eq!(made, [told, read, told, read]);
    assert_eq!(calls[0].body, calls[2].body);
    assert_eq!(bus.count(USER_DEAD).await?, 0);
    Ok(())
}
