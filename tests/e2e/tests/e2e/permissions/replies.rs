//! Where answers go: to inboxes, whoever asks and whatever reply they name.

use anyhow::{Result, ensure};
use async_nats::Client;
use serde_json::json;
use usersync_stack::{Stack, eventually};

use super::shape;
use crate::support::{Bus, SOON, only};

/// What would change something if an answer went there.
const HOSTILE: &[&str] = &[
    "user.state.42",
    "user.created",
    "user.repair.audit.42",
    "$JS.API.STREAM.PURGE.USER_DEAD",
    "$JS.API.CONSUMER.DELETE.USER_STATE.audit",
    "$KV.user_targets.audit",
    "usersync.targets.pause",
];

/// What our services are asked.
const QUESTIONS: &[(&str, &str)] = &[
    ("usersync.status", "{}"),
    ("usersync.targets.list", "{}"),
    // The answer is an error, which has no body.
    ("usersync.targets.show", r#"{"name":"none"}"#),
    ("usersync.users.show", r#"{"user_id":1}"#),
    ("usersync.worker.status.audit", ""),
    ("usersync.worker.task.audit", "1"),
    ("$SRV.PING", ""),
    ("$SRV.INFO", ""),
    ("$SRV.STATS", ""),
    ("$SRV.PING.usersync", ""),
    ("$SRV.INFO.usersync", ""),
    ("$SRV.STATS.usersync", ""),
    ("$SRV.PING.usersync-worker", ""),
    ("$SRV.INFO.usersync-worker", ""),
    ("$SRV.STATS.usersync-worker", ""),
];

async fn stack() -> Result<Stack> {
    only("[audit]\nurl = \"http://127.0.0.1:9/\"\n")
        .start()
        .await
}

/// Waits for an answer to an ordinary request: the service is there.
async fn answered(client: &Client, subject: &str, body: &'static str) -> Result<()> {
    eventually(SOON, async || {
        client.request(subject.to_owned(), body.into()).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn our_services_answer_to_inboxes_only() -> Result<()> {
    let stack = stack().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", json!({"user_id": 1, "username": "ann"}))
        .await?;
    bus.until_taken_in().await?;
    // Who may do everything, and could answer anywhere itself.
    let client = bus.jetstream().client();
    for (subject, body) in QUESTIONS {
        answered(&client, subject, body).await?;
    }
    let before = shape(bus.jetstream()).await?;
    let (states, events) = (
        bus.count("USER_STATE").await?,
        bus.count("USER_EVENTS").await?,
    );
    let targets = bus.kv_get("user_targets", "audit").await?;
    for (subject, body) in QUESTIONS {
        for reply in HOSTILE {
            let asked = client.publish_with_reply(*subject, *reply, (*body).into());
            asked.await?;
        }
    }
    // Each has read what came before.
    for (subject, body) in QUESTIONS {
        answered(&client, subject, body).await?;
    }
    assert_eq!(shape(bus.jetstream()).await?, before);
    assert_eq!(bus.count("USER_STATE").await?, states);
    assert_eq!(bus.count("USER_EVENTS").await?, events);
    assert_eq!(bus.kv_get("user_targets", "audit").await?, targets);
    Ok(())
}

/// The server's own form of a reply, which our services take for an inbox, is the server's alone.
#[tokio::test]
async fn no_client_can_name_the_servers_own_replies() -> Result<()> {
    let stack = stack().await?;
    let client = stack.nats.connect().await?;
    for reply in ["_R_.a.b", "_GR_.abcdef.abcdefgh._INBOX.a"] {
        let mut seen = usersync_stack::subscribe(&client, reply).await?;
        client
            .publish_with_reply("$SRV.PING", reply, "".into())
            .await?;
        answered(&client, "$SRV.PING", "").await?;
        let seen = futures_util::FutureExt::now_or_never(futures_util::StreamExt::next(&mut seen));
        ensure!(seen.is_none(), "{reply} was answered: {seen:?}");
    }
    Ok(())
}
