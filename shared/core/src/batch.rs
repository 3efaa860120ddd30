//! Many messages into one stream, with one answer for many: fast ingest (ADR-50 of NATS, from nats-server 2.14).
//!
//! Beside a PubAck for each it costs a third of the client's work, and the server keeps the order: behind a
//! message that isn't stored nothing is stored, where that is wanted. See docs/adr/0027.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    sync::atomic::Ordering,
};

use anyhow::Context as _;
use async_nats::{
    Client, HeaderMap, HeaderValue, Message, StatusCode, Subject, Subscriber,
    jetstream::{self, ErrorCode},
};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use serde::Deserialize;
use tokio::time::timeout;

use crate::nats::REQUEST_TIMEOUT;

/// Messages that the server may answer at once; it may choose fewer.
const FLOW: u64 = 500;
/// Such answers that may be outstanding.
const OUTSTANDING: u64 = 4;
/// What the server says to a batch while it has as many of them under way as it takes at a time, whoever began them.
const TOO_MANY_BATCHES: u64 = 10211;

/// What the server does behind a message that it refuses, or that was lost on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It stores nothing more: what is stored is what was sent, from the first on, without a gap.
    InOrder,
    /// It goes on: each message stands for itself.
    EachForItself,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is stored, now or before (`Nats-Msg-Id`).
    Stored,
    /// It isn't: its subject's newest message is another than it expected.
    Outdated,
    /// It never will be: the stream takes none so large.
    TooLarge,
    /// It isn't, or nobody knows; [`Batches::trouble`] says why.
    Doubtful,
}

/// Why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// It never can be.
    #[error("it is larger than the NATS server takes (max_payload)")]
    TooLarge,
    /// The batch came to its end before: [`Batches::commit`] it and begin another.
    #[error("the batch has ended")]
    Ended,
}

/// Publishes batches, one after the other. The first message begins one, [`Batches::commit`] ends it; the server
/// forgets a batch that is left alone for 10 s.
pub struct Batches {
    client: Client,
    mode: Mode,
    inbox: String,
    answers: Subscriber,
    batch: Batch,
    outcomes: VecDeque<Outcome>,
    trouble: Option<String>,
    crowded: bool,
}

/// The batch under way.
#[derive(Default)]
struct Batch {
    /// What its replies begin with: inbox, id, flow, mode.
    prefix: String,
    /// The newest message, until it is known whether it is the last.
    held: Option<(Subject, HeaderMap, Bytes)>,
    added: u64,
    sent: u64,
    /// Up to here outcomes are known.
    settled: u64,
    /// Messages behind that and known already.
    refused: BTreeMap<u64, Outcome>,
    /// Messages that may be outstanding.
    window: u64,
    /// How often the client had connected when the batch began.
    connects: u64,
    ended: bool,
}

/// What the server says of a batch.
#[derive(Debug, Deserialize)]
struct Answer {
    /// `ack`, `err` or `gap`; none in the last one.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// Of an ack: all up to here were looked at; of a gap: the message behind it.
    #[serde(default)]
    seq: u64,
    /// Of an ack: messages until the next.
    msgs: Option<u64>,
    /// Of a gap: the first one missing.
    last_seq: Option<u64>,
    /// Of the last one: how many are stored.
    count: Option<u64>,
    error: Option<jetstream::Error>,
}

impl Batches {
    /// Batches through `client`.
    ///
    /// # Errors
    /// When the client is closed, or has no connection and much to send.
    pub async fn new(client: Client, mode: Mode) -> anyhow::Result<Self> {
        let inbox = client.new_inbox();
        let subscribing = client.subscribe(format!("{inbox}.>"));
        let subscribed = timeout(REQUEST_TIMEOUT, subscribing).await;
        Ok(Self {
            answers: subscribed.context("NATS can't be asked for answers")??,
            batch: Batch::new(&client, &inbox, mode),
            client,
            mode,
            inbox,
            outcomes: VecDeque::new(),
            trouble: None,
            crowded: false,
        })
    }

    /// Adds a message, which is sent with the next one or by [`Self::commit`]; waits while too many are under way.
    ///
    /// # Errors
    /// When it isn't added; there will be no outcome of it.
    pub async fn add(
        &mut self,
        subject: Subject,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<(), NotSent> {
        // What is there already costs nothing to take.
        while !self.batch.ended
            && let Some(answer) = self.answers.next().now_or_never()
        {
            self.take(answer);
        }
        if size(&headers) + payload.len() > self.client.max_payload() {
            return Err(NotSent::TooLarge);
        }
        self.send(false).await;
        if self.batch.ended {
            return Err(NotSent::Ended);
        }
        self.batch.held = Some((subject, headers, payload));
        self.batch.added += 1;
        Ok(())
    }

    /// Ends the batch; every outcome is known then.
    pub async fn commit(&mut self) {
        self.send(true).await;
        while self.batch.sent > 0 && !self.batch.ended {
            self.hear().await;
        }
        let next = Batch::new(&self.client, &self.inbox, self.mode);
        let mut batch = mem::replace(&mut self.batch, next);
        batch.settle(batch.added, Outcome::Doubtful, &mut self.outcomes);
    }

    /// Sends the newest message, which may be the last: ending a batch by a message of its own would show that one,
    /// which is empty, to everybody who listens to its subject.
    async fn send(&mut self, last: bool) {
        while !self.batch.ended && self.batch.sent >= self.batch.settled + self.batch.window {
            self.hear().await;
        }
        if self.batch.ended {
            return;
        }
        let Some((subject, headers, payload)) = self.batch.held.take() else {
            return;
        };
        if self.batch.sent == 0 {
            self.batch.connects = connects(&self.client);
        }
        let reply = self.batch.reply(last);
        let client = &self.client;
        let sending = client.publish_with_reply_and_headers(subject, reply, headers, payload);
        // While there is no connection, messages wait for it, but not without bound.
        match timeout(REQUEST_TIMEOUT, sending).await {
            Ok(Ok(())) => self.batch.sent += 1,
            Ok(Err(error)) => self.end(error.to_string()),
            Err(_) => self.late(),
        }
    }

    /// What became of messages, in the order they were added in, as far as it is known and wasn't told before.
    pub fn outcomes(&mut self) -> impl Iterator<Item = Outcome> + use<> {
        mem::take(&mut self.outcomes).into_iter()
    }

    /// Why some are in doubt, once.
    pub fn trouble(&mut self) -> Option<String> {
        self.trouble.take()
    }

    /// Whether the server took no batch because others have too many of them under way, once.
    pub fn is_crowded(&mut self) -> bool {
        mem::take(&mut self.crowded)
    }

    /// Publishes a message that belongs to no batch, and waits for its PubAck.
    pub async fn alone(&mut self, subject: Subject, headers: HeaderMap, payload: Bytes) -> Outcome {
        if size(&headers) + payload.len() > self.client.max_payload() {
            return Outcome::TooLarge;
        }
        let jetstream = jetstream::new(self.client.clone());
        let publishing = async {
            let acknowledged = jetstream.publish_with_headers(subject, headers, payload);
            acknowledged.await?.await
        };
        match timeout(REQUEST_TIMEOUT, publishing).await {
            Ok(Ok(_)) => return Outcome::Stored,
            Ok(Err(error)) => self.trouble = Some(error.to_string()),
            Err(_) => self.trouble = Some(late()),
        }
        Outcome::Doubtful
    }

    /// Waits for an answer, not for ever.
    async fn hear(&mut self) {
        match timeout(REQUEST_TIMEOUT, self.answers.next()).await {
            Ok(answer) => self.take(answer),
            Err(_) => self.late(),
        }
    }

    fn take(&mut self, answer: Option<Message>) {
        let Some(message) = answer else {
            return self.end("the connection is closed".to_owned());
        };
        // Behind the end of a batch the server refuses each message that was on its way.
        if self.batch.ended || !message.subject.starts_with(&self.batch.prefix) {
            return;
        }
        // What was said meanwhile was not heard: a refusal, perhaps.
        if self.batch.connects != connects(&self.client) {
            return self.end("the connection was lost".to_owned());
        }
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            return self.end("no stream takes it".to_owned());
        }
        let number = message.subject[self.batch.prefix.len()..].split('.').next();
        let number = number.and_then(|number| number.parse().ok()).unwrap_or(0);
        match serde_json::from_slice(&message.payload) {
            Ok(answer) => self.answered(answer, number),
            Err(error) => self.end(format!("the server's answer can't be read: {error}")),
        }
    }

    /// Takes an answer to message `number`.
    fn answered(&mut self, answer: Answer, number: u64) {
        let batch = &mut self.batch;
        match (answer.kind.as_deref(), answer.error) {
            (Some("ack"), _) => {
                let told = answer.seq.min(batch.sent);
                batch.settle(told, Outcome::Stored, &mut self.outcomes);
                batch.window = OUTSTANDING * answer.msgs.unwrap_or(FLOW).max(1);
            }
            (kind, Some(error)) => {
                let outcome = match error.error_code() {
                    ErrorCode::STREAM_WRONG_LAST_SEQUENCE => Outcome::Outdated,
                    ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => Outcome::TooLarge,
                    _ => Outcome::Doubtful,
                };
                batch.refused.insert(number, outcome);
                if outcome != Outcome::Outdated {
                    self.trouble = Some(error.to_string());
                }
                self.crowded |= error.error_code() == ErrorCode(TOO_MANY_BATCHES);
                // The only message of a batch, or there is none.
                batch.ended |= kind.is_none();
            }
            (Some("gap"), _) => {
                let missing = answer.last_seq.unwrap_or(answer.seq)..answer.seq;
                batch
                    .refused
                    .extend(missing.map(|number| (number, Outcome::Doubtful)));
                self.trouble = Some("messages were lost on the way".to_owned());
            }
            (Some(other), None) => {
                let unknown = format!("the server's answer can't be read: it is of type {other}");
                self.end(unknown);
            }
            (None, None) => {
                let all = match self.mode {
                    Mode::InOrder => answer.count.unwrap_or(0).min(batch.sent),
                    Mode::EachForItself => batch.sent,
                };
                batch.settle(all, Outcome::Stored, &mut self.outcomes);
                batch.ended = true;
            }
        }
    }

    fn late(&mut self) {
        self.end(late());
    }

    fn end(&mut self, why: String) {
        self.trouble = Some(why);
        self.batch.ended = true;
    }
}

fn late() -> String {
    format!("no answer within {} s", REQUEST_TIMEOUT.as_secs())
}

impl Batch {
    fn new(client: &Client, inbox: &str, mode: Mode) -> Self {
        let unique = client.new_inbox();
        let id = unique.rsplit('.').next().unwrap_or_default();
        let mode = match mode {
            Mode::InOrder => "fail",
            Mode::EachForItself => "ok",
        };
        Self {
            prefix: format!("{inbox}.{id}.{FLOW}.{mode}."),
            window: OUTSTANDING * FLOW,
            ..Self::default()
        }
    }

    /// Where the answer to the next message goes, which tells the server all about it.
    fn reply(&self, last: bool) -> Subject {
        let op = match (self.sent, last) {
            (_, true) => Op::Commit,
            (0, false) => Op::Start,
            _ => Op::Append,
        };
        format!("{}{}.{}.$FI", self.prefix, self.sent + 1, op as u8).into()
    }

    /// Messages up to `last` of whom nothing else is known come to `outcome`.
    fn settle(&mut self, last: u64, outcome: Outcome, outcomes: &mut VecDeque<Outcome>) {
        for number in self.settled + 1..=last {
            outcomes.push_back(self.refused.remove(&number).unwrap_or(outcome));
        }
        self.settled = self.settled.max(last);
    }
}

/// What a message is to its batch.
#[derive(Clone, Copy)]
enum Op {
    Start = 0,
    Append = 1,
    Commit = 2,
}

/// How often the client has connected.
fn connects(client: &Client) -> u64 {
    client.statistics().connects.load(Ordering::Relaxed)
}

/// Bytes of headers as they are sent.
fn size(headers: &HeaderMap) -> usize {
    let lines = headers.iter().flat_map(|(name, values)| {
        let name: &str = name.as_ref();
        let line = |value: &HeaderValue| name.len() + ": \r\n".len() + value.as_str().len();
        values.iter().map(line)
    });
    "NATS/1.0\r\n\r\n".len() + lines.sum::<usize>()
}
