//! `/v1/checks`: compare targets with the newest states, or these with the main database, and see what was found.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};
use serde::Deserialize;
use usersync_core::check::{Report, Request};

use super::extract::{Body, Checkable, Params};
use crate::{
    control::{
        Control,
        checks::{self, Asked, Held, Of, Reports, Show},
    },
    problem::Problem,
};

/// What the last checks found
#[utoipa::path(get, operation_id = "check.list", path = "/v1/checks", tag = "checks",
    responses(
        (status = 200, description = "The newest report of every target, also of checks under way", body = Reports),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn list(State(control): State<Arc<Control>>) -> Result<Json<Reports>, Problem> {
    Ok(Json(checks::list(&control).await?))
}

/// Which report.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// That of the last check of one user or a range of ids, instead of the last of all
    #[serde(default)]
    some: bool,
}

/// What the last check of a target found
#[utoipa::path(get, operation_id = "check.show", path = "/v1/checks/{target}", tag = "checks",
    params(("target" = String, Path, description = "The target's name, or `gateway` for the states"), Which),
    responses(
        (status = 200, description = "The report", body = Report),
        (status = 400, description = "The request can't be understood", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "It has not been checked", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn show(
    State(control): State<Arc<Control>>,
    Checkable(target): Checkable,
    Params(Which { some }): Params<Which>,
) -> Result<Json<Report>, Problem> {
    Ok(Json(checks::show(&control, Show { target, some }).await?))
}

/// Check a target now
///
/// A scheduler does it; its report is at the same path, with `?some=true` where it is of one user or a range of ids.
#[utoipa::path(post, operation_id = "check.run", path = "/v1/checks/{target}", tag = "checks",
    params(("target" = String, Path, description = "The target's name, or `gateway` for the states")),
    request_body = Request,
    responses(
        (status = 202, description = "It waits for a scheduler", body = Asked),
        (status = 400, description = "The request can't be understood", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "What is named isn't there", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "What is asked for isn't possible", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn run(
    State(control): State<Arc<Control>>,
    Checkable(target): Checkable,
    Body(request): Body<Request>,
) -> Result<(StatusCode, Json<Asked>), Problem> {
    let asked = checks::ask(&control, target, request).await?;
    Ok((StatusCode::ACCEPTED, Json(asked)))
}

/// Let checks of a target wait
///
/// Also one that is under way.
#[utoipa::path(post, operation_id = "check.pause", path = "/v1/checks/{target}/pause", tag = "checks",
    params(("target" = String, Path, description = "The target's name, or `gateway` for the states")),
    responses(
        (status = 200, description = "They wait", body = Held),
        (status = 404, description = "What is named isn't there", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn pause(
    State(control): State<Arc<Control>>,
    Checkable(target): Checkable,
) -> Result<Json<Held>, Problem> {
    Ok(Json(checks::pause(&control, Of { target }).await?))
}

/// Let checks of a target go on
#[utoipa::path(post, operation_id = "check.resume", path = "/v1/checks/{target}/resume", tag = "checks",
    params(("target" = String, Path, description = "The target's name, or `gateway` for the states")),
    responses(
        (status = 200, description = "They go on", body = Held),
        (status = 400, description = "There can be no such target", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn resume(
    State(control): State<Arc<Control>>,
    Checkable(target): Checkable,
) -> Result<Json<Held>, Problem> {
    Ok(Json(checks::resume(&control, Of { target }).await?))
}
