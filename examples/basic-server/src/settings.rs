//! The flags of basic-server.

use std::{net::SocketAddr, path::PathBuf};

use usersync_example_support::password::OWASP_MEMORY_KIB;

/// basic-server: owns the users; registration and log-in.
#[derive(Clone, Debug, clap::Parser)]
#[command(version)]
pub struct Settings {
    /// Where to serve HTTP.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// The SQLite file; made when it isn't there.
    #[arg(long, value_name = "PATH", default_value = "./basic-server.db")]
    pub database: PathBuf,

    /// How much memory hashing a password takes. Less is for demos and tests only.
    #[arg(long, value_name = "KIB", default_value_t = OWASP_MEMORY_KIB)]
    pub argon2_memory_kib: u32,

    /// What to log, as a tracing filter: `info`, `debug,sqlx=warn`.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log: String,
}
