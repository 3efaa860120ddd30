//! A NATS service (ADR-32 of NATS) that answers nobody but inboxes, neither requests nor `$SRV.PING|INFO|STATS`.
//!
//! Permissions of NATS don't look at where an answer goes: whoever asks names the subject, and who answers publishes
//! there with its own rights. async-nats' own service answers anywhere, so it isn't used (docs/adr/0030).

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_nats::{Client, HeaderMap, Message, Subject, SubscribeError, Subscriber};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream::select_all};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::subjects;

/// The header of an answer that is an error: what is wrong.
const ERROR: &str = "Nats-Service-Error";
/// The header of an answer that is an error: its number, as of HTTP.
const ERROR_CODE: &str = "Nats-Service-Error-Code";

/// What a service says of itself.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// One token of `[A-Za-z0-9_-]`.
    pub name: &'a str,
    /// As semver has it.
    pub version: &'a str,
    /// For people.
    pub description: &'a str,
    /// Instances with the same one share the requests.
    pub queue_group: &'a str,
}

/// A service that runs; it ends when it is dropped, and so does each of its endpoints that is.
#[derive(Debug)]
pub struct NatsService {
    client: Client,
    shared: Arc<Shared>,
    _answering: DropGuard,
}

#[derive(Debug)]
struct Shared {
    about: BTreeMap<&'static str, Value>,
    queue_group: String,
    started: Timestamp,
    endpoints: Mutex<Vec<Endpoint>>,
}

/// One endpoint, and what became of its requests.
#[derive(Debug)]
struct Endpoint {
    name: String,
    subject: String,
    metadata: HashMap<String, String>,
    requests: u64,
    errors: u64,
    processing: Duration,
    last_error: String,
}

/// What somebody asks for.
#[derive(Debug)]
pub struct Request {
    /// As it came.
    pub message: Message,
    client: Client,
    shared: Arc<Shared>,
    endpoint: usize,
    received: Instant,
}

/// An answer that is an error.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{code} {detail}")]
pub struct Refused {
    /// As of HTTP.
    pub code: u16,
    /// What is wrong, in one line.
    pub detail: String,
}

impl NatsService {
    /// Starts to answer `$SRV.…`.
    ///
    /// # Errors
    /// When the client is closed.
    pub async fn start(client: Client, about: About<'_>) -> Result<Self, SubscribeError> {
        let id = uuid::Uuid::now_v7().simple().to_string();
        let shared = Arc::new(Shared {
            about: BTreeMap::from([
                ("name", about.name.into()),
                ("id", id.as_str().into()),
                ("version", about.version.into()),
                ("description", about.description.into()),
                ("metadata", json!({})),
            ]),
            queue_group: about.queue_group.to_owned(),
            started: Timestamp::now(),
            endpoints: Mutex::default(),
        });
        let mut asked = Vec::new();
        for verb in [Verb::Ping, Verb::Info, Verb::Stats] {
            let name = about.name;
            let all = format!("$SRV.{}", verb.as_str());
            for subject in [
                all.clone(),
                format!("{all}.{name}"),
                format!("{all}.{name}.{id}"),
            ] {
                let messages = client.subscribe(subject).await?;
                asked.push(messages.map(move |message| (verb, message)));
            }
        }
        let (end, answering) = (CancellationToken::new(), client.clone());
        let ended = end.clone();
        let told = shared.clone();
        tokio::spawn(ended.run_until_cancelled_owned(async move {
            let mut asked = select_all(asked);
            while let Some((verb, message)) = asked.next().await {
                let answer = Bytes::from(told.answer(verb).to_string());
                if let Some(inbox) = inbox_of(&message) {
                    // Only a closed client refuses.
                    let _ = answering.publish(inbox, answer).await;
                }
            }
        }));
        Ok(Self {
            client,
            shared,
            _answering: end.drop_guard(),
        })
    }

    /// Takes requests on `subject`. One whose answer would go anywhere but to an inbox is ignored.
    ///
    /// # Errors
    /// When the client is closed.
    pub async fn endpoint(
        &self,
        name: &str,
        subject: String,
        metadata: HashMap<String, String>,
    ) -> Result<impl Stream<Item = Request> + Unpin + use<>, SubscribeError> {
        let queue_group = self.shared.queue_group.clone();
        let messages: Subscriber = self
            .client
            .queue_subscribe(subject.clone(), queue_group)
            .await?;
        let endpoint = {
            let mut endpoints = self.shared.endpoints();
            endpoints.push(Endpoint {
                name: name.to_owned(),
                subject,
                metadata,
                requests: 0,
                errors: 0,
                processing: Duration::ZERO,
                last_error: String::new(),
            });
            endpoints.len() - 1
        };
        let (client, shared) = (self.client.clone(), self.shared.clone());
        let requests = messages.filter_map(move |message| {
            let request = answerable(&message).then(|| Request {
                client: client.clone(),
                shared: shared.clone(),
                endpoint,
                received: Instant::now(),
                message,
            });
            std::future::ready(request)
        });
        Ok(requests)
    }
}

impl Request {
    /// Answers, unless nobody wants to know.
    pub async fn respond(&self, answer: Result<Bytes, Refused>) {
        let refused = answer.as_ref().err().map(ToString::to_string);
        if let Some(inbox) = inbox_of(&self.message) {
            let sent = match answer {
                Ok(body) => self.client.publish(inbox, body).await,
                Err(error) => {
                    let mut headers = HeaderMap::new();
                    // A header holds one line.
                    headers.insert(ERROR, error.detail.replace(char::is_control, " "));
                    headers.insert(ERROR_CODE, error.code.to_string());
                    let publish = self.client.publish_with_headers(inbox, headers, "".into());
                    publish.await
                }
            };
            if let Err(error) = sent {
                tracing::warn!(%error, subject = %self.message.subject, "can't answer a request");
            }
        }
        let mut endpoints = self.shared.endpoints();
        let Some(endpoint) = endpoints.get_mut(self.endpoint) else {
            return;
        };
        endpoint.requests += 1;
        endpoint.processing += self.received.elapsed();
        if let Some(error) = refused {
            endpoint.errors += 1;
            endpoint.last_error = error;
        }
    }
}

#[derive(Clone, Copy)]
enum Verb {
    Ping,
    Info,
    Stats,
}

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ping => "PING",
            Self::Info => "INFO",
            Self::Stats => "STATS",
        }
    }
}

impl Shared {
    /// What is said of this instance.
    fn answer(&self, verb: Verb) -> Value {
        let mut answer = json!(self.about);
        let kind = match verb {
            Verb::Ping => "io.nats.micro.v1.ping_response",
            Verb::Info => "io.nats.micro.v1.info_response",
            Verb::Stats => "io.nats.micro.v1.stats_response",
        };
        answer["type"] = kind.into();
        let stats = matches!(verb, Verb::Stats);
        let described = |endpoint: &Endpoint| {
            let mut described = json!({
                "name": endpoint.name,
                "subject": endpoint.subject,
                "queue_group": self.queue_group,
                "metadata": endpoint.metadata,
            });
            if stats {
                let total = nanoseconds(endpoint.processing);
                described["num_requests"] = endpoint.requests.into();
                described["num_errors"] = endpoint.errors.into();
                described["last_error"] = endpoint.last_error.as_str().into();
                described["processing_time"] = total.into();
                let average = total.checked_div(endpoint.requests).unwrap_or(0);
                described["average_processing_time"] = average.into();
            }
            described
        };
        if !matches!(verb, Verb::Ping) {
            let endpoints = self.endpoints();
            answer["endpoints"] = endpoints.iter().map(described).collect();
        }
        if stats {
            answer["started"] = self.started.to_string().into();
        }
        answer
    }

    fn endpoints(&self) -> MutexGuard<'_, Vec<Endpoint>> {
        self.endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// True if nothing keeps us from doing what is asked for: the answer goes to an inbox, or nobody waits for one.
fn answerable(message: &Message) -> bool {
    message.reply.is_none() || inbox_of(message).is_some()
}

/// Where an answer may go; says so when that is nowhere.
fn inbox_of(message: &Message) -> Option<Subject> {
    let reply = message.reply.clone()?;
    if subjects::is_inbox(&reply) {
        return Some(reply);
    }
    tracing::warn!(subject = %message.subject, %reply, "ignored: answers go to inboxes only");
    None
}
