//! An endless stream of messages from one durable consumer, through reconnects and deletions.

use std::time::Duration;

use async_nats::jetstream::{
    self, Message,
    consumer::{PullConsumer, pull},
};
use futures_util::{Stream, StreamExt, stream};
use usersync_core::admin::Health;

const EXPIRES: Duration = Duration::from_secs(10);
const HEARTBEAT: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(250);

/// Where to pull from.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// The JetStream connection.
    pub jetstream: jetstream::Context,
    /// The stream's name.
    pub stream: &'static str,
    /// The durable consumer's name.
    pub consumer: String,
    /// The most messages asked for ahead of their being taken.
    pub ahead: usize,
    /// Told how the consumer stands, as part `<stream> <consumer>`.
    pub health: Health,
}

impl Source {
    /// The messages, in delivery order. Never ends; dropping it stops pulling.
    pub(crate) fn messages(self) -> impl Stream<Item = Message> + Send + Unpin {
        let part = format!("{} {}", self.stream, self.consumer);
        self.health.down(&part, "not opened yet");
        Box::pin(stream::unfold(
            (self, part, None),
            async |(source, part, mut open)| {
                loop {
                    let mut pulling: pull::Stream = match open.take() {
                        Some(pulling) => pulling,
                        None => source.open(&part).await,
                    };
                    match pulling.next().await {
                        Some(Ok(message)) => return Some((message, (source, part, Some(pulling)))),
                        // Not terminal: the next pull tells.
                        Some(Err(error))
                            if error.kind() == pull::MessagesErrorKind::MissingHeartbeat =>
                        {
                            open = Some(pulling)
                        }
                        Some(Err(error)) => {
                            tracing::warn!(consumer = part, %error, "pulling failed; opening the consumer again");
                            source.health.down(&part, error.to_string());
                            tokio::time::sleep(AGAIN).await;
                        }
                        None => source.health.down(&part, "the consumer was closed"),
                    }
                }
            },
        ))
    }

    /// Waits for the consumer and starts pulling from it.
    async fn open(&self, part: &str) -> pull::Stream {
        let mut said = false;
        loop {
            match self.try_open().await {
                Ok(pulling) => {
                    self.health.up(part);
                    tracing::info!(consumer = part, "pulling");
                    return pulling;
                }
                Err(error) => {
                    if !said {
                        tracing::warn!(
                            consumer = part,
                            error = format!("{error:#}"),
                            "waiting for the consumer; usersync-gateway creates it"
                        );
                        said = true;
                    }
                    self.health
                        .down(part, format!("waiting for the consumer: {error:#}"));
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    async fn try_open(&self) -> anyhow::Result<pull::Stream> {
        let stream = self.jetstream.get_stream_no_info(self.stream).await?;
        let consumer: PullConsumer = stream
            .get_consumer(&self.consumer)
            .await
            .map_err(anyhow::Error::from_boxed)?;
        let pulling = consumer
            .stream()
            .max_messages_per_batch(self.ahead)
            .expires(EXPIRES)
            .heartbeat(HEARTBEAT);
        Ok(pulling.messages().await?)
    }
}
