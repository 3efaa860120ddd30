//! What every binary answers about itself over HTTP: `/livez` (and `/healthz`, the same), `/readyz`, `/metrics`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use jiff::Timestamp;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;

/// The part that is down while NATS refuses something.
pub(crate) const PERMISSIONS: &str = "permissions";

/// Which parts of a binary are ready, and what the others wait for.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<BTreeMap<String, Part>>>);

/// How one part stands.
#[derive(Clone, Debug)]
pub struct Part {
    /// Whether it works.
    pub standing: Standing,
    /// Since when it is so, whatever the reasons were.
    pub since: Timestamp,
}

/// Whether a part works, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Up,
    /// It doesn't, for a reason that another process of the same kind would have too: this one is as ready as any.
    Waiting(String),
    /// It doesn't, and this process isn't ready.
    Down(String),
}

impl Standing {
    /// Why it doesn't work; `None` while it does.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Up => None,
            Self::Waiting(reason) | Self::Down(reason) => Some(reason),
        }
    }
}

impl Health {
    /// `part` works.
    pub fn up(&self, part: &str) {
        self.set(part, Standing::Up);
    }

    /// `part` doesn't work, because of `reason`.
    pub fn down(&self, part: &str, reason: impl Into<String>) {
        self.set(part, Standing::Down(reason.into()));
    }

    /// `part` doesn't work, because of `reason`, and this process is ready all the same.
    pub fn waiting(&self, part: &str, reason: impl Into<String>) {
        self.set(part, Standing::Waiting(reason.into()));
    }

    /// `part` is no longer a part.
    pub fn gone(&self, part: &str) {
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        parts.remove(part);
    }

    fn set(&self, part: &str, standing: Standing) {
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let works = |standing: &Standing| *standing == Standing::Up;
        let before = parts.get(part);
        let same = before.filter(|before| works(&before.standing) == works(&standing));
        let since = same.map_or_else(Timestamp::now, |same| same.since);
        parts.insert(part.to_owned(), Part { standing, since });
    }

    /// What NATS has refused lately, where it was about `subject` or what has that in its name.
    pub fn refusal(&self, subject: &str) -> Option<String> {
        let parts = self.parts();
        let reason = parts.get(PERMISSIONS)?.standing.reason()?;
        reason.contains(subject).then(|| reason.to_owned())
    }

    /// Every part.
    pub fn parts(&self) -> BTreeMap<String, Part> {
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        parts.clone()
    }
}

/// What OpenAPI says of the routes.
#[derive(utoipa::OpenApi)]
#[openapi(paths(livez, healthz, readyz, render))]
pub struct AdminApi;

/// The routes.
pub fn router(health: Health, metrics: PrometheusHandle) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz).with_state(health))
        .route("/metrics", get(render).with_state(metrics))
}

/// Whether the process lives: its loop answers, whatever it waits for
#[utoipa::path(get, path = "/livez", tag = "admin", responses((status = 200, description = "It does", body = String, content_type = "text/plain")))]
async fn livez() -> &'static str {
    "ok\n"
}

/// The same as `/livez`
#[utoipa::path(get, path = "/healthz", tag = "admin", responses((status = 200, description = "It does", body = String, content_type = "text/plain")))]
async fn healthz() -> &'static str {
    livez().await
}

/// Whether this process can do its work; the body names each part, says what is wrong with it, and since when
#[utoipa::path(get, path = "/readyz", tag = "admin",
    responses((status = 200, body = Object, description = "It can; a part that still has a reason, a target that is away say, is no fault of this process"), (status = 503, body = Object, description = "It can't; the body says why")))]
async fn readyz(State(health): State<Health>) -> impl IntoResponse {
    let parts = health.parts();
    let down = |part: &Part| matches!(part.standing, Standing::Down(_));
    let ready = !parts.is_empty() && !parts.values().any(down);
    let wrong = parts
        .iter()
        .filter(|(_, part)| part.standing.reason().is_some());
    let since: BTreeMap<_, _> = wrong.map(|(name, part)| (name, part.since)).collect();
    let said = |part: &Part| part.standing.reason().unwrap_or("up").to_owned();
    let parts: BTreeMap<_, _> = parts
        .iter()
        .map(|(name, part)| (name, said(part)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_wrong_since_it_went_wrong_whatever_the_reasons() {
        let health = Health::default();
        let of = |part: &str| health.parts().remove(part).unwrap();
        health.up("nats");
        let up = of("nats");
        health.down("nats", "refused");
        let down = of("nats");
        assert!(down.since > up.since);
        health.down("nats", "no route");
        assert_eq!(of("nats").since, down.since);
        assert_eq!(of("nats").standing.reason(), Some("no route"));
        health.waiting("nats", "for somebody else");
        assert_eq!(of("nats").since, down.since);
        health.up("nats");
        assert!(of("nats").since > down.since);
        assert_eq!(of("nats").standing, Standing::Up);
    }
}
