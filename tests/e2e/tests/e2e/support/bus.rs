//! A test's own connection to NATS: publishes events, reads what the streams hold.

use anyhow::{Context as _, Result, ensure};
use async_nats::{
    HeaderMap,
    jetstream::{self, stream::LastRawMessageErrorKind},
};
use serde_json::{Value, json};
use usersync_core::{
    subjects::{INTAKE, USER_DEAD, USER_EVENTS, USER_REPAIR, USER_STATE},
    user_id::UserId,
};
use usersync_stack::{Stack, eventually};

use super::LATER;

/// How many messages are under way before their confirmations are awaited.
const IN_FLIGHT: usize = 1_000;

/// A connection to the NATS server of a stack.
pub(crate) struct Bus {
    pub(crate) jetstream: jetstream::Context,
}

/// A stored dead letter.
pub(crate) struct DeadLetter {
    headers: HeaderMap,
    /// Its body.
    pub(crate) body: Value,
}

impl DeadLetter {
    /// One of its headers, empty when it isn't there.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.as_str())
    }
}

impl Bus {
    pub(crate) async fn connect(stack: &Stack) -> Result<Self> {
        let client = stack.nats.connect().await?;
        Ok(Self {
            jetstream: jetstream::new(client),
        })
    }

    /// Publishes one event and awaits the PubAck.
    pub(crate) async fn publish(&self, kind: &str, event: Value) -> Result<()> {
        self.publish_with(kind, HeaderMap::new(), event).await
    }

    /// The same with headers.
    pub(crate) async fn publish_with(
        &self,
        kind: &str,
        headers: HeaderMap,
        event: Value,
    ) -> Result<()> {
        let payload = serde_json::to_vec(&event)?.into();
        let sent = self
            .jetstream
            .publish_with_headers(kind.to_owned(), headers, payload);
        sent.await?
            .await
            .with_context(|| format!("{kind} is not stored"))?;
        Ok(())
    }

    /// Publishes many messages in order, awaiting the PubAcks of many at once.
    pub(crate) async fn publish_all(
        &self,
        messages: impl IntoIterator<Item = (impl Into<String>, Value)>,
    ) -> Result<()> {
        let mut sent = Vec::new();
        for (subject, body) in messages {
            let payload = serde_json::to_vec(&body)?.into();
            sent.push(self.jetstream.publish(subject.into(), payload).await?);
            if sent.len() == IN_FLIGHT {
                for stored in sent.drain(..) {
                    stored.await?;
                }
            }
        }
        for stored in sent {
            stored.await?;
        }
        Ok(())
    }

    /// Asks for one user's newest state to be delivered to `target`.
    pub(crate) async fn repair(&self, target: &str, user: impl Into<UserId>) -> Result<()> {
        let subject = format!("user.repair.{target}.{}", user.into().token());
        self.jetstream.publish(subject, "".into()).await?.await?;
        Ok(())
    }

    /// Stores a state by hand, as nobody but the gateway should.
    pub(crate) async fn put_state(&self, state: &Value) -> Result<()> {
        let subject = format!("user.state.{}", state["user_id"]);
        let payload = serde_json::to_vec(state)?.into();
        self.jetstream.publish(subject, payload).await?.await?;
        Ok(())
    }

    /// The JetStream connection itself.
    pub(crate) fn jetstream(&self) -> &jetstream::Context {
        &self.jetstream
    }

    /// Puts a value into a KV bucket, as `nats kv put` does; answers its revision.
    pub(crate) async fn kv_put(&self, bucket: &str, key: &str, value: &str) -> Result<u64> {
        let store = self.jetstream.get_key_value(bucket).await?;
        Ok(store.put(key, value.to_owned().into()).await?)
    }

    /// The value of a key, `None` when it isn't there.
    pub(crate) async fn kv_get(&self, bucket: &str, key: &str) -> Result<Option<Value>> {
        let store = self.jetstream.get_key_value(bucket).await?;
        let value = store.get(key).await?;
        Ok(value.map(|value| serde_json::from_slice(&value).unwrap_or_default()))
    }

    /// Deletes a key, as `nats kv del` does.
    pub(crate) async fn kv_delete(&self, bucket: &str, key: &str) -> Result<()> {
        let store = self.jetstream.get_key_value(bucket).await?;
        Ok(store.delete(key).await?)
    }

    /// Whether a stream has a consumer of that name.
    pub(crate) async fn has_consumer(&self, stream: &str, name: &str) -> Result<bool> {
        let stream = self.jetstream.get_stream_no_info(stream).await?;
        Ok(stream.consumer_info(name).await.is_ok())
    }

    /// A user's newest state, null for a user nobody has heard of.
    pub(crate) async fn state(&self, user: impl Into<UserId>) -> Result<Value> {
        let subject = format!("user.state.{}", user.into().token());
        let stored = self.last(USER_STATE, &subject).await?;
        Ok(stored.map_or(Value::Null, |(_, body)| body))
    }

    /// Waits until the gateway has merged everything published so far; answers the user's state.
    pub(crate) async fn state_after_intake(&self, user: impl Into<UserId>) -> Result<Value> {
        self.until_taken_in().await?;
        self.state(user).await
    }

    /// The dead letter of a user at `target`.
    pub(crate) async fn dead_letter(
        &self,
        target: &str,
        user: impl Into<UserId>,
    ) -> Result<Option<DeadLetter>> {
        let subject = format!("user.dead.{target}.{}", user.into().token());
        let stored = self.last(USER_DEAD, &subject).await?;
        Ok(stored.map(|(headers, body)| DeadLetter { headers, body }))
    }

    /// How many messages a stream holds.
    pub(crate) async fn count(&self, stream: &str) -> Result<u64> {
        let stream = self.jetstream.get_stream(stream).await?;
        Ok(stream.cached_info().state.messages)
    }

    /// Waits until the gateway has merged everything published so far.
    pub(crate) async fn until_taken_in(&self) -> Result<()> {
        eventually(LATER, async || self.idle(USER_EVENTS, INTAKE).await).await
    }

    /// Waits until everything published so far is taken in and `target` is through with it:
    /// nothing waits, nothing is in hand, nothing waits to be tried again.
    pub(crate) async fn until_settled(&self, target: &str) -> Result<()> {
        self.until_taken_in().await?;
        eventually(LATER, async || {
            self.idle(USER_STATE, target).await?;
            self.idle(USER_REPAIR, target).await
        })
        .await
    }

    /// How many times a stream handed messages to a consumer, redeliveries included.
    pub(crate) async fn handed_out(&self, stream: &str, consumer: &str) -> Result<u64> {
        let stream = self.jetstream.get_stream_no_info(stream).await?;
        let info = stream.consumer_info(consumer).await?;
        Ok(info.delivered.consumer_sequence)
    }

    async fn idle(&self, stream: &str, consumer: &str) -> Result<()> {
        let known = self.jetstream.get_stream(stream).await?;
        let last = known.cached_info().state.last_sequence;
        let info = known.consumer_info(consumer).await?;
        let (waiting, in_hand) = (info.num_pending, info.num_ack_pending);
        ensure!(
            waiting == 0 && in_hand == 0,
            "{consumer} on {stream}: {waiting} messages wait, {in_hand} are not acknowledged"
        );
        // A consumer learns of a message a moment after its PubAck; one of repairs sees only its own.
        let seen = info.delivered.stream_sequence;
        ensure!(
            seen >= last || stream == USER_REPAIR,
            "{consumer} on {stream}: handed out up to {seen} of {last}"
        );
        Ok(())
    }

    async fn last(&self, stream: &str, subject: &str) -> Result<Option<(HeaderMap, Value)>> {
        let stream = self.jetstream.get_stream_no_info(stream).await?;
        match stream.get_last_raw_message_by_subject(subject).await {
            Ok(message) => {
                let body = serde_json::from_slice(&message.payload).unwrap_or(json!(null));
                Ok(Some((message.headers, body)))
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
