//! The backstop: what ran out of deliveries becomes a dead letter although no worker could say so.

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::{AckKind, Message, consumer::PullConsumer};
use futures_util::StreamExt as _;
use serde_json::json;
use usersync_core::subjects::{BACKSTOP, USER_ADVISORY, USER_DEAD, USER_REPAIR, USER_STATE};
use usersync_stack::eventually;

use crate::support::{Api, Bus, Gate, LATER, Recorder, SOON, answer, only};

/// One attempt, so nine deliveries: eight are spare.
const ONE_ATTEMPT: &str = "retry = { max_deliver = 1, base = \"10ms\" }";

/// Takes the next delivery as a worker would.
async fn take(bus: &Bus, stream: &str) -> Result<Option<Message>> {
    let stream = bus.jetstream().get_stream(stream).await?;
    let consumer: PullConsumer = stream
        .get_consumer("audit")
        .await
        .map_err(anyhow::Error::from_boxed)?;
    let mut messages = consumer.fetch().max_messages(1).messages().await?;
    let message = messages.next().await.transpose();
    message.map_err(anyhow::Error::from_boxed)
}

/// Hands `count` deliveries back, as workers do that stop.
async fn burn(bus: &Bus, stream: &str, count: u32) -> Result<()> {
    for n in 0..count {
        let message = eventually(SOON, async || {
            take(bus, stream)
                .await?
                .with_context(|| format!("delivery {n} does not come"))
        })
        .await?;
        message
            .ack_with(AckKind::Nak(None))
            .await
            .map_err(anyhow::Error::from_boxed)?;
    }
    Ok(())
}

async fn until_dead(bus: &Bus) -> Result<()> {
    let letter = eventually(LATER, async || {
        let letter = bus.dead_letter("audit", 7).await?;
        letter.context("no dead letter")
    })
    .await?;
    assert_eq!(letter.header("Usersync-Class"), "transient");
    assert!(
        letter
            .header("Usersync-Reason")
            .starts_with("ran out of deliveries")
    );
    assert_eq!(letter.header("Usersync-Attempts"), "9");
    let state = bus.state(7).await?;
    assert_eq!(
        letter.header("Usersync-Version"),
        state["version"].to_string()
    );
    assert_eq!(letter.body["version"], state["version"]);
    Ok(())
}

#[tokio::test]
async fn only_targets_get_dead_letters() -> Result<()> {
    let stack = only("[audit]\nurl = \"http://127.0.0.1:1/x\"")
        .workers("audit", 0)
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", json!({"user_id": 7})).await?;
    bus.until_taken_in().await?;
    for consumer in ["somebody", "audit"] {
        let advisory =
            json!({"stream": USER_STATE, "consumer": consumer, "stream_seq": 1, "deliveries": 9});
        let subject = format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{USER_STATE}.{consumer}");
        let sent = bus
            .jetstream()
            .publish(subject, advisory.to_string().into())
            .await?;
        sent.await?;
    }
    until_dead(&bus).await?;
    assert_eq!(bus.count(USER_DEAD).await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_late_advisory_asks_for_a_delivery_instead_of_inventing_a_letter() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let mut stack = only(recorder.target("audit", "")).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", json!({"user_id": 7})).await?;
    bus.until_settled("audit").await?;
    stack.gateway().kill9().await;
    let advisory =
        json!({"stream": USER_STATE, "consumer": "audit", "stream_seq": 1, "deliveries": 9});
    let subject = format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{USER_STATE}.audit");
    let sent = bus
        .jetstream()
        .publish(subject, advisory.to_string().into());
    sent.await?.await?;
    // Somebody had it in hands before: whatever it tells of may be over.
    let advisories = bus.jetstream().get_stream(USER_ADVISORY).await?;
    let consumer: PullConsumer = advisories
        .get_consumer(BACKSTOP)
        .await
        .map_err(anyhow::Error::from_boxed)?;
    let message = eventually(LATER, async || {
        let mut messages = consumer.fetch().max_messages(1).messages().await?;
        let message = messages.next().await.context("no advisory")?;
        message.map_err(anyhow::Error::from_boxed)
    })
    .await?;
    message
        .ack_with(AckKind::Nak(None))
        .await
        .map_err(anyhow::Error::from_boxed)?;
    stack.gateways[0].restart().await?;
    eventually(SOON, async || {
        let info = advisories.consumer_info(BACKSTOP).await?;
        ensure!(info.ack_floor.stream_sequence >= 1, "{:?}", info.ack_floor);
        ensure!(recorder.answered() == 2, "{} calls", recorder.answered());
        Ok(())
    })
    .await?;
    assert_eq!(bus.count(USER_DEAD).await?, 0);
    Ok(())
}

/// Takes long: the server waits 30 s for the worker that is gone.
#[tokio::test]
async fn a_worker_that_dies_on_the_last_delivery_leaves_a_dead_letter() -> Result<()> {
    let gate = Gate::closed();
    let recorder = Recorder::start({
        let gate = gate.clone();
        move |_| {
            let gate = gate.clone();
            async move {
                gate.pass().await;
                answer(200)
            }
        }
    })
    .await?;
    let settings = format!("timeout = \"60s\"\n{ONE_ATTEMPT}");
    let mut stack = only(recorder.target("audit", &settings))
        .gateways(2)
        .workers("audit", 0)
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", json!({"user_id": 7})).await?;
    bus.until_taken_in().await?;
    burn(&bus, USER_STATE, 8).await?;
    stack.add_worker("audit").await?;
    eventually(SOON, async || {
        ensure!(recorder.arrived() == 1, "{} calls", recorder.arrived());
        Ok(())
    })
    .await?;
    stack.workers["audit"][0].kill9().await;
    // Its successor's first pull makes the server notice; it gets nothing.
    stack.add_worker("audit").await?;
    until_dead(&bus).await?;
    assert_eq!(recorder.arrived(), 1);
    assert_eq!(bus.count(USER_DEAD).await?, 1);
    gate.open();
    Ok(())
}

#[tokio::test]
async fn a_repair_that_ran_out_of_deliveries_leaves_a_dead_letter_and_the_queue() -> Result<()> {
    let stack = only(format!(
        "[audit]\nurl = \"http://127.0.0.1:1/x\"\n{ONE_ATTEMPT}"
    ))
    .workers("audit", 0)
    .start()
    .await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", json!({"user_id": 7})).await?;
    bus.until_taken_in().await?;
    bus.repair("audit", 7).await?;
    burn(&bus, USER_REPAIR, 9).await?;
    assert!(take(&bus, USER_REPAIR).await?.is_none());
    until_dead(&bus).await?;
    eventually(SOON, async || {
        let left = bus.count(USER_REPAIR).await?;
        ensure!(left == 0, "{left} repairs left");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_was_replaced_or_is_dead_already_gets_no_second_letter() -> Result<()> {
    let stack = only(format!(
        "[audit]\nurl = \"http://127.0.0.1:1/x\"\n{ONE_ATTEMPT}"
    ))
    .workers("audit", 0)
    .start()
    .await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    bus.publish("user.created", json!({"user_id": 7})).await?;
    bus.until_taken_in().await?;
    let version = bus.state(7).await?["version"].clone();
    let said = json!({
        "target": "audit", "user_id": 7, "version": version, "attempts": 1, "class": "permanent", "reason": "no",
    });
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Usersync-Class", "permanent");
    headers.insert("Usersync-Version", version.to_string());
    let subject = "user.dead.audit.7";
    let stored = bus
        .jetstream()
        .publish_with_headers(subject, headers, said.to_string().into());
    stored.await?.await?;
    burn(&bus, USER_STATE, 9).await?;
    assert!(take(&bus, USER_STATE).await?.is_none());
    // The advisory is dealt with when the gateways have acknowledged it.
    eventually(SOON, async || {
        let stream = bus.jetstream().get_stream("USER_ADVISORY").await?;
        let info = stream.consumer_info("gateway-backstop").await?;
        ensure!(info.ack_floor.stream_sequence >= 1, "{:?}", info.ack_floor);
        Ok(())
    })
    .await?;
    let letter = api.get("/v1/dead-letters/audit/7").await?;
    assert_eq!(letter["reason"], "no", "{letter}");
    Ok(())
}
