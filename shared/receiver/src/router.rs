//! The one route of the kit: bounded body, signature, delivery, store, answer.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State, rejection::BytesRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
    routing::post,
};
use secrecy::SecretString;
use serde_json::json;

use crate::{
    delivery::Delivery,
    problem::Problem,
    signature::{InvalidSecret, Signatures},
    store::{StoreError, UserStore},
};

/// The header of every 2xx answer that tells the worker how this target keeps order.
pub const GUARD_HEADER: &str = "x-sync-guard";
/// The value of [`GUARD_HEADER`]: this target refuses older versions itself.
pub const GUARD_BY_VERSION: &str = "version";

/// How deliveries are taken.
#[derive(Clone, Debug)]
pub struct Options {
    /// Standard Webhooks secrets (`whsec_…`); a delivery signed with any of them is taken, so
    /// that a secret can be replaced without a gap. None: unsigned deliveries are taken.
    pub secrets: Vec<SecretString>,
    /// The largest body taken, in bytes.
    pub max_body: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            secrets: Vec::new(),
            max_body: 1024 * 1024,
        }
    }
}

/// A router with one route, `POST /`, to nest at the path the target is configured with.
///
/// # Errors
/// [`InvalidSecret`] when a secret can't be used.
pub fn router<S: UserStore>(store: S, options: Options) -> Result<Router, InvalidSecret> {
    let signatures = Signatures::new(&options.secrets)?;
    let limit = DefaultBodyLimit::max(options.max_body);
    let receiver = Arc::new(Receiver { store, signatures });
    Ok(Router::new()
        .route("/", post(receive::<S>))
        .layer(limit)
        .with_state(receiver))
}

struct Receiver<S> {
    store: S,
    signatures: Signatures,
}

async fn receive<S: UserStore>(
    State(receiver): State<Arc<Receiver<S>>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let (result, response) = match receiver.take(&headers, body).await {
        Ok(answer) => answer,
        Err((result, problem)) => (result, problem.into_response()),
    };
    metrics::counter!("usersync_receiver_deliveries_total", "result" => result).increment(1);
    response
}

impl<S: UserStore> Receiver<S> {
    /// Takes one call; on both sides the first part is the result as the metric names it.
    async fn take(
        &self,
        headers: &HeaderMap,
        body: Result<Bytes, BytesRejection>,
    ) -> Result<(&'static str, Response), (&'static str, Problem)> {
        let body =
            body.map_err(|error| ("invalid", Problem::new(error.status(), error.body_text())))?;
        if let Err(error) = self.signatures.verify(&body, headers) {
            tracing::warn!(%error, "refused a delivery: its signature doesn't hold");
            let detail =
                format!("the signature doesn't hold: {error}; check the secret and the clocks");
            return Err(("unsigned", Problem::new(StatusCode::UNAUTHORIZED, detail)));
        }
        let delivery = Delivery::parse(&body).map_err(|problem| ("invalid", problem))?;
        let (task_id, user_id) = (delivery.task_id.clone(), delivery.user_id.clone());
        let applied = match self.store.apply(delivery).await {
            Ok(applied) => applied,
            Err(error) => {
                tracing::error!(task.id = task_id, user.id = %user_id, %error, "could not store a delivery");
                return Ok(("failed", refusal(&error)));
            }
        };
        tracing::debug!(task.id = task_id, user.id = %user_id, result = applied.as_str(), "took a delivery");
        let guard = [(GUARD_HEADER, HeaderValue::from_static(GUARD_BY_VERSION))];
        let answer = (guard, Json(json!({"result": applied.as_str()})));
        Ok((applied.as_str(), answer.into_response()))
    }
}

fn refusal(error: &StoreError) -> Response {
    match error {
        StoreError::Conflict(_) => {
            Problem::new(StatusCode::CONFLICT, error.to_string()).into_response()
        }
        StoreError::Unavailable(_) => {
            let problem = Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "the store is unavailable; try again",
            );
            ([(RETRY_AFTER, "1")], problem).into_response()
        }
    }
}
