//! The flags of user-service.

use std::{net::SocketAddr, path::PathBuf};

use usersync_example_support::settings::{Common, Secrets};

/// user-service: a target that keeps users with their profiles.
#[derive(Clone, Debug, clap::Parser)]
#[command(version)]
pub struct Settings {
    /// Where to serve HTTP.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081")]
    pub listen: SocketAddr,

    /// The SQLite file; made when it isn't there.
    #[arg(long, value_name = "PATH", default_value = "./user-service.db")]
    pub database: PathBuf,

    /// What deliveries must be signed with.
    #[command(flatten)]
    pub secrets: Secrets,

    /// Flags every example service has.
    #[command(flatten)]
    pub common: Common,
}
