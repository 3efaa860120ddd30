//! Which rows are events already: a gateway that died between answer and mark, or never got the answer, leaves
//! rows that wait although they are stored. JetStream drops their repetition for as long as it knows their ids;
//! after that the stream itself is asked, which keeps events for days.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::{
    datetime,
    header::NATS_MESSAGE_ID,
    jetstream::{
        self,
        consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
    },
};
use futures_util::StreamExt;
use jiff::Timestamp;
use tokio::time::timeout;
use usersync_core::{nats::REQUEST_TIMEOUT, subjects::USER_EVENTS};
use usersync_source::{Database, OutboxRow, SourceError};

use super::event::Origin;

/// Messages asked for at once.
const FETCHED: usize = 1_000;
/// Rows marked at once.
const MARKED: usize = 10_000;
/// Half of the shortest duplicate window that settings take: rows that are older may be events whose ids are forgotten.
const DOUBTFUL: Duration = Duration::from_secs(60);
/// How far the clocks of database, gateway and NATS server may be apart.
const CLOCKS: Duration = Duration::from_secs(10 * 60);
/// How long the server keeps a consumer that nobody reads any more.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// What is known of the stream.
#[derive(Default)]
pub(super) struct Stored {
    /// The sequence behind what was read.
    next: Option<u64>,
}

impl Stored {
    /// Whether JetStream may have forgotten the id of a row, had it been published.
    pub(super) fn may_be_forgotten(row: &OutboxRow) -> bool {
        let age = Timestamp::now().as_microsecond() - row.created_us;
        u64::try_from(age).is_ok_and(|age| Duration::from_micros(age) > DOUBTFUL)
    }

    /// Marks the rows that are stored, of `oldest` and those with higher ids.
    ///
    /// # Errors
    /// When the stream can't be read, or the database doesn't answer.
    pub(super) async fn mark(
        &mut self,
        jetstream: &jetstream::Context,
        origin: &Origin,
        database: &mut Database,
        oldest: &OutboxRow,
    ) -> Result<(), SourceError> {
        let marked = self.read(jetstream, origin, database, oldest).await;
        let marked = marked.map_err(|error| {
            SourceError::Unavailable(format!("looking for rows in {USER_EVENTS}: {error:#}"))
        })?;
        if marked > 0 {
            tracing::info!(source = %origin.source, rows = marked, "rows of the outbox were published already");
        }
        Ok(())
    }

    async fn read(
        &mut self,
        jetstream: &jetstream::Context,
        origin: &Origin,
        database: &mut Database,
        oldest: &OutboxRow,
    ) -> anyhow::Result<usize> {
        let stream = jetstream.get_stream(USER_EVENTS).await?;
        let last = stream.cached_info().state.last_sequence;
        let config = pull::Config {
            headers_only: true,
            deliver_policy: self.from(oldest)?,
            ack_policy: AckPolicy::None,
            inactive_threshold: FORGOTTEN,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let consumer: PullConsumer = stream.create_consumer(config).await?;
        let mut left = consumer.cached_info().num_pending;
        let mut messages = consumer
            .stream()
            .max_messages_per_batch(FETCHED)
            .messages()
            .await?;
        let (mut ids, mut marked) = (Vec::new(), 0);
        while left > 0 {
            let message = timeout(REQUEST_TIMEOUT, messages.next()).await;
            let message = message.context("no answer")?.context("it ended")?;
            let message = message?;
            let info = message.info().map_err(anyhow::Error::from_boxed)?;
            left = if info.stream_sequence < last {
                info.pending
            } else {
                0
            };
            let headers = message.headers.as_ref();
            let id = headers.and_then(|headers| headers.get(NATS_MESSAGE_ID));
            let id = id.and_then(|id| origin.row(id.as_str()));
            ids.extend(id.filter(|id: &i64| *id >= oldest.id));
            if left == 0 || ids.len() == MARKED {
                database.mark_published(&ids).await?;
                self.next = Some(info.stream_sequence + 1);
                marked += ids.len();
                ids.clear();
            }
        }
        stream.delete_consumer(&consumer.cached_info().name).await?;
        Ok(marked)
    }

    /// Where to begin: an event isn't stored before its row is written.
    fn from(&self, oldest: &OutboxRow) -> anyhow::Result<DeliverPolicy> {
        if let Some(start_sequence) = self.next {
            return Ok(DeliverPolicy::ByStartSequence { start_sequence });
        }
        let written = Timestamp::from_microsecond(oldest.created_us)?;
        let start_time = datetime::from_nanos(written.checked_sub(CLOCKS)?.as_nanosecond())
            .map_err(anyhow::Error::from_boxed)?;
        Ok(DeliverPolicy::ByStartTime { start_time })
    }
}
