//! A MySQL server of our own. Debian has none in its stable release, so it comes out of a tree of packages of another
//! one, with the libraries it was built for.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::{Launch, Process, free_port, template, tools};

const READY_WITHIN: Duration = Duration::from_secs(60);
const USER: &str = "usersync";
/// What starts a program with other libraries than the system's.
const LOADER: &str = "lib64/ld-linux-x86-64.so.2";
const LIBRARIES: [&str; 2] = [
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu/mysql/private",
];

/// A running mysqld with the database `users`; killed on drop, its data stays in its directory.
#[derive(Debug)]
pub struct MySqlServer {
    process: Process,
    port: u16,
}

impl MySqlServer {
    /// The password of the user in [`MySqlServer::url`].
    pub const PASSWORD: &str = "of-a-test";

    /// Whether there is one on this machine: a tree of packages at `.tools/mysql`, or where `USERSYNC_TEST_MYSQL` says,
    /// such as `debootstrap --variant=minbase --include=mysql-server-core sid .tools/mysql` makes.
    #[must_use]
    pub fn is_there() -> bool {
        root().join("usr/sbin/mysqld").exists()
    }

    /// Starts one on a free port, with data and log in `dir`.
    ///
    /// # Errors
    /// When it is not there, or not ready in time: with the end of its log.
    pub async fn start(dir: &Path) -> Result<Self> {
        ensure!(
            Self::is_there(),
            "there is no MySQL at {}",
            root().display()
        );
        let port = free_port()?;
        let home = dir.join("mysql");
        let data = home.join("data");
        std::fs::create_dir_all(&home).with_context(|| format!("creating {}", home.display()))?;
        template::copy("mysql", &data, initialise)?;
        let init = home.join("init.sql");
        let accounts = format!(
            "CREATE DATABASE IF NOT EXISTS users;\n\
             CREATE USER IF NOT EXISTS '{USER}'@'%' IDENTIFIED BY '{}';\n\
             GRANT ALL ON *.* TO '{USER}'@'%' WITH GRANT OPTION;\n",
            Self::PASSWORD
        );
        std::fs::write(&init, accounts).with_context(|| format!("writing {}", init.display()))?;
        let process = Launch::new("mysqld", root().join(LOADER), dir.join("mysql.log"))
            .args(arguments(&data))
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
            .spawn()?;
        let server = Self { process, port };
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

fn root() -> PathBuf {
    let named = std::env::var_os("USERSYNC_TEST_MYSQL").map(PathBuf::from);
    named.unwrap_or_else(|| tools::tools_dir().join("mysql"))
}

/// What the loader gets: the server, and what the server gets whether it is set up or serves.
fn arguments(data: &Path) -> Vec<String> {
    let root = root();
    let within = |path: &str| root.join(path).display().to_string();
    let mut args = vec![
        "--library-path".to_owned(),
        LIBRARIES.map(within).join(":"),
        within("usr/sbin/mysqld"),
        "--no-defaults".to_owned(),
        format!("--basedir={}", within("usr")),
        format!("--lc-messages-dir={}", within("usr/share/mysql")),
        format!("--plugin-dir={}", within("usr/lib/mysql/plugin")),
        format!("--datadir={}", data.display()),
        "--innodb-redo-log-capacity=16M".to_owned(),
    ];
    // It runs as root only when told to.
    if nix::unistd::geteuid().is_root() {
        args.push("--user=root".to_owned());
    }
    args
}

/// Fills `data` with the system tables.
fn initialise(data: &Path) -> Result<()> {
    let output = Command::new(root().join(LOADER))
        .args(arguments(data))
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
