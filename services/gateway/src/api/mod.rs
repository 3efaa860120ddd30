//! The HTTP API: one file per group of endpoints, every error a problem document (RFC 9457).

mod cloud_event;
mod events;
mod problem;
mod users;

use std::time::{Duration, Instant};

use async_nats::jetstream;
use axum::{
    Router,
    extract::{DefaultBodyLimit, MatchedPath, Request},
    http::{HeaderName, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use metrics::{counter, histogram};
use tower_http::request_id::{
    MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer,
};

use problem::Problem;

/// The largest request body, in bytes.
const BODY_BYTES: usize = 8 * 1024 * 1024;
/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(15);
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// All routes of the API.
pub(crate) fn router(jetstream: jetstream::Context) -> Router {
    Router::new()
        .route("/v1/events", post(events::publish))
        .route("/v1/users/{id}", get(users::show))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "there is nothing at this path"))
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path takes another method",
            )
        })
        .layer(middleware::from_fn(measure))
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(SetRequestIdLayer::new(REQUEST_ID, NewRequestId))
        .with_state(jetstream)
}

/// A fresh id for requests that bring none.
#[derive(Clone)]
struct NewRequestId;

impl MakeRequestId for NewRequestId {
    fn make_request_id<B>(&mut self, _: &axum::http::Request<B>) -> Option<RequestId> {
        uuid::Uuid::now_v7()
            .to_string()
            .parse()
            .ok()
            .map(RequestId::new)
    }
}

/// Counts and times every request by route and status, and ends those that take too long.
async fn measure(path: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let response = match tokio::time::timeout(TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::unavailable("the request took too long; send it again").into_response(),
    };
    let route = path.map_or_else(|| "none".to_owned(), |path| path.as_str().to_owned());
    counter!("usersync_http_requests_total", "route" => route.clone(), "status" => response.status().as_u16().to_string()).increment(1);
    histogram!("usersync_http_request_seconds", "route" => route).record(started.elapsed());
    response
}
