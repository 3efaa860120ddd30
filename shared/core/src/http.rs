//! The HTTP server of every binary. Whoever connects and says nothing, or half of something, holds up nobody: connections
//! have deadlines and a bound, and the one that has done least gives way to a new one.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::Request,
    serve::Listener,
};
use hyper::body::{Frame, SizeHint};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use crate::descriptors;

/// How long a new connection may take until its first request is there.
const FIRST: Duration = Duration::from_secs(10);
/// How long a connection is kept without a request.
const IDLE: Duration = Duration::from_secs(120);
/// The same from shutdown on.
const LAST: Duration = Duration::from_secs(1);
/// The most that is read of a request before somebody asks for its body, so its headers too, in bytes.
const BUFFER_BYTES: usize = 32 * 1024;
/// The same of one stream and of one connection of HTTP/2, in bytes.
const STREAM_BYTES: u32 = 64 * 1024;
const CONNECTION_BYTES: u32 = 128 * 1024;
/// The most requests at once on one connection of HTTP/2.
const MOST_STREAMS: u32 = 100;

/// Serves `router` to the connections of `listener` until `shutdown`, then finishes the requests under way.
pub async fn serve<L: Listener>(mut listener: L, router: Router, shutdown: CancellationToken) {
    let connections = Arc::new(Connections::new(descriptors::for_callers()));
    let tasks = TaskTracker::new();
    while let Some((io, _)) = shutdown.run_until_cancelled(listener.accept()).await {
        let Some(connection) = connections.admit() else {
            continue;
        };
        let serving = connection.serve(io, router.clone(), shutdown.clone());
        let connections = connections.clone();
        tasks.spawn(async move {
            connections.leave(serving.await);
        });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

/// The connections that are open, oldest first.
struct Connections {
    most: usize,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    admitted: u64,
    connections: BTreeMap<u64, Arc<Activity>>,
}

/// What a connection has done.
#[derive(Default)]
struct Activity {
    /// The requests under way.
    requests: AtomicUsize,
    /// Whether there has been one.
    asked: AtomicBool,
    /// Another has taken its place.
    displaced: CancellationToken,
}

struct Connection {
    number: u64,
    activity: Arc<Activity>,
}

impl Connections {
    fn new(most: usize) -> Self {
        let open = Mutex::default();
        Self { most, open }
    }

    /// A place for one more; where there is none left, the oldest that never asked for anything gives way, or else the
    /// oldest without a request. `None` where all are at work.
    fn admit(&self) -> Option<Connection> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.connections.len() >= self.most {
            let idle = || open.connections.iter().filter(|(_, one)| one.is_idle());
            let silent = idle().find(|(_, one)| !one.has_asked());
            let number = *silent.or_else(|| idle().next())?.0;
            let displaced = open.connections.remove(&number)?;
            displaced.displaced.cancel();
        }
        open.admitted += 1;
        let number = open.admitted;
        let activity = Arc::<Activity>::default();
        open.connections.insert(number, activity.clone());
        Some(Connection { number, activity })
    }

    fn leave(&self, number: u64) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.connections.remove(&number);
    }
}

impl Activity {
    fn is_idle(&self) -> bool {
        self.requests.load(Ordering::Relaxed) == 0
    }

    fn has_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}

/// A request under way.
struct UnderWay(Arc<Activity>);

impl UnderWay {
    fn begin(activity: &Arc<Activity>) -> Self {
        activity.requests.fetch_add(1, Ordering::Relaxed);
        activity.asked.store(true, Ordering::Relaxed);
        Self(activity.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of an answer: its request is under way until all of it is written, or nobody reads it any more.
struct Answer {
    body: Body,
    _under_way: UnderWay,
    ended: watch::Sender<()>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.ended.send_replace(());
    }
}

impl Connection {
    /// Answers its requests; returns its number when it is closed.
    async fn serve<I>(self, io: I, router: Router, shutdown: CancellationToken) -> u64
    where
        I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let activity = self.activity.clone();
        let (ended, mut requests) = watch::channel(());
        let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
            let under_way = UnderWay::begin(&activity);
            let ended = ended.clone();
            let router = router.clone();
            async move {
                let response = router.oneshot(request.map(Body::new)).await;
                response.map(|response| {
                    response.map(|body| {
                        Body::new(Answer {
                            body,
                            _under_way: under_way,
                            ended,
                        })
                    })
                })
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().max_buf_size(BUFFER_BYTES);
        builder
            .http2()
            .initial_stream_window_size(STREAM_BYTES)
            .initial_connection_window_size(CONNECTION_BYTES)
            .max_concurrent_streams(MOST_STREAMS);
        let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(io), service));
        let mut patience = std::pin::pin!(sleep_until(Instant::now() + FIRST));
        let (mut ending, mut stuck) = (false, false);
        loop {
            tokio::select! {
                // What went wrong is the caller's business, who is told by HTTP, or gone.
                _ = serving.as_mut() => break,
                () = self.activity.displaced.cancelled() => break,
                () = shutdown.cancelled(), if !ending => {
                    ending = true;
                    serving.as_mut().graceful_shutdown();
                    patience.as_mut().reset(Instant::now() + LAST);
                }
                Ok(()) = requests.changed(), if !ending => {
                    stuck = false;
                    patience.as_mut().reset(Instant::now() + IDLE);
                }
                () = patience.as_mut() => {
                    let idle = self.activity.is_idle();
                    // Silent from the first, or with an answer that nobody reads.
                    if (idle && (ending || !self.activity.has_asked())) || (!idle && stuck) {
                        break;
                    }
                    if idle {
                        // Who asks just now is answered, or told that it wasn't.
                        ending = true;
                        serving.as_mut().graceful_shutdown();
                    } else if !ending {
                        stuck = true;
                    }
                    patience.as_mut().reset(Instant::now() + if ending { LAST } else { IDLE });
                }
            }
        }
        self.number
    }
}
