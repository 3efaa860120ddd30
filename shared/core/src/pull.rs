//! Pulling from a consumer by hand: one inbox, as much as is wanted, every answer sorted.
//!
//! The client library's own streams keep messages in a buffer that can neither be counted, handed
//! back, nor kept alive, and hide what the server says about pins. See docs/adr/0002.

use std::{pin::Pin, sync::atomic::Ordering, time::Duration};

use async_nats::{
    StatusCode, Subscriber,
    jetstream::{self, Message},
};
use futures_util::{FutureExt, StreamExt};
use serde_json::json;
use tokio::time::{Instant, Sleep, sleep_until};

/// The most octets one request is answered with. Large messages would cut the client off as a slow consumer otherwise, as
/// many as were asked for; the server takes no message for more than `max_payload`, 1 MB.
pub const MOST_OCTETS: usize = 8 << 20;
/// What ends a request that has come to its end: its next message would be more octets, or all its messages came.
const ENDED: [&str; 2] = ["Message Size Exceeds MaxBytes", "Batch Completed"];
/// Sign of life from the server while there is nothing to hand out.
pub const HEARTBEAT: Duration = Duration::from_millis(500);
/// How long the server may be silent after it was asked.
const ASKED: Duration = HEARTBEAT.saturating_mul(3);
/// And when it wasn't, before the caller may look after other things.
const IDLE: Duration = Duration::from_secs(60);
/// How long closing may wait for messages that are on their way.
const CLOSING: Duration = Duration::from_secs(2);

/// One inbox that a consumer's messages come to.
pub struct Pull {
    jetstream: jetstream::Context,
    request: String,
    expires: Duration,
    inbox: String,
    answers: Subscriber,
    outstanding: usize,
    /// When the server was last heard, or asked after a pause.
    heard: Instant,
    /// Goes off when it is time to look whether that was too long ago, or before.
    silence: Pin<Box<Sleep>>,
    connects: u64,
}

/// The member of a priority group a request is for (ADR-42 of NATS).
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// The group.
    pub group: &'a str,
    /// The pin, once the server has given one.
    pub pin: Option<&'a str>,
}

/// Why no more messages come.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    /// The server ended the request.
    #[error("the server answered {0} {1}")]
    Refused(StatusCode, String),
    /// Nothing for longer than heartbeats allow, or the connection is closed.
    #[error("the server went silent")]
    Silent,
    /// The connection was lost meanwhile, and messages with it.
    #[error("the connection was lost")]
    Reconnected,
}

impl Pull {
    /// An inbox for messages of `consumer`; each request lasts `expires`.
    ///
    /// # Errors
    /// When the client is closed.
    pub async fn open(
        jetstream: &jetstream::Context,
        stream: &str,
        consumer: &str,
        expires: Duration,
    ) -> anyhow::Result<Self> {
        let client = jetstream.client();
        let inbox = client.new_inbox();
        Ok(Self {
            answers: client.subscribe(inbox.clone()).await?,
            jetstream: jetstream.clone(),
            request: format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"),
            expires,
            inbox,
            outstanding: 0,
            heard: Instant::now(),
            silence: Box::pin(sleep_until(Instant::now())),
            connects: connects(jetstream),
        })
    }

    /// How many messages were asked for and haven't come.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Asks for up to `batch` more messages. Dropping the future before it is done asks for nothing.
    ///
    /// # Errors
    /// When the client is closed.
    pub async fn ask(&mut self, batch: usize, member: Option<Member<'_>>) -> anyhow::Result<()> {
        let mut request = json!({
            "batch": batch,
            "max_bytes": MOST_OCTETS,
            "expires": self.expires.as_nanos() as u64,
            "idle_heartbeat": HEARTBEAT.as_nanos() as u64,
        });
        if let Some(Member { group, pin }) = member {
            request["group"] = group.into();
            if let Some(pin) = pin {
                request["id"] = pin.into();
            }
        }
        let client = self.jetstream.client();
        client
            .publish_with_reply(
                self.request.clone(),
                self.inbox.clone(),
                request.to_string().into(),
            )
            .await?;
        if self.outstanding == 0 {
            self.heard = Instant::now();
            self.silence.as_mut().reset(self.heard + ASKED);
        }
        self.outstanding += batch;
        Ok(())
    }

    /// The next message; `None` is a sign of life. Dropping the future loses nothing.
    ///
    /// # Errors
    /// When no more messages come.
    pub async fn next(&mut self) -> Result<Option<Message>, Stopped> {
        let message = self.awaited().await?;
        Ok(message.map(|message| self.with_context(message)))
    }

    /// The next messages, `most` at most, as far as they are there already once the first has come; none is a sign of
    /// life. For those who answer none of them: what an answer takes isn't made. Dropping the future loses nothing.
    ///
    /// # Errors
    /// When no more messages come.
    pub async fn page(&mut self, most: usize) -> Result<Vec<async_nats::Message>, Stopped> {
        let mut page = Vec::from_iter(self.awaited().await?);
        while !page.is_empty()
            && page.len() < most
            && let Some(ready) = self.answers.next().now_or_never()
        {
            match self.sort(ready) {
                Ok(message) => page.extend(message),
                // The next request ends like this one.
                Err(_) => break,
            }
        }
        Ok(page)
    }

    async fn awaited(&mut self) -> Result<Option<async_nats::Message>, Stopped> {
        if let Some(ready) = self.answers.next().now_or_never() {
            return self.heard(ready);
        }
        // What came before the connection was lost is taken first; its requests died with it.
        if self.connects != connects(&self.jetstream) {
            return Err(Stopped::Reconnected);
        }
        loop {
            let answer = tokio::select! {
                biased;
                answer = self.answers.next() => Some(answer),
                () = self.silence.as_mut() => None,
            };
            if let Some(answer) = answer {
                return self.heard(answer);
            }
            // Counted from the last answer, not from this call: callers drop and repeat it at will. Set only here,
            // because setting a timer for every message would cost as much as taking it.
            let patience = if self.outstanding > 0 { ASKED } else { IDLE };
            let until = self.heard + patience;
            let now = Instant::now();
            if now < until {
                self.silence.as_mut().reset(until);
            } else if self.outstanding > 0 {
                return Err(Stopped::Silent);
            } else {
                self.heard = now;
                return Ok(None);
            }
        }
    }

    /// The next message, if it is there already.
    ///
    /// # Errors
    /// When no more messages come.
    pub fn ready(&mut self) -> Result<Option<Message>, Stopped> {
        let Some(answer) = self.answers.next().now_or_never() else {
            return Ok(None);
        };
        let message = self.heard(answer)?;
        Ok(message.map(|message| self.with_context(message)))
    }

    /// Goes on after silence or a lost connection: what was asked for counts as lost, and whatever of it
    /// comes late is still taken. For those who don't need messages in order.
    pub fn renew(&mut self) {
        self.outstanding = 0;
        self.heard = Instant::now();
        self.connects = connects(&self.jetstream);
    }

    /// Stops pulling; returns the messages that came without being taken.
    pub async fn close(mut self) -> Vec<Message> {
        let mut left = Vec::new();
        let closing = async {
            self.answers.drain().await.ok();
            while let Some(answer) = self.answers.next().await {
                let message = self.sort(Some(answer)).ok().flatten();
                left.extend(message.map(|message| self.with_context(message)));
            }
        };
        tokio::time::timeout(CLOSING, closing).await.ok();
        left
    }

    /// What acknowledging takes.
    fn with_context(&self, message: async_nats::Message) -> Message {
        let context = self.jetstream.clone();
        Message { message, context }
    }

    fn heard(
        &mut self,
        answer: Option<async_nats::Message>,
    ) -> Result<Option<async_nats::Message>, Stopped> {
        self.heard = Instant::now();
        self.sort(answer)
    }

    fn sort(
        &mut self,
        answer: Option<async_nats::Message>,
    ) -> Result<Option<async_nats::Message>, Stopped> {
        let message = answer.ok_or(Stopped::Silent)?;
        let status = message.status.unwrap_or(StatusCode::OK);
        if status == StatusCode::OK {
            self.outstanding = self.outstanding.saturating_sub(1);
            return Ok(Some(message));
        }
        if status == StatusCode::IDLE_HEARTBEAT {
            return Ok(None);
        }
        // The request has ended; what it asked for and did not get is said beside it.
        let unused = message
            .headers
            .as_ref()
            .and_then(|headers| headers.get("Nats-Pending-Messages"));
        let unused = unused.and_then(|count| count.as_str().parse().ok());
        self.outstanding = self
            .outstanding
            .saturating_sub(unused.unwrap_or(usize::MAX));
        let description = message.description.as_deref().unwrap_or_default();
        if status == StatusCode::TIMEOUT || ENDED.contains(&description) {
            return Ok(None);
        }
        Err(Stopped::Refused(status, description.to_owned()))
    }
}

/// How often the client has connected.
pub fn connects(jetstream: &jetstream::Context) -> u64 {
    jetstream
        .client()
        .statistics()
        .connects
        .load(Ordering::Relaxed)
}
