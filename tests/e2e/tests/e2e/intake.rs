//! A stack that only takes events in: no worker, no example service. With what its tests ask of it.

#![allow(clippy::unwrap_used, reason = "a test fails where its set-up fails")]

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::{
    self, consumer,
    message::{PublishMessage, StreamMessage},
    stream::{DirectGetErrorKind, Stream},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use reqwest::header;
use serde_json::Value;
use usersync_core::{
    state::State,
    subjects::{self, INTAKE, USER_EVENTS, USER_REFUSED, USER_STATE},
    user_id::UserId,
};
use usersync_stack::{Launch, Service, Stack, eventually, free_port, http, tools};

use crate::support::SOON;

/// Gateways and the servers they need.
pub(crate) struct Intake {
    pub(crate) stack: Stack,
    pub(crate) jetstream: jetstream::Context,
    http: reqwest::Client,
}

/// What the gateway answered over HTTP.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: header::HeaderMap,
    /// Null where the body is no JSON.
    pub(crate) body: Value,
}

impl Intake {
    /// One gateway.
    pub(crate) async fn start() -> Self {
        Self::with_gateways(1).await
    }

    /// Several gateways; with none there are no streams either.
    pub(crate) async fn with_gateways(count: usize) -> Self {
        let builder = Stack::builder().gateways(count).examples(false);
        let stack = builder.workers("redis-cache", 0).start().await.unwrap();
        let client = usersync_stack::connect(&stack.nats.test_url())
            .await
            .unwrap();
        Self {
            stack,
            jetstream: jetstream::new(client),
            http: http::client(),
        }
    }

    /// A gateway that the stack doesn't have, with more arguments; it isn't waited for.
    pub(crate) fn spawn_gateway(&self, name: &str, args: &[&str]) -> Service {
        let listen = format!("127.0.0.1:{}", free_port().unwrap());
        let launch = self
            .launch("usersync-gateway", name)
            .args(["--listen", &listen]);
        Service::spawn(launch.args(args), format!("http://{listen}")).unwrap()
    }

    /// One of our binaries with this stack's servers and targets, its output in `logs/<name>.log`.
    pub(crate) fn launch(&self, binary: &str, name: &str) -> Launch {
        let program = tools::binary(binary, tools::Profile::own()).unwrap();
        let log = self.stack.dir().join("logs").join(format!("{name}.log"));
        Launch::new(name, program, log)
            .nats(&self.stack.nats, binary.trim_start_matches("usersync-"))
            .arg("--targets")
            .arg(self.stack.catalogue())
    }

    /// `POST /v1/events` with a JSON body.
    pub(crate) async fn post(&self, body: &Value) -> Answer {
        self.post_raw("application/json", body.to_string()).await
    }

    /// `POST /v1/events` with any body.
    pub(crate) async fn post_raw(&self, content_type: &str, body: impl Into<Bytes>) -> Answer {
        let url = format!("{}/v1/events", self.stack.gateway().url());
        let request = self.http.post(url).header("content-type", content_type);
        Answer::to(request.body(body.into())).await
    }

    /// `GET` on the first gateway.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        Answer::to(self.request(reqwest::Method::GET, path)).await
    }

    /// A request to the first gateway, for tests with headers or methods of their own.
    pub(crate) fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let url = format!("{}{path}", self.stack.gateway().url());
        self.http.request(method, url)
    }

    /// Publishes over NATS; the sequence it got. No header is set, not even a `Nats-Msg-Id`.
    pub(crate) async fn publish(&self, subject: &str, body: impl Into<Bytes>) -> u64 {
        self.publish_message(subject, PublishMessage::build().payload(body.into()))
            .await
            .sequence
    }

    /// Publishes a JSON event over NATS.
    pub(crate) async fn publish_json(&self, subject: &str, body: Value) -> u64 {
        self.publish(subject, body.to_string()).await
    }

    /// Publishes over NATS with headers.
    pub(crate) async fn publish_message(
        &self,
        subject: &str,
        message: PublishMessage,
    ) -> jetstream::publish::PublishAck {
        let sent = self
            .jetstream
            .send_publish(subject.to_owned(), message)
            .await;
        sent.unwrap().await.unwrap()
    }

    pub(crate) async fn stream(&self, name: &str) -> Stream<()> {
        self.jetstream.get_stream_no_info(name).await.unwrap()
    }

    /// The intake consumer as it stands.
    pub(crate) async fn consumer(&self) -> Result<consumer::Info> {
        let events = self.stream(USER_EVENTS).await;
        Ok(events.consumer_info(INTAKE).await?)
    }

    /// Waits until every event in USER_EVENTS is acknowledged.
    pub(crate) async fn all_taken_in(&self) {
        let events = self.stream(USER_EVENTS).await;
        eventually(SOON, async || {
            let last = events.get_info().await?.state.last_sequence;
            let consumer = self.consumer().await?;
            let floor = consumer.ack_floor.stream_sequence;
            let (pending, unacknowledged) = (consumer.num_pending, consumer.num_ack_pending);
            ensure!(
                floor == last && pending == 0 && unacknowledged == 0,
                "acknowledged up to {floor} of {last}; {pending} pending, {unacknowledged} unacknowledged"
            );
            Ok(())
        })
        .await
        .unwrap();
    }

    /// The message on `user.state.<id>`, by direct get.
    pub(crate) async fn state_message(&self, id: &str) -> Option<StreamMessage> {
        let states = self.stream(USER_STATE).await;
        let subject = subjects::state(&id.parse().unwrap());
        match states.direct_get_last_for_subject(subject).await {
            Ok(message) => Some(message),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => None,
            Err(error) => panic!("getting the state of {id}: {error}"),
        }
    }

    /// The state of a user, once every event is taken in.
    pub(crate) async fn state(&self, id: &str) -> State {
        self.all_taken_in().await;
        let message = self.state_message(id).await;
        let message = message.unwrap_or_else(|| panic!("there is no state of {id}"));
        serde_json::from_slice(&message.payload).unwrap()
    }

    /// Every state, by user.
    pub(crate) async fn states(&self) -> BTreeMap<UserId, State> {
        let messages = messages(&self.stream(USER_STATE).await).await;
        let states = messages
            .iter()
            .map(|message| serde_json::from_slice(&message.payload).unwrap());
        states
            .map(|state: State| (state.user_id.clone(), state))
            .collect()
    }

    /// Every event, in stream order.
    pub(crate) async fn events(&self) -> Vec<StreamMessage> {
        messages(&self.stream(USER_EVENTS).await).await
    }

    /// Every dead letter.
    pub(crate) async fn dead_letters(&self) -> Vec<StreamMessage> {
        messages(&self.stream(USER_REFUSED).await).await
    }

    /// How many messages a stream holds, and the last sequence it gave.
    pub(crate) async fn size(&self, name: &str) -> (u64, u64) {
        let state = self.stream(name).await.get_info().await.unwrap().state;
        (state.messages, state.last_sequence)
    }

    /// How many events came to `result`, by the gateways' own count.
    pub(crate) async fn counted(&self, result: &str) -> f64 {
        let metrics = self.stack.gateway_metrics().await.unwrap();
        metrics.sum("usersync_intake_events_total", &[("result", result)])
    }
}

impl Answer {
    pub(crate) async fn to(request: reqwest::RequestBuilder) -> Self {
        Self::of(request.send().await.unwrap()).await
    }

    pub(crate) async fn of(response: reqwest::Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.bytes().await.unwrap();
        let body = serde_json::from_slice(&body).unwrap_or_default();
        Self {
            status,
            headers,
            body,
        }
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// Asserts that it is a problem document (RFC 9457) with this status, about this member.
    pub(crate) fn is_problem(&self, status: u16, pointer: &str, case: &str) {
        assert_eq!(self.status, status, "{case}: {self:?}");
        assert_eq!(
            self.header("content-type"),
            "application/problem+json",
            "{case}"
        );
        assert_problem(&self.body, status, pointer, case);
    }
}

/// Asserts the members of a problem document, also of one item in an array.
pub(crate) fn assert_problem(body: &Value, status: u16, pointer: &str, case: &str) {
    assert_eq!(body["status"], status, "{case}: {body}");
    assert_eq!(
        body["pointer"].as_str().unwrap_or(""),
        pointer,
        "{case}: {body}"
    );
    for member in ["title", "detail"] {
        let text = body[member].as_str().unwrap_or("");
        assert!(!text.is_empty(), "{case}: no {member} in {body}");
    }
}

/// A header of a message, empty where there is none.
pub(crate) fn header_of<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.as_str())
}

/// Everything a stream holds, in order.
async fn messages(from: &Stream<()>) -> Vec<StreamMessage> {
    let state = from.get_info().await.unwrap().state;
    if state.messages == 0 {
        return Vec::new();
    }
    let gets = (state.first_sequence..=state.last_sequence).map(|seq| async move {
        match from.direct_get(seq).await {
            Ok(message) => Some(message),
            // Replaced by a newer one on its subject.
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => None,
            Err(error) => panic!("getting message {seq}: {error}"),
        }
    });
    let found = stream::iter(gets).buffered(100).filter_map(async |got| got);
    let found: Vec<_> = found.collect().await;
    assert_eq!(
        found.len() as u64,
        state.messages,
        "the stream changed meanwhile"
    );
    found
}
