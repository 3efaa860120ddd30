//! Publishing to a real nats-server.

#![allow(clippy::unwrap_used, reason = "a test fails where its set-up fails")]

use std::time::Duration;

use async_nats::{
    header::NATS_MESSAGE_ID,
    jetstream::{self, stream},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use usersync_core::event_key::EventKey;
use usersync_publisher::{
    Change, EventType, PublishError, Publisher, Retry, TraceContext, User, UserChanges,
};
use usersync_stack::NatsServer;

struct Nats {
    _server: NatsServer,
    _dir: TempDir,
    jetstream: jetstream::Context,
    publisher: Publisher,
}

impl Nats {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = NatsServer::start(dir.path()).await.unwrap();
        let jetstream = jetstream::new(usersync_stack::connect(&server.test_url()).await.unwrap());
        let url = server.url_as("publisher").unwrap();
        let client = usersync_stack::connect(&url);
        let publisher = Publisher::new(jetstream::new(client.await.unwrap()), "test");
        Self {
            _server: server,
            _dir: dir,
            jetstream,
            publisher,
        }
    }

    async fn make_stream(&self, bounds: stream::Config) -> stream::Stream {
        let config = stream::Config {
            name: "USER_EVENTS".to_owned(),
            subjects: vec!["user.*".to_owned()],
            discard: stream::DiscardPolicy::New,
            ..bounds
        };
        self.jetstream.create_stream(config).await.unwrap()
    }
}

fn ann() -> User {
    let data = Some(json!({"phone": "1"}));
    User {
        user_id: 42.into(),
        username: Some("ann".into()),
        email: None,
        data,
    }
}

#[tokio::test]
async fn each_type_goes_to_its_subject_under_its_own_id() {
    let nats = Nats::start().await;
    let stream = nats.make_stream(stream::Config::default()).await;
    let (publisher, id) = (&nats.publisher, 42.into());
    let changes = UserChanges {
        email: Change::Clear,
        ..UserChanges::default()
    };
    let receipts = [
        publisher.publish_created(&ann()).await.unwrap(),
        publisher.publish_updated(&id, changes).await.unwrap(),
        publisher
            .publish_status_changed(&id, "locked")
            .await
            .unwrap(),
        publisher.publish_deleted(&id).await.unwrap(),
    ];
    let types = [
        EventType::Created,
        EventType::Updated,
        EventType::StatusChanged,
        EventType::Deleted,
    ];
    let members = [
        json!({"username": "ann", "data": {"phone": "1"}}),
        json!({"email": null}),
        json!({"data": {"status": "locked"}}),
        json!({}),
    ];
    for ((receipt, kind), members) in receipts.into_iter().zip(types).zip(members) {
        assert!(!receipt.duplicate);
        let stored = stream.get_raw_message(receipt.stream_seq).await.unwrap();
        assert_eq!(stored.subject.as_str(), kind.as_str());
        assert_eq!(
            stored.headers.get(NATS_MESSAGE_ID).unwrap().as_str(),
            EventKey::new(Some("test"), &receipt.event_id).message_id()
        );
        let mut event: Value = serde_json::from_slice(&stored.payload).unwrap();
        event.as_object_mut().unwrap().remove("timestamp").unwrap();
        let mut expected =
            json!({"id": receipt.event_id, "type": kind, "user_id": 42, "source": "test"});
        for (name, value) in members.as_object().unwrap() {
            expected[name] = value.clone();
        }
        assert_eq!(event, expected);
    }
}

#[tokio::test]
async fn an_event_published_twice_is_stored_once() {
    let nats = Nats::start().await;
    nats.make_stream(stream::Config::default()).await;
    let event = nats.publisher.created(&ann());
    let first = nats.publisher.publish(&event).await.unwrap();
    let second = nats.publisher.publish(&event).await.unwrap();
    assert_eq!((first.duplicate, second.duplicate), (false, true));
    assert_eq!(first.stream_seq, second.stream_seq);
}

#[tokio::test]
async fn events_say_where_in_a_trace_they_belong() {
    let nats = Nats::start().await;
    let stream = nats.make_stream(stream::Config::default()).await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let trace = TraceContext::read(|name| match name {
        "traceparent" => Some(parent),
        "tracestate" => Some("vendor=1"),
        _ => None,
    });
    let traced = nats.publisher.within(trace.unwrap());
    traced.publish_created(&ann()).await.unwrap();
    nats.publisher.publish_deleted(&42.into()).await.unwrap();

    let message = stream.get_raw_message(1).await.unwrap();
    assert_eq!(message.headers.get("traceparent").unwrap().as_str(), parent);
    assert_eq!(
        message.headers.get("tracestate").unwrap().as_str(),
        "vendor=1"
    );
    let untraced = stream.get_raw_message(2).await.unwrap();
    assert!(untraced.headers.get("traceparent").is_none());
}

#[tokio::test]
async fn an_event_waits_for_its_stream_to_be_made() {
    let nats = Nats::start().await;
    // No stream answers the first attempts: the stream is only asked for once one has failed.
    let quick = Retry {
        deadline: Duration::from_millis(100),
        attempt: Duration::from_millis(20),
        ..Retry::default()
    };
    let event = nats.publisher.created(&ann());
    let error = nats
        .publisher
        .clone()
        .with_retry(quick)
        .publish(&event)
        .await
        .unwrap_err();
    assert!(
        error.is_transient() && error.to_string().contains("no stream"),
        "{error}"
    );

    let publishing = nats.publisher.publish(&event);
    let (receipt, _stream) = tokio::join!(publishing, nats.make_stream(stream::Config::default()));
    assert_eq!(receipt.unwrap().stream_seq, 1);
}

#[tokio::test]
async fn a_full_stream_is_worth_waiting_for_and_a_refusal_is_not() {
    let nats = Nats::start().await;
    let bounds = stream::Config {
        max_messages: 1,
        max_message_size: 400,
        ..stream::Config::default()
    };
    nats.make_stream(bounds).await;
    let quick = Retry {
        deadline: Duration::from_secs(1),
        attempt: Duration::from_millis(500),
        ..Retry::default()
    };
    let publisher = nats.publisher.clone().with_retry(quick);
    publisher.publish_created(&ann()).await.unwrap();

    let full = publisher.publish_created(&ann()).await.unwrap_err();
    assert!(
        full.is_transient() && full.to_string().contains("maximum messages"),
        "{full}"
    );
    let large = UserChanges {
        data: Change::Set(json!("x".repeat(500))),
        ..UserChanges::default()
    };
    let refused = publisher
        .publish_updated(&42.into(), large)
        .await
        .unwrap_err();
    assert!(matches!(refused, PublishError::Refused { .. }), "{refused}");
    assert!(!refused.to_string().contains("xxx"), "{refused}");
}
