//! A Prometheus and an Alertmanager of our own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{Launch, Process, free_port, http, tools};

const READY_WITHIN: Duration = Duration::from_secs(30);

/// A running Prometheus; killed on drop.
#[derive(Debug)]
pub struct Prometheus(Server);

/// A running Alertmanager; killed on drop.
#[derive(Debug)]
pub struct Alertmanager(Server);

/// What both are.
#[derive(Debug)]
struct Server {
    process: Process,
    url: String,
}

impl Server {
    /// Starts one with this configuration, and data and log in `dir`, by flags that both have.
    async fn start(name: &str, program: PathBuf, dir: &Path, launch: Flags<'_>) -> Result<Self> {
        let port = free_port()?;
        let log = dir.join(format!("{name}.log"));
        let process = Launch::new(name, program, log)
            .arg(format!("--config.file={}", launch.config.display()))
            .arg(format!("--{}={}", launch.data, dir.join(name).display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .args(launch.more)
            .spawn()?;
        let url = format!("http://127.0.0.1:{port}");
        let (client, ready) = (http::client(), format!("{url}/-/ready"));
        process
            .until_ready(READY_WITHIN, async || {
                http::get_text(&client, &ready).await.map(drop)
            })
            .await?;
        Ok(Self { process, url })
    }
}

/// How one is started.
struct Flags<'a> {
    config: &'a Path,
    /// The flag that says where the data is.
    data: &'a str,
    more: &'a [&'a str],
}

impl Prometheus {
    /// Starts one with this configuration, and data and log in `dir`.
    ///
    /// # Errors
    /// When it is not installed, or not ready in time: with the end of its log.
    pub async fn start(dir: &Path, config: &Path) -> Result<Self> {
        let flags = Flags {
            config,
            data: "storage.tsdb.path",
            more: &[],
        };
        let server = Server::start("prometheus", tools::prometheus()?, dir, flags);
        Ok(Self(server.await?))
    }

    /// Where it serves HTTP.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// The server's process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.0.process
    }

    /// What an expression is now: `data.result` of the answer.
    ///
    /// # Errors
    /// When it can't be evaluated, with what Prometheus says.
    pub async fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let url = format!("{}/api/v1/query", self.url());
        let sent = http::client().get(&url).query(&[("query", expression)]);
        let text = sent.send().await?.text().await?;
        let mut answer: Value = serde_json::from_str(&text).context("no JSON")?;
        ensure!(answer["status"] == "success", "{expression}: {answer}");
        let result = answer["data"]["result"].take();
        serde_json::from_value(result).with_context(|| format!("{expression} is no vector"))
    }
}

impl Alertmanager {
    /// Starts one with this configuration, and data and log in `dir`.
    ///
    /// # Errors
    /// When it is not installed, or not ready in time: with the end of its log.
    pub async fn start(dir: &Path, config: &Path) -> Result<Self> {
        let flags = Flags {
            config,
            data: "storage.path",
            // No cluster.
            more: &["--cluster.listen-address="],
        };
        let server = Server::start("alertmanager", tools::alertmanager()?, dir, flags);
        Ok(Self(server.await?))
    }

    /// Where it serves HTTP.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// The server's process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.0.process
    }
}
