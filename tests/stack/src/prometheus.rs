//! A Prometheus and an Alertmanager of our own.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{Launch, Process, free_port, http, tools};

const READY_WITHIN: Duration = Duration::from_secs(30);

/// A running Prometheus; killed on drop.
#[derive(Debug)]
pub struct Prometheus {
    process: Process,
    url: String,
}

/// A running Alertmanager; killed on drop.
#[derive(Debug)]
pub struct Alertmanager {
    process: Process,
    url: String,
}

impl Prometheus {
    /// Starts one with this configuration, and data and log in `dir`.
    ///
    /// # Errors
    /// When it is not installed, or not ready in time: with the end of its log.
    pub async fn start(dir: &Path, config: &Path) -> Result<Self> {
        let port = free_port()?;
        let launch = Launch::new(
            "prometheus",
            tools::prometheus()?,
            dir.join("prometheus.log"),
        )
        .arg(format!("--config.file={}", config.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            dir.join("prometheus").display()
        ))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let server = Self {
            process: launch.spawn()?,
            url: format!("http://127.0.0.1:{port}"),
        };
        until_ready(&server.process, &server.url).await?;
        Ok(server)
    }

    /// Where it serves HTTP.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The server's process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// What an expression is now: `data.result` of the answer.
    ///
    /// # Errors
    /// When it can't be evaluated, with what Prometheus says.
    pub async fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let url = format!("{}/api/v1/query", self.url);
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
        let port = free_port()?;
        let launch = Launch::new(
            "alertmanager",
            tools::alertmanager()?,
            dir.join("alertmanager.log"),
        )
        .arg(format!("--config.file={}", config.display()))
        .arg(format!(
            "--storage.path={}",
            dir.join("alertmanager").display()
        ))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        // No cluster.
        .arg("--cluster.listen-address=");
        let server = Self {
            process: launch.spawn()?,
            url: format!("http://127.0.0.1:{port}"),
        };
        until_ready(&server.process, &server.url).await?;
        Ok(server)
    }

    /// Where it serves HTTP.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The server's process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }
}

async fn until_ready(process: &Process, url: &str) -> Result<()> {
    let client = http::client();
    let ready = format!("{url}/-/ready");
    process
        .until_ready(READY_WITHIN, async || {
            http::get_text(&client, &ready).await.map(drop)
        })
        .await
}
