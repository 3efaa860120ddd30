//! Connections whose handshake is done: who connects and says nothing holds up nobody.

use std::{collections::VecDeque, io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::task::AbortOnDropHandle;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// The most handshakes under way; for one more, the oldest gives way.
const MOST: usize = 256;
/// How long nobody is taken in after the system had no room for a connection.
const NO_ROOM: Duration = Duration::from_millis(100);

type Done = (TlsStream<TcpStream>, SocketAddr);

/// Gives out connections over TLS; ends the handshakes under way when dropped.
pub(crate) struct TlsListener {
    address: SocketAddr,
    done: mpsc::Receiver<Done>,
    _handshakes: AbortOnDropHandle<()>,
}

impl TlsListener {
    /// Each handshake by what `configs` says when it begins.
    pub(super) fn new(
        listener: TcpListener,
        configs: watch::Receiver<Arc<ServerConfig>>,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (sender, done) = mpsc::channel(64);
        let handshakes = tokio::spawn(shake_hands(listener, configs, sender));
        Ok(Self {
            address,
            done,
            _handshakes: AbortOnDropHandle::new(handshakes),
        })
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> Done {
        match self.done.recv().await {
            Some(done) => done,
            // The sender lives as long as its task, which lives as long as we do.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

async fn shake_hands(
    listener: TcpListener,
    configs: watch::Receiver<Arc<ServerConfig>>,
    done: mpsc::Sender<Done>,
) {
    let mut under_way = JoinSet::new();
    let mut oldest: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    while under_way.len() >= MOST && let Some(handshake) = oldest.pop_front() {
                        handshake.abort();
                        let _ = under_way.join_next().await;
                    }
                    let acceptor = TlsAcceptor::from(configs.borrow().clone());
                    let done = done.clone();
                    oldest.push_back(under_way.spawn(async move {
                        let shaken = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await;
                        if let Ok(Ok(stream)) = shaken {
                            // Nobody takes it after shutdown.
                            let _ = done.send((stream, address)).await;
                        }
                    }));
                }
                Err(error) if is_of_one_caller(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "can't take in another connection");
                    tokio::time::sleep(NO_ROOM).await;
                }
            },
            Some(_) = under_way.join_next(), if !under_way.is_empty() => {
                oldest.retain(|handshake| !handshake.is_finished());
            }
        }
    }
}

/// Whether a caller left before it was taken in.
fn is_of_one_caller(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}
