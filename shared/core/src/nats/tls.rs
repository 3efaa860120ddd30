//! TLS to NATS: who is trusted and who we are, and what its errors say is to be done.

use std::path::PathBuf;

use async_nats::ConnectOptions;

use crate::settings::Reader;

/// `nats.ca`, `nats.cert` and `nats.key`, PEM files that are read at every connect.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// The authorities trusted instead of this machine's.
    pub ca: Option<PathBuf>,
    /// Our certificate, with those between it and the authority.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

impl Tls {
    pub(super) fn read(reader: &mut Reader) -> Self {
        let tls = Self {
            ca: reader.optional("nats.ca", "the path of a CA certificate in PEM form"),
            cert: reader.optional("nats.cert", "the path of a certificate in PEM form"),
            key: reader.optional("nats.key", "the path of its key in PEM form"),
        };
        if tls.cert.is_some() != tls.key.is_some() {
            reader.report("nats.cert, nats.key: expected both or none");
        }
        for (key, path) in [
            ("nats.ca", &tls.ca),
            ("nats.cert", &tls.cert),
            ("nats.key", &tls.key),
        ] {
            if path.as_ref().is_some_and(|path| !path.is_file()) {
                reader.problem(key, "a file that exists");
            }
        }
        tls
    }

    /// One URL that asks for TLS, an authority or a certificate: then no connection goes without, whatever the server
    /// says, nor to those servers that another one names.
    pub(super) fn of(&self, servers: &[String], mut options: ConnectOptions) -> ConnectOptions {
        let asked = servers.iter().any(|server| server.starts_with("tls://"));
        if let Some(ca) = &self.ca {
            options = options.add_root_certificates(ca.clone());
        }
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        options.require_tls(asked || self.ca.is_some() || self.cert.is_some())
    }
}

/// What to do, and where. The client has no kinds for errors of TLS, only texts.
const HINTS: [(&str, &str); 13] = [
    ("UnknownIssuer", UNKNOWN),
    // An authority of the same name, made anew.
    ("BadSignature", UNKNOWN),
    (
        "certificate expired",
        "renew the server's certificate, cert_file in nats.conf, and reload the server",
    ),
    (
        "certificate not valid for name",
        "nats.url has to name the server as its certificate does, cert_file in nats.conf",
    ),
    ("alert: CertificateRequired", WANTED),
    ("alert: BadCertificate", REFUSED),
    ("alert: CertificateExpired", REFUSED),
    ("alert: UnknownCA", REFUSED),
    (
        "received corrupt message",
        "the server has no TLS: turn it on in nats.conf, or use nats:// in nats.url without nats.ca and nats.cert",
    ),
    (
        "could not load private key",
        "nats.key has to be a key in PEM form",
    ),
    (
        "could not load cert",
        "nats.ca and nats.cert have to be certificates in PEM form",
    ),
    (
        "could not add certificate or key",
        "nats.cert and nats.key have to belong together",
    ),
    (
        "could not load platform certs",
        "this machine has no authorities; set nats.ca",
    ),
];
const UNKNOWN: &str = "nats.ca has to hold the authority of the server's certificate";
const WANTED: &str = "the server asks for a certificate: set nats.cert and nats.key";
const REFUSED: &str = "the server doesn't take nats.cert: it has expired, or is of another authority than ca_file in nats.conf";

/// What to do about an error of connecting, if it is one of TLS.
pub(super) fn hint(error: &str) -> Option<&'static str> {
    let known = HINTS.iter().find(|(text, _)| error.contains(text));
    known.map(|(_, hint)| *hint)
}
