//! What a worker is told: flags, environment, file.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use clap::Parser;
use serde::Deserialize;
use usersync_core::{
    alert,
    catalogue::Catalogue,
    common::{Common, CommonFlags},
    settings::{Problems, Reader},
    target::{InvalidTargetName, TargetConfig, TargetName},
};

/// Delivers the newest state of every user to its targets.
///
/// Start one per target, or several for one target to share its load. Without --target, one
/// worker serves every enabled target. Targets are followed live in the KV bucket user_targets,
/// which usersync-gateway fills from its catalogue files; --targets is for --check here. Exit status: 0 stopped, 1 failed, 64 bad configuration.
#[derive(Debug, Parser)]
#[command(
    name = "usersync-worker",
    version,
    after_help = "\
Examples:
  usersync-worker --target unified-auth
  usersync-worker --target redis-cache --target user-service --listen 127.0.0.1:9464
  usersync-worker --targets targets.d --check
  usersync-worker --init-target postgres --dry-run"
)]
pub struct Flags {
    /// Serve this target; may be given several times [setting target, USERSYNC_TARGET; default: every enabled target]
    #[arg(long = "target", value_name = "NAME")]
    pub target: Vec<String>,
    /// Make the table or the constraint that this database target needs, and exit
    #[arg(long, value_name = "NAME")]
    pub init_target: Option<TargetName>,
    /// With --init-target: print the statements instead of running them
    #[arg(long, requires = "init_target")]
    pub dry_run: bool,
    /// What the gateway has too.
    #[command(flatten)]
    pub common: CommonFlags,
}

/// Names as a list, or in one text separated by commas, as an environment variable has them.
#[derive(Debug, Deserialize)]
#[serde(try_from = "OneOrMany")]
struct Names(Vec<TargetName>);

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<TargetName>),
}

impl TryFrom<OneOrMany> for Names {
    type Error = InvalidTargetName;

    fn try_from(names: OneOrMany) -> Result<Self, InvalidTargetName> {
        match names {
            OneOrMany::Many(names) => Ok(Self(names)),
            OneOrMany::One(text) => text
                .split(',')
                .map(|name| name.trim().parse())
                .collect::<Result<_, _>>()
                .map(Self),
        }
    }
}

/// A worker's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the gateway has too.
    pub common: Common,
    /// Where traces go, if anywhere.
    pub traces: Option<usersync_traces::Settings>,
    /// The targets to serve; empty for every enabled one.
    pub names: BTreeSet<TargetName>,
    /// The catalogue files, where `targets` names them; a running worker follows the bucket instead.
    pub catalogue: Option<Catalogue>,
}

impl Settings {
    /// Reads file, environment and flags.
    ///
    /// # Errors
    /// Every problem found.
    pub fn read(flags: &Flags) -> Result<Self, Problems> {
        let mut reader = Reader::new(flags.common.config.as_deref());
        // Several workers share a machine, so each takes a free port unless told.
        let common = Common::read(
            &mut reader,
            &flags.common,
            SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        );
        reader.flag(
            "target",
            (!flags.target.is_empty()).then_some(&flags.target),
        );
        let names = reader.get("target", Names(Vec::new()), "names of targets");
        let traces = usersync_traces::Settings::read(&mut reader);
        reader.leave(&["streams", "intake", "http", "sources"]);
        reader.leave(alert::SETTINGS);
        let given: Option<PathBuf> = reader.optional("targets", "a path");
        reader.finish()?;
        Ok(Self {
            catalogue: given.map(|_| common.catalogue.clone()),
            common,
            traces,
            names: names.0.into_iter().collect(),
        })
    }

    /// Whether this worker is to serve `target`.
    pub fn serves(&self, target: &TargetConfig) -> bool {
        if self.names.is_empty() {
            target.enabled
        } else {
            self.names.contains(&target.name)
        }
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
    fn the_settings_file_that_ships_serves_gateway_and_workers() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy");
        let (file, catalogue) = (format!("{root}/usersync.toml"), format!("{root}/targets.d"));
        let flags = [
            "usersync-worker",
            "--config",
            &file,
            "--targets",
            &catalogue,
            "--target",
            "user-service",
        ];
        let settings = Settings::read(&Flags::parse_from(flags)).unwrap();
        assert_eq!(settings.names.len(), 1);
        let shipped = usersync_core::catalogue::load(None).unwrap();
        assert_eq!(settings.catalogue, Some(shipped));
    }

    #[test]
    fn names_may_be_a_list_or_a_text() {
        for text in ["[\"a\", \"b\"]", "\"a, b\""] {
            let names: Names = serde_json::from_str(text).unwrap();
            assert_eq!(names.0, ["a".parse().unwrap(), "b".parse().unwrap()]);
        }
        assert!(serde_json::from_str::<Names>("\"a,B\"").is_err());
    }
}
