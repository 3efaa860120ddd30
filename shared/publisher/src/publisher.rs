//! Publishes events to JetStream and waits until each is stored. Never logs what is in them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::{
    ConnectOptions, HeaderMap, ServerAddr,
    connection::State,
    header::NATS_MESSAGE_ID,
    jetstream::{self, context::PublishError as JetStreamError, publish::PublishAck},
};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::json;
use usersync_core::{
    event::{Change, Envelope, Event, EventType, InvalidEvent},
    trace::TraceContext,
    user_id::UserId,
};
use uuid::Uuid;

use crate::{
    error::{ConnectError, PublishError},
    retry::{Retry, worth_another_attempt},
    user::{User, UserChanges},
};

/// Publishes the events of one service. Cheap to clone; clones share the connection.
#[derive(Clone, Debug)]
pub struct Publisher {
    jetstream: jetstream::Context,
    source: Arc<str>,
    retry: Retry,
    trace: Option<Arc<TraceContext>>,
}

/// What JetStream confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The id of the event; with its source it makes the `Nats-Msg-Id`.
    pub event_id: String,
    /// Its number in USER_EVENTS.
    pub stream_seq: u64,
    /// The stream had it already, so an earlier attempt did succeed.
    pub duplicate: bool,
}

impl Publisher {
    /// Connects to the NATS server at `url`; `source` is the name of this service.
    ///
    /// Returns at once: while the server is away the client keeps trying in the background, and
    /// publishing fails when its deadline passes.
    ///
    /// # Errors
    /// [`ConnectError`] when `url` is no address or the client can't start.
    pub async fn connect(url: &str, source: impl Into<String>) -> Result<Self, ConnectError> {
        Self::connect_with(ConnectOptions::new(), url, source).await
    }

    /// The same for a server that asks who one is: with
    /// `ConnectOptions::with_user_and_password("publisher".into(), password)` for example. Replies come under
    /// `_INBOX_publisher`, as this project's nats.conf allows.
    ///
    /// # Errors
    /// As [`Publisher::connect`].
    pub async fn connect_with(
        options: ConnectOptions,
        url: &str,
        source: impl Into<String>,
    ) -> Result<Self, ConnectError> {
        let source = source.into();
        let address: ServerAddr = url.parse().map_err(ConnectError::Address)?;
        let options = options
            .name(&source)
            .custom_inbox_prefix("_INBOX_publisher")
            .retry_on_initial_connect()
            .ping_interval(Duration::from_secs(10))
            .event_callback(|event| async move { tracing::info!(%event, "NATS connection") });
        let client = options.connect(address).await?;
        Ok(Self::new(jetstream::new(client), source))
    }

    /// Publishes over a connection the service already has; `source` is the service's name.
    pub fn new(jetstream: jetstream::Context, source: impl Into<String>) -> Self {
        let publisher = Self {
            jetstream,
            source: source.into().into(),
            retry: Retry::default(),
            trace: None,
        };
        publisher.with_retry(Retry::default())
    }

    /// Sets how long and how often each event is tried.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.jetstream
            .set_timeout(retry.attempt.min(retry.deadline));
        self.retry = retry;
        self
    }

    /// The same, for events that belong to this place in a trace: that of a request being served, say.
    #[must_use]
    pub fn within(&self, trace: TraceContext) -> Self {
        Self {
            trace: Some(Arc::new(trace)),
            ..self.clone()
        }
    }

    /// Whether the connection to NATS is up right now.
    pub fn is_connected(&self) -> bool {
        self.jetstream.client().connection_state() == State::Connected
    }

    /// Publishes that `user` exists, as a whole.
    ///
    /// # Errors
    /// [`PublishError`] when JetStream did not confirm it.
    pub async fn publish_created(&self, user: &User) -> Result<Receipt, PublishError> {
        self.publish(&self.created(user)).await
    }

    /// Publishes what changed of a user; what `changes` leaves out stays as it is.
    ///
    /// # Errors
    /// [`PublishError`] when JetStream did not confirm it.
    pub async fn publish_updated(
        &self,
        user_id: &UserId,
        changes: UserChanges,
    ) -> Result<Receipt, PublishError> {
        self.publish(&self.updated(user_id, changes)).await
    }

    /// Publishes that a user is gone.
    ///
    /// # Errors
    /// [`PublishError`] when JetStream did not confirm it.
    pub async fn publish_deleted(&self, user_id: &UserId) -> Result<Receipt, PublishError> {
        self.publish(&self.deleted(user_id)).await
    }

    /// Publishes a user's new status, such as `active` or `locked`.
    ///
    /// # Errors
    /// [`PublishError`] when JetStream did not confirm it.
    pub async fn publish_status_changed(
        &self,
        user_id: &UserId,
        status: &str,
    ) -> Result<Receipt, PublishError> {
        self.publish(&self.status_changed(user_id, status)).await
    }

    /// The event [`Self::publish_created`] publishes.
    pub fn created(&self, user: &User) -> Event {
        Event {
            username: user.username.clone().map_or(Change::Keep, Change::Set),
            email: user.email.clone().map_or(Change::Keep, Change::Set),
            data: user.data.clone().map_or(Change::Keep, Change::Set),
            ..self.stamp(EventType::Created, &user.user_id)
        }
    }

    /// The event [`Self::publish_updated`] publishes.
    pub fn updated(&self, user_id: &UserId, changes: UserChanges) -> Event {
        let UserChanges {
            username,
            email,
            data,
        } = changes;
        Event {
            username,
            email,
            data,
            ..self.stamp(EventType::Updated, user_id)
        }
    }

    /// The event [`Self::publish_deleted`] publishes.
    pub fn deleted(&self, user_id: &UserId) -> Event {
        self.stamp(EventType::Deleted, user_id)
    }

    /// The event [`Self::publish_status_changed`] publishes.
    pub fn status_changed(&self, user_id: &UserId, status: &str) -> Event {
        let data = Change::Set(json!({"status": status}));
        Event {
            data,
            ..self.stamp(EventType::StatusChanged, user_id)
        }
    }

    fn stamp(&self, kind: EventType, user_id: &UserId) -> Event {
        Event {
            id: Uuid::now_v7().to_string(),
            kind,
            user_id: user_id.clone(),
            username: Change::Keep,
            email: Change::Keep,
            data: Change::Keep,
            timestamp: Timestamp::now(),
            source: Some(self.source.to_string()),
            erase: false,
            outbox: None,
        }
    }

    /// Publishes one event, again and again under the same id until JetStream has stored it or
    /// the deadline passes. Events of one user must be published one after the other.
    ///
    /// # Errors
    /// [`PublishError`] says whether publishing the same event later is of use.
    pub async fn publish(&self, event: &Event) -> Result<Receipt, PublishError> {
        let payload = serialize(event)?;
        let started = Instant::now();
        let mut attempts = 0;
        loop {
            attempts += 1;
            let source = match self.attempt(event, payload.clone()).await {
                Ok(ack) => {
                    return Ok(Receipt {
                        event_id: event.id.clone(),
                        stream_seq: ack.sequence,
                        duplicate: ack.duplicate,
                    });
                }
                Err(error) => error,
            };
            let (event_id, kind) = (event.id.clone(), event.kind);
            if !worth_another_attempt(&source) {
                return Err(PublishError::Refused {
                    event_id,
                    kind,
                    source,
                });
            }
            let elapsed = started.elapsed();
            let Some(pause) = self.retry.pause(attempts, elapsed) else {
                return Err(PublishError::Unconfirmed {
                    event_id,
                    kind,
                    attempts,
                    elapsed,
                    source,
                });
            };
            tracing::debug!(event.id = event_id, attempts, error = %source, "event not confirmed yet");
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(&self, event: &Event, payload: Bytes) -> Result<PublishAck, JetStreamError> {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, event.key().message_id());
        for (name, text) in self.trace.iter().flat_map(|trace| trace.headers()) {
            headers.insert(name, text);
        }
        self.jetstream
            .publish_with_headers(event.kind.as_str(), headers, payload)
            .await?
            .await
    }
}

/// The JSON of an event that the gateway will take; what it would refuse is refused here.
fn serialize(event: &Event) -> Result<Bytes, PublishError> {
    let invalid = |reason| PublishError::Invalid {
        event_id: event.id.clone(),
        kind: event.kind,
        reason,
    };
    let payload = serde_json::to_vec(event)
        .map_err(|error| invalid(InvalidEvent::new("", error.to_string())))?;
    Event::parse(&payload, Envelope::default()).map_err(invalid)?;
    Ok(payload.into())
}
