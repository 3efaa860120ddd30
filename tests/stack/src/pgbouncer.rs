//! A PgBouncer of our own, in front of a PostgreSQL: it lends a server's connection to a client for one transaction.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::{Launch, PostgresServer, Process, free_port, postgres, tools};

const READY_WITHIN: Duration = Duration::from_secs(20);

/// A running pgbouncer; killed on drop.
#[derive(Debug)]
pub struct PgBouncerServer {
    process: Process,
    port: u16,
}

impl PgBouncerServer {
    /// Whether a test goes without: see [`tools::is_left_out`].
    ///
    /// # Errors
    /// Where nothing is left out.
    pub fn is_left_out() -> Result<bool> {
        tools::is_left_out("PgBouncer", &tools::pgbouncer())
    }

    /// Starts one on a free port, with settings and log in `dir`, which shares two connections to `server` among all
    /// clients and knows nothing of prepared statements. `more` are lines for its section `[pgbouncer]`; the last of
    /// a name counts.
    ///
    /// # Errors
    /// When it is not there, or not ready in time: with the end of its log.
    pub async fn start(dir: &Path, server: &PostgresServer, more: &[&str]) -> Result<Self> {
        let port = free_port()?;
        let home = dir.join("pgbouncer");
        fs::create_dir_all(&home).with_context(|| format!("creating {}", home.display()))?;
        let (users, settings) = (home.join("users"), home.join("pgbouncer.ini"));
        let (user, password) = (PostgresServer::USER, PostgresServer::PASSWORD);
        fs::write(&users, format!("\"{user}\" \"{password}\"\n"))?;
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\npool_mode = transaction\n\
             default_pool_size = 2\nmax_client_conn = 500\nmax_prepared_statements = 0\nserver_login_retry = 1\n{}\n",
            server.port(),
            users.display(),
            more.join("\n")
        );
        fs::write(&settings, text).with_context(|| format!("writing {}", settings.display()))?;
        // It refuses to run as root, as PostgreSQL does.
        let (program, args) = postgres::unprivileged(&tools::pgbouncer()?);
        let launch = Launch::new("pgbouncer", program, dir.join("pgbouncer.log"))
            .args(args)
            .arg(settings);
        let process = launch.spawn()?;
        postgres::until_ready(&process, port, READY_WITHIN).await?;
        Ok(Self { process, port })
    }

    /// Where clients connect, without the password: `postgres://postgres@127.0.0.1:PORT/postgres`.
    #[must_use]
    pub fn url(&self) -> String {
        postgres::url(self.port, None)
    }

    /// The same with the password, for clients of a test.
    #[must_use]
    pub fn url_with_password(&self) -> String {
        postgres::url(self.port, Some(PostgresServer::PASSWORD))
    }

    /// The port of [`PgBouncerServer::url`].
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Signals it.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }
}
