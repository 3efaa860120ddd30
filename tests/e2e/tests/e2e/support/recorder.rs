//! An HTTP target under the test's control: answers as told, and remembers every call.

use std::{
    collections::BTreeMap,
    future::Future,
    net::Ipv4Addr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Instant,
};

use anyhow::{Result, ensure};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde_json::Value;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use usersync_stack::{eventually, free_port};

use super::SOON;

/// One call, as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// When.
    pub(crate) at: Instant,
    /// How.
    pub(crate) method: Method,
    /// Where to.
    pub(crate) path: String,
    /// With which headers.
    pub(crate) headers: HeaderMap,
    /// The body's bytes.
    pub(crate) raw: Bytes,
    /// The body.
    pub(crate) body: Value,
}

impl Call {
    /// Whom it is about, as text.
    pub(crate) fn user(&self) -> String {
        match &self.body["user_id"] {
            Value::String(id) => id.clone(),
            id => id.to_string(),
        }
    }

    /// Which version.
    pub(crate) fn version(&self) -> u64 {
        self.body["version"].as_u64().unwrap_or_default()
    }

    /// `data.n`, which tests number their changes with.
    pub(crate) fn n(&self) -> u64 {
        self.body["data"]["n"].as_u64().unwrap_or_default()
    }

    /// One of its headers, empty when it isn't there.
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.and_then(|value| value.to_str().ok()).unwrap_or("")
    }
}

/// An answer with nothing but a status.
pub(crate) fn answer(status: u16) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    status.into_response()
}

/// A gate that calls wait at until the test opens it.
#[derive(Clone)]
pub(crate) struct Gate(Arc<watch::Sender<bool>>);

impl Gate {
    pub(crate) fn closed() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    pub(crate) async fn pass(&self) {
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}

type Behaviour = Arc<dyn Fn(Call) -> Pin<Box<dyn Future<Output = Response> + Send>> + Send + Sync>;

/// The server. Stops listening on drop.
pub(crate) struct Recorder {
    port: u16,
    book: Arc<Book>,
    listening: Option<(watch::Sender<bool>, JoinHandle<()>)>,
}

struct Book {
    behaviour: Behaviour,
    /// Refuses older versions and says so, as the receiver kit does.
    guarded: bool,
    calls: Mutex<Vec<Call>>,
    /// The last body of each user that was answered with 2xx, in the order of the answers.
    written: Mutex<BTreeMap<String, Value>>,
    answered: AtomicUsize,
}

impl Recorder {
    /// Starts one that keeps whatever came last.
    pub(crate) async fn start<F, A>(behaviour: F) -> Result<Self>
    where
        F: Fn(Call) -> A + Send + Sync + 'static,
        A: Future<Output = Response> + Send + 'static,
    {
        Self::with(behaviour, false).await
    }

    /// Starts one that refuses older versions by itself, and says so.
    pub(crate) async fn start_guarded<F, A>(behaviour: F) -> Result<Self>
    where
        F: Fn(Call) -> A + Send + Sync + 'static,
        A: Future<Output = Response> + Send + 'static,
    {
        Self::with(behaviour, true).await
    }

    async fn with<F, A>(behaviour: F, guarded: bool) -> Result<Self>
    where
        F: Fn(Call) -> A + Send + Sync + 'static,
        A: Future<Output = Response> + Send + 'static,
    {
        let book = Book {
            behaviour: Arc::new(move |call| Box::pin(behaviour(call))),
            guarded,
            calls: Mutex::default(),
            written: Mutex::default(),
            answered: AtomicUsize::new(0),
        };
        let mut recorder = Self {
            port: free_port()?,
            book: Arc::new(book),
            listening: None,
        };
        recorder.listen().await?;
        Ok(recorder)
    }

    /// Listens again after [`Recorder::stop`], on the same port.
    pub(crate) async fn listen(&mut self) -> Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).await?;
        let router = Router::new()
            .fallback(record)
            .with_state(Arc::clone(&self.book));
        let stop = watch::Sender::new(false);
        let mut stopped = stop.subscribe();
        let serving = tokio::spawn(async move {
            let stopped = async move {
                let _ = stopped.wait_for(|stopped| *stopped).await;
            };
            let _ = axum::serve(listener, router)
                .with_graceful_shutdown(stopped)
                .await;
        });
        self.listening = Some((stop, serving));
        Ok(())
    }

    /// Finishes the calls under way and refuses all connections from then on.
    pub(crate) async fn stop(&mut self) {
        if let Some((stop, serving)) = self.listening.take() {
            stop.send_replace(true);
            let _ = serving.await;
        }
    }

    /// Where it is called.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/users", self.port)
    }

    /// A catalogue entry for it: `settings` are further lines of TOML.
    pub(crate) fn target(&self, name: &str, settings: &str) -> String {
        format!("[{name}]\nurl = \"{}\"\n{settings}\n", self.url())
    }

    /// Every call so far, as they arrived.
    pub(crate) fn calls(&self) -> Vec<Call> {
        lock(&self.book.calls).clone()
    }

    /// The calls about one user.
    pub(crate) fn calls_for(&self, user: u64) -> Vec<Call> {
        let mut calls = self.calls();
        calls.retain(|call| call.user() == user.to_string());
        calls
    }

    /// How many calls have arrived.
    pub(crate) fn arrived(&self) -> usize {
        lock(&self.book.calls).len()
    }

    /// How many calls were waited for until they were answered.
    pub(crate) fn answered(&self) -> usize {
        self.book.answered.load(SeqCst)
    }

    /// Waits until no call is under way: one about a version that was replaced meanwhile is nothing that
    /// NATS still waits for.
    pub(crate) async fn until_all_answered(&self) -> Result<()> {
        eventually(SOON, async || {
            let (answered, arrived) = (self.answered(), self.arrived());
            ensure!(
                answered == arrived,
                "{answered} of {arrived} calls answered"
            );
            Ok(())
        })
        .await
    }

    /// What it holds of a user: the last body it took, null when there is none.
    pub(crate) fn holds(&self, user: u64) -> Value {
        let written = lock(&self.book.written);
        written.get(&user.to_string()).cloned().unwrap_or_default()
    }
}

async fn record(
    State(book): State<Arc<Book>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    raw: Bytes,
) -> Response {
    let call = Call {
        at: Instant::now(),
        method,
        path: uri.path().to_owned(),
        headers,
        body: serde_json::from_slice(&raw).unwrap_or_default(),
        raw,
    };
    lock(&book.calls).push(call.clone());
    let mut response = (book.behaviour)(call.clone()).await;
    if response.status().is_success() {
        let mut written = lock(&book.written);
        let held = written.get(&call.user());
        let held = held.and_then(|held| held["version"].as_u64()).unwrap_or(0);
        if !book.guarded || call.version() >= held {
            written.insert(call.user(), call.body.clone());
        }
    }
    if book.guarded {
        let version = HeaderValue::from_static("version");
        response.headers_mut().insert("x-sync-guard", version);
    }
    book.answered.fetch_add(1, SeqCst);
    response
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
