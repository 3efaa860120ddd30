//! How a target stands with a user, derived from what is there anyway.

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use reqwest::Method;
use serde_json::json;
use usersync_core::subjects;
use usersync_stack::eventually;

use crate::support::{Api, Bus, Call, LATER, Recorder, SOON, answer, only};

#[tokio::test]
async fn tasks_are_pending_until_delivered_and_then_synced() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let mut stack = only(recorder.target("t", ""))
        .workers("t", 0)
        .start()
        .await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    bus.publish("user.created", json!({"user_id": 7})).await?;
    bus.until_taken_in().await?;
    let version = api.get("/v1/users/7").await?["version"].clone();
    let task = api.task(7, "t").await?;
    assert_eq!(
        (&task["status"], &task["priority"]),
        (&json!("pending"), &json!("live")),
        "{task}"
    );
    assert_eq!(task["id"], format!("t:7:{version}"));
    assert_eq!(task["version"], version);
    api.post("/v1/repairs", json!({"target": "t", "user_id": 7}))
        .await?;
    let task = api.task(7, "t").await?;
    assert_eq!(
        (&task["status"], &task["priority"]),
        (&json!("pending"), &json!("repair")),
        "{task}"
    );

    stack.add_worker("t").await?;
    bus.until_settled("t").await?;
    eventually(SOON, async || {
        let task = api.task(7, "t").await?;
        ensure!(
            task["status"] == "synced" && task["priority"] == "live",
            "{task}"
        );
        Ok(())
    })
    .await?;
    let nobody = api
        .call(Method::GET, "/v1/users/8/targets", &[], None)
        .await?;
    assert_eq!(nobody.status, 404);
    let by_nats = api
        .request("usersync.users.targets", json!({"user_id": "7"}))
        .await;
    assert_eq!(by_nats.map(|tasks| tasks["version"].clone()), Ok(version));
    Ok(())
}

#[tokio::test]
async fn a_failing_delivery_is_retrying_and_others_are_synced() -> Result<()> {
    let recorder = Recorder::start(async |call: Call| match call.user().as_str() {
        "7" => answer(503),
        _ => answer(200),
    })
    .await?;
    let patient = "retry = { base = \"10m\", cap = \"10m\" }";
    let stack = only(recorder.target("t", patient)).start().await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    bus.publish("user.created", json!({"user_id": 6})).await?;
    bus.publish("user.created", json!({"user_id": 7})).await?;
    let task = eventually(SOON, async || {
        let task = api.task(7, "t").await?;
        ensure!(task["status"] == "retrying", "{task}");
        Ok(task)
    })
    .await?;
    assert_eq!(task["attempts"], 1, "{task}");
    assert!(
        task["error"]
            .as_str()
            .is_some_and(|error| error.contains("503")),
        "{task}"
    );
    assert!(task["next_attempt"].is_string(), "{task}");
    assert_eq!(api.task(6, "t").await?["status"], "synced");
    Ok(())
}

/// Takes long: what was handed out counts as done after 30 s, when no dead worker can have it in hands.
#[tokio::test]
async fn who_waits_for_a_retry_is_not_synced_because_its_worker_is_gone() -> Result<()> {
    let recorder = Recorder::start(async |call: Call| match call.user().as_str() {
        "6" => answer(503),
        _ => answer(200),
    })
    .await?;
    let patient = "timeout = \"1s\"\nretry = { base = \"10m\", cap = \"10m\" }";
    let mut stack = only(recorder.target("t", patient)).start().await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    bus.publish("user.created", json!({"user_id": 6})).await?;
    bus.publish("user.created", json!({"user_id": 7})).await?;
    // User 6 keeps the ack floor below 7; the worker knows that it is the only one that fails.
    eventually(LATER, async || {
        let task = api.task(7, "t").await?;
        ensure!(task["status"] == "synced", "{task}");
        Ok(())
    })
    .await?;
    assert_eq!(api.task(6, "t").await?["status"], "retrying");
    stack.workers["t"][0].kill9().await;
    stack.add_worker("t").await?;
    // The new one remembers no failure, and nobody can tell any more which of the two it was.
    for user in [6, 7] {
        let task = api.task(user, "t").await?;
        assert_eq!(task["status"], "pending", "{task}");
    }
    Ok(())
}

/// What workers answer is the contract of `usersync.worker.task.<target>`.
#[tokio::test]
async fn what_workers_remember_of_failures_is_shown() -> Result<()> {
    let stack = only("[t]\nurl = \"http://127.0.0.1:1/x\"")
        .workers("t", 0)
        .start()
        .await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    bus.publish("user.created", json!({"user_id": 7})).await?;
    bus.until_taken_in().await?;
    let target = "t".parse()?;
    let client = api.nats().clone();
    let mut asked = usersync_stack::subscribe(&client, subjects::worker_task(&target)).await?;
    let worker = tokio::spawn(async move {
        let request = asked.next().await.context("nobody asks")?;
        ensure!(
            &request.payload[..] == b"\"7\"",
            "asked for {:?}",
            request.payload
        );
        let reply = request.reply.context("nobody waits")?;
        let others = json!({"worker": "w2", "held": false});
        client
            .publish(reply.clone(), others.to_string().into())
            .await?;
        let memory = json!({
            "worker": "w1", "held": true, "attempts": 3, "error": "the target answered 503",
            "first_failure": "2026-01-01T00:00:00Z", "next_attempt": "2026-01-01T00:01:00Z",
        });
        client.publish(reply, memory.to_string().into()).await?;
        Ok(())
    });
    let task = api.task(7, "t").await?;
    worker.await??;
    assert_eq!(
        (&task["status"], &task["attempts"]),
        (&json!("retrying"), &json!(3)),
        "{task}"
    );
    assert_eq!(task["error"], "the target answered 503");
    assert_eq!(task["next_attempt"], "2026-01-01T00:01:00Z");
    Ok(())
}
