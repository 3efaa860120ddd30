//! The flags of unified-auth.

use std::{net::SocketAddr, path::PathBuf};

use usersync_example_support::settings::{Common, Secrets};

/// unified-auth: a target that checks passwords.
#[derive(Clone, Debug, clap::Parser)]
#[command(version)]
pub struct Settings {
    /// Where to serve HTTP.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8207")]
    pub listen: SocketAddr,

    /// The SQLite file; made when it isn't there.
    #[arg(long, value_name = "PATH", default_value = "./unified-auth.db")]
    pub database: PathBuf,

    /// What deliveries must be signed with.
    #[command(flatten)]
    pub secrets: Secrets,

    /// Flags every example service has.
    #[command(flatten)]
    pub common: Common,
}
