//! The HTTP targets: one refuses older versions by itself, one takes whatever comes. Both remember every change of what
//! they hold, and misbehave as they are told.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Result;
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use futures_util::stream;
use serde_json::Value;
use tokio::net::TcpListener;

use usersync_stack::Certificates;

use crate::{merge::Person, tls::Tls};

/// What a receiver does instead of answering well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manners {
    /// It takes what it is told.
    Good,
    /// This status, and nothing is taken.
    Status(u16),
    /// 429 with this Retry-After.
    Busy(&'static str),
    /// It takes a call and never answers it.
    TakesAndHangs,
    /// It never takes it either.
    Hangs,
    /// 200, and nothing is taken.
    Ignores,
    /// It takes the call, and the answer is torn off.
    TakesAndResets,
    /// It takes the call; headers, and then a byte a second.
    Trickles,
    /// It sends whoever calls somewhere else.
    Redirects(&'static str),
    /// It takes the call, and answers with a gigabyte.
    Floods,
    /// It takes the call, and answers with what isn't gzip although it says so.
    Bombs,
    /// It takes nothing of one user, for good.
    Refuses(u64),
    /// Half of the calls answer 503.
    HalfDown,
}

/// What one receiver holds of a user.
#[derive(Clone, Debug, Default)]
struct Held {
    version: u64,
    body: Value,
    /// Every change, oldest first: the version, `data.n`, and whether it was the same version with another content.
    history: Vec<(u64, u64)>,
    /// Changes to an older state.
    regressed: u64,
    /// The same version with another content.
    changed: u64,
}

struct Book {
    guarded: bool,
    /// What calls have to be signed with.
    secret: Mutex<Option<String>>,
    manners: Mutex<Manners>,
    held: Mutex<BTreeMap<u64, Held>>,
    calls: Mutex<u64>,
}

/// A running receiver; ends with this program.
#[derive(Clone)]
pub(crate) struct Receiver {
    port: u16,
    book: Arc<Book>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Receiver {
    /// One that takes whatever comes from whomever.
    pub(crate) async fn plain() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (receiver, router) = Self::of(&listener, None)?;
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(receiver)
    }

    /// One that refuses older versions, says so, speaks TLS only, and wants calls to be signed.
    pub(crate) async fn guarded(certificates: &Certificates, secret: &str) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (receiver, router) = Self::of(&listener, Some(secret.to_owned()))?;
        let listener = Tls::serve(listener, certificates.dir().to_owned())?;
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(receiver)
    }

    fn of(listener: &TcpListener, secret: Option<String>) -> Result<(Self, Router)> {
        let port = listener.local_addr()?.port();
        let book = Arc::new(Book {
            guarded: secret.is_some(),
            secret: Mutex::new(secret),
            manners: Mutex::new(Manners::Good),
            held: Mutex::default(),
            calls: Mutex::default(),
        });
        let router = Router::new()
            .route("/users", any(call))
            .route("/users/{user}", get(read))
            .with_state(Arc::clone(&book));
        Ok((Self { port, book }, router))
    }

    /// From now on calls have to be signed with this.
    pub(crate) fn takes(&self, secret: &str) {
        *lock(&self.book.secret) = Some(secret.to_owned());
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// From now on it behaves so.
    pub(crate) fn behaves(&self, manners: Manners) {
        *lock(&self.book.manners) = manners;
    }

    /// How many calls have come.
    pub(crate) fn calls(&self) -> u64 {
        *lock(&self.book.calls)
    }

    /// What it holds of a user.
    pub(crate) fn holds(&self, user: u64) -> Option<Person> {
        let held = lock(&self.book.held);
        let body = &held.get(&user)?.body;
        let text = |name: &str| body[name].as_str().map(str::to_owned);
        Some(Person {
            username: text("username"),
            email: text("email"),
            data: body["data"].as_object().cloned().unwrap_or_default(),
            deleted: body["deleted"] == true,
        })
    }

    /// What has happened to a user here, for people.
    pub(crate) fn history(&self, user: u64) -> String {
        let held = lock(&self.book.held);
        let history = held.get(&user).map(|held| held.history.as_slice());
        format!("{:?}", history.unwrap_or_default())
    }

    /// Changes to an older state, and the same version with another content, of these users.
    pub(crate) fn wrongs(&self, users: impl Iterator<Item = u64>) -> (u64, u64) {
        let held = lock(&self.book.held);
        let users = users.filter_map(|user| held.get(&user));
        users.fold((0, 0), |(regressed, changed), held| {
            (regressed + held.regressed, changed + held.changed)
        })
    }
}

impl Book {
    /// Whether a call has the signature that it should, if it should.
    fn is_signed(&self, headers: &HeaderMap, body: &[u8]) -> bool {
        let Some(secret) = lock(&self.secret).clone() else {
            return true;
        };
        let webhook = standardwebhooks::Webhook::new(&secret);
        webhook.is_ok_and(|webhook| webhook.verify(body, headers).is_ok())
    }

    /// Takes what a call says.
    fn take(&self, body: Value) {
        let Some(user) = body["user_id"].as_u64() else {
            return;
        };
        let version = body["version"].as_u64().unwrap_or(0);
        let mut held = lock(&self.held);
        let held = held.entry(user).or_default();
        if version < held.version {
            if self.guarded {
                return;
            }
            held.regressed += 1;
        }
        if version == held.version && held.body != body {
            held.changed += 1;
        }
        held.version = version;
        held.history
            .push((version, body["data"]["n"].as_u64().unwrap_or(0)));
        held.body = body;
    }
}

/// What it holds of a user, for checks.
async fn read(State(book): State<Arc<Book>>, Path(user): Path<u64>) -> Response {
    let held = lock(&book.held);
    let body = held.get(&user).map(|held| &held.body);
    match body.filter(|body| body["deleted"] != true) {
        Some(body) => Json(body.clone()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn call(State(book): State<Arc<Book>>, headers: HeaderMap, raw: Bytes) -> Response {
    if !book.is_signed(&headers, &raw) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let manners = *lock(&book.manners);
    let number = {
        let mut calls = lock(&book.calls);
        *calls += 1;
        *calls
    };
    // Timestamps and ids of tasks may differ between two deliveries of one version.
    let body: Value = serde_json::from_slice(&raw).unwrap_or_default();
    let took = |body| {
        book.take(body);
        StatusCode::OK.into_response()
    };
    let mut answer = match manners {
        Manners::Good => took(body),
        Manners::Status(status) => StatusCode::from_u16(status)
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            .into_response(),
        Manners::Busy(after) => {
            let busy = (
                StatusCode::TOO_MANY_REQUESTS,
                [(header::RETRY_AFTER, after)],
            );
            busy.into_response()
        }
        Manners::Ignores => StatusCode::OK.into_response(),
        Manners::Hangs => std::future::pending().await,
        Manners::TakesAndHangs => {
            book.take(body);
            std::future::pending().await
        }
        Manners::TakesAndResets => {
            book.take(body);
            let torn = stream::iter([Err::<Bytes, _>(std::io::Error::other("torn off"))]);
            ([(header::CONTENT_LENGTH, "100")], Body::from_stream(torn)).into_response()
        }
        Manners::Trickles => {
            book.take(body);
            let trickle = stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Some((Ok::<_, std::io::Error>(Bytes::from_static(b" ")), ()))
            });
            Body::from_stream(trickle).into_response()
        }
        Manners::Redirects(to) => {
            (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response()
        }
        Manners::Floods => {
            book.take(body);
            let megabyte = Bytes::from(vec![b'x'; 1 << 20]);
            let flood =
                stream::iter((0..1_024).map(move |_| Ok::<_, std::io::Error>(megabyte.clone())));
            Body::from_stream(flood).into_response()
        }
        Manners::Bombs => {
            book.take(body);
            ([(header::CONTENT_ENCODING, "gzip")], vec![0_u8; 4_096]).into_response()
        }
        Manners::Refuses(user) if body["user_id"] == user => {
            StatusCode::UNPROCESSABLE_ENTITY.into_response()
        }
        Manners::Refuses(_) => took(body),
        Manners::HalfDown if number.is_multiple_of(2) => {
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
        Manners::HalfDown => took(body),
    };
    if book.guarded {
        let version = HeaderValue::from_static("version");
        answer.headers_mut().insert("x-sync-guard", version);
    }
    answer
}
