//! A server of mail of our own: aiosmtpd, which keeps every mail it takes.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::net::TcpStream;

use crate::{Certificates, Launch, Process, free_port, tools};

const READY_WITHIN: Duration = Duration::from_secs(20);

/// A running server; killed on drop. Its certificate is of an authority of its own.
#[derive(Debug)]
pub struct SmtpServer {
    process: Process,
    certificates: Certificates,
    port: u16,
    mails: PathBuf,
}

impl SmtpServer {
    /// Whom it lets in, where it has TLS.
    pub const USER: &str = "usersync";
    /// By this.
    pub const PASSWORD: &str = "swordfish-of-mail";

    /// Starts one with its files in `dir`; `security` is `starttls`, `tls` or `none`.
    ///
    /// # Errors
    /// When it is not installed, or not ready in time: with the end of its log.
    pub async fn start(dir: &Path, security: &str) -> Result<Self> {
        let dir = dir.join(format!("smtp-{security}"));
        let certificates = Certificates::make(&dir)?;
        let (port, mails) = (free_port()?, dir.join("mails"));
        std::fs::write(&mails, "").with_context(|| format!("writing {}", mails.display()))?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/smtp.py");
        let launch = Launch::new("aiosmtpd", "python3", dir.join("smtp.log"))
            .env("PYTHONPATH", tools::tools_dir().join("python"))
            .arg(script)
            .args([&port.to_string(), security])
            .args([certificates.cert("server"), certificates.key("server")])
            .args([Self::USER, Self::PASSWORD])
            .arg(&mails);
        let server = Self {
            process: launch.spawn()?,
            certificates,
            port,
            mails,
        };
        let ready = async || {
            let connected = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
            connected.map(drop).context("connecting")
        };
        server.process.until_ready(READY_WITHIN, ready).await?;
        Ok(server)
    }

    /// Where it listens, on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The authority of its certificate.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.certificates.ca()
    }

    /// Every mail so far: `from`, `to`, `tls`, `headers` with small names, and `text`.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn mails(&self) -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(&self.mails).context("reading mails")?;
        // One that is being written has no end yet.
        let lines = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        lines
            .map(|line| serde_json::from_str(line).context("a mail that is no JSON"))
            .collect()
    }
}
