//! `GET /v1/users/{id}`: the newest state of one user.

use async_nats::jetstream::{self, stream::DirectGetErrorKind};
use axum::{
    extract::{Path, State, rejection::PathRejection},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use usersync_core::{subjects, user_id::UserId};

use super::problem::Problem;

/// The state as it stands in USER_STATE, a tombstone included; 404 for a user nobody has heard of.
pub(super) async fn show(
    State(jetstream): State<jetstream::Context>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let Path(id) =
        id.map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
    let user_id: UserId = id
        .parse()
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("the user id {error}")))?;
    let stream = jetstream.get_stream_no_info(subjects::USER_STATE).await;
    let stream = stream.map_err(|_| Problem::unavailable("NATS can't be reached"))?;
    match stream
        .direct_get_last_for_subject(subjects::state(&user_id))
        .await
    {
        Ok(message) => Ok(([(CONTENT_TYPE, "application/json")], message.payload).into_response()),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Err(Problem::new(
            StatusCode::NOT_FOUND,
            "no event has named this user",
        )),
        Err(_) => Err(Problem::unavailable("NATS did not answer")),
    }
}
