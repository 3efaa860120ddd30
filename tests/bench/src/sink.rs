//! The HTTP endpoint that ours and the naive loop deliver to: a minimal server in a process of its own, and
//! the handle to start and ask it.
//!
//! `POST /guarded` answers 200 with `x-sync-guard: version`, `POST /unguarded` without; both answer nothing
//! else and count. `POST /timed` is `/guarded` plus a look at when the event in the body was sent. `POST /slow`
//! is `/guarded` after 20 ms; `POST /stalls` is `/guarded`, but one call in 500 takes 2 s; `POST /hung` never answers.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt as _, Full};
use hyper::header::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use usersync_stack::{Certificates, Process, free_port, http};

use crate::rig::Rig;
use crate::users::{SENT_US, unix_us};

const READY_WITHIN: Duration = Duration::from_secs(10);

/// How long a call to `/slow` takes.
const SLOW: Duration = Duration::from_millis(20);
/// One call in this many to `/stalls` takes this long.
const STALLS: u64 = 500;
const STALL: Duration = Duration::from_secs(2);

/// Answer deliveries until killed.
#[derive(Debug, Args)]
pub(crate) struct SinkArgs {
    /// Where to listen.
    #[arg(long)]
    listen: SocketAddr,
    /// Serve over TLS with `server.pem` and `server-key.pem` of this directory.
    #[arg(long)]
    tls: Option<PathBuf>,
}

/// What the endpoint has seen since it was last asked.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// Deliveries.
    pub count: u64,
    /// Of each timed delivery: microseconds from sending the event to its arrival here.
    pub latencies_us: Vec<u64>,
}

/// What the endpoint's connections share.
#[derive(Default)]
struct Counters {
    count: AtomicU64,
    latencies_us: Mutex<Vec<u64>>,
}

/// Serves for ever. One thread is enough: it answers more than any client here asks for.
pub(crate) async fn serve(args: SinkArgs) -> Result<()> {
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("listening on {}", args.listen))?;
    let tls = args.tls.as_deref().map(acceptor).transpose()?;
    let counters = Arc::new(Counters::default());
    loop {
        let (stream, _) = listener.accept().await.context("accepting")?;
        stream.set_nodelay(true).context("setting TCP_NODELAY")?;
        let counters = Arc::clone(&counters);
        match tls.clone() {
            None => drop(tokio::spawn(converse(stream, counters))),
            Some(tls) => drop(tokio::spawn(async move {
                if let Ok(stream) = tls.accept(stream).await {
                    converse(stream, counters).await;
                }
            })),
        }
    }
}

/// Answers one client until it goes away, in the middle of a call too.
async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, counters: Arc<Counters>) {
    let service = service_fn(move |request| answer(Arc::clone(&counters), request));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    drop(connection.await);
}

fn acceptor(dir: &Path) -> Result<TlsAcceptor> {
    // Only the first call in a process installs it; later ones find it there.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let chain: Vec<_> = CertificateDer::pem_file_iter(dir.join("server.pem"))
        .and_then(Iterator::collect)
        .context("reading server.pem")?;
    let key = PrivateKeyDer::from_pem_file(dir.join("server-key.pem"));
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key.context("reading server-key.pem")?)
        .context("using server.pem")?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn answer(
    counters: Arc<Counters>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let mut response = Response::new(Full::default());
    // A body that breaks off is no delivery.
    let Ok(body) = body.collect().await else {
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return Ok(response);
    };
    let path = head.uri.path();
    match (&head.method, path) {
        (&Method::POST, "/hung") => std::future::pending().await,
        (&Method::POST, "/guarded" | "/unguarded" | "/timed" | "/slow" | "/stalls") => {
            let number = counters.count.fetch_add(1, Ordering::Relaxed);
            if path == "/slow" {
                tokio::time::sleep(SLOW).await;
            } else if path == "/stalls" && number.is_multiple_of(STALLS) {
                tokio::time::sleep(STALL).await;
            }
            if path == "/timed" {
                counters.time(&body.to_bytes());
            }
            if path != "/unguarded" {
                let guard = HeaderValue::from_static("version");
                response.headers_mut().insert("x-sync-guard", guard);
            }
        }
        (&Method::POST, "/take") => {
            let seen = serde_json::to_vec(&counters.take()).unwrap_or_default();
            *response.body_mut() = Full::from(seen);
        }
        (&Method::HEAD | &Method::GET, _) => {}
        _ => *response.status_mut() = StatusCode::NOT_FOUND,
    }
    Ok(response)
}

impl Counters {
    fn time(&self, body: &[u8]) {
        let now = unix_us();
        if let Some(sent) = sent_us(body) {
            let mut latencies = self
                .latencies_us
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            latencies.push(now.saturating_sub(sent));
        }
    }

    fn take(&self) -> Seen {
        let mut latencies = self
            .latencies_us
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Seen {
            count: self.count.swap(0, Ordering::Relaxed),
            latencies_us: std::mem::take(&mut latencies),
        }
    }
}

/// The publish time in a body, found without parsing it: ours and the bare loop send different documents.
fn sent_us(body: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, after) = text.split_once(SENT_US)?;
    let digits = after.trim_start_matches(['"', ':', ' ']);
    let end = digits.find(|c: char| !c.is_ascii_digit())?;
    digits[..end].parse().ok()
}

/// The endpoint's process.
pub(crate) struct Sink {
    process: Process,
    url: String,
    client: reqwest::Client,
}

impl Sink {
    /// Starts one.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub(crate) async fn start(rig: &Rig) -> Result<Self> {
        let address = format!("127.0.0.1:{}", free_port()?);
        let process = rig.role("sink", ["sink", "--listen", &address])?;
        Self::ready(process, format!("http://{address}"), http::client()).await
    }

    /// Starts one that serves over TLS with these certificates.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub(crate) async fn start_tls(rig: &Rig, certificates: &Certificates) -> Result<Self> {
        let address = format!("127.0.0.1:{}", free_port()?);
        let dir = certificates.dir().display().to_string();
        let process = rig.role("tls-sink", ["sink", "--listen", &address, "--tls", &dir])?;
        let client = http::client_trusting(&certificates.ca())?;
        Self::ready(process, format!("https://{address}"), client).await
    }

    async fn ready(process: Process, url: String, client: reqwest::Client) -> Result<Self> {
        let sink = Self {
            process,
            url,
            client,
        };
        let client = &sink.client;
        let ready = async || http::get_text(client, &sink.url).await.map(drop);
        sink.process.until_ready(READY_WITHIN, ready).await?;
        Ok(sink)
    }

    /// The URL of a path.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.url)
    }

    /// What it has seen since this was last asked.
    ///
    /// # Errors
    /// When it doesn't answer.
    pub(crate) async fn take(&self) -> Result<Seen> {
        let url = self.url("take");
        let answer = self.client.post(&url).send().await;
        let answer = answer.with_context(|| format!("POST {url}"))?;
        answer
            .json()
            .await
            .with_context(|| format!("reading {url}"))
    }

    /// Makes sure that exactly `deliveries` have arrived since the last look.
    ///
    /// # Errors
    /// When it were more or fewer.
    pub(crate) async fn expect(&self, deliveries: u64, by: &str) -> Result<Seen> {
        let seen = self.take().await?;
        ensure!(
            seen.count == deliveries,
            "{by} acknowledged {deliveries} messages, but {} deliveries arrived at the endpoint",
            seen.count
        );
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::users;

    #[test]
    fn the_publish_time_is_found_in_any_document() {
        let event = users::timed_event(7, 1_764_000_000_000_001).unwrap();
        assert_eq!(sent_us(&event), Some(1_764_000_000_000_001));
        assert_eq!(sent_us(br#"{"data":{"sent_us": 5 }}"#), Some(5));
        assert_eq!(sent_us(b"{}"), None);
    }
}
