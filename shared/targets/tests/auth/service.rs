//! A target and a server of tokens, which remember how they were called.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use anyhow::Result;
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::json;
use tokio::net::TcpListener;

/// One call.
pub(crate) struct Call {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Call {
    pub(crate) fn header(&self, name: &str) -> String {
        let value = self.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    }
}

/// How tokens are given.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Giving {
    /// Good for so many seconds.
    For(u64),
    /// Not at all: the client is unknown.
    Denied,
    /// As a body without an end.
    Endless,
    /// For another use than `Authorization: Bearer`.
    OtherType,
}

/// The service: `/` is the target, `/token` gives tokens.
pub(crate) struct Service {
    pub(crate) url: String,
    /// Calls of the target.
    pub(crate) calls: Mutex<Vec<Call>>,
    /// Calls for tokens.
    pub(crate) asked: Mutex<Vec<Call>>,
    giving: Giving,
    /// The number of the first token that is let in.
    pub(crate) least: AtomicUsize,
}

impl Service {
    pub(crate) async fn start(giving: Giving) -> Result<Arc<Self>> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let service = Arc::new(Self {
            url: format!("http://{}", listener.local_addr()?),
            calls: Mutex::default(),
            asked: Mutex::default(),
            giving,
            least: AtomicUsize::new(0),
        });
        let router = Router::new()
            .route("/", post(target))
            .route("/token", post(token))
            .with_state(service.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(service)
    }

    pub(crate) fn counts(&self) -> (usize, usize) {
        let calls = self.calls.lock().expect("a lock").len();
        (calls, self.asked.lock().expect("a lock").len())
    }
}

async fn target(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let call = Call { headers, body };
    let number = call.header("authorization");
    let number = number
        .strip_prefix("Bearer token-")
        .map(str::parse::<usize>);
    service.calls.lock().expect("a lock").push(call);
    match number {
        Some(Ok(number)) if number < service.least.load(SeqCst) => StatusCode::UNAUTHORIZED,
        _ => StatusCode::NO_CONTENT,
    }
}

async fn token(State(service): State<Arc<Service>>, headers: HeaderMap, body: Bytes) -> Response {
    let number = {
        let mut asked = service.asked.lock().expect("a lock");
        asked.push(Call { headers, body });
        asked.len()
    };
    let token = |token_type, seconds| {
        let text = format!("token-{number}");
        axum::Json(json!({"access_token": text, "token_type": token_type, "expires_in": seconds}))
    };
    match service.giving {
        Giving::For(seconds) => token("bearer", seconds).into_response(),
        Giving::OtherType => token("mac", 60).into_response(),
        Giving::Denied => {
            let body = json!({"error": "invalid_client", "error_description": "hunter2"});
            (StatusCode::UNAUTHORIZED, axum::Json(body)).into_response()
        }
        Giving::Endless => {
            let chunks =
                futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 8192]));
            axum::body::Body::from_stream(chunks).into_response()
        }
    }
}
