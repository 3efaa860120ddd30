//! Streams and buckets as v0.1.0 left them, with work under way: today's programs read all of it, and go on.

#![allow(clippy::unwrap_used, reason = "a test fails where its set-up fails")]

use std::{collections::BTreeMap, env, fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use async_nats::{
    HeaderMap,
    jetstream::{
        self,
        consumer::{PullConsumer, pull},
        stream,
    },
};
use futures_util::StreamExt as _;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::timeout;
use usersync_core::subjects::{USER_DEAD, USER_REFUSED, USER_STATE};
use usersync_stack::{Stack, eventually};

use super::{before, recorded};
use crate::support::{Api, Bus, Call, LATER, Recorder, answer, only};

const GRACE: Duration = Duration::from_secs(20);
const FILE: &str = "streams.json";
const RETRY: &str = "retry = { max_deliver = 3, base = \"1s\" }";
/// Entries of other kinds, with much of what an entry can say.
const ENTRIES: &str = r#"
[shop]
enabled = false
url = "postgres://usersync@localhost:5432/app"
secret = "env:SHOP_PASSWORD"
on_delete = "disable"
filter = "user.data.plan == 'pro'"
concurrency = 4
batch = 200
linger = "5ms"
table = { name = "accounts", id = "user_id", columns = { login = "username", state = "status", phone = "data.phone" } }
fields = { include = ["username", "email", "data.status", "data.phone"], mask = { email = "hash" }, mask_key = "env:MASK" }
[graph]
enabled = false
url = "neo4j://neo4j@localhost:7687/neo4j"
secret = "env:NEO4J_PASSWORD"
retry = { max_deliver = 7, base = "2s", factor = 3.0, permanent_status = [418] }
breaker = { faults = 5, window = "20s" }
"#;

/// What v0.1.0 left: first all that it was through with, then what came while it was stopped in parts.
#[derive(Serialize, Deserialize)]
struct Recording {
    streams: Vec<Recorded>,
    /// What v0.1.0 itself made of all events, by user.
    states: BTreeMap<String, Value>,
}

#[derive(Serialize, Deserialize)]
struct Recorded {
    config: stream::Config,
    settled: Vec<Message>,
    waiting: Vec<Message>,
    consumers: Vec<pull::Config>,
}

#[derive(Serialize, Deserialize)]
struct Message {
    seq: u64,
    subject: String,
    headers: Vec<(String, String)>,
    body: String,
}

impl Message {
    fn of(message: &jetstream::Message) -> Result<Self> {
        let headers = message.headers.iter().flat_map(HeaderMap::iter);
        let headers = headers.flat_map(|(name, values)| {
            let values = values.iter();
            values.map(|value| (name.to_string(), value.as_str().to_owned()))
        });
        // What a publisher asks of the server isn't asked again.
        let kept = headers.filter(|(name, _)| {
            !name.starts_with("Nats-Expected") && !name.starts_with("Nats-Batch")
        });
        Ok(Self {
            seq: message
                .info()
                .map_err(anyhow::Error::from_boxed)?
                .stream_sequence,
            subject: message.subject.to_string(),
            headers: kept.collect(),
            body: String::from_utf8(message.payload.to_vec())?,
        })
    }

    async fn publish(&self, bus: &Bus) -> Result<()> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            headers.append(name.as_str(), value.as_str());
        }
        let body = self.body.clone().into();
        let sent = bus
            .jetstream
            .publish_with_headers(self.subject.clone(), headers, body);
        sent.await?.await.with_context(|| self.subject.clone())?;
        Ok(())
    }
}

/// Every message from `seq` on.
async fn messages(bus: &Bus, stream: &str, seq: u64) -> Result<Vec<Message>> {
    let stream = bus.jetstream.get_stream(stream).await?;
    let config = pull::Config {
        deliver_policy: jetstream::consumer::DeliverPolicy::ByStartSequence {
            start_sequence: seq,
        },
        ack_policy: jetstream::consumer::AckPolicy::None,
        ..pull::Config::default()
    };
    // A work queue has one consumer for each subject; its messages are read one by one.
    if stream.cached_info().config.retention == stream::RetentionPolicy::WorkQueue {
        let mut found = Vec::new();
        for seq in seq..=stream.cached_info().state.last_sequence {
            let Ok(raw) = stream.get_raw_message(seq).await else {
                continue;
            };
            found.push(Message {
                seq,
                subject: raw.subject.to_string(),
                headers: Vec::new(),
                body: String::from_utf8(raw.payload.to_vec())?,
            });
        }
        return Ok(found);
    }
    let consumer = stream.create_consumer(config).await?;
    let waiting = consumer.cached_info().num_pending;
    let mut found = Vec::new();
    if waiting > 0 {
        let mut arriving = consumer.messages().await?;
        while (found.len() as u64) < waiting {
            found.push(Message::of(&arriving.next().await.context("the end")??)?);
        }
    }
    stream.delete_consumer(&consumer.cached_info().name).await?;
    Ok(found)
}

/// The names of all streams, those of buckets too.
async fn names(bus: &Bus) -> Result<Vec<String>> {
    let names: Vec<_> = bus.jetstream.stream_names().collect().await;
    Ok(names.into_iter().collect::<Result<_, _>>()?)
}

/// What a user is, whatever a version notes beside it.
fn user(state: &Value) -> Value {
    let members = ["username", "email", "data", "deleted", "partial"];
    let mut user = Value::Null;
    for member in members {
        user[member] = state[member].clone();
    }
    user
}

async fn states(bus: &Bus) -> Result<BTreeMap<String, Value>> {
    let states = messages(bus, USER_STATE, 1).await?;
    let read = states.iter().map(|message| {
        let state: Value = serde_json::from_str(&message.body)?;
        let id = message.subject.strip_prefix("user.state.");
        Ok((id.unwrap_or_default().to_owned(), user(&state)))
    });
    read.collect()
}

/// What services tell, in two parts.
fn events(part: u64) -> Vec<(&'static str, Value)> {
    let mut events = Vec::new();
    for user in 1..=20 {
        let id = format!("{part}-{user}");
        events.push((
            if part == 1 { "user.created" } else { "user.updated" },
            json!({"id": id, "source": "/crm", "user_id": user, "username": format!("name {user} ü"),
                "data": {"n": part, "nested": {"a": [1, 2.5, null], "part": part}}}),
        ));
    }
    let more = [
        (
            "user.updated",
            json!({"user_id": 21, "email": "half@example.com"}),
        ),
        ("user.deleted", json!({"user_id": 2 + part})),
        (
            "user.status_changed",
            json!({"user_id": 5, "status": format!("s{part}")}),
        ),
        (
            "user.updated",
            json!({"user_id": 6, "data": {"big": 9_007_199_254_740_993_u64, "small": 1e-7}}),
        ),
        (
            "user.updated",
            json!({"user_id": "0198c0de-0000-7000-8000-00000000000a", "data": {"n": part}}),
        ),
        (
            "user.updated",
            json!({"user_id": 18_446_744_073_709_551_615_u64, "data": {"n": part}}),
        ),
        // Told again by its id.
        (
            "user.updated",
            json!({"id": format!("{part}-7"), "source": "/crm", "user_id": 7, "data": {"n": 99}}),
        ),
    ];
    events.extend(more);
    events
}

/// 422 for one user, and 200 for all others.
async fn refuses_one(call: Call) -> axum::response::Response {
    answer(if call.user() == "9" { 422 } else { 200 })
}

/// Runs v0.1.0 and writes down what it leaves: `USERSYNC_RECORD=1 cargo xtask test --long -- recorded`.
async fn record(binaries: &std::path::Path, conf: &std::path::Path) -> Result<()> {
    let recorder = Recorder::start(refuses_one).await?;
    let entry = recorder.target("audit", RETRY);
    let stack = only(format!("{entry}\n{ENTRIES}"))
        .binaries(binaries)
        .nats_conf(conf);
    let stack = stack.start().await?;
    let bus = Bus::connect(&stack).await?;
    let api = Api::of(&stack).await?;
    for (kind, mut event) in events(1) {
        if event["id"].is_string() {
            event["type"] = kind.into();
            api.call(Method::POST, "/v1/events", &[], Some(event))
                .await?;
        } else {
            bus.publish(kind, event).await?;
        }
    }
    bus.jetstream
        .publish("user.created", "{\"user_id\": 42, ".into())
        .await?
        .await?;
    bus.until_settled("audit").await?;
    eventually(LATER, async || {
        ensure!(bus.count(USER_DEAD).await? == 2, "dead letters are missing");
        Ok(())
    })
    .await?;
    let mut streams = Vec::new();
    for name in names(&bus).await? {
        let mut stream = bus.jetstream.get_stream(&name).await?;
        let durable = stream.consumers().map(|info| info.map(|info| info.config));
        let durable: Vec<_> = durable.collect().await;
        let durable = durable.into_iter().filter_map(Result::ok);
        let durable = durable.filter(|config| config.durable_name.is_some());
        let mut consumers = Vec::new();
        for config in durable {
            consumers.push(serde_json::from_value(serde_json::to_value(config)?)?);
        }
        streams.push(Recorded {
            config: stream.info().await?.config.clone(),
            settled: messages(&bus, &name, 1).await?,
            waiting: Vec::new(),
            consumers,
        });
    }

    // The worker is stopped, then the gateway.
    stack.workers["audit"][0].stop(GRACE).await?;
    let (taken_in, left): (Vec<_>, Vec<_>) = events(2)
        .into_iter()
        .enumerate()
        .partition(|(at, _)| at % 2 == 0);
    for (_, (kind, event)) in taken_in {
        bus.publish(kind, event).await?;
    }
    bus.until_taken_in().await?;
    bus.repair("audit", 11).await?;
    let mut stack = stack;
    stack.gateways[0].stop(GRACE).await?;
    for (_, (kind, event)) in left {
        bus.publish(kind, event).await?;
    }
    for recorded in &mut streams {
        let from = recorded.settled.last().map_or(1, |last| last.seq + 1);
        recorded.waiting = messages(&bus, &recorded.config.name, from).await?;
    }

    stack.gateways[0].restart().await?;
    bus.until_taken_in().await?;
    let recording = Recording {
        streams,
        states: states(&bus).await?,
    };
    let text = serde_json::to_string_pretty(&recording)?;
    Ok(fs::write(recorded(FILE), text + "\n")?)
}

/// Brings the recording to a server: what was settled is acknowledged, the rest is not.
async fn play(bus: &Bus, recording: &Recording) -> Result<()> {
    for recorded in &recording.streams {
        let stream = bus.jetstream.create_stream(recorded.config.clone()).await?;
        for message in &recorded.settled {
            message.publish(bus).await?;
        }
        for config in &recorded.consumers {
            let consumer: PullConsumer = stream.create_consumer(config.clone()).await?;
            acknowledge_all(bus, consumer.cached_info()).await?;
        }
    }
    for recorded in &recording.streams {
        for message in &recorded.waiting {
            message.publish(bus).await?;
        }
    }
    Ok(())
}

/// Has the server hand out all that waits, by hand: a pinned consumer asks for its group.
async fn acknowledge_all(bus: &Bus, consumer: &jetstream::consumer::Info) -> Result<()> {
    let client = bus.jetstream.client();
    let inbox = client.new_inbox();
    let mut arriving = client.subscribe(inbox.clone()).await?;
    let request = json!({
        "batch": consumer.num_pending,
        "expires": GRACE.as_nanos() as u64,
        "group": consumer.config.priority_groups.first(),
    });
    let subject = format!(
        "$JS.API.CONSUMER.MSG.NEXT.{}.{}",
        consumer.stream_name, consumer.name
    );
    client
        .publish_with_reply(subject, inbox, request.to_string().into())
        .await?;
    for _ in 0..consumer.num_pending {
        let message = timeout(GRACE, arriving.next()).await?.context("the end")?;
        let ack = message.reply.context("no message")?;
        client.request(ack, "+ACK".into()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_v0_1_0_left_is_read_and_goes_on() -> Result<()> {
    if let (Some(before), Some(_)) = (before(), env::var_os("USERSYNC_RECORD")) {
        let dir = tempfile::tempdir()?;
        let conf = super::beside::conf(&before, dir.path(), false).await?;
        record(&before.join("target/debug"), &conf).await?;
    }
    let recording: Recording = serde_json::from_slice(&fs::read(recorded(FILE))?)?;
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let entry = recorder.target("audit", RETRY);
    let stack = only(format!("{entry}\n{ENTRIES}"))
        .gateways(0)
        .workers("audit", 0);
    let stack: Stack = stack.start().await?;
    let bus = Bus::connect(&stack).await?;
    play(&bus, &recording).await?;
    let mut stack = stack;
    stack.add_gateway().await?;

    // Events that waited are merged into states of before.
    bus.until_taken_in().await?;
    let now = states(&bus).await?;
    for (user, state) in &recording.states {
        ensure!(
            now.get(user) == Some(state),
            "{user}: {:?}, not {state}",
            now.get(user)
        );
    }
    ensure!(now.len() == recording.states.len(), "{}", now.len());

    // Every entry is read as it stands; that of audit has another URL by its file.
    let api = Api::of(&stack).await?;
    let targets = api.get("/v1/targets").await?;
    let known: BTreeMap<_, _> = targets["targets"]
        .as_array()
        .context("no list")?
        .iter()
        .map(|target| {
            (
                target["name"].as_str().unwrap_or_default(),
                &target["problem"],
            )
        })
        .collect();
    for name in ["audit", "graph", "shop"] {
        ensure!(known.get(name) == Some(&&Value::Null), "{name}: {targets}");
    }

    // Only what waited is delivered.
    stack.add_worker("audit").await?;
    bus.until_settled("audit").await?;
    let waited = recording
        .streams
        .iter()
        .flat_map(|recorded| &recorded.waiting);
    let waited = waited.filter(|message| message.subject.starts_with("user."));
    let told: Vec<_> = recorder.calls().iter().map(Call::user).collect();
    ensure!(
        told.len() <= waited.count() && told.iter().any(|user| user == "11"),
        "told of {told:?}"
    );
    for (user, state) in &recording.states {
        let id = user
            .parse::<u64>()
            .ok()
            .filter(|id| told.contains(&id.to_string()));
        if let Some(id) = id {
            ensure!(
                recorder.holds(id)["data"] == state["data"],
                "user {id}: {}",
                recorder.holds(id)
            );
        }
    }

    // Dead letters are still there, and refused events where they are now.
    let letters = (bus.count(USER_DEAD).await?, bus.count(USER_REFUSED).await?);
    ensure!(letters == (1, 1), "{letters:?}");
    api.post(
        "/v1/dead-letters/replay",
        json!({"target": "audit", "user_id": 9}),
    )
    .await?;
    eventually(LATER, async || {
        let left = bus.count(USER_DEAD).await?;
        ensure!(left == 0, "{left} dead letters");
        Ok(())
    })
    .await?;

    // What comes now comes after all of it.
    let before = bus.state(10).await?;
    bus.publish("user.updated", json!({"user_id": 10, "data": {"n": 3}}))
        .await?;
    let after = bus.state_after_intake(10).await?;
    ensure!(
        after["version"].as_u64() > before["version"].as_u64() && after["data"]["n"] == 3,
        "{after} after {before}"
    );
    stack.stop().await
}
