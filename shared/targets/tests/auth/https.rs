//! A service that asks whoever calls for a certificate.

use std::{path::Path, process::Stdio};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout},
};
use usersync_stack::{Certificates, tools};

/// The service in https.py.
pub(crate) struct Https {
    pub(crate) url: String,
    said: Lines<BufReader<ChildStdout>>,
    _process: Child,
}

impl Https {
    pub(crate) async fn start(ours: &Certificates) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/auth/https.py");
        let mut python = tokio::process::Command::from(tools::python());
        python
            .arg(script)
            .kill_on_drop(true)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
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
