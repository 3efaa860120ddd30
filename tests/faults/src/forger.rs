//! Calls that nobody may make: not signed, signed by a stranger, too long ago, for something else, or with a secret
//! that was replaced. By Standard Webhooks; nothing here is the product's code.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use reqwest::{Method, StatusCode};
use standardwebhooks::Webhook;
use usersync_stack::http;

/// Nobody has given it to anybody.
const STRANGER: &str = "whsec_c3RyYW5nZXJzLWhhdmUtc2VjcmV0cy0h";
const ANSWER: Duration = Duration::from_secs(10);
/// How far a time may be off, in seconds.
const LATE: i64 = 300;
/// More than it takes to make a call.
const MARGIN: i64 = 15;

/// The headers of a signature.
#[derive(Clone, Debug)]
pub(crate) struct Signed {
    id: String,
    timestamp: i64,
    signature: String,
}

impl Signed {
    /// By `secret`, `age` seconds ago.
    pub(crate) fn new(secret: &str, age: i64, body: &str) -> Result<Self> {
        let id = format!("msg_{:016x}", fastrand::u64(..));
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let timestamp = now.cast_signed() - age;
        let webhook = Webhook::new(secret).context("a secret")?;
        let signature = webhook.sign(&id, timestamp, body.as_bytes());
        Ok(Self {
            id,
            timestamp,
            signature: signature.context("signing")?,
        })
    }

    /// Makes a call with it.
    pub(crate) async fn call(&self, method: Method, url: &str, body: &str) -> Result<StatusCode> {
        let call = http::client()
            .request(method, url)
            .header("webhook-id", &self.id)
            .header("webhook-timestamp", self.timestamp.to_string())
            .header("webhook-signature", &self.signature);
        sent(call, body).await
    }
}

async fn sent(call: reqwest::RequestBuilder, body: &str) -> Result<StatusCode> {
    let call = call.header("content-type", "application/json");
    let answer = call.timeout(ANSWER).body(body.to_owned()).send().await?;
    Ok(answer.status())
}

/// Has every door refuse `body`, as whoever doesn't know `secret` would send it; `replaced` was one.
///
/// # Errors
/// When one is let in.
pub(crate) async fn refused(url: &str, body: &str, secret: &str, replaced: &[&str]) -> Result<()> {
    let good = Signed::new(secret, 0, body)?;
    let with = |change: fn(&mut Signed)| {
        let mut forged = good.clone();
        change(&mut forged);
        forged
    };
    let mut forged = vec![
        ("by a stranger", Signed::new(STRANGER, 0, body)?),
        ("too long ago", Signed::new(secret, LATE + MARGIN, body)?),
        ("yesterday", Signed::new(secret, 24 * 60 * 60, body)?),
        ("in the future", Signed::new(secret, -LATE - MARGIN, body)?),
        ("for something else", Signed::new(secret, 0, "{}")?),
        ("for another id", with(|forged| forged.id.push('0'))),
        ("at another time", with(|forged| forged.timestamp += 1)),
        (
            "in another version",
            with(|forged| forged.signature.insert(1, '9')),
        ),
        (
            "with nothing",
            with(|forged| forged.signature = "v1,".to_owned()),
        ),
    ];
    for replaced in replaced {
        forged.push(("by a replaced secret", Signed::new(replaced, 0, body)?));
    }
    for (how, forged) in forged {
        let status = forged.call(Method::POST, url, body).await?;
        ensure!(status == StatusCode::UNAUTHORIZED, "signed {how}: {status}");
    }
    let status = sent(http::client().post(url), body).await?;
    ensure!(status == StatusCode::UNAUTHORIZED, "not signed: {status}");
    Ok(())
}
