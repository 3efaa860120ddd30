//! What each role of nats.conf may do and may not, tried with a real client; and what happens when that changes.

mod apart;
mod changed;
mod fuzz;
mod jwt;
mod logins;
mod peer;
mod replies;
mod store;
mod tls;
mod upgrade;

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::{self, consumer::pull, message::PublishMessage};
use futures_util::TryStreamExt as _;
use serde_json::{Value, json};
use usersync_stack::{
    Launch, NatsServer, Profile, ROLES, Service, Stack, eventually, free_port, http, tools,
};

use self::peer::{Peer, Try};
use crate::support::{Bus, SOON, only};

/// The user for one target that docs/SECURITY.md shows, and its password here.
const SHOP: &str = "worker-shop";
const SHOP_PASSWORD: &str = "of-a-test";

const ALL: &[&str] = &[
    "publisher",
    "gateway",
    "worker",
    SHOP,
    "scheduler",
    "operator",
    "viewer",
];
const NOBODY: &[&str] = &[];
/// Those with an account of their own.
const APART: &[&str] = &["publisher", "viewer"];

/// What is tried, and who may. The order matters to none of them.
const TABLE: &[(Try<'_>, &[&str])] = &[
    // Each family of subjects.
    (
        Try::Publish("user.created"),
        &["publisher", "gateway", "operator"],
    ),
    (Try::Publish("user.bogus"), &["gateway", "operator"]),
    (Try::Publish("user.state.1"), &["gateway", "scheduler"]),
    (
        Try::Publish("user.repair.audit.1"),
        &["gateway", "worker", "scheduler", "operator"],
    ),
    (
        Try::Publish("user.repair.shop.1"),
        &["gateway", "worker", SHOP, "scheduler", "operator"],
    ),
    (Try::Publish("user.dead.audit.1"), &["gateway", "worker"]),
    (
        Try::Publish("user.dead.shop.1"),
        &["gateway", "worker", SHOP],
    ),
    (Try::Publish("user.dead.gateway.1"), &["gateway"]),
    (Try::Publish("user.refused.1"), &["gateway"]),
    (Try::Publish("user.result.audit"), &["gateway", "worker"]),
    (
        Try::Publish("user.check.audit"),
        &["gateway", "scheduler", "operator"],
    ),
    (
        Try::Publish("user.check.result.audit"),
        &["gateway", "scheduler"],
    ),
    (
        Try::Publish("user.alert.gone.audit"),
        &["gateway", "scheduler"],
    ),
    (Try::Publish("something.else"), NOBODY),
    // The server's own words.
    (
        Try::Publish("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.USER_STATE.audit"),
        NOBODY,
    ),
    // Acknowledgements of what people are told.
    (
        Try::Publish("$JS.ACK.USER_ALERT.gateway-notify-webhook.1.1.1.1.0"),
        &["gateway"],
    ),
    (
        Try::Publish("$JS.ACK.USER_ALERT.gateway-notify-email.1.1.1.1.0"),
        &["gateway"],
    ),
    (Try::Publish("$JS.ACK.USER_ALERT.other.1.1.1.1.0"), NOBODY),
    // Buckets.
    (
        Try::Publish("$KV.user_targets.tried"),
        &["gateway", "operator"],
    ),
    (
        Try::Publish("$KV.user_breakers.audit"),
        &["gateway", "operator"],
    ),
    (
        Try::Publish("$KV.user_breakers.audit.w1"),
        &["gateway", "worker", "operator"],
    ),
    (
        Try::Publish("$KV.user_checks.audit"),
        &["gateway", "scheduler"],
    ),
    (Try::Publish("$KV.user_jobs.1"), &["gateway"]),
    (Try::Publish("$KV.user_relays.main.g1"), &["gateway"]),
    (Try::Publish("$KV.user_workers.audit.w1"), &["worker"]),
    (
        Try::Publish("$KV.user_workers.gateway.g1"),
        &["gateway", "worker"],
    ),
    (Try::Publish("$KV.user_epochs.intake"), &["gateway"]),
    (Try::Publish("$KV.user_sources.main"), &["gateway"]),
    // Others' answers, requests and users.
    (Try::Subscribe("_INBOX.x"), &["operator"]),
    (Try::Subscribe("_INBOX_gateway.x"), &["gateway"]),
    (Try::Subscribe("_INBOX_worker.x"), &["worker"]),
    (Try::Subscribe("_INBOX_worker_shop.x"), &[SHOP]),
    (Try::Subscribe("_INBOX_scheduler.x"), &["scheduler"]),
    (Try::Subscribe("user.updated"), &["operator", "viewer"]),
    (Try::Subscribe("user.state.2"), &["operator", "viewer"]),
    (Try::Subscribe("user.refused.2"), &["operator", "viewer"]),
    (
        Try::Subscribe("user.check.result.shop"),
        &["scheduler", "operator", "viewer"],
    ),
    (
        Try::Subscribe("$KV.user_targets.tried"),
        &["operator", "viewer"],
    ),
    (Try::Subscribe("usersync.tried.put"), &["gateway"]),
    (Try::Subscribe("usersync.worker.status.audit"), &["worker"]),
    (
        Try::Subscribe("usersync.worker.status.shop"),
        &["worker", SHOP],
    ),
    // Streams.
    (
        Try::Request(
            "$JS.API.STREAM.CREATE.TRIED",
            r#"{"name":"TRIED","subjects":["tried"]}"#,
        ),
        &["gateway"],
    ),
    (
        Try::Request(
            "$JS.API.STREAM.UPDATE.TRIED",
            r#"{"name":"TRIED","subjects":["tried"]}"#,
        ),
        &["gateway"],
    ),
    (Try::Request("$JS.API.STREAM.DELETE.TRIED", ""), NOBODY),
    (Try::Request("$JS.API.STREAM.DELETE.USER_STATE", ""), NOBODY),
    (Try::Request("$JS.API.STREAM.PURGE.USER_EVENTS", ""), NOBODY),
    (Try::Request("$JS.API.STREAM.PURGE.USER_STATE", ""), NOBODY),
    (
        Try::Request(
            "$JS.API.STREAM.PURGE.USER_DEAD",
            r#"{"filter":"user.dead.none.1"}"#,
        ),
        &["gateway"],
    ),
    (
        Try::Request(
            "$JS.API.STREAM.PURGE.USER_CHECK",
            r#"{"filter":"user.check.schedule.none"}"#,
        ),
        &["scheduler"],
    ),
    (
        Try::Request("$JS.API.STREAM.MSG.DELETE.USER_STATE", r#"{"seq":1}"#),
        NOBODY,
    ),
    // Erasing a user overwrites events and letters.
    (
        Try::Request("$JS.API.STREAM.MSG.DELETE.USER_EVENTS", r#"{"seq":5}"#),
        &["gateway"],
    ),
    (
        Try::Request("$JS.API.STREAM.MSG.DELETE.USER_DEAD", r#"{"seq":1}"#),
        &["gateway"],
    ),
    (
        Try::Request(
            "$JS.API.STREAM.SNAPSHOT.USER_STATE",
            r#"{"deliver_subject":"tried"}"#,
        ),
        NOBODY,
    ),
    (
        Try::Request("$JS.API.STREAM.NAMES", ""),
        &["gateway", "operator", "viewer"],
    ),
    (
        Try::Request("$JS.API.STREAM.LIST", ""),
        &["operator", "viewer"],
    ),
    // Consumers.
    (
        Try::Request(
            "$JS.API.CONSUMER.CREATE.USER_STATE.tried.user.state.*",
            r#"{"stream_name":"USER_STATE","config":{"durable_name":"tried","ack_policy":"explicit","filter_subject":"user.state.*"}}"#,
        ),
        &["gateway"],
    ),
    // A worker follows dead letters and buckets by consumers without a name, and makes no durable one.
    (
        Try::Request(
            "$JS.API.CONSUMER.CREATE.USER_DEAD.tried.user.dead.*.*",
            r#"{"stream_name":"USER_DEAD","config":{"durable_name":"tried","ack_policy":"explicit","filter_subject":"user.dead.*.*"}}"#,
        ),
        &["gateway"],
    ),
    (
        Try::Request(
            "$JS.API.CONSUMER.CREATE.KV_user_breakers.tried.$KV.user_breakers.x",
            r#"{"stream_name":"KV_user_breakers","config":{"durable_name":"tried","ack_policy":"explicit","filter_subject":"$KV.user_breakers.x"}}"#,
        ),
        &["gateway", "operator"],
    ),
    (
        Try::Request(
            "$JS.API.CONSUMER.CREATE.USER_DEAD",
            r#"{"stream_name":"USER_DEAD","config":{"ack_policy":"none"}}"#,
        ),
        &["gateway", "worker", SHOP],
    ),
    (
        Try::Request(
            "$JS.API.CONSUMER.CREATE.USER_REFUSED",
            r#"{"stream_name":"USER_REFUSED","config":{"ack_policy":"none"}}"#,
        ),
        &["gateway"],
    ),
    (
        Try::Request(
            "$JS.API.STREAM.PURGE.USER_REFUSED",
            r#"{"filter":"user.refused.none"}"#,
        ),
        &["gateway"],
    ),
    (
        Try::Request("$JS.API.CONSUMER.DELETE.USER_EVENTS.gateway-intake", ""),
        NOBODY,
    ),
    (
        Try::Request("$JS.API.CONSUMER.PAUSE.USER_STATE.audit", "{}"),
        &["operator"],
    ),
    (
        Try::Request(
            "$JS.API.CONSUMER.MSG.NEXT.USER_STATE.audit",
            r#"{"no_wait":true}"#,
        ),
        // The scheduler reads the states with consumers of its own, whose names nobody knows before.
        &["gateway", "worker", "scheduler"],
    ),
    (
        Try::Request(
            "$JS.API.CONSUMER.MSG.NEXT.USER_STATE.shop",
            r#"{"no_wait":true}"#,
        ),
        &["gateway", "worker", SHOP, "scheduler"],
    ),
    (
        Try::Request(
            "$JS.API.CONSUMER.MSG.NEXT.USER_REPAIR.audit",
            r#"{"no_wait":true}"#,
        ),
        &["worker"],
    ),
    (
        Try::Request(
            "$JS.API.CONSUMER.MSG.NEXT.USER_REPAIR.shop",
            r#"{"no_wait":true}"#,
        ),
        &["worker", SHOP],
    ),
    (
        Try::Request(
            "$JS.API.CONSUMER.MSG.NEXT.USER_CHECK.scheduler-checks",
            r#"{"no_wait":true}"#,
        ),
        &["scheduler"],
    ),
    // The keys of outboxes.
    (
        Try::Request(
            "$JS.API.STREAM.MSG.GET.KV_user_sources",
            r#"{"last_by_subj":"$KV.user_sources.main"}"#,
        ),
        &["gateway", "operator"],
    ),
    (
        Try::Request(
            "$JS.API.DIRECT.GET.KV_user_sources.$KV.user_sources.main",
            "",
        ),
        &["gateway", "operator"],
    ),
    (
        Try::Request(
            "$JS.API.DIRECT.GET.KV_user_sources",
            r#"{"multi_last":["$KV.user_sources.>"]}"#,
        ),
        &["gateway", "operator"],
    ),
    (Try::Subscribe("$KV.user_sources.main"), &["operator"]),
    // Reading one message.
    (
        Try::Request("$JS.API.DIRECT.GET.USER_STATE.user.state.7", ""),
        &["gateway", "worker", SHOP, "scheduler", "operator", "viewer"],
    ),
    (
        Try::Request("$JS.API.DIRECT.GET.USER_REFUSED.user.refused.7", ""),
        &["gateway", "operator", "viewer"],
    ),
    (
        Try::Request("$JS.API.DIRECT.GET.USER_DEAD.user.dead.audit.7", ""),
        &["gateway", "worker", "operator", "viewer"],
    ),
    (
        Try::Request("$JS.API.STREAM.MSG.GET.USER_EVENTS", r#"{"seq":1}"#),
        &["gateway", "operator", "viewer"],
    ),
    (
        Try::Request(
            "$JS.API.STREAM.MSG.GET.USER_ALERT",
            r#"{"last_by_subj":"user.alert.gone.audit"}"#,
        ),
        &["gateway", "scheduler", "operator", "viewer"],
    ),
    // The control plane.
    (
        Try::Request("usersync.alerts.list", "{}"),
        &["operator", "viewer"],
    ),
    (
        Try::Request("usersync.status", "{}"),
        &["operator", "viewer"],
    ),
    (
        Try::Request("usersync.targets.list", "{}"),
        &["operator", "viewer"],
    ),
    (
        Try::Request(
            "usersync.targets.put",
            r#"{"name":"audit","entry":{"url":"http://h/"},"dry_run":true}"#,
        ),
        &["operator"],
    ),
    (
        Try::Request("usersync.dead.discard", r#"{"all":true,"dry_run":true}"#),
        &["operator"],
    ),
    (
        Try::Request("usersync.users.erase", r#"{"user_id":99,"dry_run":true}"#),
        &["operator"],
    ),
    (
        Try::Request("usersync.worker.status.audit", ""),
        &["gateway", "operator", "viewer"],
    ),
];

/// A stack with the targets `audit` and `shop`, without workers, and the user that docs/SECURITY.md shows for `shop`.
async fn stack() -> Result<Stack> {
    let targets = "[audit]\nurl = \"http://127.0.0.1:9/\"\n[shop]\nurl = \"http://127.0.0.1:9/\"\n";
    let stack = only(targets).workers("audit", 0).workers("shop", 0);
    let stack = stack.start().await?;
    let page = include_str!("../../../../../docs/SECURITY.md");
    let user = page.split("```").find(|block| block.contains(SHOP));
    let user = user.context("docs/SECURITY.md shows no user for one target")?;
    let user = user.replace("$USERSYNC_WORKER_SHOP_PASSWORD", SHOP_PASSWORD);
    edit(&stack.nats, "  users: [\n", &format!("  users: [\n{user}"))?;
    stack.nats.reload()?;
    // Who connects meanwhile may be refused.
    connect(&stack.nats, SHOP).await?;
    Ok(stack)
}

/// What the page gives a worker for one target is all that it asks for, `refill` and the look at the store, too.
#[tokio::test]
async fn a_worker_for_one_target_is_ready_and_stays_so() -> Result<()> {
    let stack = stack().await?;
    let entry = format!(
        "{{\"url\":\"{}\",\"refill\":true,\"allow_networks\":[\"loopback\"]}}",
        stack.redis.url()
    );
    let bus = Bus::connect(&stack).await?;
    bus.kv_put("user_targets", "shop", &entry).await?;
    let password = stack.dir().join("shop-password");
    fs::write(&password, SHOP_PASSWORD)?;
    let address = format!("127.0.0.1:{}", free_port()?);
    let program = tools::binary("usersync-worker", Profile::own())?;
    let launch = Launch::new(
        "worker-shop",
        program,
        stack.dir().join("logs/worker-shop.log"),
    )
    .args(["--listen", &address, "--target", "shop"])
    .env("USERSYNC_NATS__URL", stack.nats.url())
    .env("USERSYNC_NATS__USER", SHOP)
    .env(
        "USERSYNC_NATS__PASSWORD",
        format!("file:{}", password.display()),
    )
    .env("USERSYNC_NATS__INBOX_PREFIX", "_INBOX_worker_shop");
    let worker = Service::spawn(launch, format!("http://{address}"))?;
    worker.until_ready().await?;
    // It has written to the bucket both ways.
    eventually(SOON, async || {
        let bucket = bus.jetstream().get_stream("KV_user_workers").await?;
        let store = "$KV.user_workers.=store.*";
        bucket.get_last_raw_message_by_subject(store).await?;
        ensure!(
            bus.kv_get("user_workers", "=refill.shop").await?.is_some(),
            "no mark"
        );
        Ok(())
    })
    .await?;
    let said: Value = http::client()
        .get(format!("{}/readyz", worker.url()))
        .send()
        .await?
        .json()
        .await?;
    ensure!(
        said["ready"] == true && said["parts"]["permissions"].is_null(),
        "{said}"
    );
    Ok(())
}

/// Replaces a part of the server's configuration.
pub(crate) fn edit(nats: &NatsServer, part: &str, by: &str) -> Result<()> {
    let conf = fs::read_to_string(nats.conf())?;
    ensure!(conf.contains(part), "nats.conf has no {part:?}");
    Ok(fs::write(nats.conf(), conf.replacen(part, by, 1))?)
}

/// Connects as a role, or as the user of one target, once the server knows it.
async fn connect(nats: &NatsServer, role: &str) -> Result<Peer> {
    if role == SHOP {
        return eventually(SOON, async || {
            Peer::connect(nats, SHOP, SHOP_PASSWORD, "_INBOX_worker_shop").await
        })
        .await;
    }
    let password = fs::read_to_string(nats.password_file(role))?;
    let inbox = match role {
        "operator" => "_INBOX".to_owned(),
        role => format!("_INBOX_{role}"),
    };
    Peer::connect(nats, role, password.trim(), &inbox).await
}

/// How each stream and its consumers stand: what nobody may change.
async fn shape(jetstream: &jetstream::Context) -> Result<BTreeMap<String, Vec<String>>> {
    let mut shape = BTreeMap::new();
    let mut streams = jetstream.stream_names();
    while let Some(name) = streams.try_next().await? {
        let stream = jetstream.get_stream(&name).await?;
        let consumers: Vec<String> = stream.consumer_names().try_collect().await?;
        let mut durable: Vec<_> = consumers
            .into_iter()
            .filter(|name| ["gateway-intake", "audit", "shop"].contains(&&**name))
            .collect();
        durable.sort();
        shape.insert(name, durable);
    }
    Ok(shape)
}

#[tokio::test]
async fn each_role_may_what_it_needs_and_nothing_else() -> Result<()> {
    let stack = stack().await?;
    let bus = Bus::connect(&stack).await?;
    for user in 1..=20 {
        let event = json!({"user_id": user, "username": "ann"});
        bus.publish("user.created", event).await?;
    }
    let refused = bus.jetstream().publish("user.refused.5", "{}".into());
    refused.await?.await?;
    bus.until_taken_in().await?;
    let other = bus.jetstream().client();
    let before = shape(bus.jetstream()).await?;
    let states = bus.count("USER_STATE").await?;

    let mut wrong = Vec::new();
    for role in ALL {
        let mut peer = connect(&stack.nats, role).await?;
        for (attempt, allowed) in TABLE {
            // The same name in another account is another subject: what is there isn't ours.
            if APART.contains(role)
                && matches!(attempt, Try::Subscribe(inbox) if inbox.starts_with("_INBOX"))
            {
                continue;
            }
            let may = peer.may(*attempt, &other).await;
            let may = may.with_context(|| format!("{role}: {attempt:?}"))?;
            if may != allowed.contains(role) {
                wrong.push(format!(
                    "{role} {} {attempt:?}",
                    if may { "may" } else { "may not" }
                ));
            }
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    ensure!(
        ROLES.iter().all(|role| ALL.contains(role)),
        "a role isn't tried"
    );
    // What was refused had no effect.
    let mut after = shape(bus.jetstream()).await?;
    ensure!(
        after.remove("TRIED").is_some(),
        "the gateway made no stream"
    );
    assert_eq!(after, before);
    assert_eq!(bus.count("USER_STATE").await?, states);
    Ok(())
}

/// `Nats-Rollup: all` removes everything else in a stream: a worker may write keys of its target, and remove no other's.
#[tokio::test]
async fn a_worker_of_one_target_rolls_up_nothing() -> Result<()> {
    let stack = stack().await?;
    let bus = Bus::connect(&stack).await?;
    let shop = connect(&stack.nats, SHOP).await?;
    let theirs = jetstream::new(shop.client.clone());
    for bucket in ["user_workers", "user_breakers"] {
        bus.kv_put(bucket, "audit.w9", r#"{"state":"open"}"#)
            .await?;
        for rollup in ["all", "sub"] {
            let message = PublishMessage::build().header("Nats-Rollup", rollup);
            let message = message.payload("{}".into());
            let subject = format!("$KV.{bucket}.shop.me");
            let stored = theirs.send_publish(subject, message).await?.await;
            ensure!(stored.is_err(), "{bucket}: {stored:?}");
        }
        let own = format!("$KV.{bucket}.shop.me");
        theirs.publish(own, "{}".into()).await?.await?;
        let left = bus.kv_get(bucket, "audit.w9").await?;
        ensure!(
            left.is_some(),
            "{bucket} has lost the key of another target"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_worker_of_one_target_acknowledges_its_own_messages_only() -> Result<()> {
    let stack = stack().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", json!({"user_id": 1, "username": "ann"}))
        .await?;
    bus.until_taken_in().await?;
    let other = bus.jetstream().client();
    let mut shop = connect(&stack.nats, SHOP).await?;
    for (target, own) in [("audit", false), ("shop", true)] {
        let consumer: jetstream::consumer::Consumer<pull::Config> = bus
            .jetstream()
            .get_consumer_from_stream(target, "USER_STATE")
            .await?;
        let mut messages = consumer.fetch().max_messages(1).messages().await?;
        let message = messages
            .try_next()
            .await
            .map_err(anyhow::Error::from_boxed)?;
        let message = message.with_context(|| format!("{target} has no message"))?;
        let reply = message.message.reply.context("no reply subject")?;
        let may = shop.may(Try::Acknowledge(&reply), &other).await?;
        assert_eq!(may, own, "{target}: {reply}");
        eventually(SOON, async || {
            let info = bus.jetstream().get_stream("USER_STATE").await?;
            let waiting = info.consumer_info(target).await?.num_ack_pending;
            ensure!(
                waiting == usize::from(!own),
                "{target}: {waiting} wait for their acknowledgement"
            );
            Ok(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn who_has_no_password_or_a_wrong_one_is_not_let_in() -> Result<()> {
    let stack = stack().await?;
    let nobody = async_nats::connect(stack.nats.url()).await;
    ensure!(nobody.is_err(), "let in without a password");
    let wrong = Peer::connect(&stack.nats, "operator", "wrong", "_INBOX").await;
    ensure!(wrong.is_err(), "let in with a wrong password");
    Ok(())
}
