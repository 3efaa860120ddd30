//! Following a stream without leaving anything in the server: a pull consumer without a name, which forgets itself.
//!
//! The server makes no durable one of a request that names none, so a role may have that request alone. The client
//! library's ordered consumers, and so its KV watches, name theirs when they begin again (docs/adr/0030).

use std::time::Duration;

use async_nats::jetstream::{
    self, Message,
    consumer::{AckPolicy, DeliverPolicy, pull},
    kv::{self, Operation},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};

/// How long the server keeps the consumer of somebody who has gone.
const FORGOTTEN: Duration = Duration::from_secs(30);
/// How long one request for messages lasts, and how often the server says meanwhile that it lives.
const EXPIRES: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Messages on their way, at most.
const WINDOW: usize = 500;

/// Messages as they come, and how many there were when it began.
pub struct Followed<S> {
    /// The messages. Whatever error comes first is its end: begin again.
    pub messages: S,
    /// How many wait.
    pub pending: u64,
}

/// Follows the messages of `stream` whose subject matches `filter`.
///
/// # Errors
/// When the server refuses, or doesn't answer.
pub async fn messages(
    jetstream: &jetstream::Context,
    stream: &str,
    filter: &str,
    deliver_policy: DeliverPolicy,
    headers_only: bool,
) -> anyhow::Result<Followed<impl Stream<Item = anyhow::Result<Message>> + Unpin + use<>>> {
    let config = pull::Config {
        filter_subject: filter.to_owned(),
        deliver_policy,
        headers_only,
        ack_policy: AckPolicy::None,
        inactive_threshold: FORGOTTEN,
        memory_storage: true,
        num_replicas: 1,
        ..pull::Config::default()
    };
    let consumer = jetstream.create_consumer_on_stream(config, stream).await?;
    let pending = consumer.cached_info().num_pending;
    let messages = consumer
        .stream()
        .max_messages_per_batch(WINDOW)
        .expires(EXPIRES)
        .heartbeat(HEARTBEAT)
        .messages()
        .await?;
    let messages = messages.map(|message| message.map_err(anyhow::Error::from));
    Ok(Followed { messages, pending })
}

/// A change of a bucket.
#[derive(Clone, Debug)]
pub struct Change {
    /// Of what.
    pub key: String,
    /// The new value, `None` for a deletion.
    pub value: Option<Bytes>,
    /// The bucket's revision of it.
    pub revision: u64,
    /// How many more wait.
    pub pending: u64,
}

/// Follows a bucket: every newest value and then every change, or all from a revision on.
///
/// # Errors
/// As [`messages`].
pub async fn bucket(
    jetstream: &jetstream::Context,
    store: &kv::Store,
    from: Option<u64>,
) -> anyhow::Result<impl Stream<Item = anyhow::Result<Change>> + Unpin + use<>> {
    let deliver_policy = match from {
        Some(start_sequence) => DeliverPolicy::ByStartSequence { start_sequence },
        None => DeliverPolicy::LastPerSubject,
    };
    let filter = format!("{}>", store.prefix);
    let followed = messages(
        jetstream,
        &store.stream_name,
        &filter,
        deliver_policy,
        false,
    );
    let prefix = store.prefix.clone();
    let changes = followed.await?.messages.map(move |message| {
        let message = message?;
        let info = message.info().map_err(anyhow::Error::from_boxed)?;
        let (revision, pending) = (info.stream_sequence, info.pending);
        let key = message.subject.strip_prefix(&prefix).unwrap_or_default();
        let put = operation(&message) == Operation::Put;
        Ok(Change {
            key: key.to_owned(),
            value: put.then(|| message.payload.clone()),
            revision,
            pending,
        })
    });
    Ok(changes)
}

fn operation(message: &Message) -> Operation {
    let headers = message.headers.as_ref();
    let named = headers.and_then(|headers| headers.get("KV-Operation"));
    named
        .and_then(|name| name.as_str().parse().ok())
        .unwrap_or(Operation::Put)
}
