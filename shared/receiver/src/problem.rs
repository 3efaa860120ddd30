//! How a request is refused: RFC 9457 problem details.

use std::borrow::Cow;

use axum::{
    Json,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde::Serialize;

/// A refusal, answered as `application/problem+json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    status: StatusCode,
    detail: Cow<'static, str>,
    faults: Vec<Fault>,
}

/// One thing that is wrong with a request, and where.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fault {
    /// JSON Pointer (RFC 6901) to the offending member, as a URI fragment: `#/email`.
    pub pointer: String,
    /// What is expected; never quotes the value.
    pub detail: Cow<'static, str>,
}

impl Fault {
    /// A fault of the member at `pointer`, such as `/email`.
    pub fn new(pointer: &str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            pointer: format!("#{pointer}"),
            detail: detail.into(),
        }
    }
}

impl Problem {
    /// A refusal with `status`, explained by `detail`.
    pub fn new(status: StatusCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            detail: detail.into(),
            faults: Vec::new(),
        }
    }

    /// 400 for a request whose members are wrong.
    pub fn invalid(faults: Vec<Fault>) -> Self {
        let detail = Cow::Borrowed("the request breaks the contract; see errors");
        Self {
            status: StatusCode::BAD_REQUEST,
            detail,
            faults,
        }
    }

    /// The status it is answered with.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The members that are wrong.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }
}

impl std::fmt::Display for Problem {
    /// What is wrong, and where.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.detail)?;
        self.faults
            .iter()
            .try_for_each(|fault| write!(f, "; {}: {}", fault.pointer, fault.detail))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body {
            #[serde(rename = "type")]
            kind: &'static str,
            title: &'static str,
            status: u16,
            detail: Cow<'static, str>,
            #[serde(skip_serializing_if = "Vec::is_empty")]
            errors: Vec<Fault>,
        }
        let body = Body {
            kind: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: self.detail,
            errors: self.faults,
        };
        let content_type = [(CONTENT_TYPE, "application/problem+json")];
        (self.status, content_type, Json(body)).into_response()
    }
}
