//! Reads requests so that every refusal is a problem document.

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
    http::StatusCode,
};
use serde::de::DeserializeOwned;
use usersync_receiver::{Problem, UserId};

/// The JSON body of a request.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let bytes = Bytes::from_request(request, state).await;
        let bytes = bytes.map_err(|error| Problem::new(error.status(), error.body_text()))?;
        let parsed = serde_json::from_slice(&bytes);
        parsed.map(Self).map_err(|error| {
            Problem::new(
                StatusCode::BAD_REQUEST,
                format!("the body is not as expected: {error}"),
            )
        })
    }
}

/// The user a path names.
///
/// # Errors
/// 404 when the text is no user id, because then no user has it.
pub fn user_id(text: &str) -> Result<UserId, Problem> {
    text.parse().map_err(|_| no_such_user())
}

/// 404 for a user.
pub fn no_such_user() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "there is no such user")
}
