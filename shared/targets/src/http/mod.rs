//! HTTP targets: one signed JSON call per user, or per batch where the target takes arrays.

mod answer;
mod batch;
mod call;
mod client;
mod holdings;
mod read_back;
mod signer;
mod taken;
mod token;
mod webhook;

use std::time::Duration;

use async_trait::async_trait;
use reqwest::{Method, Request, Response, Url};
use usersync_core::target::TargetConfig;

use self::{
    call::Caller, client::HttpClient, holdings::HttpHoldings, signer::Signer, taken::Taken,
};
use crate::{
    ConfigError, Conflict, Delivery, Failure, Holdings, Limits, Outcome, Standing, Target,
    Unchecked, table, way::Way,
};

pub use webhook::Webhook;

const CONCURRENCY: usize = 1_000;

/// A target that takes `POST`, `PUT` or `PATCH`.
pub(crate) struct HttpTarget {
    client: HttpClient,
    caller: Caller,
    limits: Limits,
    timeout: Duration,
    /// Where users can be read back.
    read_url: Option<String>,
    verify: bool,
    /// The members it is told.
    members: Vec<&'static str>,
    /// What is known of values that must be unique there.
    taken: Taken,
}

/// What can be said of an entry without its secrets.
///
/// # Errors
/// When it doesn't fit.
pub(crate) fn check(config: &TargetConfig) -> Result<(), ConfigError> {
    method(config)?;
    no_user(&config.url)?;
    call::plain_headers(config)?;
    read_back::template(config)?;
    Ok(())
}

fn method(config: &TargetConfig) -> Result<Method, ConfigError> {
    match config.method.as_deref() {
        None | Some("POST") => Ok(Method::POST),
        Some("PUT") => Ok(Method::PUT),
        Some("PATCH") => Ok(Method::PATCH),
        Some(other) => Err(ConfigError::Method {
            found: other.to_owned(),
            expected: "POST, PUT or PATCH",
        }),
    }
}

fn has_user(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

fn no_user(url: &Url) -> Result<(), ConfigError> {
    if !has_user(url) {
        return Ok(());
    }
    let instead = "a user and password in it are not sent; set headers.Authorization to a reference instead, \
                   `env:NAME` or `file:PATH`";
    Err(ConfigError::Url(instead.to_owned()))
}

impl HttpTarget {
    pub(crate) fn new(config: &TargetConfig, way: Way) -> Result<Self, ConfigError> {
        let method = method(config)?;
        let signer = Signer::new(config)?;
        no_user(&config.url)?;
        let limits = Limits::of(config, CONCURRENCY, 1);
        let read_url = read_back::template(config)?;
        let headers = call::headers(config)?;
        let client = HttpClient::new(config, headers, limits.concurrency, way)?;
        let caller = Caller {
            method,
            url: config.url.clone(),
            signer,
            ids: config.ids,
        };
        Ok(Self {
            client,
            caller,
            limits,
            timeout: config.timeout,
            read_url,
            verify: config.verify,
            taken: Taken::new(config),
            members: ["username", "email", "data"]
                .into_iter()
                .filter(|member| table::is_told(&config.fields, member))
                .collect(),
        })
    }

    async fn head(&self) -> Result<Response, Failure> {
        let request = Request::new(Method::HEAD, self.caller.url.clone());
        self.client.send(request).await.map_err(Failure::from)
    }

    async fn deliver_one(&self, delivery: &Delivery) -> Outcome {
        let request = match self.caller.single(delivery) {
            Ok(request) => request,
            Err(failure) => return Outcome::Permanent(failure),
        };
        answer::of(self.client.send(request).await).await
    }

    async fn deliver_each(&self, batch: &[Delivery]) -> Vec<Outcome> {
        if self.limits.batch > 1 {
            return Box::pin(self.deliver_several(batch)).await;
        }
        let mut outcomes = Vec::with_capacity(batch.len());
        for delivery in batch {
            outcomes.push(self.deliver_one(delivery).await);
        }
        outcomes
    }

    /// Says of a conflict what is known of it, and makes room for others where it is time.
    async fn explain(&self, delivery: &Delivery, conflict: &mut Conflict) {
        let refusal = self.taken.refused(delivery);
        let mut reason = conflict.failure.reason.to_string();
        if let Some((user, version)) = refusal.holder {
            reason += &match refusal.is_round {
                true => format!(": cycle with user {user}"),
                false => format!(": user {user} was told it last"),
            };
            conflict.holders = vec![(user, version)];
        }
        if refusal.gives_up {
            let bare = self.taken.without(delivery);
            let outcome = Box::pin(self.deliver_each(&[bare])).await;
            let members = self.taken.members();
            reason += &match outcome.as_slice() {
                [Outcome::Delivered { .. }] => {
                    format!("; it has been told of the user without its {members}")
                }
                _ => format!("; it doesn't take the user without its {members} either"),
            };
        }
        conflict.failure.reason = reason.into();
    }
}

#[async_trait]
impl Target for HttpTarget {
    async fn deliver(&self, batch: &[Delivery]) -> Vec<Outcome> {
        let mut outcomes = self.deliver_each(batch).await;
        for (delivery, outcome) in batch.iter().zip(&outcomes) {
            if let Outcome::Delivered { .. } = outcome {
                self.taken.took(delivery);
            }
        }
        for (delivery, outcome) in batch.iter().zip(&mut outcomes) {
            if let Outcome::Conflict(conflict) = outcome {
                Box::pin(self.explain(delivery, conflict)).await;
            }
        }
        outcomes
    }

    /// Any answer shows that it is there, but one that says that it can't be used. It need not know HEAD.
    async fn probe(&self) -> Result<(), Failure> {
        let response = self.head().await?;
        let status = response.status();
        match answer::classify(status, response.headers()) {
            Outcome::Transient(_) if status.as_u16() == 501 => Ok(()),
            Outcome::Fault(failure)
            | Outcome::Down(failure)
            | Outcome::Gone(failure)
            | Outcome::Transient(failure) => Err(failure),
            Outcome::Permanent(_)
            | Outcome::Conflict(_)
            | Outcome::Delivered { .. }
            | Outcome::AlreadyNewer => Ok(()),
        }
    }

    /// What it says to a call without a user or a signature is not what it says to a delivery.
    async fn answers(&self) -> Result<(), Failure> {
        self.head().await.map(drop)
    }

    fn verifies(&self) -> bool {
        self.verify
    }

    async fn compare(&self, batch: &[Delivery]) -> Option<Vec<Standing>> {
        let template = self.read_url.as_ref()?;
        Some(self.read_back(template, batch).await)
    }

    async fn holdings(&self) -> Result<Box<dyn Holdings + '_>, Unchecked> {
        HttpHoldings::of(self).await
    }

    fn limits(&self) -> Limits {
        self.limits
    }
}
