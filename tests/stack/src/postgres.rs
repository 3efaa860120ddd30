//! A PostgreSQL server of our own: one with pgvector, or the newest that there is.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, chown, geteuid};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::{Launch, Process, eventually, free_port, template, tools};

const READY_WITHIN: Duration = Duration::from_secs(30);
/// Whom a server belongs to that root starts: PostgreSQL refuses to run as root.
const NOBODY: u32 = 65_534;

/// A running postgres with the database `postgres`; killed on drop, its data stays in its directory.
#[derive(Debug)]
pub struct PostgresServer {
    launch: Launch,
    process: Process,
    port: u16,
}

impl PostgresServer {
    /// The user in [`PostgresServer::url`].
    pub const USER: &str = "postgres";
    /// The password of that user.
    pub const PASSWORD: &str = "of-a-test";

    /// Whether a test goes without the newest: see [`tools::is_left_out`].
    ///
    /// # Errors
    /// Where nothing is left out.
    pub fn newest_is_left_out() -> Result<bool> {
        tools::is_left_out("newest PostgreSQL", &tools::newest_postgres_bin())
    }

    /// Starts one on a free port, with data and log in `dir`. What is in it survives a restart and a kill.
    ///
    /// # Errors
    /// When it is not installed, or not ready in time: with the end of its log.
    pub async fn start(dir: &Path) -> Result<Self> {
        Self::start_of(dir, &tools::postgres_bin()?, "postgres").await
    }

    /// The same, of the newest PostgreSQL that `cargo xtask setup` finds, without pgvector.
    ///
    /// # Errors
    /// As [`PostgresServer::start`].
    pub async fn start_newest(dir: &Path) -> Result<Self> {
        let bin = tools::newest_postgres_bin()?;
        let (major, _) = tools::version_of(&bin.join("postgres"))?;
        Self::start_of(dir, &bin, &format!("postgres-{major}")).await
    }

    async fn start_of(dir: &Path, bin: &Path, template: &str) -> Result<Self> {
        let data = dir.join("postgres");
        template::copy(template, &data, |data| initialise(bin, data))?;
        Self::serve(dir, bin, &data).await
    }

    async fn serve(dir: &Path, bin: &Path, data: &Path) -> Result<Self> {
        let port = free_port()?;
        belongs_to_the_server(data)?;
        let (program, args) = unprivileged(&bin.join("postgres"));
        let launch = Launch::new("postgres", program, dir.join("postgres.log"))
            .args(args)
            .arg("-D")
            .arg(data)
            .args(["-p", &port.to_string(), "-k", ""])
            .args([
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                "shared_buffers=32MB",
            ])
            // What is committed survives the process; no fsync slows anything down.
            .args(["-c", "fsync=off"]);
        let server = Self {
            process: launch.spawn()?,
            launch,
            port,
        };
        server.until_ready().await?;
        Ok(server)
    }

    /// Starts a standby of this one, which follows it, with data and log in `dir`.
    ///
    /// # Errors
    /// When it can't be copied, or not ready in time.
    pub async fn standby(&self, dir: &Path) -> Result<Self> {
        let bin = tools::postgres_bin()?;
        let data = dir.join("postgres");
        fs::create_dir_all(&data).with_context(|| format!("creating {}", data.display()))?;
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700))?;
        belongs_to_the_server(&data)?;
        let (program, args) = unprivileged(&bin.join("pg_basebackup"));
        let place = format!(
            "host=127.0.0.1 port={} user={} password={}",
            self.port,
            Self::USER,
            Self::PASSWORD
        );
        let output = Command::new(program)
            .args(args)
            .arg("-D")
            .arg(&data)
            .args([
                "-d",
                &place,
                "-R",
                "-X",
                "stream",
                "-c",
                "fast",
                "--no-sync",
            ])
            .stdin(Stdio::null())
            .output()
            .context("running pg_basebackup")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "pg_basebackup failed: {said}");
        Self::start(dir).await
    }

    /// Where clients connect, without the password: `postgres://postgres@127.0.0.1:PORT/postgres`.
    #[must_use]
    pub fn url(&self) -> String {
        url(self.port, None)
    }

    /// The same with the password, for clients of a test.
    #[must_use]
    pub fn url_with_password(&self) -> String {
        url(self.port, Some(Self::PASSWORD))
    }

    /// The port of [`PostgresServer::url`].
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's first process; each connection has another one.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Signals the processes of all connections, then the first one.
    ///
    /// # Errors
    /// When the server has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        for child in children(self.process.pid()) {
            let _ = kill(Pid::from_raw(child), signal);
        }
        self.process.signal(signal)
    }

    /// Kills it the hard way and waits until it is gone.
    pub async fn kill9(&self) {
        let _ = self.signal(Signal::SIGKILL);
        self.process.kill9().await;
    }

    /// Starts it again on the same port and data; one that still runs is killed first.
    ///
    /// # Errors
    /// As [`PostgresServer::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.kill9().await;
        // It refuses to start while a process of its predecessor is still going down.
        let launch = self.launch.clone();
        let port = self.port;
        self.process = eventually(READY_WITHIN, async || {
            let process = launch.spawn()?;
            until_ready(&process, port, READY_WITHIN).await?;
            Ok(process)
        })
        .await?;
        Ok(())
    }

    /// Stops it with SIGINT, its "fast shutdown", which doesn't wait for clients; after `grace` it is killed.
    ///
    /// # Errors
    /// When it did not stop cleanly.
    pub async fn stop(&self, grace: Duration) -> Result<()> {
        self.process.signal(Signal::SIGINT)?;
        let status = self.process.wait_exit(grace).await?;
        ensure!(status.success(), "postgres stopped with {status}");
        Ok(())
    }

    async fn until_ready(&self) -> Result<()> {
        until_ready(&self.process, self.port, READY_WITHIN).await
    }
}

pub(crate) fn url(port: u16, password: Option<&str>) -> String {
    let user = PostgresServer::USER;
    let password = password.map(|password| format!(":{password}"));
    let password = password.unwrap_or_default();
    format!("postgres://{user}{password}@127.0.0.1:{port}/postgres")
}

/// Ready means that it asks for a password: while it recovers it answers with an error.
pub(crate) async fn until_ready(process: &Process, port: u16, within: Duration) -> Result<()> {
    let mut startup = vec![0, 0, 0, 0, 0, 3, 0, 0];
    let user = PostgresServer::USER;
    startup.extend(format!("user\0{user}\0\0").bytes());
    startup[3] = u8::try_from(startup.len())?;
    process
        .until_ready(within, async || {
            let mut stream = TcpStream::connect(("127.0.0.1", port))
                .await
                .context("connecting")?;
            stream.write_all(&startup).await.context("asking")?;
            let answer = stream.read_u8().await.context("reading")?;
            ensure!(answer == b'R', "it answers {:?}", char::from(answer));
            Ok(())
        })
        .await
}

/// Fills `data` with a new cluster.
fn initialise(bin: &Path, data: &Path) -> Result<()> {
    let password = data.with_extension("password");
    fs::write(&password, PostgresServer::PASSWORD)
        .with_context(|| format!("writing {}", password.display()))?;
    belongs_to_the_server(data)?;
    let (program, args) = unprivileged(&bin.join("initdb"));
    let output = Command::new(program)
        .args(args)
        .arg("-D")
        .arg(data)
        .arg("--pwfile")
        .arg(&password)
        .args([
            "-U",
            PostgresServer::USER,
            "--auth",
            "scram-sha-256",
            "--no-sync",
        ])
        .args(["--no-locale", "--encoding", "UTF8"])
        .stdin(Stdio::null())
        .output()
        .context("running initdb")?;
    let _ = fs::remove_file(&password);
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("initdb failed ({}):\n{text}", output.status);
    }
    Ok(())
}

/// How to run `program`: as it is, or, when we are root, as nobody, who keeps the right to look into
/// directories that are ours alone.
pub(crate) fn unprivileged(program: &Path) -> (std::path::PathBuf, Vec<std::ffi::OsString>) {
    if !geteuid().is_root() {
        return (program.to_owned(), Vec::new());
    }
    let id = |flag: &str| format!("--{flag}={NOBODY}");
    let args = [
        &id("reuid"),
        &id("regid"),
        "--clear-groups",
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
        // Changing the user has undone what the one who started us asked for.
        "--pdeathsig=KILL",
        "--",
    ];
    let args = args.map(std::ffi::OsString::from).into_iter();
    let args = args.chain([program.as_os_str().to_owned()]).collect();
    ("setpriv".into(), args)
}

/// PostgreSQL takes only a directory that belongs to whom it runs as.
fn belongs_to_the_server(path: &Path) -> Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    chown(
        path,
        Some(Uid::from_raw(NOBODY)),
        Some(Gid::from_raw(NOBODY)),
    )
    .with_context(|| format!("giving {} away", path.display()))?;
    if path.is_dir() {
        for entry in fs::read_dir(path).with_context(|| format!("reading {}", path.display()))? {
            belongs_to_the_server(&entry?.path())?;
        }
    }
    Ok(())
}

/// The processes that `parent` started.
fn children(parent: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let of_parent = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name before it may hold anything, also brackets and spaces.
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        after_name.split(' ').nth(1) == Some(parent.to_string().as_str())
    };
    pids.filter(of_parent).collect()
}
