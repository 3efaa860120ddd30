//! What the gateway is told: flags, environment, file.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{Parser, Subcommand};
use usersync_core::{
    common::{Common, CommonFlags},
    settings::{Problems, Reader},
    streams,
};
use usersync_source::{SourceConfig, SourceName};

use crate::{
    access::{self, KeyCommand},
    command::StatusCommand,
    https,
    notify::{self, NotifyCommand},
    upkeep::alerts::{self, Span},
};

/// Takes user events in, over NATS (`user.*`) and HTTP, and keeps the newest state of every user.
///
/// Creates and updates the streams and consumers. Several may run: all serve HTTP, one at a time
/// merges events. Exit status: 0 stopped, 1 failed, 64 bad configuration.
#[derive(Debug, Parser)]
#[command(
    name = "usersync-gateway",
    version,
    after_help = "\
Examples:
  usersync-gateway key new --scope publish --source basic-server >> keys.toml
  usersync-gateway --listen 0.0.0.0:8090 --keys keys.toml --nats-url nats://nats:4222
  usersync-gateway --print-streams USER_EVENTS > events.json && nats stream add --config events.json
  usersync-gateway --config /etc/usersync/gateway.toml --check
  usersync-gateway status --watch
  usersync-gateway --config /etc/usersync/gateway.toml notify --test"
)]
pub struct Flags {
    /// What the workers have too.
    #[command(flatten)]
    pub common: CommonFlags,
    /// Copies of every stream: 1, 3 or 5 [setting streams.replicas, USERSYNC_STREAMS__REPLICAS; default 1]
    #[arg(long, value_name = "N")]
    pub replicas: Option<usize>,
    /// Print the streams as JSON, or the one named, for `nats stream add --config`, and exit
    #[arg(long, value_name = "STREAM", num_args = 0..=1, default_missing_value = "")]
    pub print_streams: Option<String>,
    /// Go on from the events that are left although USER_STATE is empty and older events are gone [setting intake.accept_empty_state]
    #[arg(long)]
    pub accept_empty_state: bool,
    /// File with the keys of callers, re-read when it changes [setting http.keys_file]
    #[arg(long, value_name = "FILE")]
    pub keys: Option<PathBuf>,
    /// Ask nobody for a key, also on an address that other machines reach [setting http.open]
    #[arg(long)]
    pub open: bool,
    /// What to do instead of being a gateway.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do instead of being a gateway.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show how everything stands, a line per target
    Status(StatusCommand),
    /// See whether those who are told of alerts can be told
    Notify(NotifyCommand),
    /// Keys of those who call the HTTP API
    #[command(subcommand)]
    Key(KeyCommand),
}

/// The gateway's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the workers have too.
    pub common: Common,
    /// How the streams are to be.
    pub streams: streams::Options,
    /// Whether to go on when the states are gone and can't all be rebuilt.
    pub accept_empty_state: bool,
    /// The most memory for states kept at hand, in bytes.
    pub cache_bytes: u64,
    /// Who may use the HTTP API.
    pub http: access::Settings,
    /// Where health and metrics are served too, by no TLS and to connections of their own.
    pub(crate) health_listen: Option<SocketAddr>,
    /// By which certificate it is served, where it is by TLS.
    pub(crate) https: Option<https::Settings>,
    /// When people are told.
    pub(crate) alerts: alerts::Settings,
    /// By what.
    pub(crate) notify: notify::Settings,
    /// Where traces go, if anywhere.
    pub traces: Option<usersync_traces::Settings>,
    /// The main databases, whose outboxes this gateway relays.
    pub sources: BTreeMap<SourceName, SourceConfig>,
}

impl Settings {
    /// Reads file, environment and flags.
    ///
    /// # Errors
    /// Every problem found.
    pub fn read(flags: &Flags) -> Result<Self, Problems> {
        let mut reader = Reader::new(flags.common.config.as_deref());
        let common = Common::read(
            &mut reader,
            &flags.common,
            SocketAddr::from((Ipv4Addr::LOCALHOST, 8090)),
        );
        reader.flag("streams.replicas", flags.replicas);
        reader.flag(
            "intake.accept_empty_state",
            flags.accept_empty_state.then_some(true),
        );
        let replicas = reader.get("streams.replicas", 1, "1, 3 or 5");
        if !matches!(replicas, 1 | 3 | 5) {
            reader.problem("streams.replicas", "1, 3 or 5");
        }
        let window = "a duration from 2m to 24h such as 10m";
        let duplicate_window = reader.optional("streams.duplicate_window", window);
        let duplicate_window = duplicate_window.map(|Span(window)| window);
        let bounds = Duration::from_secs(2 * 60)..=Duration::from_secs(24 * 60 * 60);
        if duplicate_window.is_some_and(|window| !bounds.contains(&window)) {
            reader.problem("streams.duplicate_window", window);
        }
        let accept_empty_state = reader.get("intake.accept_empty_state", false, "true or false");
        let cache_mib: u64 = reader.get(
            "intake.cache_mib",
            64,
            "a number of mebibytes from 1 to 65536",
        );
        if !(1..=65_536).contains(&cache_mib) {
            reader.problem("intake.cache_mib", "a number of mebibytes from 1 to 65536");
        }
        reader.flag("http.keys_file", flags.keys.as_ref());
        reader.flag("http.open", flags.open.then_some(true));
        let http = access::Settings::read(&mut reader, common.listen);
        let health_listen = reader.optional("http.health_listen", "IP:PORT such as 127.0.0.1:8091");
        let https = https::Settings::read(&mut reader);
        let alerts = alerts::Settings::read(&mut reader);
        let notify = notify::Settings::read(&mut reader, &common.egress);
        let sources = usersync_source::read(&mut reader);
        let traces = usersync_traces::Settings::read(&mut reader);
        reader.leave(&["target"]);
        reader.finish()?;
        Ok(Self {
            common,
            streams: streams::Options {
                replicas,
                duplicate_window,
            },
            accept_empty_state,
            cache_bytes: cache_mib << 20,
            http,
            health_listen,
            https,
            alerts,
            notify,
            traces,
            sources,
        })
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
    fn the_settings_file_that_ships_holds_the_defaults() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/usersync.toml");
        let shipped =
            Settings::read(&Flags::parse_from(["usersync-gateway", "--config", file])).unwrap();
        let defaults = Settings::read(&Flags::parse_from(["usersync-gateway"])).unwrap();
        assert_eq!(format!("{shipped:?}"), format!("{defaults:?}"));
    }

    #[test]
    fn replicas_are_odd_and_few() {
        let flags = Flags::parse_from(["usersync-gateway", "--replicas", "2"]);
        let problems = Settings::read(&flags).unwrap_err().to_string();
        assert!(
            problems.contains("streams.replicas: expected 1, 3 or 5"),
            "{problems}"
        );
    }
}
