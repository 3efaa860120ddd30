//! `POST /v1/events`: one event or an array, answered when JetStream has stored them.

use std::{collections::BTreeMap, sync::Arc};

use async_nats::jetstream::{
    self,
    context::{PublishAckFuture, PublishErrorKind},
    message::PublishMessage,
};
use axum::{
    Json,
    body::Bytes,
    extract::{Extension, State, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, value::RawValue};
use usersync_core::{
    event::{Envelope, Event, InvalidEvent, MAX_EVENT_BYTES},
    trace::TraceContext,
};
use usersync_traces::SpanKind;
use uuid::Uuid;

use super::{
    cloud_event,
    document::{self, Documents},
};
use crate::{
    access::{Scope, Visitor},
    control::Control,
    problem::Problem,
};

/// How many events of an array are parsed before another request has its turn: everything runs on one thread.
const PARSED_AT_ONCE: usize = 16;

/// One stored event.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Accepted {
    /// The event's id.
    id: String,
    /// Its sequence in USER_EVENTS.
    seq: u64,
    /// The stream had this id already within its dedup window; nothing was stored again.
    duplicate: bool,
}

/// What became of one event of an array.
#[derive(Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub(super) enum Item {
    /// It is stored.
    Accepted {
        /// 202.
        status: u16,
        #[serde(flatten)]
        accepted: Accepted,
    },
    /// It is not.
    Refused(Problem),
}

/// What was stored: of one event, or of an array.
#[derive(Serialize, utoipa::ToSchema)]
#[serde(untagged)]
#[expect(
    dead_code,
    reason = "describes the answers; they are written by themselves"
)]
pub(super) enum Stored {
    /// Of one event.
    One(Accepted),
    /// Of an array.
    Many(Items),
}

/// The answer to an array.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct Items {
    /// How many were stored.
    accepted: usize,
    /// How many were not.
    refused: usize,
    /// What became of each, in the order of the request.
    results: Vec<Item>,
}

/// Publish one event, or an array of at most 1,000
///
/// All are under way before the first PubAck is awaited.
/// 202 when every event is stored; for an array 207 when only some are, 422 when none is. A request may be signed
/// (Standard Webhooks) instead of having a key; sent again under the same `webhook-id`, it is stored once.
#[utoipa::path(post, operation_id = "events.publish", path = "/v1/events", tag = "events",
    params(("caller" = Option<String>, Query, description = "Who signed the request, where it is signed instead of having a key")),
    request_body(description = "An event, an array of events, or CloudEvents 1.0; see docs/EVENTS.md", content(
        (Object = "application/json"), (Object = "application/cloudevents+json"))),
    responses(
        (status = 202, description = "Stored", body = Stored),
        (status = 207, description = "Some of the array are stored", body = Items),
        (status = 400, description = "Not JSON", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "Too large", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "Another content type", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "No valid event; for an array: none is", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't store it now: send it again with the same id", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn publish(
    State(control): State<Arc<Control>>,
    Extension(visitor): Extension<Visitor>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let parent = TraceContext::read(|name| headers.get(name)?.to_str().ok());
    let mut span = control
        .traces
        .span(SpanKind::Server, "POST /v1/events", parent);
    let answered = take_in(&control, &visitor, &headers, body, span.context()).await;
    let status = answered
        .as_ref()
        .map_or_else(|problem| problem.status, Response::status);
    span.set("http.request.method", "POST");
    span.set("http.route", "/v1/events");
    span.set("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.fail("unavailable");
    }
    answered
}

/// Publishes what the body holds, as far as `visitor` may; answers when it is stored.
async fn take_in(
    control: &Control,
    visitor: &Visitor,
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
    trace: Option<TraceContext>,
) -> Result<Response, Problem> {
    let body = body.map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
    if !is_json(headers) {
        let detail = "the content type must be application/json or application/cloudevents+json";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    let (events, one) = match Documents::of(&body)? {
        Documents::One(document) => (vec![Ok(parse(document, visitor, None)?)], true),
        Documents::Many(documents) => (parse_all(&documents, visitor).await, false),
    };
    let standing = match visitor.events(count(&events)) {
        Ok(standing) => standing,
        Err(refusal) => return Ok(refusal.into_response()),
    };
    let mut sent = Vec::with_capacity(events.len());
    for event in events {
        sent.push(match event {
            Ok(event) => send(&control.jetstream, event, trace.as_ref()).await,
            Err(problem) => Err(problem),
        });
    }
    let mut response = match sent.pop() {
        Some(sent) if one => {
            let accepted = sent?.stored().await?;
            (StatusCode::ACCEPTED, Json(accepted)).into_response()
        }
        last => {
            sent.extend(last);
            stored(sent).await
        }
    };
    if let Some(standing) = standing {
        standing.tell(response.headers_mut());
    }
    Ok(response)
}

/// How many valid events there are of each source.
fn count(events: &[Result<Event, Problem>]) -> BTreeMap<Option<String>, u32> {
    let mut sources = BTreeMap::new();
    for event in events.iter().flatten() {
        *sources.entry(event.source.clone()).or_default() += 1;
    }
    sources
}

/// Parses every document, letting other requests in between.
async fn parse_all(documents: &[&RawValue], visitor: &Visitor) -> Vec<Result<Event, Problem>> {
    let mut events = Vec::with_capacity(documents.len());
    for some in documents.chunks(PARSED_AT_ONCE) {
        let begin = events.len();
        let parsed = some.iter().enumerate().map(|(place, text)| {
            let document = document::item(text)?;
            parse(document, visitor, Some(begin + place))
        });
        events.extend(parsed);
        tokio::task::yield_now().await;
    }
    events
}

/// What becomes of an array whose events are all under way.
async fn stored(sent: Vec<Result<Sent, Problem>>) -> Response {
    let mut items = Items {
        accepted: 0,
        refused: 0,
        results: Vec::with_capacity(sent.len()),
    };
    let mut unavailable = false;
    for sent in sent {
        let stored = match sent {
            Ok(sent) => sent.stored().await,
            Err(problem) => Err(problem),
        };
        items.results.push(match stored {
            Ok(accepted) => {
                items.accepted += 1;
                Item::Accepted {
                    status: StatusCode::ACCEPTED.as_u16(),
                    accepted,
                }
            }
            Err(problem) => {
                items.refused += 1;
                unavailable |= problem.status == StatusCode::SERVICE_UNAVAILABLE;
                Item::Refused(problem)
            }
        });
    }
    let status = match (items.accepted, items.refused) {
        (_, 0) => StatusCode::ACCEPTED,
        (0, _) if unavailable => StatusCode::SERVICE_UNAVAILABLE,
        (0, _) => StatusCode::UNPROCESSABLE_ENTITY,
        _ => StatusCode::MULTI_STATUS,
    };
    (status, Json(items)).into_response()
}

/// An event on its way into the stream.
struct Sent {
    id: String,
    ack: PublishAckFuture,
}

impl Sent {
    async fn stored(self) -> Result<Accepted, Problem> {
        match self.ack.await {
            Ok(ack) => Ok(Accepted {
                id: self.id,
                seq: ack.sequence,
                duplicate: ack.duplicate,
            }),
            Err(error) if error.kind() == PublishErrorKind::TimedOut => Err(Problem::unavailable(
                "NATS did not confirm the event in time; it may be stored: send it again with the same id",
            )),
            Err(_) => Err(Problem::unavailable(
                "NATS did not store the event; send it again with the same id",
            )),
        }
    }
}

async fn send(
    jetstream: &jetstream::Context,
    event: Event,
    trace: Option<&TraceContext>,
) -> Result<Sent, Problem> {
    let payload = serde_json::to_vec(&event)
        .map_err(|_| InvalidEvent::new("", "can't be written as JSON"))?;
    if payload.len() > MAX_EVENT_BYTES {
        let reason = format!(
            "the event has {} bytes; at most {MAX_EVENT_BYTES} are taken",
            payload.len()
        );
        return Err(InvalidEvent::new("", reason).into());
    }
    let mut message = PublishMessage::build()
        .payload(payload.into())
        .message_id(event.key().message_id());
    for (name, text) in trace.into_iter().flat_map(TraceContext::headers) {
        message = message.header(name, text);
    }
    let sent = jetstream.send_publish(event.kind.as_str(), message).await;
    let ack =
        sent.map_err(|_| Problem::unavailable("NATS can't be reached; send the event again"))?;
    Ok(Sent { id: event.id, ack })
}

/// Reads one event, which must be of a source that the caller speaks for; `place` is where in an array it is.
fn parse(document: Value, visitor: &Visitor, place: Option<usize>) -> Result<Event, Problem> {
    let caller = &visitor.caller;
    let document = if cloud_event::is_cloud_event(&document) {
        cloud_event::into_event(document)?
    } else {
        document
    };
    let envelope = Envelope {
        kind: None,
        id: visitor
            .event_id(place)
            .or_else(|| Some(Uuid::now_v7().to_string())),
        timestamp: Some(Timestamp::now()),
    };
    let mut event = Event::from_value(document, envelope)?;
    match &event.source {
        Some(source) if !caller.speaks_for(source) => {
            let detail = format!("{} isn't bound to this source", caller.name);
            return Err(Problem {
                pointer: Some("/source".into()),
                ..Problem::new(StatusCode::FORBIDDEN, detail)
            });
        }
        Some(_) => {}
        // Nobody else's ids are in the namespace of a caller.
        None => event.source = caller.source().map(str::to_owned),
    }
    if event.erase && !caller.may(Scope::Erase) {
        let detail = format!("the key of {} hasn't the scope erase", caller.name);
        return Err(Problem {
            pointer: Some("/erase".into()),
            ..Problem::new(StatusCode::FORBIDDEN, detail)
        });
    }
    Ok(event)
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return true;
    };
    let essence = value
        .to_str()
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    essence == "application/json"
        || essence == "application/cloudevents+json"
        || essence == "application/cloudevents-batch+json"
}
