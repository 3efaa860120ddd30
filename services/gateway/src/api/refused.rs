//! `/v1/refused-events`: events that intake could not take.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};

use super::extract::{Body, Params};
use crate::{
    control::{
        Control, Count,
        refused::{self, Discard, List, One, Refused, RefusedEvent},
    },
    problem::Problem,
};

/// Refused events
///
/// The oldest first, in pages, without the events themselves.
#[utoipa::path(get, operation_id = "refused.list", path = "/v1/refused-events", tag = "refused events",
    params(List),
    responses(
        (status = 200, description = "One page", body = Refused),
        (status = 400, description = "The request can't be understood", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "What is asked for isn't possible", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn list(
    State(control): State<Arc<Control>>,
    Params(list): Params<List>,
) -> Result<Json<Refused>, Problem> {
    Ok(Json(refused::list(&control, list).await?))
}

/// One refused event, as it came
#[utoipa::path(get, operation_id = "refused.show", path = "/v1/refused-events/{seq}", tag = "refused events",
    params(("seq" = u64, Path, description = "Its sequence in USER_EVENTS")),
    responses(
        (status = 200, description = "The event", body = RefusedEvent),
        (status = 400, description = "The request can't be understood", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "What is named isn't there", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn show(
    State(control): State<Arc<Control>>,
    path: Result<Path<u64>, PathRejection>,
) -> Result<Json<RefusedEvent>, Problem> {
    let Path(seq) =
        path.map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
    Ok(Json(refused::show(&control, One { seq }).await?))
}

/// Remove refused events
#[utoipa::path(post, operation_id = "refused.discard", path = "/v1/refused-events/discard", tag = "refused events",
    request_body = Discard,
    responses(
        (status = 200, description = "How many", body = Count),
        (status = 400, description = "The request can't be understood", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "What is asked for isn't possible", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "NATS can't be asked", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn discard(
    State(control): State<Arc<Control>>,
    Body(discard): Body<Discard>,
) -> Result<Json<Count>, Problem> {
    Ok(Json(refused::discard(&control, discard).await?))
}
