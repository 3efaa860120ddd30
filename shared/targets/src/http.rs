//! HTTP targets: one signed JSON call per user.

use std::{error::Error as _, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use reqwest::{
    Client, Method, Response, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER},
    redirect,
};
use secrecy::ExposeSecret;
use serde::Serialize;
use serde_json::Value;
use standardwebhooks::Webhook;
use usersync_core::{
    event::{Change, EventType},
    target::TargetConfig,
    user_id::UserId,
};

use crate::{Action, ConfigError, Delivery, Failure, Limits, Outcome, Target};

const CONCURRENCY: usize = 1_000;
/// The most of an answer's body that is read, so that the connection can be used again.
const ANSWER_BYTES: usize = 64 * 1024;
/// `Retry-After` is taken up to this.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60 * 60);
/// A target that answers this header refuses older versions by itself (the receiver kit does).
const GUARD: HeaderName = HeaderName::from_static("x-sync-guard");

const SOURCE: HeaderName = HeaderName::from_static("x-sync-source");
const TASK_ID: HeaderName = HeaderName::from_static("x-sync-task-id");
const VERSION: HeaderName = HeaderName::from_static("x-sync-version");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// A target that takes `POST`, `PUT` or `PATCH`.
pub(crate) struct HttpTarget {
    client: Client,
    method: Method,
    url: Url,
    signer: Option<Webhook>,
    limits: Limits,
}

/// The body of the contract; a member the target isn't told is absent.
#[derive(Serialize)]
struct Body<'a> {
    task_id: &'a str,
    event_type: EventType,
    user_id: &'a UserId,
    #[serde(skip_serializing_if = "Change::is_keep")]
    username: &'a Change<String>,
    #[serde(skip_serializing_if = "Change::is_keep")]
    email: &'a Change<String>,
    #[serde(skip_serializing_if = "Change::is_keep")]
    data: &'a Change<Value>,
    deleted: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
    version: u64,
    timestamp: Timestamp,
    source: Option<&'a str>,
}

impl HttpTarget {
    pub(crate) fn new(config: &TargetConfig) -> Result<Self, ConfigError> {
        let method = match config.method.as_deref() {
            None | Some("POST") => Method::POST,
            Some("PUT") => Method::PUT,
            Some("PATCH") => Method::PATCH,
            Some(other) => {
                return Err(ConfigError::Method {
                    found: other.to_owned(),
                    expected: "POST, PUT or PATCH",
                });
            }
        };
        if config.batch.is_some_and(|batch| batch.get() != 1) {
            return Err(ConfigError::Batch);
        }
        let signer = match &config.secret {
            None => None,
            Some(reference) => {
                let secret = reference.resolve()?;
                Some(Webhook::new(secret.expose_secret()).map_err(|_| ConfigError::SecretForm)?)
            }
        };
        if !config.url.username().is_empty() || config.url.password().is_some() {
            let instead =
                "a user and password in it are not sent; set headers.Authorization instead";
            return Err(ConfigError::Url(instead.to_owned()));
        }
        let limits = Limits::of(config, CONCURRENCY, 1);
        // Only the first call in a process installs it; later ones find it there.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("usersync/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers(config)?)
            .redirect(redirect::Policy::none())
            .timeout(config.timeout)
            .connect_timeout(config.timeout.min(Duration::from_secs(5)))
            .pool_max_idle_per_host(limits.concurrency)
            .build()
            .map_err(|error| ConfigError::Url(describe(&error)))?;
        Ok(Self {
            client,
            method,
            url: config.url.clone(),
            signer,
            limits,
        })
    }

    async fn post(&self, delivery: &Delivery) -> Outcome {
        let request = match self.request(delivery) {
            Ok(request) => request,
            Err(failure) => return Outcome::Permanent(failure),
        };
        match self.client.execute(request).await {
            Ok(response) => {
                let outcome = classify(response.status(), response.headers());
                finish(response).await;
                outcome
            }
            Err(error) if error.is_connect() => Outcome::Fault(Failure::new(describe(&error))),
            Err(error) => Outcome::Transient(Failure::new(describe(&error))),
        }
    }

    fn request(&self, delivery: &Delivery) -> Result<reqwest::Request, Failure> {
        let body = body(delivery)?;
        let mut request = reqwest::Request::new(self.method.clone(), self.url.clone());
        let task_id = value(&delivery.task_id)?;
        let headers = request.headers_mut();
        headers.reserve(8);
        headers.insert(IDEMPOTENCY_KEY, task_id.clone());
        headers.insert(VERSION, HeaderValue::from(delivery.version));
        // A hint for tracing: one that HTTP can't carry is no reason to fail.
        if let Some(Ok(traceparent)) = delivery.traceparent.as_deref().map(value) {
            headers.insert(TRACEPARENT, traceparent);
        }
        if let Some(signer) = &self.signer {
            let now = Timestamp::now().as_second();
            let signature = signer
                .sign(&delivery.task_id, now, &body)
                .map_err(|_| Failure::new("the call can't be signed"))?;
            headers.insert(WEBHOOK_ID, task_id.clone());
            headers.insert(WEBHOOK_TIMESTAMP, HeaderValue::from(now));
            headers.insert(WEBHOOK_SIGNATURE, value(&signature)?);
        }
        headers.insert(TASK_ID, task_id);
        *request.body_mut() = Some(body.into());
        Ok(request)
    }
}

#[async_trait]
impl Target for HttpTarget {
    async fn deliver(&self, batch: &[Delivery]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(batch.len());
        for delivery in batch {
            outcomes.push(self.post(delivery).await);
        }
        outcomes
    }

    async fn probe(&self) -> Result<(), Failure> {
        match self.client.head(self.url.clone()).send().await {
            Ok(response) => match classify(response.status(), response.headers()) {
                Outcome::Fault(failure) => Err(failure),
                _ => Ok(()),
            },
            Err(error) => Err(Failure::new(describe(&error))),
        }
    }

    fn limits(&self) -> Limits {
        self.limits
    }
}

/// The headers every call has.
fn headers(config: &TargetConfig) -> Result<HeaderMap, ConfigError> {
    let mut headers = HeaderMap::new();
    for (name, text) in &config.headers {
        let invalid = || ConfigError::Header(name.clone());
        let name: HeaderName = name.parse().map_err(|_| invalid())?;
        let mut text: HeaderValue = text.parse().map_err(|_| invalid())?;
        text.set_sensitive(true);
        headers.insert(name, text);
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(SOURCE, HeaderValue::from_static("user-sync-service"));
    Ok(headers)
}

fn body(delivery: &Delivery) -> Result<Vec<u8>, Failure> {
    let members = &delivery.members;
    let body = Body {
        task_id: &delivery.task_id,
        event_type: delivery.event_type,
        user_id: &delivery.user_id,
        username: &members.username,
        email: &members.email,
        data: &members.data,
        deleted: delivery.action == Action::Delete,
        partial: delivery.partial,
        version: delivery.version,
        timestamp: delivery.timestamp,
        source: delivery.source.as_deref(),
    };
    serde_json::to_vec(&body).map_err(|_| Failure::new("the user can't be written as JSON"))
}

fn value(text: &str) -> Result<HeaderValue, Failure> {
    HeaderValue::from_str(text)
        .map_err(|_| Failure::new("a header value has characters HTTP can't carry"))
}

/// The table of docs/ARCHITECTURE.md, "What an answer means".
fn classify(status: StatusCode, headers: &HeaderMap) -> Outcome {
    let failure = || Failure {
        reason: format!("the target answered {status}").into(),
        code: Some(status.as_u16().to_string().into()),
        retry_after: headers.get(RETRY_AFTER).and_then(retry_after),
    };
    match status.as_u16() {
        200..=299 => Outcome::Delivered {
            guarded: headers.contains_key(GUARD),
        },
        401 | 403 => Outcome::Fault(failure()),
        410 => Outcome::Gone(failure()),
        408 | 425 | 429 | 500..=599 => Outcome::Transient(failure()),
        _ => Outcome::Permanent(failure()),
    }
}

/// Seconds or an HTTP date (RFC 9110 section 10.2.3), clamped.
fn retry_after(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
            Duration::try_from(date.duration_since(Timestamp::now())).unwrap_or_default()
        }
    };
    Some(wait.min(LONGEST_RETRY_AFTER))
}

/// Reads what is left of an answer, so that its connection can carry the next call.
async fn finish(mut response: Response) {
    let mut read = 0;
    while let Ok(Some(chunk)) = response.chunk().await {
        read += chunk.len();
        if read > ANSWER_BYTES {
            return;
        }
    }
}

/// An error with its causes, without the URL, which may hold a password.
fn describe(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() {
        "timed out".to_owned()
    } else {
        "the call failed".to_owned()
    };
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16) -> Outcome {
        classify(StatusCode::from_u16(code).unwrap(), &HeaderMap::new())
    }

    #[test]
    fn answers_are_classified_as_documented() {
        for code in [200, 201, 202, 204] {
            assert_eq!(status(code), Outcome::Delivered { guarded: false });
        }
        for code in [408, 425, 429, 500, 502, 503, 504] {
            assert!(matches!(status(code), Outcome::Transient(_)), "{code}");
        }
        for code in [301, 302, 307, 400, 404, 409, 413, 422] {
            assert!(matches!(status(code), Outcome::Permanent(_)), "{code}");
        }
        assert!(matches!(status(410), Outcome::Gone(_)));
        for code in [401, 403] {
            assert!(matches!(status(code), Outcome::Fault(_)), "{code}");
        }
    }

    #[test]
    fn retry_after_takes_seconds_and_dates_and_is_clamped() {
        let wait = |text: &str| retry_after(&HeaderValue::from_str(text).unwrap());
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("999999999"), Some(LONGEST_RETRY_AFTER));
        assert_eq!(wait("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert_eq!(wait("soon"), None);
        assert_eq!(wait("-3"), None);
    }
}
