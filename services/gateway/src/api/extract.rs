//! What requests hold, or the problem document that says why not.

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{StatusCode, request::Parts},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use usersync_core::{
    check::Checked,
    event::check_integers,
    json,
    number::Beyond,
    target::{InvalidTargetName, TargetName},
    user_id::UserId,
};

use crate::problem::Problem;

/// A JSON body; an empty one is an empty object.
pub(super) struct Body<T>(pub T);

/// The query's parameters.
pub(super) struct Params<T>(pub T);

/// The target that the path names.
pub(super) struct Target(pub TargetName);

/// What the path names to be checked: a target, or `gateway`.
pub(super) struct Checkable(pub Checked);

/// The user that the path names.
pub(super) struct User(pub UserId);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let body = Bytes::from_request(request, state).await;
        let body =
            body.map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
        parse(&body).map(Self)
    }
}

/// Reads a request, by HTTP or NATS.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let body = match json::unmarked(body).trim_ascii() {
        [] => b"{}",
        body => body,
    };
    let misfit = |error: serde_json::Error| {
        let status = match error.is_data() {
            true => StatusCode::UNPROCESSABLE_ENTITY,
            false => StatusCode::BAD_REQUEST,
        };
        let error = without_values(&error.to_string());
        Problem::new(status, format!("the body doesn't fit: {error}"))
    };
    let request = serde_json::from_slice(body).map_err(misfit)?;
    // A user that is tried out has the numbers an event may have.
    let all: Value = serde_json::from_slice(body).map_err(misfit)?;
    check_integers(body, &all, Beyond::All)?;
    Ok(request)
}

/// An error of serde without the value that it quotes, which may be a user's.
fn without_values(error: &str) -> String {
    let quotes = ["invalid type: ", "invalid value: ", "unknown variant "];
    let begin = quotes.iter().filter_map(|quote| error.find(quote)).min();
    match (begin, error.rfind(", expected ")) {
        (Some(begin), Some(end)) if begin < end => {
            format!("{}{}", &error[..begin], &error[end + 2..])
        }
        _ => error.to_owned(),
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query = Query::from_request_parts(parts, state).await;
        let Query(params) = query.map_err(|rejection| {
            let error = without_values(&rejection.body_text());
            Problem::bad_request(format!("the query doesn't fit: {error}"))
        })?;
        Ok(Self(params))
    }
}

async fn path<S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<String, Problem> {
    let path = Path::from_request_parts(parts, state).await;
    let path = path.map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()));
    path.map(|Path(name)| name)
}

impl<S: Send + Sync> FromRequestParts<S> for Target {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let name = path(parts, state).await?.parse();
        name.map(Self)
            .map_err(|error: InvalidTargetName| Problem::bad_request(error.to_string()))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Checkable {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let name = path(parts, state).await?.parse();
        name.map(Self)
            .map_err(|error: InvalidTargetName| Problem::bad_request(error.to_string()))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for User {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        parse_user(&path(parts, state).await?).map(Self)
    }
}

pub(super) fn parse_user(id: &str) -> Result<UserId, Problem> {
    id.parse()
        .map_err(|error| Problem::bad_request(format!("the user id {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_integer_that_would_be_rounded_is_refused() {
        let body = br#"{"user": {"user_id": 1, "data": {"n": 18446744073709551616}}}"#;
        let refused = parse::<Value>(body).unwrap_err();
        assert_eq!(refused.status, 422);
        assert_eq!(refused.pointer.as_deref(), Some("/user/data/n"));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_value() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Request {
            #[serde(rename = "users")]
            _users: Vec<u8>,
        }
        for (body, expected) in [
            (
                r#"{"users":"ann, expected b"}"#,
                "expected a sequence at line 1 column 26",
            ),
            (r#"{"users":["ann"]}"#, "expected u8 at line 1 column 15"),
            (r#"{"users":[-7]}"#, "expected u8 at line 1 column 12"),
            (
                r#"{"user":[]}"#,
                "unknown field `user`, expected `users` at line 1 column 7",
            ),
        ] {
            let refused = parse::<Request>(body.as_bytes()).unwrap_err();
            assert_eq!(refused.detail, format!("the body doesn't fit: {expected}"));
        }
        let query = "class: unknown variant `ann`, expected one of `a`, `b`";
        assert_eq!(without_values(query), "class: expected one of `a`, `b`");
    }
}
