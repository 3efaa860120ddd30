//! A Redis server of our own, or a Valkey, which is spoken to alike.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::{Certificates, Launch, Process, free_port, tools};

const READY_WITHIN: Duration = Duration::from_secs(20);

/// Writes reach the append-only file at once and the disk when the kernel likes: what is in Redis survives
/// the process (kill -9, a restart on the same directory), and no fsync slows anything down.
const KEEP_DATA: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "no"];

/// A running redis-server; killed on drop, its data stays in its directory.
#[derive(Debug)]
pub struct RedisServer {
    launch: Launch,
    process: Process,
    port: u16,
    tls_port: Option<u16>,
}

impl RedisServer {
    /// Starts one on a free port, with data and log in `dir`. What is in it survives a restart.
    ///
    /// # Errors
    /// When it is not installed, or not ready in time: with the end of its log.
    pub async fn start(dir: &Path) -> Result<Self> {
        Self::start_with(dir, free_port()?, &KEEP_DATA).await
    }

    /// The same on a given port.
    ///
    /// # Errors
    /// As [`RedisServer::start`].
    pub async fn start_on(dir: &Path, port: u16) -> Result<Self> {
        Self::start_with(dir, port, &KEEP_DATA).await
    }

    /// Starts one that has TLS at [`RedisServer::tls_port`] and asks nobody for a certificate; it shows `server.pem`, as it
    /// is whenever the server starts. `args` are more arguments.
    ///
    /// # Errors
    /// As [`RedisServer::start`].
    pub async fn start_secured(
        dir: &Path,
        certificates: &Certificates,
        args: &[&str],
    ) -> Result<Self> {
        let tls_port = free_port()?;
        let path = |path: PathBuf| path.display().to_string();
        let (cert, key) = (certificates.cert("server"), certificates.key("server"));
        let secured = [
            "--tls-port",
            &tls_port.to_string(),
            "--tls-cert-file",
            &path(cert),
            "--tls-key-file",
            &path(key),
            "--tls-ca-cert-file",
            &path(certificates.ca()),
            "--tls-auth-clients",
            "no",
        ];
        let args = [secured.as_slice(), &KEEP_DATA, args].concat();
        let mut server = Self::start_with(dir, free_port()?, &args).await?;
        server.tls_port = Some(tls_port);
        Ok(server)
    }

    /// Whether a test goes without Valkey: see [`tools::is_left_out`].
    ///
    /// # Errors
    /// Where nothing is left out.
    pub fn valkey_is_left_out() -> Result<bool> {
        tools::is_left_out("Valkey", &tools::valkey_server())
    }

    /// Starts one that keeps nothing on disk, with more arguments for the server (limits, users).
    ///
    /// # Errors
    /// As [`RedisServer::start`].
    pub async fn start_with(dir: &Path, port: u16, args: &[&str]) -> Result<Self> {
        Self::start_of(&tools::redis_server()?, dir, port, args).await
    }

    /// The same of Valkey.
    ///
    /// # Errors
    /// As [`RedisServer::start`].
    pub async fn start_valkey_with(dir: &Path, port: u16, args: &[&str]) -> Result<Self> {
        Self::start_of(&tools::valkey_server()?, dir, port, args).await
    }

    async fn start_of(program: &Path, dir: &Path, port: u16, args: &[&str]) -> Result<Self> {
        let data = dir.join("redis");
        std::fs::create_dir_all(&data).with_context(|| format!("creating {}", data.display()))?;
        let launch = Launch::new("redis-server", program, dir.join("redis.log"))
            .args([
                "--port",
                &port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
            ])
            .arg("--dir")
            .arg(&data)
            .args(args);
        let server = Self {
            process: launch.spawn()?,
            launch,
            port,
            tls_port: None,
        };
        server.until_ready().await?;
        Ok(server)
    }

    /// Where clients connect: `redis://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The port of [`RedisServer::url`].
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port for clients with TLS, if it was started with some.
    #[must_use]
    pub fn tls_port(&self) -> Option<u16> {
        self.tls_port
    }

    /// The server's process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Kills it the hard way and waits until it is gone.
    pub async fn kill9(&self) {
        self.process.kill9().await;
    }

    /// Starts it again on the same port and data; one that still runs is killed first.
    ///
    /// # Errors
    /// As [`RedisServer::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill9().await;
        self.process = self.launch.spawn()?;
        self.until_ready().await
    }

    /// Stops it with SIGTERM; after `grace` it is killed.
    ///
    /// # Errors
    /// When it did not stop cleanly.
    pub async fn stop(&self, grace: Duration) -> Result<()> {
        self.process.stop(grace).await
    }

    /// Ready means that it answers commands: while it loads its data it refuses them.
    async fn until_ready(&self) -> Result<()> {
        self.process
            .until_ready(READY_WITHIN, async || {
                let mut stream = TcpStream::connect(("127.0.0.1", self.port))
                    .await
                    .context("connecting")?;
                stream.write_all(b"PING\r\n").await.context("asking")?;
                let mut answer = [0; 64];
                let length = stream.read(&mut answer).await.context("reading")?;
                let answer = String::from_utf8_lossy(&answer[..length]);
                ensure!(
                    answer.starts_with("+PONG"),
                    "PING is answered with {answer:?}"
                );
                Ok(())
            })
            .await
    }
}
