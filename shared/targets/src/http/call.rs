//! Calls: the JSON of one user or of several, with the headers of the contract, signed.

use std::borrow::Cow;

use jiff::Timestamp;
use reqwest::{
    Method, Request, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use secrecy::ExposeSecret;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use usersync_core::{
    event::{Change, EventType},
    header_text::HeaderText,
    target::TargetConfig,
    trace::TraceContext,
    user_id::{Ids, JsonId},
};

use super::signer::Signer;
use crate::{Action, ConfigError, Delivery, Failure};

const SOURCE: HeaderName = HeaderName::from_static("x-sync-source");
const TASK_ID: HeaderName = HeaderName::from_static("x-sync-task-id");
const VERSION: HeaderName = HeaderName::from_static("x-sync-version");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// What most bodies have room in, in bytes.
const BODY: usize = 1_024;

/// The body of the contract; a member the target isn't told is absent.
#[derive(Serialize)]
struct Body<'a> {
    task_id: &'a str,
    event_type: EventType,
    user_id: JsonId<'a>,
    #[serde(skip_serializing_if = "Change::is_keep")]
    username: &'a Change<String>,
    #[serde(skip_serializing_if = "Change::is_keep")]
    email: &'a Change<String>,
    #[serde(skip_serializing_if = "is_keep")]
    data: Cow<'a, Change<Value>>,
    deleted: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
    /// Only where `deleted` and `partial` don't say it all.
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<Action>,
    version: u64,
    timestamp: Timestamp,
    source: Option<&'a str>,
}

impl<'a> Body<'a> {
    fn of(delivery: &'a Delivery, ids: Ids) -> Self {
        let members = &delivery.members;
        let disable = delivery.action == Action::Disable;
        // Over HTTP a status is inside of data and nowhere else.
        let data = match (disable, &members.data, &members.status) {
            (true, Change::Keep, Change::Set(status)) => {
                Cow::Owned(Change::Set(json!({"status": status})))
            }
            _ => Cow::Borrowed(&members.data),
        };
        Self {
            task_id: &delivery.task_id,
            event_type: delivery.event_type,
            user_id: ids.of(&delivery.user_id),
            username: &members.username,
            email: &members.email,
            data,
            deleted: delivery.action == Action::Delete,
            partial: delivery.partial || disable,
            action: disable.then_some(Action::Disable),
            version: delivery.version,
            timestamp: delivery.timestamp,
            source: delivery.source.as_deref(),
        }
    }
}

/// For serde, which needs a function.
fn is_keep(data: &Change<Value>) -> bool {
    data.is_keep()
}

/// How calls are made: where to, and signed with what.
pub(super) struct Caller {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) signer: Option<Signer>,
    /// How integer ids are written.
    pub(super) ids: Ids,
}

impl Caller {
    /// One user.
    pub(super) fn single(&self, delivery: &Delivery) -> Result<Request, Failure> {
        let mut request = self.request(
            &delivery.task_id,
            &Body::of(delivery, self.ids),
            Signer::sign,
        )?;
        let headers = request.headers_mut();
        headers.insert(TASK_ID, value(&delivery.task_id)?);
        headers.insert(VERSION, HeaderValue::from(delivery.version));
        // A hint for tracing: one that HTTP can't carry is no reason to fail.
        for (name, text) in delivery.trace.iter().flat_map(TraceContext::headers) {
            if let Ok(text) = value(text) {
                headers.insert(HeaderName::from_static(name), text);
            }
        }
        Ok(request)
    }

    /// Several users, as an array. Task ids and versions are inside.
    pub(super) fn several(&self, batch: &[Delivery]) -> Result<Request, Failure> {
        let bodies = batch.iter().map(|delivery| Body::of(delivery, self.ids));
        let bodies: Vec<_> = bodies.collect();
        self.request(&batch_id(batch), &bodies, Signer::sign)
    }

    /// `sign` is how the signer signs.
    pub(super) fn request(
        &self,
        id: &str,
        body: &impl Serialize,
        sign: fn(&Signer, &str, i64, &[u8]) -> String,
    ) -> Result<Request, Failure> {
        let mut text = Vec::with_capacity(BODY);
        serde_json::to_writer(&mut text, body)
            .map_err(|_| Failure::new("the user can't be written as JSON"))?;
        let mut request = Request::new(self.method.clone(), self.url.clone());
        let headers = request.headers_mut();
        headers.reserve(12);
        let header = value(id)?;
        if let Some(signer) = &self.signer {
            let now = Timestamp::now().as_second();
            headers.insert(WEBHOOK_ID, header.clone());
            headers.insert(WEBHOOK_TIMESTAMP, HeaderValue::from(now));
            headers.insert(WEBHOOK_SIGNATURE, value(&sign(signer, id, now, &text))?);
        }
        headers.insert(IDEMPOTENCY_KEY, header);
        *request.body_mut() = Some(text.into());
        Ok(request)
    }
}

/// The same for the same users in the same versions and order: `batch-` and 128 bits in hex.
fn batch_id(batch: &[Delivery]) -> String {
    let mut hash = Sha256::new();
    for delivery in batch {
        hash.update(&delivery.task_id);
        hash.update(b"\n");
    }
    let hash = hash.finalize();
    hash.iter()
        .take(16)
        .fold("batch-".to_owned(), |id, byte| format!("{id}{byte:02x}"))
}

/// The headers every call has.
pub(super) fn headers(config: &TargetConfig) -> Result<HeaderMap, ConfigError> {
    let mut headers = HeaderMap::new();
    for (name, text) in &config.headers {
        let secret = text.resolve().map_err(|error| ConfigError::Secret {
            key: format!("headers.{name}"),
            error,
        })?;
        let (name, text) = header(name, secret.expose_secret())?;
        headers.insert(name, text);
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(SOURCE, HeaderValue::from_static("user-sync-service"));
    Ok(headers)
}

/// Looks at the headers of `config` as far as that can be done without its secrets.
pub(super) fn plain_headers(config: &TargetConfig) -> Result<(), ConfigError> {
    for (name, text) in &config.headers {
        let plain = match text {
            HeaderText::Plain(text) => text.as_str(),
            HeaderText::Secret(_) => "",
        };
        header(name, plain)?;
    }
    Ok(())
}

fn header(name: &str, text: &str) -> Result<(HeaderName, HeaderValue), ConfigError> {
    let invalid = || ConfigError::Header(name.to_owned());
    let key: HeaderName = name.parse().map_err(|_| invalid())?;
    let mut text: HeaderValue = text.parse().map_err(|_| invalid())?;
    text.set_sensitive(true);
    Ok((key, text))
}

fn value(text: &str) -> Result<HeaderValue, Failure> {
    HeaderValue::from_str(text)
        .map_err(|_| Failure::new("a header value has characters HTTP can't carry"))
}
