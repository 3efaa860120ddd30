//! `/v1/users/{id}`: the newest state of one user, how the targets stand with them, and their erasure.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use usersync_core::{state::State as UserState, target::TargetName};

use super::extract::{Params, User, parse_user};
use crate::{
    control::{
        Control,
        erase::{self, Erase},
        jobs::{Job, JobState},
        users::{self, ById, Tasks},
        why::{self, OfUser, Why},
    },
    problem::Problem,
};

/// The newest state of a user
///
/// As it stands in USER_STATE, a tombstone included.
#[utoipa::path(get, operation_id = "users.show", path = "/v1/users/{id}", tag = "users",
    params(("id" = String, Path, description = "The user's id, percent-encoded")),
    responses(
        (status = 200, description = "The state", body = UserState),
        (status = 400, description = "No user id", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No event has named this user", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn show(
    State(control): State<Arc<Control>>,
    User(user_id): User,
) -> Result<Response, Problem> {
    let by = ById { user_id };
    let message = users::state(&control, &by).await?;
    let state = users::shown(&by.user_id, message.payload);
    Ok(([(CONTENT_TYPE, "application/json")], state).into_response())
}

/// How every target stands with a user
///
/// Derived from consumers, waiting repairs, dead letters and what workers remember of failures.
#[utoipa::path(get, operation_id = "users.targets", path = "/v1/users/{id}/targets", tag = "users",
    params(("id" = String, Path, description = "The user's id, percent-encoded")),
    responses(
        (status = 200, description = "One task for every target", body = Tasks),
        (status = 400, description = "No user id", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No event has named this user", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn tasks(
    State(control): State<Arc<Control>>,
    User(user_id): User,
) -> Result<Json<Tasks>, Problem> {
    Ok(Json(users::tasks(&control, ById { user_id }).await?))
}

/// Why a target has of a user what it has
///
/// From the newest event over the rule, the breaker and the last attempt to the last check, with the answer in one sentence.
#[utoipa::path(get, operation_id = "users.why", path = "/v1/users/{id}/targets/{target}", tag = "users",
    params(
        ("id" = String, Path, description = "The user's id, percent-encoded"),
        ("target" = TargetName, Path, description = "The target's name"),
    ),
    responses(
        (status = 200, description = "Why", body = Why),
        (status = 400, description = "No user id, or no target's name", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No event has named this user, or there is no such target", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The target's entry can't be used", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn why(
    State(control): State<Arc<Control>>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Json<Why>, Problem> {
    let Path((user_id, target)) =
        path.map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
    let target: Result<TargetName, _> = target.parse();
    let of = OfUser {
        user_id: parse_user(&user_id)?,
        target: target.map_err(|error| Problem::bad_request(error.to_string()))?,
    };
    Ok(Json(why::why(&control, of).await?))
}

/// How to erase.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct How {
    /// Count and do nothing.
    #[serde(default)]
    dry_run: bool,
}

/// Erase a user
///
/// From the streams, where bytes are overwritten, and from every target. What isn't done at once goes on as a job, whose
/// `erasure` says what was erased where; asked for again, it says how far the targets are by then.
#[utoipa::path(delete, operation_id = "users.erase", path = "/v1/users/{id}/data", tag = "users",
    params(("id" = String, Path, description = "The user's id, percent-encoded"), How),
    responses(
        (status = 200, description = "It is done, as far as the targets are to be had", body = Job),
        (status = 202, description = "It is under way: see `/v1/repairs/{id}`", body = Job),
        (status = 400, description = "No user id", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "This user is being erased; the text names the job", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn erase(
    State(control): State<Arc<Control>>,
    User(user_id): User,
    Params(How { dry_run }): Params<How>,
) -> Result<(StatusCode, Json<Job>), Problem> {
    let job = erase::start(&control, Erase { user_id, dry_run }).await?;
    match job.state {
        JobState::Done => Ok((StatusCode::OK, Json(job))),
        JobState::Failed => Err(Problem::unavailable(job.error.unwrap_or_default())),
        _ => Ok((StatusCode::ACCEPTED, Json(job))),
    }
}
