//! `/v1/alerts`: what is wrong now.

use std::sync::Arc;

use axum::{Json, extract::State};

use crate::{
    control::{
        Control,
        alerts::{self, Alerts},
    },
    problem::Problem,
};

/// The alerts that are raised now
#[utoipa::path(get, operation_id = "alerts.list", path = "/v1/alerts", tag = "alerts",
    responses(
        (status = 200, description = "The alerts, each with what to do", body = Alerts),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn list(State(control): State<Arc<Control>>) -> Result<Json<Alerts>, Problem> {
    Ok(Json(alerts::list(&control).await?))
}
