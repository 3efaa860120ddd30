//! Why an event could not be published, and what to do about it.

use std::time::Duration;

use async_nats::jetstream::context::PublishError as JetStreamError;
use usersync_core::event::{EventType, InvalidEvent};

/// No connection to NATS could be set up.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is no NATS address. It is not repeated here: it may hold a password.
    #[error("the NATS address is no URL ({0}); give one such as nats://127.0.0.1:4222")]
    Address(#[source] std::io::Error),
    /// The client refused to start.
    #[error("connecting to NATS failed: {0}; check the address and the credentials")]
    Connect(#[from] async_nats::ConnectError),
}

/// JetStream did not confirm an event.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The event breaks the contract, so nothing was sent; repeating it is no use.
    #[error("event {event_id} ({kind}) was not sent, it is not valid: {reason}")]
    Invalid {
        /// The event's id.
        event_id: String,
        /// The event's type.
        kind: EventType,
        /// Which member, and what is wrong with it.
        #[source]
        reason: InvalidEvent,
    },
    /// The stream refused the event; repeating it is no use before the cause is gone.
    #[error("event {event_id} ({kind}) was refused by the stream: {}", detail(.source))]
    Refused {
        /// The event's id.
        event_id: String,
        /// The event's type.
        kind: EventType,
        /// What JetStream said.
        #[source]
        source: JetStreamError,
    },
    /// No confirmation came in time. The event may be stored all the same: publish the same
    /// event again, its id keeps it from counting twice.
    #[error(
        "event {event_id} ({kind}) was not confirmed in {attempts} attempts over {elapsed:.1?}: \
         {}; check that NATS is reachable and that the gateway has made its streams, \
         then publish the same event again",
        detail(.source)
    )]
    Unconfirmed {
        /// The event's id.
        event_id: String,
        /// The event's type.
        kind: EventType,
        /// How often it was sent.
        attempts: u32,
        /// How long it was tried.
        elapsed: Duration,
        /// What the last attempt ended with.
        #[source]
        source: JetStreamError,
    },
}

impl PublishError {
    /// Whether publishing the same event again, later, can succeed without anything else done.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unconfirmed { .. })
    }
}

/// JetStream's error with the server's own words, which its `Display` leaves out.
fn detail(error: &JetStreamError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{}: {cause}", error.kind()),
        None => error.kind().to_string(),
    }
}
