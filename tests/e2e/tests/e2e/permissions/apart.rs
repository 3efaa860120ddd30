//! Publishers and viewers have accounts of their own: they get their answers, and change nothing by naming a reply.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::{
    HeaderMap,
    jetstream::{self, ErrorCode},
};
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use usersync_core::subjects;
use usersync_stack::{NatsServer, Stack, eventually};

use super::{connect, edit, peer::Peer, stack};
use crate::support::{Bus, SOON};

/// What would change something if an answer went there.
pub(super) const HOSTILE: &[&str] = &[
    "user.state.42",
    "user.created",
    "user.bogus",
    "user.repair.audit.42",
    "user.dead.audit.42",
    "user.refused.42",
    "user.check.audit",
    "$KV.user_targets.audit",
    "$KV.user_breakers.audit",
    "$JS.API.STREAM.PURGE.USER_DEAD",
    "$JS.API.STREAM.DELETE.USER_DEAD",
    "$JS.API.CONSUMER.DELETE.USER_STATE.audit",
    "$JS.API.CONSUMER.PAUSE.USER_STATE.audit",
    "$JS.ACK.USER_STATE.audit.1.1.1.1.0",
    "usersync.users.erase",
    "usersync.targets.pause",
    "_R_.a.b",
    "x.1.2.$FI",
];

/// What a viewer may ask for.
pub(super) const QUESTIONS: &[(&str, &str)] = &[
    ("usersync.status", "{}"),
    ("usersync.targets.list", "{}"),
    ("usersync.targets.show", r#"{"name":"none"}"#),
    ("usersync.worker.status.audit", ""),
    ("$SRV.PING", ""),
    ("$SRV.INFO.usersync", ""),
    ("$JS.API.INFO", ""),
    ("$JS.API.STREAM.NAMES", ""),
    ("$JS.API.STREAM.LIST", ""),
    ("$JS.API.STREAM.INFO.USER_STATE", ""),
    ("$JS.API.STREAM.INFO.none", ""),
    ("$JS.API.STREAM.MSG.GET.USER_EVENTS", r#"{"seq":1}"#),
    ("$JS.API.DIRECT.GET.USER_STATE.user.state.1", ""),
    ("$JS.API.DIRECT.GET.USER_EVENTS", r#"{"seq":1}"#),
    ("$JS.API.DIRECT.GET.USER_EVENTS", r#"{"batch":9,"seq":1}"#),
    ("$JS.API.CONSUMER.LIST.USER_STATE", ""),
    ("$JS.API.CONSUMER.INFO.USER_STATE.audit", ""),
];

/// What stands in a server, and what no role but the gateway may change: each stream's configuration, how far it is, and
/// its durable consumers.
pub(super) async fn standing(
    jetstream: &jetstream::Context,
) -> Result<BTreeMap<String, (Value, u64, u64, Vec<Value>)>> {
    let mut standing = BTreeMap::new();
    let mut names = jetstream.stream_names();
    while let Some(name) = names.try_next().await? {
        let stream = jetstream.get_stream(&name).await?;
        let info = stream.cached_info();
        let mut durable = Vec::new();
        let mut consumers = stream.consumers();
        while let Some(consumer) = consumers.try_next().await? {
            if consumer.config.durable_name.is_some() {
                durable.push(serde_json::to_value(&consumer.config)?);
            }
        }
        durable.sort_by_key(Value::to_string);
        let config = serde_json::to_value(&info.config)?;
        let (last, messages) = (info.state.last_sequence, info.state.messages);
        standing.insert(name, (config, last, messages, durable));
    }
    Ok(standing)
}

/// A stack with something in every stream, and without a gateway: whatever changes was changed by a client.
pub(super) async fn still() -> Result<(Stack, Bus)> {
    let stack = stack().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", json!({"user_id": 1, "username": "ann"}))
        .await?;
    bus.publish("user.created", json!({"user_id": "not one"}))
        .await?;
    bus.until_taken_in().await?;
    bus.put_letter().await?;
    for gateway in &stack.gateways {
        gateway.stop(Duration::from_secs(15)).await?;
    }
    Ok((stack, bus))
}

impl Bus {
    /// A dead letter that somebody might purge.
    async fn put_letter(&self) -> Result<()> {
        let letter = self.jetstream().publish("user.dead.audit.1", "{}".into());
        letter.await?.await?;
        Ok(())
    }
}

/// Waits until the server has read everything this client has said.
async fn heard(peer: &Peer, subject: &str, body: &'static str) -> Result<()> {
    let asked = peer.client.request(subject.to_owned(), body.into()).await;
    asked.with_context(|| format!("{subject} isn't answered"))?;
    Ok(())
}

#[tokio::test]
async fn a_publisher_changes_nothing_by_naming_a_reply() -> Result<()> {
    let (stack, bus) = still().await?;
    let publisher = connect(&stack.nats, "publisher").await?;
    let before = standing(bus.jetstream()).await?;
    for reply in HOSTILE {
        for subject in [
            "user.created",
            "user.updated",
            "user.deleted",
            "user.status_changed",
            "user.bogus",
        ] {
            let event = json!({"user_id": 1}).to_string();
            let sent = publisher
                .client
                .publish_with_reply(subject, *reply, event.into());
            sent.await?;
        }
    }
    heard(&publisher, "user.created", r#"{"user_id":1}"#).await?;
    let mut after = standing(bus.jetstream()).await?;
    let events = after.get_mut("USER_EVENTS").context("no events")?;
    let were = &before["USER_EVENTS"];
    ensure!(events.1 > were.1, "nothing was published at all");
    (events.1, events.2) = (were.1, were.2);
    assert_eq!(after, before);
    Ok(())
}

#[tokio::test]
async fn a_viewer_changes_nothing_by_naming_a_reply() -> Result<()> {
    let (stack, bus) = still().await?;
    let viewer = connect(&stack.nats, "viewer").await?;
    let before = standing(bus.jetstream()).await?;
    for (subject, body) in QUESTIONS {
        for reply in HOSTILE {
            let asked = viewer
                .client
                .publish_with_reply(*subject, *reply, (*body).into());
            asked.await?;
        }
    }
    heard(&viewer, "$JS.API.INFO", "").await?;
    assert_eq!(standing(bus.jetstream()).await?, before);
    Ok(())
}

#[tokio::test]
async fn a_publisher_has_its_pubacks_and_an_id_counts_once() -> Result<()> {
    let stack = stack().await?;
    let password = std::fs::read_to_string(stack.nats.password_file("publisher"))?;
    // The role's own inbox as before, and that of a client that was told of none.
    for inbox in ["_INBOX_publisher", "_INBOX"] {
        let publisher = Peer::connect(&stack.nats, "publisher", password.trim(), inbox).await?;
        let jetstream = jetstream::new(publisher.client.clone());
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", inbox);
        for again in [false, true] {
            let event = json!({"user_id": 1, "username": "ann"}).to_string();
            let sent =
                jetstream.publish_with_headers("user.created", headers.clone(), event.into());
            assert_eq!(sent.await?.await?.duplicate, again, "{inbox}");
        }
    }
    let bus = Bus::connect(&stack).await?;
    assert_eq!(bus.count("USER_EVENTS").await?, 2);
    Ok(())
}

#[tokio::test]
async fn a_viewer_watches_and_has_every_answer_of_a_batch() -> Result<()> {
    let stack = stack().await?;
    let bus = Bus::connect(&stack).await?;
    let viewer = connect(&stack.nats, "viewer").await?;
    let mut states = viewer.client.subscribe("user.state.*").await?;
    let mut targets = viewer.client.subscribe("$KV.user_targets.*").await?;
    heard(&viewer, "$JS.API.INFO", "").await?;
    for user in 1..=3 {
        bus.publish("user.created", json!({"user_id": user}))
            .await?;
    }
    bus.until_taken_in().await?;
    for _ in 1..=3 {
        let state = tokio::time::timeout(SOON, states.next()).await?;
        state.context("the watch ended")?;
    }
    bus.kv_put("user_targets", "new", r#"{"url":"http://127.0.0.1:9/"}"#)
        .await?;
    let change = tokio::time::timeout(SOON, targets.next()).await?;
    ensure!(change.context("the watch ended")?.subject.as_str() == "$KV.user_targets.new");

    let inbox = viewer.client.new_inbox();
    let mut answers = viewer.client.subscribe(inbox.clone()).await?;
    let all = r#"{"multi_last":["user.state.*"]}"#;
    viewer
        .client
        .publish_with_reply("$JS.API.DIRECT.GET.USER_STATE", inbox, all.into())
        .await?;
    for expected in [false, false, false, true] {
        let answer = tokio::time::timeout(SOON, answers.next()).await?;
        let answer = answer.context("the answers ended")?;
        assert_eq!(answer.payload.is_empty(), expected, "{answer:?}");
    }
    Ok(())
}

/// Inboxes of one account aren't those of another, whatever their names.
#[tokio::test]
async fn those_apart_see_no_answers_of_others() -> Result<()> {
    let stack = stack().await?;
    let client = stack.nats.connect().await?;
    for role in ["publisher", "viewer"] {
        let peer = connect(&stack.nats, role).await?;
        let mut seen = peer.client.subscribe("_INBOX.>").await?;
        match role {
            "viewer" => heard(&peer, "$JS.API.INFO", "").await?,
            _ => heard(&peer, "user.created", r#"{"user_id":1}"#).await?,
        }
        for _ in 0..20 {
            client.request("$JS.API.INFO", "".into()).await?;
        }
        let seen = futures_util::FutureExt::now_or_never(seen.next());
        ensure!(seen.is_none(), "{role} sees {seen:?}");
    }
    Ok(())
}

/// The request for a consumer without a name, which workers may send, makes none that stays.
#[tokio::test]
async fn a_worker_makes_no_durable_consumer() -> Result<()> {
    let (stack, bus) = still().await?;
    let worker = connect(&stack.nats, "worker").await?;
    let before = standing(bus.jetstream()).await?;
    let jetstream = jetstream::new(worker.client.clone());
    for stream in [subjects::USER_DEAD, "KV_user_targets", "KV_user_breakers"] {
        for config in [
            json!({"durable_name": "mine", "ack_policy": "explicit"}),
            json!({"durable_name": "mine", "name": "mine", "ack_policy": "explicit"}),
        ] {
            let request = json!({"stream_name": stream, "config": config});
            let subject = format!("CONSUMER.CREATE.{stream}");
            let answer: jetstream::response::Response<Value> =
                jetstream.request(subject, &request).await?;
            let refused = matches!(&answer, jetstream::response::Response::Err { error }
                if error.error_code() != ErrorCode::STREAM_NOT_FOUND);
            ensure!(refused, "{stream}: {config}: {answer:?}");
        }
    }
    assert_eq!(standing(bus.jetstream()).await?, before);
    Ok(())
}

/// What docs/SECURITY.md says of operators who may not erase.
#[tokio::test]
async fn the_right_to_erase_can_be_taken_from_an_operator() -> Result<()> {
    let stack = stack().await?;
    let erase = r#"{"user_id":1,"dry_run":true}"#;
    let may = super::peer::Try::Request("usersync.users.erase", erase);
    let other = stack.nats.connect().await?;
    let mut operator = connect(&stack.nats, "operator").await?;
    ensure!(operator.may(may, &other).await?);
    let page = include_str!("../../../../../docs/SECURITY.md");
    let deny = r#"deny: "usersync.users.erase""#;
    ensure!(page.contains(deny), "docs/SECURITY.md doesn't show {deny}");
    without_erasing(&stack.nats, deny)?;
    eventually(SOON, async || {
        let mut operator = connect(&stack.nats, "operator").await?;
        ensure!(!operator.may(may, &other).await?);
        let lists = super::peer::Try::Request("usersync.targets.list", "{}");
        ensure!(operator.may(lists, &other).await?);
        Ok(())
    })
    .await
}

fn without_erasing(nats: &NatsServer, deny: &str) -> Result<()> {
    edit(
        nats,
        "OPERATOR_MAY: {\n  publish: [",
        "OPERATOR_MAY: {\n  publish: { allow: [",
    )?;
    let end = "  ]\n  subscribe: [\"_INBOX.>\", \"user.>\", \"$KV.>\", \"$JS.EVENT.>\"]";
    edit(
        nats,
        end,
        &end.replacen("  ]\n", &format!("  ], {deny} }}\n"), 1),
    )?;
    nats.reload()
}
