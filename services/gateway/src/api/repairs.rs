//! `/v1/repairs`: deliver newest states again, one by one or in bulk.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
};

use super::extract::Body;
use crate::{
    control::{
        Control,
        jobs::{self, ById, Job, Jobs},
        repairs::{self, Asked, Repair},
    },
    problem::Problem,
};

/// Deliver newest states again
///
/// To one target: one user or some at once, all of them as a job.
#[utoipa::path(post, operation_id = "repair.start", path = "/v1/repairs", tag = "repairs",
    request_body = Repair,
    responses(
        (status = 200, description = "What was asked for", body = Asked),
        (status = 400, description = "The request can't be understood", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "What is named isn't there", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "An equal job is under way; the text names it", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "What is asked for isn't possible", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn start(
    State(control): State<Arc<Control>>,
    Body(repair): Body<Repair>,
) -> Result<Json<Asked>, Problem> {
    Ok(Json(repairs::start(&control, repair).await?))
}

/// Jobs
///
/// Repairs, replays and discards in bulk of the last day, the newest first.
#[utoipa::path(get, operation_id = "repair.list", path = "/v1/repairs", tag = "repairs",
    responses(
        (status = 200, description = "The jobs", body = Jobs),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn list(State(control): State<Arc<Control>>) -> Result<Json<Jobs>, Problem> {
    Ok(Json(jobs::list(&control).await?))
}

/// How far a job is
#[utoipa::path(get, operation_id = "repair.status", path = "/v1/repairs/{id}", tag = "repairs",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "The job", body = Job),
        (status = 404, description = "What is named isn't there", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn status(
    State(control): State<Arc<Control>>,
    Path(id): Path<String>,
) -> Result<Json<Job>, Problem> {
    Ok(Json(jobs::status(&control, ById { id }).await?))
}

/// Stop a job
#[utoipa::path(post, operation_id = "repair.cancel", path = "/v1/repairs/{id}/cancel", tag = "repairs",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "The job", body = Job),
        (status = 404, description = "What is named isn't there", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It changes too fast; try again", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn cancel(
    State(control): State<Arc<Control>>,
    Path(id): Path<String>,
) -> Result<Json<Job>, Problem> {
    Ok(Json(jobs::cancel(&control, ById { id }).await?))
}
