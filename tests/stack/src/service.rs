//! One of our own binaries, running, with the HTTP address that all of them have.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::{Launch, Metrics, Process, Signal, http};

const READY_WITHIN: Duration = Duration::from_secs(30);

/// A gateway, a worker or an example service. Killed on drop.
#[derive(Debug)]
pub struct Service {
    launch: Launch,
    process: Process,
    url: String,
}

impl Service {
    /// Starts it without waiting; follow with [`Service::until_ready`].
    ///
    /// # Errors
    /// When the program can't be started.
    pub fn spawn(launch: Launch, url: String) -> Result<Self> {
        Ok(Self {
            process: launch.spawn()?,
            launch,
            url,
        })
    }

    /// Waits for `GET /readyz` to answer 200.
    ///
    /// # Errors
    /// When the process ends or is not ready in time: with the end of its log.
    pub async fn until_ready(&self) -> Result<()> {
        let client = http::client();
        let url = format!("{}/readyz", self.url);
        self.process
            .until_ready(READY_WITHIN, async || {
                http::get_text(&client, &url).await.map(drop)
            })
            .await
    }

    /// Its name: that of the binary or target, and a number when there are several.
    #[must_use]
    pub fn name(&self) -> &str {
        self.launch.name()
    }

    /// Where it serves HTTP: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Kills it the hard way and waits until it is gone.
    pub async fn kill9(&self) {
        self.process.kill9().await;
    }

    /// Stops it with SIGTERM; after `grace` it is killed.
    ///
    /// # Errors
    /// When it did not stop cleanly.
    pub async fn stop(&self, grace: Duration) -> Result<()> {
        self.process.stop(grace).await
    }

    /// Has it be started otherwise from the next [`Service::restart`] on.
    ///
    /// # Errors
    /// What `change` fails with.
    pub fn otherwise(&mut self, change: impl FnOnce(Launch) -> Result<Launch>) -> Result<()> {
        self.launch = change(self.launch.clone())?;
        Ok(())
    }

    /// Starts it again, on the same address; one that still runs is killed first.
    ///
    /// # Errors
    /// As [`Service::until_ready`].
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill9().await;
        self.process = self.launch.spawn()?;
        self.until_ready().await
    }

    /// What `GET /metrics` says now.
    ///
    /// # Errors
    /// When it doesn't answer, or not in the Prometheus text format.
    pub async fn metrics(&self) -> Result<Metrics> {
        let text = http::get_text(&http::client(), &format!("{}/metrics", self.url)).await?;
        Metrics::parse(&text).with_context(|| format!("metrics of {}", self.name()))
    }
}
