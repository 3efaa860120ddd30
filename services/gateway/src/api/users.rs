//! `/v1/users/{id}`: the newest state of one user, and how the targets stand with them.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use usersync_core::state::State as UserState;

use super::extract::User;
use crate::{
    control::{
        Control,
        users::{self, ById, Tasks},
    },
    problem::Problem,
};

/// The newest state of a user
///
/// As it stands in USER_STATE, a tombstone included.
#[utoipa::path(get, operation_id = "users.show", path = "/v1/users/{id}", tag = "users",
    params(("id" = String, Path, description = "The user's id")),
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
    let message = users::state(&control, &ById { user_id }).await?;
    Ok(([(CONTENT_TYPE, "application/json")], message.payload).into_response())
}

/// How every target stands with a user
///
/// Derived from consumers, waiting repairs, dead letters and what workers remember of failures.
#[utoipa::path(get, operation_id = "users.targets", path = "/v1/users/{id}/targets", tag = "users",
    params(("id" = String, Path, description = "The user's id")),
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
