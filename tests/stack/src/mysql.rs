//! A MySQL server of our own.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::{Launch, Process, free_port, template, tools};

const READY_WITHIN: Duration = Duration::from_secs(60);
const USER: &str = "usersync";

/// A running mysqld with the database `users`; killed on drop, its data stays in its directory.
#[derive(Debug)]
pub struct MySqlServer {
    launch: Launch,
    process: Process,
    port: u16,
}

impl MySqlServer {
    /// The password of the user in [`MySqlServer::url`].
    pub const PASSWORD: &str = "of-a-test";

    /// Whether a test goes without: see [`tools::is_left_out`].
    ///
    /// # Errors
    /// Where nothing is left out.
    pub fn is_left_out() -> Result<bool> {
        tools::is_left_out("MySQL", &tools::mysqld())
    }

    /// Starts one on a free port, with data and log in `dir`. What is in it survives a restart and a kill.
    ///
    /// # Errors
    /// When it is not there, or not ready in time: with the end of its log.
    pub async fn start(dir: &Path) -> Result<Self> {
        Self::start_with(dir, &[]).await
    }

    /// The same with more arguments for the server.
    ///
    /// # Errors
    /// As [`MySqlServer::start`].
    pub async fn start_with(dir: &Path, args: &[String]) -> Result<Self> {
        let (program, port) = (tools::mysqld()?, free_port()?);
        let (major, minor) = tools::version_of(&program)?;
        let home = dir.join("mysql");
        let data = home.join("data");
        std::fs::create_dir_all(&home).with_context(|| format!("creating {}", home.display()))?;
        template::copy(&format!("mysql-{major}.{minor}"), &data, |data| {
            initialise(&program, data)
        })?;
        let init = home.join("init.sql");
        let accounts = format!(
            "CREATE DATABASE IF NOT EXISTS users;\n\
             CREATE USER IF NOT EXISTS '{USER}'@'%' IDENTIFIED BY '{}';\n\
             GRANT ALL ON *.* TO '{USER}'@'%' WITH GRANT OPTION;\n",
            Self::PASSWORD
        );
        std::fs::write(&init, accounts).with_context(|| format!("writing {}", init.display()))?;
        let launch = Launch::new("mysqld", &program, dir.join("mysql.log"))
            .args(common(&data))
            .arg(format!("--socket={}", home.join("socket").display()))
            .arg(format!("--pid-file={}", home.join("pid").display()))
            .arg(format!("--init-file={}", init.display()))
            .arg(format!("--port={port}"))
            .args(["--bind-address=127.0.0.1", "--mysqlx=OFF"])
            .args(["--secure-file-priv=NULL", "--skip-name-resolve"])
            .args([
                "--innodb-flush-log-at-trx-commit=2",
                "--innodb-buffer-pool-size=64M",
                "--performance-schema=OFF",
            ])
            .args(args);
        let server = Self {
            process: launch.spawn()?,
            launch,
            port,
        };
        server.until_ready().await?;
        Ok(server)
    }

    /// Where clients connect, without the password: `mysql://usersync@127.0.0.1:PORT/users`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("mysql://{USER}@127.0.0.1:{}/users", self.port)
    }

    /// The same with the password, for clients of a test.
    #[must_use]
    pub fn url_with_password(&self) -> String {
        let password = Self::PASSWORD;
        format!("mysql://{USER}:{password}@127.0.0.1:{}/users", self.port)
    }

    /// The port of [`MySqlServer::url`].
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
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
    /// As [`MySqlServer::start`].
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

    /// Ready means that it greets: it listens only after its init file.
    async fn until_ready(&self) -> Result<()> {
        self.process
            .until_ready(READY_WITHIN, async || {
                let mut stream = TcpStream::connect(("127.0.0.1", self.port))
                    .await
                    .context("connecting")?;
                let mut greeting = [0; 5];
                stream.read_exact(&mut greeting).await.context("reading")?;
                // Protocol version 10; an error packet begins with 255.
                ensure!(greeting[4] == 10, "it greets with {greeting:?}");
                Ok(())
            })
            .await
    }
}

/// What the server gets whether it is set up or serves. It runs as root only when told to.
fn common(data: &Path) -> Vec<String> {
    let root = tools::unstable_dir();
    let within = |path: &str| root.join(path).display().to_string();
    let mut args = vec![
        "--no-defaults".to_owned(),
        format!("--basedir={}", within("usr")),
        format!("--lc-messages-dir={}", within("usr/share/mysql")),
        format!("--plugin-dir={}", within("usr/lib/mysql/plugin")),
        format!("--datadir={}", data.display()),
        "--innodb-redo-log-capacity=16M".to_owned(),
    ];
    if nix::unistd::geteuid().is_root() {
        args.push("--user=root".to_owned());
    }
    args
}

/// Fills `data` with the system tables.
fn initialise(program: &Path, data: &Path) -> Result<()> {
    let output = Command::new(program)
        .args(common(data))
        .arg("--initialize-insecure")
        .output()
        .context("running mysqld")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "mysqld --initialize failed: {said}"
    );
    Ok(())
}
