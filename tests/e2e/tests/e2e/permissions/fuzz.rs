//! A client of each role that says whatever comes to its mind: nothing changes that the role may not change.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use usersync_stack::ROLES;

use super::{
    apart::{HOSTILE, standing, still},
    connect,
};

/// Whether the streams are a role's own: it may change them, but delete none.
fn owns(role: &str) -> bool {
    role == "gateway"
}

/// How long each role goes on: `USERSYNC_LONG=1` makes it a minute.
fn how_long() -> Duration {
    match std::env::var_os("USERSYNC_LONG") {
        Some(_) => Duration::from_secs(60),
        None => Duration::from_secs(2),
    }
}

/// Its messages go after a minute.
const FORGETFUL: &str = "KV_user_workers";

/// The streams whose messages a role may add to, or take from.
fn may_write(role: &str) -> &'static [&'static str] {
    match role {
        "publisher" => &["USER_EVENTS"],
        "worker" => &[
            "USER_DEAD",
            "USER_REPAIR",
            "USER_RESULT",
            "KV_user_breakers",
            FORGETFUL,
        ],
        "scheduler" => &[
            "USER_STATE",
            "USER_REPAIR",
            "USER_CHECK",
            "USER_ALERT",
            "KV_user_checks",
        ],
        "operator" => &[
            "USER_EVENTS",
            "USER_REPAIR",
            "USER_CHECK",
            "KV_user_targets",
            "KV_user_breakers",
        ],
        _ => &[],
    }
}

const SUBJECTS: &[&str] = &[
    "user.created",
    "user.updated",
    "user.deleted",
    "user.bogus",
    "user.state.1",
    "user.state.42",
    "user.repair.audit.1",
    "user.dead.audit.1",
    "user.dead.gateway.1",
    "user.refused.1",
    "user.result.audit",
    "user.check.audit",
    "user.check.schedule.audit",
    "user.alert.gone.audit",
    "usersync.users.erase",
    "usersync.targets.put",
    "usersync.worker.status.audit",
    "$SRV.PING",
    "$KV.user_targets.audit",
    "$KV.user_breakers.audit.w",
    "$KV.user_checks.audit",
    "$KV.user_jobs.1",
    "$KV.user_sources.main",
    "$KV.user_workers.audit.w",
    "$JS.FC.USER_STATE.audit.1",
    "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.USER_STATE.audit",
    "$SYS.REQ.SERVER.PING.HEALTHZ",
    "_R_.a.b",
    "_INBOX.x",
];

const STREAMS: &[&str] = &[
    "USER_EVENTS",
    "USER_STATE",
    "USER_DEAD",
    "USER_REFUSED",
    "USER_REPAIR",
    "USER_CHECK",
    "USER_ALERT",
    "KV_user_targets",
    "KV_user_breakers",
    "KV_user_sources",
];

const OF_STREAMS: &[&str] = &[
    "STREAM.CREATE.{s}",
    "STREAM.UPDATE.{s}",
    "STREAM.DELETE.{s}",
    "STREAM.PURGE.{s}",
    "STREAM.INFO.{s}",
    "STREAM.SNAPSHOT.{s}",
    "STREAM.RESTORE.{s}",
    "STREAM.MSG.DELETE.{s}",
    "STREAM.MSG.GET.{s}",
    "STREAM.LEADER.STEPDOWN.{s}",
    "DIRECT.GET.{s}",
    "DIRECT.GET.{s}.user.state.1",
    "CONSUMER.CREATE.{s}",
    "CONSUMER.CREATE.{s}.mine",
    "CONSUMER.CREATE.{s}.audit.user.state.*",
    "CONSUMER.DURABLE.CREATE.{s}.mine",
    "CONSUMER.DELETE.{s}.audit",
    "CONSUMER.DELETE.{s}.gateway-intake",
    "CONSUMER.INFO.{s}.audit",
    "CONSUMER.LIST.{s}",
    "CONSUMER.RESET.{s}.audit",
    "CONSUMER.UNPIN.{s}.gateway-intake",
    "CONSUMER.MSG.NEXT.{s}.audit",
];

const BODIES: &[&str] = &[
    "",
    "{}",
    "+ACK",
    "+TERM",
    r#"{"user_id":1}"#,
    r#"{"seq":1}"#,
    r#"{"batch":100,"seq":1}"#,
    r#"{"multi_last":[">"]}"#,
    r#"{"filter":"user.state.1"}"#,
    r#"{"name":"USER_DEAD","subjects":["user.dead.>"],"max_age":1000000}"#,
    r#"{"stream_name":"USER_STATE","config":{"durable_name":"mine","ack_policy":"explicit"}}"#,
    r#"{"stream_name":"USER_DEAD","config":{"ack_policy":"none"}}"#,
    r#"{"name":"audit","entry":{"url":"http://127.0.0.1:9/"}}"#,
];

fn one<T: Copy>(random: &mut fastrand::Rng, of: &[T]) -> T {
    of[random.usize(..of.len())]
}

fn subject(random: &mut fastrand::Rng) -> String {
    if random.bool() {
        return one(random, SUBJECTS).to_owned();
    }
    let stream = one(random, STREAMS);
    let request = one(random, OF_STREAMS).replace("{s}", stream);
    format!("$JS.API.{request}")
}

#[tokio::test]
async fn a_client_that_says_anything_changes_nothing_that_its_role_may_not() -> Result<()> {
    let (stack, bus) = still().await?;
    // Whoever may change the streams comes last.
    let (owners, others): (Vec<_>, Vec<_>) = ROLES.into_iter().partition(|role| owns(role));
    for role in others.into_iter().chain(owners) {
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        let peer = connect(&stack.nats, role).await?;
        // Those in the account of the streams are trusted to name inboxes: docs/SECURITY.md.
        let apart = ["publisher", "viewer"].contains(&role);
        let before = standing(bus.jetstream()).await?;
        let end = Instant::now() + how_long();
        let mut said = 0;
        while Instant::now() < end {
            for _ in 0..200 {
                let subject = subject(&mut random);
                let body = one(&mut random, BODIES);
                let client = &peer.client;
                match random.u8(..3) {
                    0 => client.publish(subject, body.into()).await?,
                    1 if apart => {
                        let reply = one(&mut random, HOSTILE);
                        client
                            .publish_with_reply(subject, reply, body.into())
                            .await?;
                    }
                    _ => {
                        let inbox = client.new_inbox();
                        client
                            .publish_with_reply(subject, inbox, body.into())
                            .await?;
                    }
                }
                said += 1;
            }
            peer.client.flush().await?;
        }
        // An answer to what comes last: the server has read what came before.
        let last = match role {
            "publisher" => ("user.created", r#"{"user_id":1}"#),
            _ => ("$JS.API.INFO", ""),
        };
        peer.client
            .request(last.0, last.1.into())
            .await
            .with_context(|| format!("{role} gets no answer any more"))?;
        let mut after = standing(bus.jetstream()).await?;
        if owns(role) {
            for (stream, (_, last, messages, _)) in &before {
                let now = after.get(stream);
                let now = now.with_context(|| format!("{stream} is gone, seed {seed}"))?;
                assert!(now.1 >= *last, "{stream} went back, seed {seed}");
                // It may purge what nobody needs, and no state.
                let kept = stream != "USER_STATE" || now.2 >= *messages;
                assert!(kept, "states are gone, seed {seed}");
            }
            continue;
        }
        if let (Some(after), Some(before)) = (after.get_mut(FORGETFUL), before.get(FORGETFUL)) {
            after.2 = before.2;
        }
        for stream in may_write(role) {
            let (Some(after), Some(before)) = (after.get_mut(*stream), before.get(*stream)) else {
                continue;
            };
            (after.1, after.2) = (before.1, before.2);
        }
        assert_eq!(after, before, "{role}, seed {seed}, {said} messages");
    }
    Ok(())
}
