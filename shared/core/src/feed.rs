//! An endless feed of messages from one durable consumer, through reconnects and deletions.
//!
//! It asks for no more than there is room for, so that everything handed out is in the caller's
//! hands: kept alive while it waits, handed back on shutdown.

use std::time::Duration;

use async_nats::jetstream::{self, Message};
use futures_util::{FutureExt, future::BoxFuture};
use tokio::time::Instant;

use crate::{
    admin::Health,
    pull::{Pull, Stopped},
};

const EXPIRES: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(250);
/// How often in a row the server may be silent before the consumer is looked for again.
const SILENCES: u32 = 4;

/// Where to pull from.
#[derive(Clone, Debug)]
pub struct Source {
    /// The JetStream connection.
    pub jetstream: jetstream::Context,
    /// The stream's name.
    pub stream: &'static str,
    /// The durable consumer's name.
    pub consumer: String,
    /// Told how the consumer stands, as part `<stream> <consumer>`.
    pub health: Health,
}

/// The messages of a [`Source`], in delivery order.
pub struct Feed {
    source: Source,
    state: State,
    /// When it was last opened.
    opened: Instant,
    /// Since the last sign of life.
    silences: u32,
    /// When the consumer was made, in unix microseconds.
    created_us: u64,
}

enum State {
    Opening(BoxFuture<'static, (Pull, u64)>),
    Open(Box<Pull>),
}

impl Feed {
    /// A feed that begins to open at once.
    pub fn new(source: Source) -> Self {
        source.health.down(&source.part(), "not opened yet");
        let state = State::Opening(source.clone().open().boxed());
        Self {
            source,
            state,
            opened: Instant::now(),
            silences: 0,
            created_us: 0,
        }
    }

    /// When the consumer was made, in unix microseconds; 0 until it has been found. What the stream held
    /// before then is a back-fill.
    pub fn created_us(&self) -> u64 {
        self.created_us
    }

    /// The next message, asking for more where there is `room` for it. Never ends; dropping the
    /// future loses nothing.
    pub async fn next(&mut self, room: usize) -> Message {
        loop {
            let pull = match &mut self.state {
                State::Opening(opening) => {
                    let (pull, created_us) = opening.await;
                    self.created_us = created_us;
                    self.state = State::Open(Box::new(pull));
                    self.opened = Instant::now();
                    continue;
                }
                State::Open(pull) => pull,
            };
            let outstanding = pull.outstanding();
            // Asking in large steps keeps requests rare; asking when all came keeps them coming.
            if outstanding == 0 || outstanding + room / 2 <= room {
                let batch = room.saturating_sub(outstanding);
                if batch > 0 && pull.ask(batch, None).await.is_err() {
                    self.reopen("the connection is closed");
                    continue;
                }
            }
            match pull.next().await {
                Ok(Some(message)) => {
                    self.silences = 0;
                    return message;
                }
                Ok(None) => self.silences = 0,
                // A busy server: what it sends late must find somebody, or it comes again only after ack_wait.
                Err(Stopped::Silent | Stopped::Reconnected) if self.silences < SILENCES => {
                    self.silences += 1;
                    pull.renew();
                }
                Err(stopped) => self.reopen(&stopped.to_string()),
            }
        }
    }

    /// The next message, if it is there already.
    pub fn ready(&mut self) -> Option<Message> {
        let State::Open(pull) = &mut self.state else {
            return None;
        };
        pull.ready().unwrap_or_else(|stopped| {
            self.reopen(&stopped.to_string());
            None
        })
    }

    /// Stops pulling; returns what was handed out and not taken.
    pub async fn close(self) -> Vec<Message> {
        self.source.health.gone(&self.source.part());
        match self.state {
            State::Opening(_) => Vec::new(),
            State::Open(pull) => pull.close().await,
        }
    }

    fn reopen(&mut self, reason: &str) {
        let part = self.source.part();
        tracing::warn!(
            consumer = part,
            reason,
            "pulling stopped; opening the consumer again"
        );
        self.source.health.down(&part, reason);
        self.silences = 0;
        // What is refused at once would be refused at once again.
        let rest = if self.opened.elapsed() < AGAIN {
            AGAIN
        } else {
            Duration::ZERO
        };
        let source = self.source.clone();
        let opening = async move {
            tokio::time::sleep(rest).await;
            source.open().await
        };
        self.state = State::Opening(opening.boxed());
    }
}

impl Source {
    fn part(&self) -> String {
        format!("{} {}", self.stream, self.consumer)
    }

    /// Waits for the consumer and opens an inbox for it; says when it was made, in unix microseconds.
    async fn open(self) -> (Pull, u64) {
        let part = self.part();
        let mut said = false;
        loop {
            match self.try_open().await {
                Ok(opened) => {
                    self.health.up(&part);
                    tracing::info!(consumer = part, "pulling");
                    return opened;
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    if !said {
                        tracing::warn!(
                            consumer = part,
                            error,
                            "waiting for the consumer; usersync-gateway creates it"
                        );
                        said = true;
                    }
                    self.health
                        .down(&part, format!("waiting for the consumer: {error}"));
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    async fn try_open(&self) -> anyhow::Result<(Pull, u64)> {
        let stream = self.jetstream.get_stream_no_info(self.stream).await?;
        let info = stream.consumer_info(&self.consumer).await?;
        let created_us = info.created.unix_timestamp_nanos() / 1_000;
        let pull = Pull::open(&self.jetstream, self.stream, &self.consumer, EXPIRES).await?;
        Ok((pull, u64::try_from(created_us).unwrap_or_default()))
    }
}
