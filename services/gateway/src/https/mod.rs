//! TLS of the HTTP API: which certificate is shown, and read again when it is renewed. Knows nothing of HTTP.

mod listener;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    CertificateError, Error, RootCertStore, ServerConfig,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::{CryptoProvider, ring},
    pki_types::{ServerName, UnixTime},
    server::WebPkiClientVerifier,
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use usersync_core::{settings::Reader, tls};

pub(crate) use listener::TlsListener;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_millis(500);
const EXPIRED: &str = "http.tls.cert: the certificate has expired, or isn't valid yet: renew it; nobody who checks it calls";

/// What the settings say of it: `[http.tls]`.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    cert: PathBuf,
    key: PathBuf,
    /// Whoever calls has to show a certificate of one of these authorities.
    client_ca: Option<PathBuf>,
}

/// The content of the files.
#[derive(PartialEq)]
struct Files {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Settings {
    /// Reads `[http.tls]`, `None` where it isn't there; problems stay in `reader`, those of the files too.
    pub(crate) fn read(reader: &mut Reader) -> Option<Self> {
        let cert = reader.optional("http.tls.cert", "the path of a certificate in PEM form");
        let key = reader.optional("http.tls.key", "the path of its key in PEM form");
        let authority = "the path of the authorities of callers in PEM form";
        let client_ca: Option<PathBuf> = reader.optional("http.tls.client_ca", authority);
        let settings = match (cert, key, client_ca) {
            (None, None, None) => return None,
            (Some(cert), Some(key), client_ca) => Self {
                cert,
                key,
                client_ca,
            },
            _ => {
                reader.report("http.tls: expected cert and key, and client_ca beside them only");
                return None;
            }
        };
        if let Err(problem) = settings.files().and_then(|files| files.config()) {
            reader.report(problem);
        }
        Some(settings)
    }

    /// Looks whether the certificate is valid today.
    ///
    /// # Errors
    /// When it isn't, or the files can't be used any more.
    pub(crate) fn check(&self) -> Result<(), String> {
        let files = self.files()?;
        files.config()?;
        match files.is_valid_today() {
            true => Ok(()),
            false => Err(EXPIRED.to_owned()),
        }
    }

    /// Connections to `listener` over TLS, by the files as they are at each, until `shutdown`.
    ///
    /// # Errors
    /// When the files can't be used any more.
    pub(crate) fn listen(
        &self,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> anyhow::Result<TlsListener> {
        let files = self.files().map_err(anyhow::Error::msg)?;
        let config = files.config().map_err(anyhow::Error::msg)?;
        files.warn();
        let (sender, configs) = watch::channel(Arc::new(config));
        tokio::spawn(follow(self.clone(), files, sender, shutdown));
        Ok(TlsListener::new(listener, configs)?)
    }

    fn files(&self) -> Result<Files, String> {
        let read = |key: &str, path: &Path| {
            let read = fs::read(path);
            read.map_err(|error| format!("{key}: can't read {}: {error}", path.display()))
        };
        let client_ca = self.client_ca.as_deref();
        let client_ca = client_ca.map(|path| read("http.tls.client_ca", path));
        Ok(Files {
            cert: read("http.tls.cert", &self.cert)?,
            key: read("http.tls.key", &self.key)?,
            client_ca: client_ca.transpose()?,
        })
    }
}

impl Files {
    fn pair(&self) -> Result<CertifiedKey, String> {
        let pair = tls::certified(&self.cert, &self.key);
        pair.map_err(|error| format!("http.tls.cert, http.tls.key: {error}"))
    }

    /// TLS 1.2 and 1.3.
    fn config(&self) -> Result<ServerConfig, String> {
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider.clone());
        let config = config.with_safe_default_protocol_versions();
        let config = config.map_err(|error| format!("http.tls: {error}"))?;
        let config = match &self.client_ca {
            None => config.with_no_client_auth(),
            Some(pem) => {
                let unfit = |error: String| format!("http.tls.client_ca: {error}");
                let authorities =
                    tls::certificates(pem).map_err(|error| unfit(error.to_string()))?;
                let mut roots = RootCertStore::empty();
                for authority in authorities {
                    roots
                        .add(authority)
                        .map_err(|error| unfit(error.to_string()))?;
                }
                let callers = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                let callers = callers.build().map_err(|error| unfit(error.to_string()))?;
                config.with_client_cert_verifier(callers)
            }
        };
        let mut config = config.with_cert_resolver(Arc::new(SingleCertAndKey::from(self.pair()?)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// By the dates in it alone, which are looked at before anything else.
    fn is_valid_today(&self) -> bool {
        let Ok(pair) = self.pair() else {
            return false;
        };
        let verdict = verdict(&pair, Arc::new(ring::default_provider()));
        !matches!(
            verdict,
            Err(Error::InvalidCertificate(
                CertificateError::Expired
                    | CertificateError::ExpiredContext { .. }
                    | CertificateError::NotValidYet
                    | CertificateError::NotValidYetContext { .. }
            ))
        )
    }

    fn warn(&self) {
        if !self.is_valid_today() {
            tracing::warn!("{EXPIRED}");
        }
    }
}

/// What a client would say of a certificate whose authority it doesn't know.
fn verdict(pair: &CertifiedKey, provider: Arc<CryptoProvider>) -> Result<(), Error> {
    let cert = pair.end_entity_cert()?;
    let mut roots = RootCertStore::empty();
    roots.add(cert.clone())?;
    let client = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build();
    let client = client.map_err(|error| Error::General(error.to_string()))?;
    let name = ServerName::try_from("localhost").map_err(|_| Error::UnsupportedNameType)?;
    let verified = client.verify_server_cert(cert, &[], &name, &[], UnixTime::now());
    verified.map(drop)
}

/// Takes the files whenever they change. Such as can't be used change nothing: a certificate and its key are two
/// files, and one of them comes first.
async fn follow(
    settings: Settings,
    mut known: Files,
    configs: watch::Sender<Arc<ServerConfig>>,
    shutdown: CancellationToken,
) {
    let mut bad = false;
    while let Some(()) = shutdown.run_until_cancelled(tokio::time::sleep(LOOK)).await {
        let read = settings.files();
        if matches!(&read, Ok(files) if *files == known) {
            bad = false;
            continue;
        }
        match read.and_then(|files| Ok((files.config()?, files))) {
            Ok((config, files)) => {
                bad = false;
                tracing::info!(cert = %settings.cert.display(), "the certificate of the API has changed");
                files.warn();
                configs.send_replace(Arc::new(config));
                known = files;
            }
            Err(problem) if !bad => {
                bad = true;
                tracing::error!(%problem, "the new certificate of the API is no good; the one before holds");
            }
            Err(_) => {}
        }
    }
}
