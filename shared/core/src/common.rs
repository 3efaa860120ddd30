//! The flags and settings that the gateway and the workers share.

use std::{net::SocketAddr, path::PathBuf};

use crate::{
    alert::Runbook,
    catalogue::{self, Catalogue},
    egress::Egress,
    nats,
    settings::Reader,
    telemetry::LogFormat,
};

/// Flags, before or behind a subcommand; each wins over its environment variable, which wins over the settings file.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct CommonFlags {
    /// Settings file: TOML, YAML or JSON, by its ending
    #[arg(long, global = true, value_name = "FILE", env = "USERSYNC_CONFIG")]
    pub config: Option<PathBuf>,
    /// NATS server, or several separated by commas [setting nats.url, USERSYNC_NATS__URL; default nats://127.0.0.1:4222]
    #[arg(long, global = true, value_name = "URL")]
    pub nats_url: Option<String>,
    /// Address for HTTP: health, metrics and, on the gateway, the API [setting listen, USERSYNC_LISTEN]
    #[arg(long, global = true, value_name = "ADDR")]
    pub listen: Option<String>,
    /// Target catalogue: a file, or a directory of *.toml, *.yaml and *.json merged by name [setting targets, USERSYNC_TARGETS; without it targets are changed in KV and over HTTP alone]
    #[arg(long, global = true, value_name = "PATH")]
    pub targets: Option<PathBuf>,
    /// What is logged, as a tracing filter such as `info,usersync_worker=debug` [setting log.filter, USERSYNC_LOG__FILTER]
    #[arg(long, global = true, value_name = "FILTER")]
    pub log: Option<String>,
    /// How log lines look; by default human on a terminal, JSON otherwise [setting log.format, USERSYNC_LOG__FORMAT]
    #[arg(long, global = true, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Validate the settings and every connection, say what was found, and exit
    #[arg(long, global = true)]
    pub check: bool,
}

/// Settings both have.
#[derive(Clone, Debug)]
pub struct Common {
    /// How to reach NATS.
    pub nats: nats::Settings,
    /// Where to serve HTTP.
    pub listen: SocketAddr,
    /// Where the catalogue files are, if there are any.
    pub targets: Option<PathBuf>,
    /// Every target in them.
    pub catalogue: Catalogue,
    /// Where targets may be.
    pub egress: Egress,
    /// Where people find what to do about an alert.
    pub runbook: Runbook,
    /// Whether metrics are recorded.
    pub metrics: bool,
    /// The tracing filter.
    pub log: String,
    /// How log lines look.
    pub log_format: Option<LogFormat>,
}

impl Common {
    /// Reads the shared settings; problems stay in `reader`.
    pub fn read(reader: &mut Reader, flags: &CommonFlags, listen: SocketAddr) -> Self {
        reader.flag("nats.url", flags.nats_url.as_ref());
        reader.flag("listen", flags.listen.as_ref());
        reader.flag("targets", flags.targets.as_ref());
        reader.flag("log.filter", flags.log.as_ref());
        reader.flag("log.format", flags.log_format);
        let nats = nats::Settings::read(reader);
        let listen = reader.get(
            "listen",
            listen,
            "an address and port such as 127.0.0.1:8090",
        );
        let egress = Egress::read(reader);
        let runbook = Runbook::read(reader);
        let path: Option<PathBuf> =
            reader.optional("targets", "the path of a catalogue file or directory");
        let load = |path: &PathBuf| catalogue::load(Some(path));
        let catalogue = path.as_ref().map_or_else(|| Ok(Catalogue::new()), load);
        let catalogue = catalogue.unwrap_or_else(|problems| {
            problems
                .into_iter()
                .for_each(|problem| reader.report(problem));
            Catalogue::new()
        });
        let metrics = reader.get("metrics", true, "true or false");
        let filter = "a tracing filter such as info or debug,async_nats=warn";
        let log: String = reader.get("log.filter", "info,async_nats=error".to_owned(), filter);
        if log.parse::<tracing_subscriber::EnvFilter>().is_err() {
            reader.problem("log.filter", filter);
        }
        let log_format = reader.optional("log.format", "human or json");
        Self {
            nats,
            listen,
            targets: path,
            catalogue,
            egress,
            runbook,
            metrics,
            log,
            log_format,
        }
    }
}
