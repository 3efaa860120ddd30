//! A cluster of three NATS servers, of which one after the other dies under load: nothing is lost.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::{self, message::PublishMessage};
use redis::AsyncTypedCommands as _;
use serde_json::{Value, json};
use usersync_stack::{Routes, Stack, eventually};

use crate::support::LATER;

const USERS: u64 = 200;
/// Changes of every user.
const ROUNDS: u64 = 12;

#[tokio::test]
async fn nothing_is_lost_when_servers_of_a_cluster_die_one_after_the_other() -> Result<()> {
    let builder = Stack::builder()
        .nats_cluster(Routes::direct()?)
        .examples(false)
        .gateways(2);
    let mut stack = builder.start().await?;
    let client = usersync_stack::connect(&stack.nats.test_url()).await?;
    let jetstream = jetstream::new(client);
    for round in 0..ROUNDS {
        match round {
            2 => stack.nats.peers()[0].kill9().await,
            4 => stack.nats.peers()[0].restart().await?,
            6 => stack.nats.kill9().await,
            8 => stack.nats.restart().await?,
            10 => stack.nats.peers()[1].kill9().await,
            _ => {}
        }
        for user in 1..=USERS {
            publish(&jetstream, user, round).await?;
        }
    }
    let client = redis::Client::open(stack.redis.url())?;
    let redis = client.get_multiplexed_async_connection().await?;
    let keys: Vec<String> = (1..=USERS).map(|user| format!("user:{user}")).collect();
    eventually(LATER, async || {
        let documents = redis.clone().mget(&keys).await?;
        for (key, document) in keys.iter().zip(documents) {
            let document: Value = serde_json::from_str(&document.context("nothing there yet")?)?;
            ensure!(document["data"]["n"] == ROUNDS - 1, "{key}: {document}");
        }
        Ok(())
    })
    .await
}

/// Publishes until the cluster says that it is stored, as the publisher kit does.
async fn publish(jetstream: &jetstream::Context, user: u64, n: u64) -> Result<()> {
    let kind = if n == 0 {
        "user.created"
    } else {
        "user.updated"
    };
    let id = format!("{user}-{n}");
    let event =
        json!({"id": id, "user_id": user, "username": format!("u{user}"), "data": {"n": n}});
    eventually(LATER, async || {
        let message = PublishMessage::build()
            .payload(event.to_string().into())
            .message_id(&id);
        let sent = jetstream.send_publish(kind, message).await?;
        tokio::time::timeout(Duration::from_secs(2), sent).await??;
        Ok(())
    })
    .await
}
