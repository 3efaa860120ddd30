//! Certificates of two authorities, and a service that asks for one.

use std::{path::Path, process::Stdio};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout},
};
use usersync_stack::{Directory, tools};

/// Two authorities, which don't know each other.
pub(crate) struct Certificates {
    /// Of the service, and of those it knows.
    pub(crate) ours: usersync_stack::Certificates,
    /// Of strangers.
    pub(crate) others: usersync_stack::Certificates,
    _dir: Directory,
}

impl Certificates {
    pub(crate) fn new() -> Result<Self> {
        let dir = Directory::temporary()?;
        Ok(Self {
            ours: usersync_stack::Certificates::make(&dir.path().join("ours"))?,
            others: usersync_stack::Certificates::make(&dir.path().join("others"))?,
            _dir: dir,
        })
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
        let ours = &certificates.ours;
        python.args([ours.cert("server"), ours.key("server"), ours.ca()]);
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
