//! The reference: every event of USER_EVENTS, folded in stream order. What intake stored must equal it.

#![allow(clippy::unwrap_used, reason = "a test fails where its set-up fails")]

use std::collections::BTreeMap;

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::message::StreamMessage;
use jiff::Timestamp;
use serde_json::Value;
use usersync_core::{
    epoch::{Epoch, Epochs},
    event::{Envelope, Event},
    state::{self, History, Position, Repeated, State},
    subjects::{self, USER_EVENTS},
    user_id::UserId,
};

use crate::intake::Intake;

impl Intake {
    /// Waits until every event is taken in and compares all states with the reference, and the dead letters
    /// with the events it can't parse. Versions differ by design, nothing else may.
    pub(crate) async fn equals_the_reference(&self) {
        self.all_taken_in().await;
        let (mut expected, refused) = fold(&self.events().await, &self.history().await);
        let states = self.states().await;
        for (user, state) in &states {
            if let Some(expected) = expected.get_mut(user) {
                expected.version = state.version;
            }
        }
        for (user, expected) in &expected {
            assert_eq!(states.get(user), Some(expected), "user {user}");
        }
        assert_eq!(states.len(), expected.len(), "users nobody has heard of");

        let letters = self.dead_letters().await;
        let mut letters: Vec<_> = letters
            .into_iter()
            .map(|letter| letter.subject.into_string())
            .collect();
        let mut refused: Vec<_> = refused.into_iter().map(subjects::refused_event).collect();
        letters.sort();
        refused.sort();
        assert_eq!(letters, refused, "the dead letters");
    }

    /// What the sequences of USER_EVENTS count in, as its metadata says.
    async fn history(&self) -> History {
        let info = self.stream(USER_EVENTS).await.get_info().await.unwrap();
        let epoch = info.config.metadata.get("usersync-epoch");
        let epoch = epoch.map_or_else(|| Epoch::begin(1), |epoch| epoch.parse().unwrap());
        History {
            epochs: Epochs::beginning_with(epoch),
            window: info.config.duplicate_window,
        }
    }
}

/// The states that `events` lead to, and the sequences of those that are invalid.
fn fold(events: &[StreamMessage], history: &History) -> (BTreeMap<UserId, State>, Vec<u64>) {
    let mut states: BTreeMap<UserId, Option<State>> = BTreeMap::new();
    let mut refused = Vec::new();
    for message in events {
        let Some(event) = parse(message) else {
            refused.push(message.sequence);
            continue;
        };
        let at = Position {
            seq: message.sequence,
            stored_us: stored_us(message),
            repeated: repeated(message, &event),
        };
        let state = states.entry(event.user_id.clone()).or_default();
        state::apply(state, &event, at, history, 0);
    }
    let states = states
        .into_iter()
        .filter_map(|(user, state)| Some((user, state?)));
    (states.collect(), refused)
}

fn parse(message: &StreamMessage) -> Option<Event> {
    let id = message.headers.get(NATS_MESSAGE_ID);
    let id = id.map_or_else(|| message.sequence.to_string(), ToString::to_string);
    let stored_us = i64::try_from(stored_us(message)).unwrap();
    let envelope = Envelope {
        kind: Some(subjects::event_type(&message.subject)?),
        id: Some(id),
        timestamp: Some(Timestamp::from_microsecond(stored_us).unwrap()),
    };
    Event::parse(&message.payload, envelope).ok()
}

fn repeated(message: &StreamMessage, event: &Event) -> Repeated {
    let body: Value = serde_json::from_slice(&message.payload).unwrap();
    let message_id = message.headers.get(NATS_MESSAGE_ID);
    match (message_id, body["id"].is_string()) {
        (Some(id), _) if id.as_str() == event.key().message_id() => Repeated::ByStream,
        (_, true) => Repeated::ByState,
        (Some(_), false) => Repeated::ByStream,
        (None, false) => Repeated::Never,
    }
}

fn stored_us(message: &StreamMessage) -> u64 {
    u64::try_from(message.time.unix_timestamp_nanos() / 1_000).unwrap()
}
