//! TLS in front of a PostgreSQL that was built without it, as poolers have it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::Certificates;

/// What a client asks for TLS with: a length of 8, and a number that is no version.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Agrees on TLS as PostgreSQL does, and passes what is inside on; ends on drop. Whoever wants no TLS is sent away.
#[derive(Debug)]
pub struct PostgresFront {
    port: u16,
    asks: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl PostgresFront {
    /// In front of the server at `server`, with what is `server.pem` of `certificates` at each connection.
    ///
    /// # Errors
    /// When there is no free port.
    pub async fn start(server: u16, certificates: &Certificates) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let (port, asks) = (listener.local_addr()?.port(), Arc::default());
        let files = [
            certificates.cert("server"),
            certificates.key("server"),
            certificates.ca(),
        ];
        let asked: Arc<AtomicBool> = Arc::clone(&asks);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (files, asked) = (files.clone(), asked.load(Ordering::SeqCst));
                tokio::spawn(async move {
                    let [cert, key, ca] = files;
                    let config = config(&cert, &key, asked.then_some(&ca))?;
                    pass_on(client, server, config).await
                });
            }
        });
        Ok(Self { port, asks, task })
    }

    /// Where clients connect.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on clients have to show a certificate of the authority.
    pub fn ask(&self) {
        self.asks.store(true, Ordering::SeqCst);
    }
}

impl Drop for PostgresFront {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn config(
    cert: &std::path::Path,
    key: &std::path::Path,
    ca: Option<&std::path::PathBuf>,
) -> Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider.clone());
    let config = config.with_safe_default_protocol_versions()?;
    let chain = CertificateDer::pem_file_iter(cert)?.collect::<Result<Vec<_>, _>>()?;
    let config = match ca {
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(ca)?)?;
            let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            config.with_client_cert_verifier(clients.build()?)
        }
        None => config.with_no_client_auth(),
    };
    Ok(config.with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?)
}

async fn pass_on(mut client: TcpStream, server: u16, config: ServerConfig) -> Result<()> {
    let mut request = [0; 8];
    client.read_exact(&mut request).await?;
    ensure!(request == SSL_REQUEST, "a client without TLS");
    client.write_all(b"S").await?;
    let mut client = TlsAcceptor::from(Arc::new(config)).accept(client).await?;
    let server = TcpStream::connect(("127.0.0.1", server)).await;
    let mut server = server.context("connecting to PostgreSQL")?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
