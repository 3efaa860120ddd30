//! Serves a service's routes beside `/livez`, `/readyz` and `/metrics`, until it is to stop.

use std::net::SocketAddr;

use anyhow::Context as _;
use axum::{
    Router,
    extract::{DefaultBodyLimit, MatchedPath, Request},
    middleware::{self, Next},
    response::Response,
};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use usersync_core::{
    admin::{self, Health},
    http,
};

/// The largest body of a request, in bytes. The receiver kit has its own limit.
const MAX_BODY: usize = 256 * 1024;

/// Serves until `shutdown`, then finishes the requests under way.
///
/// # Errors
/// When the address can't be listened on.
pub async fn serve(
    listen: SocketAddr,
    routes: Router,
    health: Health,
    metrics: PrometheusHandle,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await;
    let listener = listener.with_context(|| format!("--listen: can't listen on {listen}"))?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    let routes = routes
        .layer(middleware::from_fn(count))
        .layer(DefaultBodyLimit::max(MAX_BODY));
    let routes = routes.merge(admin::router(health, metrics));
    http::serve(listener, routes, shutdown).await;
    Ok(())
}

/// Counts requests by route and status; the route is the pattern, so that ids don't become labels.
async fn count(request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("none", MatchedPath::as_str)
        .to_owned();
    let method = request.method().as_str().to_owned();
    let response = next.run(request).await;
    let status = response.status().as_str().to_owned();
    metrics::counter!("http_requests_total", "method" => method, "route" => route, "status" => status).increment(1);
    response
}
