//! `/v1/breakers`: circuit breakers that aren't closed.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::Deserialize;

use super::extract::{Params, Target};
use crate::{
    control::{
        Control, Count,
        breakers::{self, Breakers, List, Reset},
    },
    problem::Problem,
};
use usersync_core::target::TargetName;

/// Which breakers.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Whose {
    /// Only that of this worker
    worker: Option<String>,
}

/// Breakers that aren't closed
#[utoipa::path(get, operation_id = "breakers.list", path = "/v1/breakers", tag = "breakers",
    params(List),
    responses(
        (status = 200, description = "The breakers", body = Breakers),
        (status = 400, description = "The request can't be understood", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn list(
    State(control): State<Arc<Control>>,
    Params(list): Params<List>,
) -> Result<Json<Breakers>, Problem> {
    Ok(Json(breakers::list(&control, list).await?))
}

/// Have workers try a target at once
#[utoipa::path(post, operation_id = "breakers.reset", path = "/v1/targets/{name}/breakers/reset", tag = "breakers",
    params(("name" = TargetName, Path, description = "The target's name"), Whose),
    responses(
        (status = 200, description = "How many breakers weren't closed", body = Count),
        (status = 400, description = "The request can't be understood", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "What is named isn't there", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn reset(
    State(control): State<Arc<Control>>,
    Target(target): Target,
    Params(whose): Params<Whose>,
) -> Result<Json<Count>, Problem> {
    let worker = whose.worker;
    Ok(Json(
        breakers::reset(&control, Reset { target, worker }).await?,
    ))
}
