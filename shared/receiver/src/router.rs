//! The routes of the kit: bounded body, signature, deliveries or a question, store, answer.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State, rejection::BytesRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
    routing::post,
};
use secrecy::SecretString;
use serde::Serialize;
use serde_json::{Value, json};
use usersync_core::signature::InvalidSecret;
use usersync_digest::{Key, http::Question};

use crate::{
    delivery::{Delivery, Posted},
    digests::{self, Unanswered},
    problem::Problem,
    signature::Proof,
    store::{Applied, StoreError, UserStore},
};

/// The header of every 2xx answer that tells the worker how this target keeps order.
pub const GUARD_HEADER: &str = "x-sync-guard";
/// The value of [`GUARD_HEADER`]: this target refuses older versions itself.
pub const GUARD_BY_VERSION: &str = "version";
const UNAVAILABLE: &str = "the store is unavailable; try again";

/// How deliveries are taken.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whose they may be.
    pub senders: Senders,
    /// The largest body taken, in bytes.
    pub max_body: usize,
}

impl Options {
    /// Deliveries of these senders, of at most 1 MiB.
    pub fn new(senders: Senders) -> Self {
        Self {
            senders,
            max_body: 1024 * 1024,
        }
    }
}

/// Whose deliveries are taken. There is no default: who takes unsigned ones has to say so.
#[derive(Clone, Debug)]
pub enum Senders {
    /// Those who know one of these Standard Webhooks secrets (`whsec_…`); several, so that one can be replaced without a
    /// gap.
    Signed(Vec<SecretString>),
    /// Everybody who reaches the service: it has to be out of strangers' reach.
    Unsigned,
}

/// Why a router can't be made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSenders {
    /// A secret can't be used.
    #[error(transparent)]
    Secret(#[from] InvalidSecret),
    /// There is none.
    #[error("there is no secret to check signatures with: give one, or say `Senders::Unsigned`")]
    NoSecret,
}

/// A router to nest at the path the target is configured with. `POST /` takes one user, or an array of at most 1,000,
/// whose answer says what became of each; `POST /digest` and `POST /list` answer checks, where there is a secret and
/// the store has [`UserStore::page`].
///
/// # Errors
/// [`InvalidSenders`] when a secret can't be used, or there is none.
pub fn router<S: UserStore>(store: S, options: Options) -> Result<Router, InvalidSenders> {
    metrics::describe_counter!(
        "usersync_receiver_deliveries_total",
        "Users and refused calls that reached a service with the receiver kit, by what became of them"
    );
    let senders = match &options.senders {
        Senders::Signed(secrets) if secrets.is_empty() => return Err(InvalidSenders::NoSecret),
        Senders::Signed(secrets) => Proof::new(secrets)?,
        Senders::Unsigned => {
            tracing::warn!(
                "unsigned deliveries are taken: whoever reaches this service can change its users"
            );
            Proof::new(&[])?
        }
    };
    let limit = DefaultBodyLimit::max(options.max_body);
    let receiver = Arc::new(Receiver {
        store,
        senders,
        checking: AtomicBool::new(false),
    });
    Ok(Router::new()
        .route("/", post(receive::<S>))
        .route("/digest", post(digest::<S>))
        .route("/list", post(list::<S>))
        .layer(limit)
        .with_state(receiver))
}

struct Receiver<S> {
    store: S,
    senders: Proof,
    /// Whether all users are being read: one check at a time is load enough.
    checking: AtomicBool,
}

async fn digest<S: UserStore>(
    State(receiver): State<Arc<Receiver<S>>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let answer = receiver.ask(&headers, body, async |store, question, key| {
        digests::digest(store, question, key).await.map(Json)
    });
    answer.await
}

async fn list<S: UserStore>(
    State(receiver): State<Arc<Receiver<S>>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let answer = receiver.ask(&headers, body, async |store, question, key| {
        digests::list(store, question, key).await.map(Json)
    });
    answer.await
}

async fn receive<S: UserStore>(
    State(receiver): State<Arc<Receiver<S>>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    match receiver.take(&headers, body).await {
        Ok(response) => response,
        Err((result, problem)) => {
            count(result);
            problem.into_response()
        }
    }
}

/// What became of one user of an array.
#[derive(Serialize)]
struct Item {
    #[serde(skip_serializing_if = "Option::is_none")]
    task_id: Option<String>,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl<S: UserStore> Receiver<S> {
    /// The body of a call that is signed as it has to be, and the key of its sender; an error's first part is the
    /// result as the metric names it.
    fn open(
        &self,
        headers: &HeaderMap,
        body: Result<Bytes, BytesRejection>,
    ) -> Result<(Bytes, Option<&Key>), (&'static str, Problem)> {
        let body =
            body.map_err(|error| ("invalid", Problem::new(error.status(), error.body_text())))?;
        match self.senders.verify(&body, headers) {
            Ok(key) => Ok((body, key)),
            Err(error) => {
                tracing::warn!(%error, "refused a call: its signature doesn't hold");
                let detail =
                    format!("the signature doesn't hold: {error}; check the secret and the clocks");
                Err(("unsigned", Problem::new(StatusCode::UNAUTHORIZED, detail)))
            }
        }
    }

    /// Answers a question about all users.
    async fn ask<T: IntoResponse>(
        &self,
        headers: &HeaderMap,
        body: Result<Bytes, BytesRejection>,
        answer: impl AsyncFnOnce(&S, &Question, &Key) -> Result<T, Unanswered>,
    ) -> Response {
        let (body, key) = match self.open(headers, body) {
            Ok(opened) => opened,
            Err((_, problem)) => return problem.into_response(),
        };
        let Some(key) = key else {
            // What anybody may ask tells anybody who can guess.
            let detail = "digests need a secret that calls are signed with";
            return Problem::new(StatusCode::NOT_IMPLEMENTED, detail).into_response();
        };
        let question = match digests::read(&body) {
            Ok(question) => question,
            Err(problem) => return problem.into_response(),
        };
        let Some(_turn) = Turn::take(&self.checking) else {
            return refusal(&StoreError::Unavailable(
                "another check is under way".into(),
            ));
        };
        match answer(&self.store, &question, key).await {
            Ok(answer) => answer.into_response(),
            Err(Unanswered::Refused(problem)) => problem.into_response(),
            Err(Unanswered::Store(error)) => {
                tracing::error!(%error, "could not read the users for a check");
                refusal(&error)
            }
        }
    }

    /// Takes one call; an error's first part is the result as the metric names it.
    async fn take(
        &self,
        headers: &HeaderMap,
        body: Result<Bytes, BytesRejection>,
    ) -> Result<Response, (&'static str, Problem)> {
        let (body, _) = self.open(headers, body)?;
        let posted = Posted::read(&body).map_err(|problem| ("invalid", problem))?;
        let guard = [(GUARD_HEADER, HeaderValue::from_static(GUARD_BY_VERSION))];
        match posted {
            Posted::One(document) => {
                let delivery = Delivery::parse(document).map_err(|problem| ("invalid", problem))?;
                Ok(match self.apply(delivery).await {
                    Ok(applied) => {
                        (guard, Json(json!({"result": applied.as_str()}))).into_response()
                    }
                    Err(error) => refusal(&error),
                })
            }
            Posted::Several(documents) => {
                let mut items = Vec::with_capacity(documents.len());
                for document in documents {
                    items.push(self.take_item(document).await);
                }
                Ok((guard, Json(items)).into_response())
            }
        }
    }

    /// One user of an array. What is wrong with them says nothing of the others.
    async fn take_item(&self, document: Value) -> Item {
        let told = document.get("task_id").and_then(Value::as_str);
        let task_id = told.map(str::to_owned);
        let (status, result, error) = match Delivery::parse(document) {
            Err(problem) => {
                count("invalid");
                (problem.status(), None, Some(problem.to_string()))
            }
            Ok(delivery) => match self.apply(delivery).await {
                Ok(applied) => (StatusCode::OK, Some(applied.as_str()), None),
                Err(StoreError::Conflict(what)) => {
                    let error = StoreError::Conflict(what).to_string();
                    (StatusCode::CONFLICT, None, Some(error))
                }
                Err(StoreError::Unavailable(_)) => {
                    let error = UNAVAILABLE.to_owned();
                    (StatusCode::SERVICE_UNAVAILABLE, None, Some(error))
                }
            },
        };
        Item {
            task_id,
            status: status.as_u16(),
            result,
            error,
        }
    }

    /// Hands one delivery to the store.
    async fn apply(&self, delivery: Delivery) -> Result<Applied, StoreError> {
        let (task_id, user_id) = (delivery.task_id.clone(), delivery.user_id.clone());
        let applied = self.store.apply(delivery).await;
        match &applied {
            Ok(applied) => {
                count(applied.as_str());
                tracing::debug!(task.id = task_id, user.id = %user_id, result = applied.as_str(), "took a delivery");
            }
            Err(error) => {
                count("failed");
                tracing::error!(task.id = task_id, user.id = %user_id, %error, "could not store a delivery");
            }
        }
        applied
    }
}

/// The right to read all users, given back also where the caller hangs up.
struct Turn<'a>(&'a AtomicBool);

impl<'a> Turn<'a> {
    fn take(taken: &'a AtomicBool) -> Option<Self> {
        let free = !taken.swap(true, Ordering::Acquire);
        free.then(|| Self(taken))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Counts one user, or one call that was refused as a whole.
fn count(result: &'static str) {
    metrics::counter!("usersync_receiver_deliveries_total", "result" => result).increment(1);
}

fn refusal(error: &StoreError) -> Response {
    match error {
        StoreError::Conflict(_) => {
            Problem::new(StatusCode::CONFLICT, error.to_string()).into_response()
        }
        StoreError::Unavailable(_) => {
            let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE);
            ([(RETRY_AFTER, "1")], problem).into_response()
        }
    }
}
