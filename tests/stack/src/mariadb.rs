//! A MariaDB server of our own.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::{Certificates, Launch, Process, free_port, template, tools};

const READY_WITHIN: Duration = Duration::from_secs(30);
const USER: &str = "usersync";

/// What `mariadb-install-db` feeds to a new server, which takes more packages than the server itself needs.
const SYSTEM_TABLES: [&str; 4] = [
    "mysql_system_tables.sql",
    "mysql_performance_tables.sql",
    "mysql_system_tables_data.sql",
    "maria_add_gis_sp_bootstrap.sql",
];

/// A running mariadbd with the database `users`; killed on drop, its data stays in its directory.
#[derive(Debug)]
pub struct MariaDbServer {
    launch: Launch,
    process: Process,
    port: u16,
}

impl MariaDbServer {
    /// The password of the user in [`MariaDbServer::url`].
    pub const PASSWORD: &str = "of-a-test";

    /// Starts one on a free port, with data and log in `dir`. What is in it survives a restart and a kill.
    ///
    /// # Errors
    /// When it is not installed, or not ready in time: with the end of its log.
    pub async fn start(dir: &Path) -> Result<Self> {
        Self::start_with(dir, &[]).await
    }

    /// The same, where everybody has to come by TLS; it shows `server.pem`, as it is whenever the server starts.
    ///
    /// # Errors
    /// As [`MariaDbServer::start`].
    pub async fn start_secured(dir: &Path, certificates: &Certificates) -> Result<Self> {
        let args = [
            option("ssl-cert", &certificates.cert("server")),
            option("ssl-key", &certificates.key("server")),
            option("ssl-ca", &certificates.ca()),
            "--require-secure-transport=ON".to_owned(),
        ];
        Self::start_with(dir, &args).await
    }

    /// The same with more arguments for the server.
    ///
    /// # Errors
    /// As [`MariaDbServer::start`].
    pub async fn start_with(dir: &Path, args: &[String]) -> Result<Self> {
        let (program, port) = (tools::mariadbd()?, free_port()?);
        let home = dir.join("mariadb");
        let data = home.join("data");
        let temporary = home.join("tmp");
        std::fs::create_dir_all(&temporary)
            .with_context(|| format!("creating {}", temporary.display()))?;
        template::copy("mariadb", &data, |data| initialise(&program, data))?;
        let init = home.join("init.sql");
        let accounts = format!(
            "CREATE DATABASE IF NOT EXISTS users;\n\
             CREATE USER IF NOT EXISTS '{USER}'@'%' IDENTIFIED BY '{}';\n\
             GRANT ALL ON *.* TO '{USER}'@'%' WITH GRANT OPTION;\n",
            Self::PASSWORD
        );
        std::fs::write(&init, accounts).with_context(|| format!("writing {}", init.display()))?;
        let launch = Launch::new("mariadbd", program, dir.join("mariadb.log"))
            .args(common(&data, &temporary))
            .arg(option("socket", &home.join("socket")))
            .arg(option("pid-file", &home.join("pid")))
            .arg(option("init-file", &init))
            .arg(format!("--port={port}"))
            .args(["--bind-address=127.0.0.1", "--skip-name-resolve"])
            // What is committed survives the process; no fsync slows anything down.
            .args([
                "--innodb-flush-log-at-trx-commit=2",
                "--innodb-buffer-pool-size=64M",
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

    /// The port of [`MariaDbServer::url`].
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
    /// As [`MariaDbServer::start`].
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

fn option(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

/// What the server gets whether it is set up or serves. It runs as root only when told to.
///
/// `temporary` must be its own: a server that starts deletes every temporary table that it finds there.
fn common(data: &Path, temporary: &Path) -> Vec<String> {
    let mut args = vec![
        "--no-defaults".to_owned(),
        option("datadir", data),
        option("tmpdir", temporary),
    ];
    if nix::unistd::geteuid().is_root() {
        args.push("--user=root".to_owned());
    }
    args.push("--innodb-log-file-size=8M".to_owned());
    args
}

/// Fills `data` with the system tables.
fn initialise(program: &Path, data: &Path) -> Result<()> {
    let folder = ["/usr/share/mysql", "/usr/share/mariadb"]
        .map(PathBuf::from)
        .into_iter()
        .find(|folder| folder.join(SYSTEM_TABLES[0]).exists())
        .context("neither /usr/share/mysql nor /usr/share/mariadb has MariaDB's system tables")?;
    // Each statement must begin on a line of its own.
    let mut script =
        b"create database if not exists mysql;\nuse mysql;\nset @auth_root_socket=NULL;\n".to_vec();
    for file in SYSTEM_TABLES {
        let path = folder.join(file);
        script.extend(std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
    }
    let temporary = tempfile::tempdir().context("creating a temporary directory")?;
    let mut server = Command::new(program)
        .args(common(data, temporary.path()))
        .args([
            "--bootstrap",
            "--skip-networking",
            "--max-allowed-packet=8M",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("running {}", program.display()))?;
    let mut stdin = server.stdin.take().context("its standard input")?;
    let feeding = std::thread::spawn(move || stdin.write_all(&script));
    let output = server
        .wait_with_output()
        .context("waiting for mariadbd --bootstrap")?;
    let fed = feeding.join().is_ok_and(|fed| fed.is_ok());
    if !output.status.success() || !fed {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("mariadbd --bootstrap failed ({}):\n{text}", output.status);
    }
    Ok(())
}
