//! Errors of the API and the control plane as problem documents (RFC 9457).

use std::borrow::Cow;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use usersync_core::event::InvalidEvent;

/// An error answer, `application/problem+json`.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Problem {
    /// The HTTP status.
    #[serde(serialize_with = "code")]
    #[schema(value_type = u16)]
    pub status: StatusCode,
    /// The status in words.
    pub title: &'static str,
    /// What is wrong and what is expected.
    pub detail: Cow<'static, str>,
    /// JSON Pointer (RFC 6901) to the offending member.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub pointer: Option<Cow<'static, str>>,
}

fn code<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<Cow<'static, str>>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self {
            status,
            title,
            detail: detail.into(),
            pointer: None,
        }
    }

    /// NATS can't take or give anything now.
    pub(crate) fn unavailable(what: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, what)
    }

    /// What was named isn't there.
    pub(crate) fn not_found(what: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, what)
    }

    /// The request can't be understood.
    pub(crate) fn bad_request(what: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, what)
    }

    /// The request is understood, and what it asks for isn't possible.
    pub(crate) fn unprocessable(what: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, what)
    }
}

/// NATS could not be asked. Its errors name subjects and codes, never what messages hold.
impl From<anyhow::Error> for Problem {
    fn from(error: anyhow::Error) -> Self {
        Self::unavailable(format!("NATS did not answer as it should: {error:#}"))
    }
}

impl From<InvalidEvent> for Problem {
    fn from(invalid: InvalidEvent) -> Self {
        let pointer = (!invalid.pointer.is_empty()).then_some(invalid.pointer);
        Self {
            pointer,
            ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, invalid.reason)
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
