//! Reading a stream in pages, in the order of its sequences, without anything left behind in the server.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::{
    HeaderMap,
    jetstream::{
        consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
        stream::Stream,
    },
};
use bytes::Bytes;
use futures_util::StreamExt;
use jiff::Timestamp;
use tokio::time::timeout;
use usersync_core::{nats::REQUEST_TIMEOUT, pull::MOST_OCTETS};

/// Messages in one page.
pub(super) const PAGE: usize = 1_000;
/// How long the server keeps the consumer of a page that is never finished.
const FORGOTTEN: Duration = Duration::from_secs(30);
/// How often a page may come back empty although there is something to read.
const TRIES: usize = 5;

/// Which messages.
#[derive(Clone, Debug)]
pub(super) struct Query {
    /// Their subjects.
    pub filter: String,
    /// Whether bodies are left out.
    pub headers_only: bool,
}

/// One message.
#[derive(Debug)]
pub(super) struct Found {
    pub subject: String,
    pub seq: u64,
    pub time: Timestamp,
    pub headers: HeaderMap,
    pub payload: Bytes,
}

/// Some messages, and where to go on.
#[derive(Debug)]
pub(super) struct Page {
    pub found: Vec<Found>,
    /// The sequence the next page begins at, `None` when this is the last.
    pub next: Option<u64>,
    /// How many messages follow this page, as of its last one.
    pub left: u64,
}

/// Up to `most` messages from sequence `from` on.
pub(super) async fn page(
    stream: &Stream<()>,
    query: &Query,
    from: u64,
    most: usize,
) -> anyhow::Result<Page> {
    for _ in 0..TRIES {
        let page = try_page(stream, query, from, most).await?;
        // Messages that were there may be replaced, or lost with a connection: look again.
        if page.next != Some(from) {
            return Ok(page);
        }
    }
    anyhow::bail!("{} can't be read from {from} on", query.filter)
}

async fn try_page(
    stream: &Stream<()>,
    query: &Query,
    from: u64,
    most: usize,
) -> anyhow::Result<Page> {
    let config = pull::Config {
        filter_subject: query.filter.clone(),
        headers_only: query.headers_only,
        deliver_policy: DeliverPolicy::ByStartSequence {
            start_sequence: from.max(1),
        },
        ack_policy: AckPolicy::None,
        inactive_threshold: FORGOTTEN,
        memory_storage: true,
        num_replicas: 1,
        ..pull::Config::default()
    };
    let consumer: PullConsumer = stream.create_consumer(config).await?;
    let info = consumer.cached_info();
    let mut left = info.num_pending;
    let mut next = (left > 0).then_some(from);
    let mut found = Vec::new();
    if info.num_pending > 0 {
        let page = consumer.fetch().max_messages(most);
        let mut messages = page.max_bytes(MOST_OCTETS).messages().await?;
        let read = async {
            while let Some(message) = messages.next().await {
                let message = match message {
                    // The page is as long as it gets.
                    Err(error) if error.to_string().contains("Exceeds MaxBytes") => break,
                    message => message?,
                };
                let info = message.info()?;
                left = info.pending;
                next = (left > 0).then_some(info.stream_sequence + 1);
                let nanos = info.published.unix_timestamp_nanos();
                found.push(Found {
                    seq: info.stream_sequence,
                    time: Timestamp::from_nanosecond(nanos).unwrap_or_default(),
                    subject: message.message.subject.to_string(),
                    headers: message.message.headers.unwrap_or_default(),
                    payload: message.message.payload,
                });
            }
            Ok::<_, async_nats::Error>(())
        };
        // The server doesn't always say that a page has ended: what came until then is the page.
        if let Ok(read) = timeout(REQUEST_TIMEOUT, read).await {
            read.map_err(anyhow::Error::from_boxed)?;
        }
    }
    let name = &info.name;
    let deleted = stream.delete_consumer(name).await;
    deleted.context("removing the consumer of a page")?;
    Ok(Page { found, next, left })
}

/// How many messages there are, without reading them.
pub(super) async fn count(stream: &Stream<()>, filter: &str) -> anyhow::Result<u64> {
    let config = pull::Config {
        filter_subject: filter.to_owned(),
        ack_policy: AckPolicy::None,
        inactive_threshold: FORGOTTEN,
        memory_storage: true,
        num_replicas: 1,
        ..pull::Config::default()
    };
    let consumer: PullConsumer = stream.create_consumer(config).await?;
    let info = consumer.cached_info();
    let count = info.num_pending;
    stream.delete_consumer(&info.name).await?;
    Ok(count)
}
