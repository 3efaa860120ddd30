//! An ArcadeDB server of our own: it speaks Bolt and openCypher, as Neo4j does, without being Neo4j.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{Certificates, Launch, Process, free_port, http, tools};

const READY_WITHIN: Duration = Duration::from_secs(60);
const DATABASE: &str = "userdata";

/// A running ArcadeDB with the database `userdata`; killed on drop, its data stays in its directory.
#[derive(Debug)]
pub struct ArcadeDbServer {
    launch: Launch,
    process: Process,
    bolt: u16,
    http: u16,
}

impl ArcadeDbServer {
    /// The password of the user in [`ArcadeDbServer::url`].
    pub const PASSWORD: &str = "of-a-test-server";

    /// Starts one on free ports, with data and log in `dir`. What is in it survives a restart and a kill.
    ///
    /// # Errors
    /// When it is not installed, or not ready in time: with the end of its log.
    pub async fn start(dir: &Path) -> Result<Self> {
        Self::start_with(dir, &[]).await
    }

    /// The same with TLS on Bolt, and nothing but TLS, by `server.pem` of `certificates` as it is now.
    ///
    /// # Errors
    /// As [`ArcadeDbServer::start`], or when there is no openssl, which makes the form of store that Java reads.
    pub async fn start_secured(dir: &Path, certificates: &Certificates) -> Result<Self> {
        let store = key_store(certificates)?.display().to_string();
        let settings = [
            ("bolt.ssl", "REQUIRED"),
            ("ssl.keyStore", &store),
            ("ssl.keyStorePassword", Self::PASSWORD),
            // It wants one, although it asks nobody for a certificate.
            ("ssl.trustStore", &store),
            ("ssl.trustStorePassword", Self::PASSWORD),
        ];
        Self::start_with(dir, &settings).await
    }

    async fn start_with(dir: &Path, settings: &[(&str, &str)]) -> Result<Self> {
        let (installed, bolt, http) = (tools::arcadedb()?, free_port()?, free_port()?);
        let home = dir.join("arcadedb");
        std::fs::create_dir_all(&home).with_context(|| format!("creating {}", home.display()))?;
        let setting = |name: &str, value: &str| format!("-Darcadedb.{name}={value}");
        let home_text = home.display().to_string();
        let java = installed.join("jre/bin/java");
        let launch = Launch::new("arcadedb", java, dir.join("arcadedb.log"))
            .current_dir(&home)
            // Quick to start and small, which is all a test wants.
            .args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .args([
                "--add-opens",
                "java.base/java.util.concurrent.atomic=ALL-UNNAMED",
            ])
            .args(["--add-opens", "java.base/java.nio.channels.spi=ALL-UNNAMED"])
            .arg(setting("server.rootPath", &home_text))
            .arg(setting(
                "server.databaseDirectory",
                &format!("{home_text}/databases"),
            ))
            .arg(setting("server.rootPassword", Self::PASSWORD))
            .arg(setting(
                "server.defaultDatabases",
                &format!("{DATABASE}[root]"),
            ))
            .arg(setting(
                "server.plugins",
                "Bolt:com.arcadedb.bolt.BoltProtocolPlugin",
            ))
            .arg(setting("bolt.host", "127.0.0.1"))
            .arg(setting("bolt.port", &bolt.to_string()))
            .arg(setting("server.httpIncomingHost", "127.0.0.1"))
            .arg(setting("server.httpIncomingPort", &http.to_string()))
            .args(settings.iter().map(|(name, value)| setting(name, value)))
            .arg("-cp")
            .arg(installed.join("jars/*"))
            .arg("com.arcadedb.server.ArcadeDBServer");
        let server = Self {
            process: launch.spawn()?,
            launch,
            bolt,
            http,
        };
        server.until_ready().await?;
        Ok(server)
    }

    /// Where clients connect, without the password: `bolt://root@127.0.0.1:PORT/userdata`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("bolt://root@127.0.0.1:{}/{DATABASE}", self.bolt)
    }

    /// The port of [`ArcadeDbServer::url`].
    #[must_use]
    pub fn port(&self) -> u16 {
        self.bolt
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

    /// Starts it again on the same ports and data; one that still runs is killed first.
    ///
    /// # Errors
    /// As [`ArcadeDbServer::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill9().await;
        self.process = self.launch.spawn()?;
        self.until_ready().await
    }

    /// Ready is what it says over HTTP.
    async fn until_ready(&self) -> Result<()> {
        let (client, url) = (
            http::client(),
            format!("http://127.0.0.1:{}/api/v1/ready", self.http),
        );
        self.process
            .until_ready(READY_WITHIN, async || {
                let status = client.get(&url).send().await?.status();
                ensure!(status == 204, "{url} answers {status}");
                Ok(())
            })
            .await
    }
}

/// `server.pem` and its key as PKCS #12, beside them.
fn key_store(certificates: &Certificates) -> Result<PathBuf> {
    let store = certificates.dir().join("server.p12");
    let output = Command::new("openssl")
        .args(["pkcs12", "-export", "-name", "server", "-passout"])
        .arg(format!("pass:{}", ArcadeDbServer::PASSWORD))
        .arg("-in")
        .arg(certificates.cert("server"))
        .arg("-inkey")
        .arg(certificates.key("server"))
        .arg("-out")
        .arg(&store)
        .output()
        .context("running openssl pkcs12")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "openssl pkcs12 failed: {said}");
    Ok(store)
}
