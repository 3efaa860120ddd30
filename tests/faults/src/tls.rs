//! A listener that speaks TLS with the certificate that is shown at the moment.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections that wait to be served.
const WAITING: usize = 64;

type Served = (TlsStream<TcpStream>, SocketAddr);

/// Hands out connections that have shown and seen what they should.
pub(crate) struct Tls {
    address: SocketAddr,
    ready: mpsc::Receiver<Served>,
}

impl Tls {
    /// On `listener`, with `server.pem` and `server-key.pem` of the folder, as they are when somebody connects.
    pub(crate) fn serve(listener: TcpListener, certificates: PathBuf) -> Result<Self> {
        // Only the first call in a process installs it; later ones find it there.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let address = listener.local_addr()?;
        let (made, ready) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            while let Ok((stream, from)) = listener.accept().await {
                let (made, certificates) = (made.clone(), certificates.clone());
                tokio::spawn(async move {
                    // Whoever doesn't like the certificate goes away.
                    let acceptor = acceptor(&certificates)?;
                    let stream = timeout(HANDSHAKE, acceptor.accept(stream)).await??;
                    made.send((stream, from)).await?;
                    anyhow::Ok(())
                });
            }
        });
        Ok(Self { address, ready })
    }
}

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> Served {
        match self.ready.recv().await {
            Some(served) => served,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.address)
    }
}

fn acceptor(certificates: &std::path::Path) -> Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(certificates.join("server.pem"));
    let chain = chain.and_then(Iterator::collect).context("server.pem")?;
    let key = PrivateKeyDer::from_pem_file(certificates.join("server-key.pem"));
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key.context("server-key.pem")?)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
