//! Repairs: deliver what is there again, one by one and in bulk.

use std::time::Duration;

use anyhow::{Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use usersync_core::subjects::USER_REPAIR;
use usersync_stack::{Stack, eventually};

use crate::support::{Api, Bus, LATER, Recorder, SOON, answer, only};

const GRACE: Duration = Duration::from_secs(10);

/// A stack with `users` users and a target nobody serves.
async fn stack(users: u64) -> Result<(Stack, Api, Bus)> {
    let stack = only("[t]\nurl = \"http://127.0.0.1:1/x\"")
        .workers("t", 0)
        .start()
        .await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    let created = (0..users).map(|user| ("user.created", json!({"user_id": user})));
    bus.publish_all(created).await?;
    bus.until_taken_in().await?;
    Ok((stack, api, bus))
}

async fn until(api: &Api, id: &str, state: &str) -> Result<Value> {
    eventually(LATER, async || {
        let job = api.get(&format!("/v1/repairs/{id}")).await?;
        ensure!(job["state"] == state, "{job}");
        Ok(job)
    })
    .await
}

fn id(asked: &Value) -> String {
    asked["job"]["id"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn one_user_some_users_and_all_are_delivered_again() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let stack = only(recorder.target("t", "")).start().await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    let created = (1..=50).map(|user| ("user.created", json!({"user_id": user})));
    bus.publish_all(created).await?;
    bus.until_settled("t").await?;
    let mut calls = 50;
    for (repair, users) in [
        (json!({"target": "t", "user_id": 7}), 1),
        (json!({"target": "t", "user_ids": [1, 2, "2", 3]}), 3),
        (json!({"target": "t", "all": true}), 50),
    ] {
        let mut dry = repair.clone();
        dry["dry_run"] = json!(true);
        let counted = api.post("/v1/repairs", dry).await?;
        assert_eq!(
            (&counted["matched"], &counted["published"]),
            (&json!(users), &json!(0))
        );
        let asked = api.post("/v1/repairs", repair).await?;
        assert_eq!(
            (&asked["matched"], &asked["published"]),
            (&json!(users), &json!(users))
        );
        calls += users;
        eventually(SOON, async || {
            ensure!(
                recorder.answered() == calls,
                "{} calls",
                recorder.answered()
            );
            Ok(())
        })
        .await?;
        bus.until_settled("t").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_repair_in_bulk_is_rate_limited_and_shows_its_progress() -> Result<()> {
    let (_stack, api, bus) = stack(3_000).await?;
    let started = std::time::Instant::now();
    let asked = api
        .post(
            "/v1/repairs",
            json!({"target": "t", "all": true, "per_second": 1_000}),
        )
        .await?;
    assert_eq!(asked["matched"], 3_000);
    assert_eq!(asked["job"]["state"], "running", "{asked}");
    let id = id(&asked);
    let half = eventually(SOON, async || {
        let job = api
            .request("usersync.repair.status", json!({"id": id}))
            .await;
        let job = job.map_err(|(_, told)| anyhow::anyhow!(told))?;
        let done = job["done"].as_u64().unwrap_or_default();
        ensure!(done > 1_000 && done < 2_900, "{job}");
        Ok(job)
    })
    .await?;
    assert_eq!(half["state"], "running", "{half}");
    let done = until(&api, &id, "done").await?;
    assert_eq!(
        (&done["done"], &done["total"]),
        (&json!(3_000), &json!(3_000))
    );
    let took = started.elapsed();
    assert!(took > Duration::from_millis(2_500), "{took:?}");
    assert_eq!(bus.count(USER_REPAIR).await?, 3_000);
    let target = api.target("t").await?;
    assert_eq!(target["repairs"]["pending"], 3_000);
    let list = api.get("/v1/repairs").await?;
    assert_eq!(list["jobs"][0]["id"], json!(id));
    Ok(())
}

#[tokio::test]
async fn a_repair_in_bulk_takes_those_too_who_changed_while_it_ran() -> Result<()> {
    let (_stack, api, bus) = stack(1_500).await?;
    let asked = api
        .post(
            "/v1/repairs",
            json!({"target": "t", "all": true, "per_second": 500}),
        )
        .await?;
    // Beyond the page it is at: the new state comes after the last one it will look at first.
    let change = json!({"user_id": 1_400, "data": {"n": 1}});
    bus.publish("user.updated", change).await?;
    let done = until(&api, &id(&asked), "done").await?;
    assert_eq!(
        (&done["done"], &done["total"]),
        (&json!(1_500), &json!(1_500))
    );
    assert_eq!(bus.count(USER_REPAIR).await?, 1_500);
    Ok(())
}

#[tokio::test]
async fn a_repair_in_bulk_can_be_stopped() -> Result<()> {
    let (_stack, api, bus) = stack(500).await?;
    let slow = json!({"target": "t", "all": true, "per_second": 50});
    let id = id(&api.post("/v1/repairs", slow).await?);
    api.post(&format!("/v1/repairs/{id}/cancel"), json!({}))
        .await?;
    let job = until(&api, &id, "cancelled").await?;
    let done = job["done"].as_u64().unwrap_or_default();
    assert!((1..500).contains(&done), "{job}");
    assert_eq!(bus.count(USER_REPAIR).await?, done);
    Ok(())
}

#[tokio::test]
async fn of_equal_jobs_one_runs_whichever_gateway_is_asked() -> Result<()> {
    let (mut stack, api, bus) = stack(500).await?;
    stack.add_gateway().await?;
    let other = Api::at(&stack, &stack.gateways[1]).await?;
    let slow = json!({"target": "t", "all": true, "per_second": 50});
    let asks = (0..10).map(|n| {
        let api = if n % 2 == 0 { &api } else { &other };
        api.call(Method::POST, "/v1/repairs", &[], Some(slow.clone()))
    });
    let answers = futures_util::future::try_join_all(asks).await?;
    let (started, refused): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer.status == 200);
    let [started] = started.as_slice() else {
        anyhow::bail!("{} jobs were started: {answers:?}", started.len());
    };
    let id = id(&started.body);
    for refused in refused {
        assert_eq!(refused.status, 409, "{refused:?}");
        assert!(refused.detail().contains(&id), "{refused:?}");
    }
    let faster = json!({"target": "t", "all": true, "per_second": 5_000});
    let by_nats = api.request("usersync.repair.start", faster.clone()).await;
    assert!(
        by_nats
            .as_ref()
            .is_err_and(|(code, told)| *code == 409 && told.contains(&id)),
        "{by_nats:?}"
    );
    let jobs = api.get("/v1/repairs").await?;
    assert_eq!(jobs["jobs"].as_array().map(Vec::len), Some(1), "{jobs}");

    api.post(&format!("/v1/repairs/{id}/cancel"), json!({}))
        .await?;
    until(&api, &id, "cancelled").await?;
    let asked = other.post("/v1/repairs", faster).await?;
    assert_eq!(asked["published"], 500, "{asked}");
    assert_eq!(bus.count(USER_REPAIR).await?, 500);
    Ok(())
}

#[tokio::test]
async fn a_gateway_that_stops_says_where_its_repair_has_stopped() -> Result<()> {
    let (mut stack, api, bus) = stack(500).await?;
    stack.add_gateway().await?;
    let slow = json!({"target": "t", "all": true, "per_second": 50});
    let id = id(&api.post("/v1/repairs", slow).await?);
    stack.gateways[0].stop(GRACE).await?;
    let other = Api::at(&stack, &stack.gateways[1]).await?;
    let job = until(&other, &id, "stopped").await?;
    assert_eq!(job["done"], bus.count(USER_REPAIR).await?);
    Ok(())
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_a_reason() -> Result<()> {
    let (_stack, api, _bus) = stack(0).await?;
    for (body, status, told) in [
        (json!({"target": "t"}), 422, "expected one of"),
        (
            json!({"target": "t", "all": true, "user_id": 1}),
            422,
            "expected one of",
        ),
        (
            json!({"target": "nobody", "all": true}),
            404,
            "no target nobody",
        ),
        (
            json!({"target": "t", "all": true, "per_second": 0}),
            422,
            "per_second",
        ),
        (json!({"target": "t", "user_id": "a b"}), 422, "user_id"),
        (json!({"target": "t", "everybody": true}), 422, "everybody"),
    ] {
        let refused = api
            .call(Method::POST, "/v1/repairs", &[], Some(body.clone()))
            .await?;
        assert_eq!(refused.status, status, "{body}: {refused:?}");
        let detail = refused.detail();
        assert!(
            detail.contains(told) || told == "user_id",
            "{body}: {detail}"
        );
        let by_nats = api.request("usersync.repair.start", body.clone()).await;
        assert_eq!(by_nats.map_err(|(code, _)| code), Err(status), "{body}");
    }
    let nothing = api.call(Method::GET, "/v1/repairs/none", &[], None).await?;
    assert_eq!(nothing.status, 404);
    Ok(())
}
