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

/// What `usersync.users.why` says of a user at a target.
async fn why(api: &Api, user: u64, target: &str) -> Result<serde_json::Value> {
    let by_nats = api
        .request(
            "usersync.users.why",
            json!({"user_id": user, "target": target}),
        )
        .await
        .map_err(|problem| anyhow::anyhow!("{problem:?}"))?;
    let by_http = api
        .get(&format!("/v1/users/{user}/targets/{target}"))
        .await?;
    let (status, waiting) = (&by_http["task"]["status"], &by_http["task"]["waiting"]);
    let same = *status == by_nats["task"]["status"] && *waiting == by_nats["task"]["waiting"];
    ensure!(same, "{by_http} {by_nats}");
    Ok(by_nats)
}

#[tokio::test]
async fn why_a_user_is_not_at_a_target_has_one_answer() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let url = recorder.url();
    let gold = "filter = \"user.data.plan == 'gold'\"";
    let stack = only(format!(
        "[gold]\nurl = \"{url}/gold\"\n{gold}\n\
         [golden]\nurl = \"{url}/golden\"\n{gold}\non_out_of_scope = \"ignore\"\non_delete = \"ignore\"\n\
         [paused]\nurl = \"{url}/paused\"\nenabled = false\n\
         [lonely]\nurl = \"{url}/lonely\"\n\
         [broken]\nurl = \"http://127.0.0.1:9/broken\"\nbreaker = {{ faults = 1 }}\n"
    ));
    let stack = stack.workers("lonely", 0).start().await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    for (user, plan) in [(1, "gold"), (2, "free")] {
        let event = json!({"user_id": user, "id": format!("e-{user}"), "data": {"plan": plan}});
        bus.publish("user.created", event).await?;
    }
    for target in ["gold", "golden"] {
        bus.until_settled(target).await?;
    }
    let expected = [
        (
            1,
            "gold",
            "synced",
            json!(null),
            "has taken the newest state",
        ),
        (
            2,
            "gold",
            "out_of_scope",
            json!(null),
            "user.data.plan == 'gold'` isn't true",
        ),
        (
            2,
            "golden",
            "out_of_scope",
            json!(null),
            "on_out_of_scope is `ignore`",
        ),
        (
            1,
            "paused",
            "pending",
            json!("paused"),
            "the target is paused",
        ),
        (
            1,
            "lonely",
            "pending",
            json!("no-worker"),
            "no worker of the target answers",
        ),
    ];
    for (user, target, status, waiting, answer) in &expected {
        let why = why(&api, *user, target).await?;
        let task = &why["task"];
        ensure!(
            task["status"] == *status && task["waiting"] == *waiting,
            "{why}"
        );
        let said = why["answer"].as_str().unwrap_or_default();
        ensure!(said.contains(answer), "{said}");
        ensure!(why["event"]["id"] == format!("e-{user}"), "{why}");
    }
    eventually(SOON, async || {
        let why = why(&api, 1, "broken").await?;
        let said = why["answer"].as_str().unwrap_or_default();
        ensure!(why["task"]["waiting"] == "breaker-open", "{why}");
        ensure!(
            said.contains("the breaker of the target is open: "),
            "{said}"
        );
        Ok(())
    })
    .await?;
    bus.publish("user.deleted", json!({"user_id": 1})).await?;
    bus.until_settled("golden").await?;
    let gone = why(&api, 1, "golden").await?;
    ensure!(
        gone["task"]["status"] == "ignored" && gone["deleted"] == true,
        "{gone}"
    );
    let nowhere = api
        .call(Method::GET, "/v1/users/1/targets/none", &[], None)
        .await?;
    ensure!(nowhere.status == 404, "{}", nowhere.status);
    Ok(())
}
