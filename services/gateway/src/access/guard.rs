//! Lets a request in, or says why not: by a key before anything of its body is read, or by the signature of its body.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};

use bytes::BytesMut;
use futures_util::StreamExt as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};
use usersync_core::signature::{Unproven, header as signed};

use super::{
    Access, BODY_BYTES, Caller, Scope, browser,
    limits::{Limits, Refusal, Standing},
};
use crate::problem::Problem;

/// How long a body whose signature isn't proven may take, beside a second for each so many bytes.
const UNPROVEN_PATIENCE: Duration = Duration::from_secs(3);
const UNPROVEN_PER_SECOND: f64 = 1024.0 * 1024.0;
/// The longest id of a signed request: with the caller's name before it and a place behind it, it is an event's id.
const MOST_ID_CHARS: usize = 80;
/// The longest with its colons escaped.
const MOST_ESCAPED_CHARS: usize = 88;

/// Who is in, for handlers that ask.
#[derive(Clone)]
pub(crate) struct Visitor {
    pub(crate) caller: Arc<Caller>,
    /// `None` where no key is asked for: then nobody can be told from anybody else.
    limits: Option<Arc<Limits>>,
    /// What a signed request calls itself.
    message: Option<String>,
}

impl Visitor {
    /// The id of the event at a place of a signed request, where the event has none: the same whenever the request is
    /// sent again, so that JetStream, which knows ids for longer than signatures hold, stores it once. Of other requests none.
    pub(crate) fn event_id(&self, place: Option<usize>) -> Option<String> {
        let message = self.message.as_ref()?;
        let name = &self.caller.name;
        // What is one event's id can't be that of an item of another request: a colon in it is escaped.
        let message = escaped(message);
        Some(match place {
            Some(place) => format!("{name}:{message}:{place}"),
            None => format!("{name}:{message}"),
        })
    }

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
        (&Method::DELETE, path) if path.starts_with("/v1/users/") => Some(Scope::Erase),
        _ => Some(Scope::Operate),
    }
}

/// The middleware.
pub(crate) async fn guard(
    State(access): State<Arc<Access>>,
    request: Request,
    next: Next,
) -> Response {
    let admitted = match is_signed(&access, request.headers()) {
        true => admit_signed(&access, request).await,
        false => admit(&access, &request).map(|caller| Admitted {
            caller,
            message: None,
            request,
        }),
    };
    let Admitted {
        caller,
        message,
        mut request,
    } = match admitted {
        Ok(admitted) => admitted,
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
        message,
    });
    let mut response = next.run(request).await;
    if let Some(standing) = standing {
        standing.tell(response.headers_mut());
    }
    response
}

/// A request that may pass.
struct Admitted {
    /// `None` where that doesn't matter.
    caller: Option<Arc<Caller>>,
    /// What a signed request calls itself.
    message: Option<String>,
    request: Request,
}

/// Whether a request is to be judged by its signature: a key goes before it.
fn is_signed(access: &Access, headers: &HeaderMap) -> bool {
    access.callers.is_some()
        && headers.contains_key(signed::SIGNATURE)
        && !headers.contains_key(header::AUTHORIZATION)
}

/// Lets a signed request in. Standard Webhooks signs neither method nor path, so a request that somebody has caught could
/// be sent elsewhere: only events are taken by signature.
async fn admit_signed(access: &Access, request: Request) -> Result<Admitted, Box<Response>> {
    let unproven = |detail: String| {
        let challenge = "Bearer realm=\"usersync\"".to_owned();
        refusal(StatusCode::UNAUTHORIZED, detail, challenge)
    };
    if scope_of(request.method(), request.uri().path()) != Some(Scope::Publish) {
        let detail =
            "a signature is good for POST /v1/events only; send `Authorization: Bearer KEY`";
        return Err(unproven(detail.to_owned()));
    }
    let doubtful = |error: Unproven| {
        unproven(format!(
            "the signature doesn't hold: {error}; check the secret, the clock, and that `?caller=NAME` names the entry with it"
        ))
    };
    let (parts, body) = request.into_parts();
    let named = |parts: &Parts| -> Result<_, Unproven> {
        let callers = access.callers.as_ref();
        let callers = callers.ok_or(Unproven::Header(signed::ID))?;
        let message = message_id(&parts.headers).ok_or(Unproven::Header(signed::ID))?;
        let name = named(parts.uri.query().unwrap_or_default()).into_owned();
        let may_be = callers.borrow().may_have_signed(&name, &parts.headers);
        may_be.map(|()| (callers, name, message))
    };
    let (callers, name, message) = named(&parts).map_err(doubtful)?;
    // Held until its signature is proven, or isn't.
    let (body, _held) = unproven_body(body, &access.unproven).await?;
    let signer = callers
        .borrow()
        .signer(&name, &body, &parts.headers)
        .cloned();
    let caller = signer.map_err(doubtful)?;
    Ok(Admitted {
        caller: Some(caller),
        message: Some(message),
        request: Request::from_parts(parts, Body::from(body)),
    })
}

/// Reads a body that anybody may have sent, as long as the bytes of all such bodies have room for it.
async fn unproven_body(
    body: Body,
    room: &Arc<Semaphore>,
) -> Result<(Bytes, OwnedSemaphorePermit), Box<Response>> {
    let problem = |problem: Problem| Box::new(problem.into_response());
    let full = || {
        let detail = "too many signed requests at once; send it again";
        let mut response = Problem::unavailable(detail).into_response();
        let headers = response.headers_mut();
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        Box::new(response)
    };
    let mut held = room.clone().try_acquire_many_owned(0).map_err(|_| full())?;
    let mut whole = BytesMut::new();
    let mut chunks = body.into_data_stream();
    let began = Instant::now();
    let late = |_| {
        let detail = "the body comes too slowly; without a key it has to come at once";
        problem(Problem::new(StatusCode::REQUEST_TIMEOUT, detail))
    };
    loop {
        let so_far = Duration::from_secs_f64(whole.len() as f64 / UNPROVEN_PER_SECOND);
        let deadline = began + UNPROVEN_PATIENCE + so_far;
        let Some(chunk) = timeout_at(deadline, chunks.next()).await.map_err(late)? else {
            break;
        };
        let chunk = chunk.map_err(|_| problem(Problem::bad_request("the body was cut off")))?;
        if whole.len() + chunk.len() > BODY_BYTES {
            let detail = format!("the body is longer than {BODY_BYTES} bytes");
            return Err(problem(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)));
        }
        let bytes = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
        let more = room.clone().try_acquire_many_owned(bytes);
        held.merge(more.map_err(|_| full())?);
        whole.extend_from_slice(&chunk);
    }
    Ok((whole.freeze(), held))
}

/// The caller that the query names.
fn named(query: &str) -> Cow<'_, str> {
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    let found = pairs.find(|(name, _)| name == "caller");
    found.map_or(Cow::Borrowed(""), |(_, name)| name)
}

fn escaped(message: &str) -> String {
    message.replace('%', "%25").replace(':', "%3A")
}

/// What a signed request calls itself, if that can become part of an event's id.
fn message_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(signed::ID)?.to_str().ok()?;
    let graphic = id.bytes().all(|byte| byte.is_ascii_graphic());
    let fits = (1..=MOST_ID_CHARS).contains(&id.len()) && escaped(id).len() <= MOST_ESCAPED_CHARS;
    (graphic && fits).then(|| id.to_owned())
}

/// Who calls; `None` where that doesn't matter.
fn admit(access: &Access, request: &Request) -> Result<Option<Arc<Caller>>, Box<Response>> {
    let (Some(callers), Some(scope)) = (
        &access.callers,
        scope_of(request.method(), request.uri().path()),
    ) else {
        return unasked(access, request).map(|()| None);
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

/// Lets a request in that no key is asked of.
fn unasked(access: &Access, request: &Request) -> Result<(), Box<Response>> {
    let suspicion = match access.callers {
        Some(_) => None,
        None => browser::suspicion(access.local, request.headers(), request.uri()),
    };
    let Some(why) = suspicion else {
        return Ok(());
    };
    let detail = format!(
        "{why}, and without keys this gateway serves programs alone; make one with `usersync-gateway key new`"
    );
    Err(Box::new(
        Problem::new(StatusCode::FORBIDDEN, detail).into_response(),
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
            (Method::DELETE, "/v1/users/42/data", Some(Scope::Erase)),
            (Method::DELETE, "/v1/users/a.b/data", Some(Scope::Erase)),
            (
                Method::DELETE,
                "/v1/users/{user_id}/data",
                Some(Scope::Erase),
            ),
            (Method::GET, "/anything", Some(Scope::Read)),
        ] {
            assert_eq!(scope_of(&method, path), scope, "{method} {path}");
        }
    }
}
