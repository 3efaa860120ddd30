//! What the scheduler is told: flags, environment, file.

use std::net::{Ipv4Addr, SocketAddr};

use clap::{Parser, Subcommand};
use usersync_core::{
    common::{Common, CommonFlags},
    settings::{Problems, Reader},
};

use crate::command;

/// Compares the newest states with every target, and has what differs repaired.
///
/// Without a command it checks every target as its entry's `check` says (every hour by default), and whatever is asked
/// for on user.check.<target>. Several may run: each check is done by one of them. It never writes to a target: what
/// differs is delivered again by the workers. Exit status: 0 stopped, 1 failed, 64 bad configuration.
#[derive(Debug, Parser)]
#[command(
    name = "usersync-scheduler",
    version,
    args_conflicts_with_subcommands = false,
    after_help = "\
Examples:
  usersync-scheduler --nats-url nats://nats:4222
  usersync-scheduler check --target redis-cache --once --dry-run
  nats pub user.check.redis-cache ''
  nats req usersync.check.show '{\"target\":\"redis-cache\"}'"
)]
pub struct Flags {
    /// What the gateway and the workers have too.
    #[command(flatten)]
    pub common: CommonFlags,
    /// What to do instead of checking all the time.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do instead of checking all the time.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check one target now, and show what was found
    Check(command::Check),
}

/// A scheduler's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the gateway and the workers have too.
    pub common: Common,
}

impl Settings {
    /// Reads file, environment and flags.
    ///
    /// # Errors
    /// Every problem found.
    pub fn read(flags: &Flags) -> Result<Self, Problems> {
        let mut reader = Reader::new(flags.common.config.as_deref());
        // Several schedulers may share a machine, so each takes a free port unless told.
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let common = Common::read(&mut reader, &flags.common, any);
        reader.leave(&[
            "target",
            "streams.replicas",
            "intake.accept_empty_state",
            "intake.cache_mib",
        ]);
        reader.finish()?;
        Ok(Self { common })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_are_well_formed() {
        <Flags as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn the_settings_file_that_ships_serves_the_scheduler_too() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/usersync.toml");
        let flags = Flags::parse_from(["usersync-scheduler", "--config", file]);
        assert!(Settings::read(&flags).is_ok());
    }
}
