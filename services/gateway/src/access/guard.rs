//! Lets a request in, or says why not, before anything of its body is read.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{
    Access, Caller, Scope,
    limits::{Limits, Refusal, Standing},
};
use crate::problem::Problem;

/// Who is in, for handlers that ask.
#[derive(Clone)]
pub(crate) struct Visitor {
    pub(crate) caller: Arc<Caller>,
    /// `None` where no key is asked for: then nobody can be told from anybody else.
    limits: Option<Arc<Limits>>,
}

impl Visitor {
    /// Takes so many events of each source, or refuses the request.
    pub(crate) fn events(
        &self,
        sources: BTreeMap<Option<String>, u32>,
    ) -> Result<Option<Standing>, Refusal> {
        match &self.limits {
            Some(limits) => limits.events(&self.caller, sources),
            None => Ok(None),
        }
    }
}

/// The scope that a request needs; `None` for what everybody may know.
pub(crate) fn scope_of(method: &Method, path: &str) -> Option<Scope> {
    match (method, path) {
        (&Method::GET | &Method::HEAD, "/v1/openapi.json") => None,
        (&Method::POST, "/v1/events") => Some(Scope::Publish),
        (&Method::GET | &Method::HEAD, _) => Some(Scope::Read),
        _ => Some(Scope::Operate),
    }
}

/// The middleware.
pub(crate) async fn guard(
    State(access): State<Arc<Access>>,
    mut request: Request,
    next: Next,
) -> Response {
    let caller = match admit(&access, &request) {
        Ok(caller) => caller,
        Err(refusal) => return *refusal,
    };
    let limits = caller.as_ref().map(|_| access.limits.clone());
    let standing = caller.as_ref().map(|caller| access.limits.request(caller));
    let standing = match standing.transpose() {
        Ok(standing) => standing,
        Err(refusal) => return refusal.into_response(),
    };
    request.extensions_mut().insert(Visitor {
        caller: caller.unwrap_or_else(|| access.anyone.clone()),
        limits,
    });
    let mut response = next.run(request).await;
    if let Some(standing) = standing {
        standing.tell(response.headers_mut());
    }
    response
}

/// Who calls; `None` where that doesn't matter.
fn admit(access: &Access, request: &Request) -> Result<Option<Arc<Caller>>, Box<Response>> {
    let (Some(callers), Some(scope)) = (
        &access.callers,
        scope_of(request.method(), request.uri().path()),
    ) else {
        return Ok(None);
    };
    let key = bearer(request.headers()).ok_or_else(|| {
        let detail = "a key is needed: send `Authorization: Bearer KEY`";
        refusal(
            StatusCode::UNAUTHORIZED,
            detail,
            "Bearer realm=\"usersync\"".to_owned(),
        )
    })?;
    let caller = callers.borrow().find(key).cloned().ok_or_else(|| {
        let challenge = "Bearer realm=\"usersync\", error=\"invalid_token\"";
        let detail = "no caller has this key; ask the operator of this gateway for one";
        refusal(StatusCode::UNAUTHORIZED, detail, challenge.to_owned())
    })?;
    if caller.may(scope) {
        return Ok(Some(caller));
    }
    let scope = scope.as_str();
    Err(refusal(
        StatusCode::FORBIDDEN,
        format!("the key of {} hasn't the scope {scope}", caller.name),
        format!("Bearer realm=\"usersync\", error=\"insufficient_scope\", scope=\"{scope}\""),
    ))
}

/// The key in `Authorization: Bearer KEY`; the scheme's case doesn't matter (RFC 9110, 11.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// An answer with a challenge (RFC 6750, 3).
fn refusal(
    status: StatusCode,
    detail: impl Into<std::borrow::Cow<'static, str>>,
    challenge: String,
) -> Box<Response> {
    let mut response = Problem::new(status, detail).into_response();
    if let Ok(challenge) = HeaderValue::try_from(challenge) {
        let headers = response.headers_mut();
        headers.insert(header::WWW_AUTHENTICATE, challenge);
    }
    Box::new(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_something_needs_more_than_what_only_looks() {
        for (method, path, scope) in [
            (Method::POST, "/v1/events", Some(Scope::Publish)),
            (Method::GET, "/v1/users/42", Some(Scope::Read)),
            (Method::HEAD, "/v1/targets", Some(Scope::Read)),
            (Method::GET, "/v1/openapi.json", None),
            (Method::POST, "/v1/openapi.json", Some(Scope::Operate)),
            (Method::POST, "/v1/targets/a/preview", Some(Scope::Operate)),
            (Method::DELETE, "/v1/targets/a", Some(Scope::Operate)),
            (Method::PUT, "/v1/events", Some(Scope::Operate)),
            (Method::GET, "/anything", Some(Scope::Read)),
        ] {
            assert_eq!(scope_of(&method, path), scope, "{method} {path}");
        }
    }
}
