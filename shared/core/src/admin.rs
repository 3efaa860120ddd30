//! What every binary answers about itself over HTTP: `/healthz`, `/readyz`, `/metrics`.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
    serve::Listener,
};
use jiff::Timestamp;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// Which parts of a binary are ready, and what the others wait for.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<BTreeMap<String, Part>>>);

/// How one part stands.
#[derive(Clone, Debug)]
pub struct Part {
    /// Why it is down; `None` while it is up.
    pub reason: Option<String>,
    /// Since when it is up or down, whatever the reasons were.
    pub since: Timestamp,
}

impl Health {
    /// `part` works.
    pub fn up(&self, part: &str) {
        self.set(part, None);
    }

    /// `part` doesn't work, because of `reason`.
    pub fn down(&self, part: &str, reason: impl Into<String>) {
        self.set(part, Some(reason.into()));
    }

    /// `part` is no longer a part.
    pub fn gone(&self, part: &str) {
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        parts.remove(part);
    }

    fn set(&self, part: &str, reason: Option<String>) {
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = parts.get(part);
        let same = before.filter(|before| before.reason.is_some() == reason.is_some());
        let since = same.map_or_else(Timestamp::now, |same| same.since);
        parts.insert(part.to_owned(), Part { reason, since });
    }

    /// Every part.
    pub fn parts(&self) -> BTreeMap<String, Part> {
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        parts.clone()
    }
}

/// What OpenAPI says of the three routes.
#[derive(utoipa::OpenApi)]
#[openapi(paths(healthz, readyz, render))]
pub struct AdminApi;

/// The three routes.
pub fn router(health: Health, metrics: PrometheusHandle) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz).with_state(health))
        .route("/metrics", get(render).with_state(metrics))
}

/// Whether the process lives
#[utoipa::path(get, path = "/healthz", tag = "admin", responses((status = 200, description = "It does", body = String, content_type = "text/plain")))]
async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether every part is up; the body names each part, says what is wrong with it, and since when
#[utoipa::path(get, path = "/readyz", tag = "admin",
    responses((status = 200, body = Object, description = "Every part is up"), (status = 503, body = Object, description = "Some aren't; the body says why")))]
async fn readyz(State(health): State<Health>) -> impl IntoResponse {
    let parts = health.parts();
    let down = parts.iter().filter(|(_, part)| part.reason.is_some());
    let since: BTreeMap<_, _> = down
        .map(|(name, part)| (name.clone(), part.since))
        .collect();
    let ready = !parts.is_empty() && since.is_empty();
    let parts: BTreeMap<_, _> = parts
        .into_iter()
        .map(|(name, part)| (name, part.reason.unwrap_or_else(|| "up".to_owned())))
        .collect();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let answer = json!({ "ready": ready, "parts": parts, "down_since": since });
    (status, Json(answer))
}

/// Metrics for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "admin", responses((status = 200, description = "The text format of Prometheus", body = String, content_type = "text/plain")))]
async fn render(State(metrics): State<PrometheusHandle>) -> impl IntoResponse {
    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4")],
        metrics.render(),
    )
}

/// Serves `router` until `shutdown`, then finishes the requests under way.
///
/// # Errors
/// When the listener fails.
pub async fn serve<L>(
    listener: L,
    router: Router,
    shutdown: CancellationToken,
) -> anyhow::Result<()>
where
    L: Listener,
    L::Addr: Debug,
{
    axum::serve(listener, router)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await?;
    Ok(())
}
