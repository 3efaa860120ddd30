//! `/v1/status`: how everything stands.

use std::sync::Arc;

use axum::{Json, extract::State};

use crate::{
    control::{
        Control,
        status::{self, Status},
    },
    problem::Problem,
};

/// How everything stands: a line per target
#[utoipa::path(get, operation_id = "status", path = "/v1/status", tag = "status",
    responses(
        (status = 200, description = "Every target's condition, queue, rates, breaker, dead letters and check", body = Status),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn show(State(control): State<Arc<Control>>) -> Result<Json<Status>, Problem> {
    Ok(Json(status::status(&control).await?))
}
