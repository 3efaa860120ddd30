//! What people see of deliveries, and do to them, with nothing but NATS.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use usersync_stack::eventually;

use crate::support::{Bus, Recorder, SOON, answer, only};

fn user(id: u64) -> Value {
    json!({"user_id": id, "username": format!("name-{id}"), "email": "ann@example.com", "data": {"n": 1}})
}

#[tokio::test]
async fn a_paused_consumer_delivers_within_a_second_of_being_resumed() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let stack = only(recorder.target("audit", "")).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", user(1)).await?;
    bus.until_settled("audit").await?;
    let client = bus.jetstream.client();
    let pause = async |until: Option<jiff::Timestamp>| {
        let body = match until {
            Some(until) => json!({ "pause_until": until }),
            None => json!({}),
        };
        let subject = "$JS.API.CONSUMER.PAUSE.USER_STATE.audit";
        let answer = client.request(subject, body.to_string().into()).await?;
        let answer: Value = serde_json::from_slice(&answer.payload)?;
        ensure!(answer["error"].is_null(), "{answer}");
        Ok(answer["paused"].as_bool())
    };
    let mut slowest = Duration::ZERO;
    for round in 2..=4 {
        let until = jiff::Timestamp::now().checked_add(jiff::Span::new().hours(1))?;
        assert_eq!(pause(Some(until)).await?, Some(true));
        bus.publish("user.created", user(round)).await?;
        bus.until_taken_in().await?;
        // Longer than requests live without a sign of life, so that all of them have been renewed.
        let quiet = Instant::now();
        eventually(SOON, async || {
            ensure!(quiet.elapsed() > Duration::from_secs(3), "still waiting");
            Ok(())
        })
        .await?;
        assert!(
            recorder.calls_for(round).is_empty(),
            "delivered while paused"
        );
        pause(None).await?;
        let resumed = Instant::now();
        eventually(SOON, async || {
            ensure!(!recorder.calls_for(round).is_empty(), "not delivered yet");
            Ok(())
        })
        .await?;
        slowest = slowest.max(resumed.elapsed());
    }
    assert!(slowest < Duration::from_secs(1), "it took {slowest:?}");
    Ok(())
}

#[tokio::test]
async fn the_delivery_log_tells_every_outcome_and_nothing_personal() -> Result<()> {
    let recorder = Recorder::start(async |call: crate::support::Call| {
        answer(if call.user() == "2" { 422 } else { 200 })
    });
    let recorder = recorder.await?;
    let stack = only(recorder.target("audit", "")).start().await?;
    let bus = Bus::connect(&stack).await?;
    let mut tail = bus.jetstream.client().subscribe("user.result.>").await?;
    bus.publish("user.created", user(1)).await?;
    bus.publish("user.created", user(2)).await?;
    bus.until_settled("audit").await?;
    let mut lines = Vec::new();
    while lines.len() < 2 {
        let message = tokio::time::timeout(SOON, tail.next()).await?;
        let message = message.context("the subscription ended")?;
        assert_eq!(message.subject.as_str(), "user.result.audit");
        let text = String::from_utf8(message.payload.to_vec())?;
        assert!(!text.contains("ann@") && !text.contains("name-"), "{text}");
        for line in text.lines() {
            lines.push(serde_json::from_str::<Value>(line)?);
        }
    }
    lines.sort_by_key(|line| line["user_id"].as_u64());
    let told = |line: &Value| {
        (
            line["outcome"].clone(),
            line["attempts"].clone(),
            line["code"].clone(),
        )
    };
    assert_eq!(told(&lines[0]), (json!("delivered"), json!(1), json!(null)));
    assert_eq!(told(&lines[1]), (json!("dead"), json!(1), json!("422")));
    assert!(
        lines
            .iter()
            .all(|line| line["ms"].is_f64() && line["version"].is_u64())
    );
    Ok(())
}

#[tokio::test]
async fn a_worker_tells_what_it_knows_of_a_target_and_of_a_user() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(503)).await?;
    let retry = "retry = { base = \"10m\", cap = \"20m\" }";
    let stack = only(recorder.target("audit", retry)).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", user(7)).await?;
    let client = bus.jetstream.client();
    let ask = async |question: &str, body: &str| {
        let subject = format!("usersync.worker.{question}.audit");
        let answer = client.request(subject, body.to_owned().into()).await?;
        anyhow::Ok(serde_json::from_slice::<Value>(&answer.payload)?)
    };
    let failing = eventually(SOON, async || {
        let task = ask("task", "7").await?;
        ensure!(task["held"] == true, "{task}");
        Ok(task)
    })
    .await?;
    assert_eq!(failing["attempts"], 1);
    assert!(
        failing["error"]
            .as_str()
            .is_some_and(|error| error.contains("503"))
    );
    assert!(failing["next_attempt"].as_str() > failing["first_failure"].as_str());
    assert_eq!(ask("task", "\"8\"").await?["held"], false);
    let status = ask("status", "").await?;
    assert_eq!(status["breaker"]["state"], "closed");
    assert_eq!(status["failing"], 1);
    Ok(())
}
