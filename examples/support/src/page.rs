//! One page of a list: `?after=ID&limit=N`.

use axum::{
    Json,
    extract::{FromRequestParts, Query},
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use usersync_receiver::{Problem, UserId};

const DEFAULT_LIMIT: u32 = 100;
const MAX_LIMIT: u32 = 1_000;

/// Which part of a list is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// Start behind this user; from the first one when absent.
    pub after: Option<UserId>,
    /// At most so many users.
    pub limit: u32,
}

impl<S: Sync> FromRequestParts<S> for Page {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        #[derive(Deserialize)]
        struct Asked {
            after: Option<UserIdText>,
            limit: Option<u32>,
        }
        #[derive(Deserialize)]
        struct UserIdText(String);

        let refuse = |detail: String| Problem::new(StatusCode::BAD_REQUEST, detail);
        let Query(asked) =
            Query::<Asked>::try_from_uri(&parts.uri).map_err(|error| refuse(error.body_text()))?;
        let after = asked.after.map(|UserIdText(text)| text.parse());
        Ok(Self {
            after: after
                .transpose()
                .map_err(|error| refuse(format!("after: {error}")))?,
            limit: asked.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT),
        })
    }
}

impl Page {
    /// The answer: `{"users": […], "next": ID}`, where `next` is the `after` of the page behind
    /// this one, and null on the last.
    pub fn answer<T: Serialize>(&self, users: Vec<T>, id: impl Fn(&T) -> UserId) -> Response {
        let full = users.len() >= self.limit as usize;
        let next = users.last().filter(|_| full).map(id);
        Json(json!({"users": users, "next": next})).into_response()
    }
}
