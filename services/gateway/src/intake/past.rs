//! Whether USER_EVENTS still has the past that is known of it, and from where on it is to be merged again (ADR 50).

use std::{pin::pin, time::Duration};

use anyhow::{Context as _, bail};
use async_nats::{
    datetime,
    jetstream::{
        ErrorCode,
        consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
        response::Response,
        stream::Info,
    },
};
use futures_util::StreamExt;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;
use usersync_core::{
    nats::REQUEST_TIMEOUT,
    subjects::{INTAKE, USER_EVENTS},
};

use super::{
    mark::{Mark, Newest},
    survey::Survey,
};

/// How long a nats-server may take to sync what it has acknowledged, with room: `sync_interval` is 100 ms in our nats.conf.
pub(super) const SYNCED: Duration = Duration::from_secs(10);
/// How far the clocks of the servers of a cluster may be apart.
const APART: SignedDuration = SignedDuration::from_secs(5);
/// How long the server keeps a consumer that nobody reads any more.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// What `STREAM.MSG.GET` answers, without what only headers that can be read have.
#[derive(Deserialize)]
struct Got {
    message: Stored,
}

#[derive(Deserialize)]
struct Stored {
    time: Timestamp,
}

impl Survey {
    /// Whether USER_EVENTS has other events where it had those that are known: it was restored, or its server has lost some,
    /// and it has grown since.
    pub(super) async fn is_another(
        &self,
        known: Option<&Mark>,
        newest: &Newest,
        events: &Info,
    ) -> anyhow::Result<bool> {
        let Some(known) = known else {
            return Ok(false);
        };
        let last = self.stored_at(known.events.last_seq).await?;
        if last.is_some_and(|last| last != known.last_event) {
            return Ok(true);
        }
        if !newest.is_of(known.epochs.current()) {
            return Ok(false);
        }
        // A state is stored after the event that it contains, in a cluster perhaps by another server's clock.
        let apart = match is_clustered(events) {
            true => APART,
            false => SignedDuration::ZERO,
        };
        let stored = self.stored_at(newest.seq()).await?;
        Ok(stored.is_some_and(|stored| stored > newest.told + apart))
    }

    /// When USER_EVENTS stored this event; `None` where it isn't there any more, or never was. Asked for by hand, because
    /// the client library refuses a message with malformed headers, and publishers can send one.
    async fn stored_at(&self, seq: u64) -> anyhow::Result<Option<Timestamp>> {
        if seq == 0 {
            return Ok(None);
        }
        let subject = format!("STREAM.MSG.GET.{USER_EVENTS}");
        let asked = self.jetstream.request(subject, &json!({"seq": seq})).await;
        match asked.with_context(|| format!("asking for event {seq}"))? {
            Response::Ok(Got { message }) => Ok(Some(message.time)),
            Response::Err { error } if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => {
                Ok(None)
            }
            Response::Err { error } => bail!("asking for event {seq}: {error}"),
        }
    }

    /// Which nats-server answers; each start makes another id.
    pub(super) fn server(&self) -> String {
        self.jetstream.client().server_info().server_id
    }

    /// From which event on they are to be merged again after a nats-server that is alone was started anew: it syncs each
    /// stream by itself, so it may have lost states whose events it knows to be acknowledged. `None` where there is
    /// nothing to do. In a cluster another server has what one has lost.
    pub(super) async fn rewind(
        &self,
        known: Option<&Mark>,
        events: &Info,
    ) -> anyhow::Result<Option<u64>> {
        let Some(known) = known else {
            return Ok(None);
        };
        let same = |server: &String| *server == self.server();
        if known.server.as_ref().is_none_or(same) || is_clustered(events) {
            return Ok(None);
        }
        let lately = known.last_event - SignedDuration::try_from(SYNCED)?;
        let lately = self.first_since(lately).await?;
        let from = lately.min(known.merged.map_or(lately, |merged| merged + 1));
        let from = from.max(events.state.first_sequence).max(1);
        Ok((from <= self.floor().await?).then_some(from))
    }

    /// The first sequence of USER_EVENTS that is none of before: stored later than anything that was known. Where its events
    /// up to there are those that were known, what is acknowledged is of before, too: the consumer was restored with them.
    pub(super) async fn first_after(
        &self,
        known: Timestamp,
        newest: &Newest,
        is_another: bool,
    ) -> anyhow::Result<u64> {
        let merged = i64::try_from(newest.stored_us).unwrap_or_default() + 1;
        let after = known
            .max(Timestamp::from_microsecond(merged)?)
            .checked_add(SignedDuration::from_nanos(1))?;
        let first = self.first_since(after).await?;
        match is_another {
            true => Ok(first),
            false => Ok(first.max(self.floor().await? + 1)),
        }
    }

    /// Up to which event all are acknowledged.
    pub(super) async fn floor(&self) -> anyhow::Result<u64> {
        let consumer = self.events.consumer_info(INTAKE).await?;
        Ok(consumer.ack_floor.stream_sequence)
    }

    /// The first event that was stored then or later; behind the last one where there is none.
    async fn first_since(&self, start: Timestamp) -> anyhow::Result<u64> {
        let start = start.max(Timestamp::UNIX_EPOCH).as_nanosecond();
        let start_time = datetime::from_nanos(start).map_err(anyhow::Error::from_boxed)?;
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartTime { start_time },
            headers_only: true,
            ..reading()
        };
        let consumer: PullConsumer = self.events.create_consumer(config).await?;
        let info = consumer.cached_info();
        let mut first = self.events.get_info().await?.state.last_sequence + 1;
        if info.num_pending > 0 {
            let messages = consumer.fetch().max_messages(1).messages().await?;
            let message = timeout(REQUEST_TIMEOUT, pin!(messages).next()).await;
            if let Some(message) = message.context("USER_EVENTS: no answer")? {
                let message = message.map_err(anyhow::Error::from_boxed)?;
                first = message
                    .info()
                    .map_err(anyhow::Error::from_boxed)?
                    .stream_sequence;
            }
        }
        self.events.delete_consumer(&info.name).await?;
        Ok(first)
    }
}

/// Whether the server that has the stream isn't alone.
fn is_clustered(stream: &Info) -> bool {
    let cluster = stream.cluster.as_ref();
    cluster.is_some_and(|cluster| cluster.name.is_some())
}

/// A consumer that is read once and acknowledges nothing.
pub(super) fn reading() -> pull::Config {
    pull::Config {
        ack_policy: AckPolicy::None,
        inactive_threshold: FORGOTTEN,
        memory_storage: true,
        num_replicas: 1,
        ..pull::Config::default()
    }
}
