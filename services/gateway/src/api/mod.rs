//! The HTTP API: one file per group of endpoints, every error a problem document (RFC 9457).

mod alerts;
mod breakers;
mod checks;
mod cloud_event;
mod dead_letters;
mod document;
mod events;
pub(crate) mod extract;
mod openapi;
mod refused;
mod repairs;
mod status;
mod targets;
mod users;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, MatchedPath, Request},
    http::{HeaderName, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use metrics::{counter, describe_counter, describe_histogram, histogram};
use tower_http::request_id::{
    MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer,
};

use utoipa::OpenApi as _;
use utoipa_axum::{router::OpenApiRouter, routes};

use usersync_core::admin::AdminApi;

use crate::{
    access::{Access, BODY_BYTES, guard},
    control::Control,
    problem::Problem,
};

/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(15);
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// All routes of the API.
pub(crate) fn router(control: Arc<Control>, access: Arc<Access>) -> Router {
    describe_counter!(
        "usersync_http_requests_total",
        "Requests to the gateway's API"
    );
    describe_histogram!("usersync_http_request_seconds", "How long they took");
    describe_counter!(
        "usersync_http_limited_total",
        "Requests and events refused because a caller had too many"
    );
    let (router, mut document) = described().split_for_parts();
    openapi::secure(&mut document);
    let document = Arc::new(document);
    router
        .route(
            "/v1/openapi.json",
            get(async move || Json(document.clone())),
        )
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "there is nothing at this path"))
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path takes another method",
            )
        })
        .layer(middleware::from_fn_with_state(access, guard))
        .layer(middleware::from_fn(measure))
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(SetRequestIdLayer::new(REQUEST_ID, NewRequestId))
        .with_state(control)
}

/// The routes that the OpenAPI document describes.
fn described() -> OpenApiRouter<Arc<Control>> {
    let mut document = openapi::Document::openapi();
    document.merge(AdminApi::openapi());
    OpenApiRouter::with_openapi(document)
        .routes(routes!(events::publish))
        .routes(routes!(users::show))
        .routes(routes!(users::tasks))
        .routes(routes!(users::why))
        .routes(routes!(users::erase))
        .routes(routes!(targets::list))
        .routes(routes!(targets::schema))
        .routes(routes!(targets::show, targets::put, targets::delete))
        .routes(routes!(targets::pause))
        .routes(routes!(targets::resume))
        .routes(routes!(targets::test))
        .routes(routes!(targets::preview))
        .routes(routes!(breakers::reset))
        .routes(routes!(breakers::list))
        .routes(routes!(dead_letters::list))
        .routes(routes!(dead_letters::show))
        .routes(routes!(dead_letters::replay))
        .routes(routes!(dead_letters::discard))
        .routes(routes!(refused::list))
        .routes(routes!(refused::show))
        .routes(routes!(refused::discard))
        .routes(routes!(repairs::start, repairs::list))
        .routes(routes!(repairs::status))
        .routes(routes!(repairs::cancel))
        .routes(routes!(checks::list))
        .routes(routes!(checks::show, checks::run))
        .routes(routes!(checks::pause))
        .routes(routes!(checks::resume))
        .routes(routes!(alerts::list))
        .routes(routes!(status::show))
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
