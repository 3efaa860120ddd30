//! Certificates made by OpenSSL, and a service that asks for one.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout},
};
use usersync_stack::{Directory, tools};

/// Two authorities, `ca` and `other`; `server` and `client` are of the first, `stranger` of the second.
pub(crate) struct Certificates(Directory);

impl Certificates {
    pub(crate) fn new() -> Result<Self> {
        let certificates = Self(Directory::temporary()?);
        for authority in ["ca", "other"] {
            certificates.make(authority, &["-addext", "basicConstraints=critical,CA:TRUE"])?;
        }
        for (name, authority) in [("server", "ca"), ("client", "ca"), ("stranger", "other")] {
            let (ca, key) = (format!("{authority}.pem"), format!("{authority}.key"));
            let of = [
                "-CA",
                &ca,
                "-CAkey",
                &key,
                "-addext",
                "basicConstraints=CA:FALSE",
            ];
            let at = ["-addext", "subjectAltName=IP:127.0.0.1"];
            certificates.make(name, &[of.as_slice(), &at].concat())?;
        }
        Ok(certificates)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn make(&self, name: &str, more: &[&str]) -> Result<()> {
        let mut openssl = Command::new("openssl");
        openssl
            .current_dir(self.0.path())
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
            ])
            .args([
                "-noenc",
                "-days",
                "2",
                "-subj",
                &format!("/CN=usersync-test-{name}"),
            ])
            .args([
                "-keyout",
                &format!("{name}.key"),
                "-out",
                &format!("{name}.pem"),
            ])
            .args(more);
        let output = openssl
            .output()
            .context("openssl can't be run; install the package openssl")?;
        let problem = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "openssl: {problem}");
        Ok(())
    }
}

/// The service in https.py.
pub(crate) struct Https {
    pub(crate) url: String,
    said: Lines<BufReader<ChildStdout>>,
    _process: Child,
}

impl Https {
    pub(crate) async fn start(certificates: &Certificates) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/auth/https.py");
        let mut python = tokio::process::Command::from(tools::python());
        python
            .arg(script)
            .kill_on_drop(true)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        python.args(["server.pem", "server.key", "ca.pem"].map(|name| certificates.path(name)));
        let mut process = python.spawn().context("python3 can't be run")?;
        let stdout = process.stdout.take().context("no output")?;
        let mut https = Self {
            url: String::new(),
            said: BufReader::new(stdout).lines(),
            _process: process,
        };
        https.url = format!("https://127.0.0.1:{}/", https.caller().await?);
        Ok(https)
    }

    /// The next line it says: who called.
    pub(crate) async fn caller(&mut self) -> Result<String> {
        let line = tokio::time::timeout(std::time::Duration::from_secs(10), self.said.next_line());
        line.await??.context("the service ended")
    }
}
