//! `/v1/dead-letters`: what could not be delivered.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use usersync_core::target::TargetName;

use super::extract::{Body, Params, parse_user};
use crate::{
    control::{
        Control,
        dead_letters::{self, Discard, Discarded, Letter, Letters, List, One, Replay},
        repairs::Asked,
    },
    problem::Problem,
};

/// Dead letters
///
/// The oldest first, in pages.
#[utoipa::path(get, operation_id = "dead.list", path = "/v1/dead-letters", tag = "dead letters",
    params(List),
    responses(
        (status = 200, description = "One page", body = Letters),
        (status = 400, description = "The request can't be understood", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "What is asked for isn't possible", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn list(
    State(control): State<Arc<Control>>,
    Params(list): Params<List>,
) -> Result<Json<Letters>, Problem> {
    Ok(Json(dead_letters::list(&control, list).await?))
}

/// One dead letter
#[utoipa::path(get, operation_id = "dead.show", path = "/v1/dead-letters/{target}/{user_id}", tag = "dead letters",
    params(
        ("target" = TargetName, Path, description = "The target's name"),
        ("user_id" = String, Path, description = "The user's id, percent-encoded"),
    ),
    responses(
        (status = 200, description = "The dead letter", body = Letter),
        (status = 400, description = "The request can't be understood", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "What is named isn't there", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn show(
    State(control): State<Arc<Control>>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Json<Letter>, Problem> {
    let Path((target, user_id)) =
        path.map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
    let target: Result<TargetName, _> = target.parse();
    let one = One {
        target: target.map_err(|error| Problem::bad_request(error.to_string()))?,
        user_id: parse_user(&user_id)?,
    };
    Ok(Json(dead_letters::show(&control, one).await?))
}

/// Deliver dead letters again
///
/// Of one user at once, else as a job. A letter goes away when its delivery has succeeded. Letters of targets that
/// are no more are left alone.
#[utoipa::path(post, operation_id = "dead.replay", path = "/v1/dead-letters/replay", tag = "dead letters",
    request_body = Replay,
    responses(
        (status = 200, description = "What was asked for", body = Asked),
        (status = 400, description = "The request can't be understood", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "What is named isn't there", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "An equal job is under way; the text names it", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "What is asked for isn't possible", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn replay(
    State(control): State<Arc<Control>>,
    Body(replay): Body<Replay>,
) -> Result<Json<Asked>, Problem> {
    Ok(Json(dead_letters::replay(&control, replay).await?))
}

/// Give dead letters up
///
/// The target goes without this version; a newer state is delivered as ever. Of one user at once, else as a job.
#[utoipa::path(post, operation_id = "dead.discard", path = "/v1/dead-letters/discard", tag = "dead letters",
    request_body = Discard,
    responses(
        (status = 200, description = "How many are gone", body = Discarded),
        (status = 400, description = "The request can't be understood", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "An equal job is under way; the text names it", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "What is asked for isn't possible", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn discard(
    State(control): State<Arc<Control>>,
    Body(discard): Body<Discard>,
) -> Result<Json<Discarded>, Problem> {
    Ok(Json(dead_letters::discard(&control, discard).await?))
}
