//! What a worker is told: flags, environment, file.

use std::net::{Ipv4Addr, SocketAddr};

use clap::Parser;
use serde::Deserialize;
use usersync_core::{
    common::{Common, CommonFlags},
    settings::{Problems, Reader},
    target::{InvalidTargetName, TargetConfig, TargetName},
};

/// Delivers the newest state of every user to its targets.
///
/// Start one per target, or several for one target to share its load. Without --target, one
/// worker serves every enabled target. Exit status: 0 stopped, 1 failed, 64 bad configuration.
#[derive(Debug, Parser)]
#[command(
    name = "usersync-worker",
    version,
    after_help = "\
Examples:
  usersync-worker --target unified-auth
  usersync-worker --target redis-cache --target user-service --listen 127.0.0.1:9464
  usersync-worker --targets targets.d --check"
)]
pub struct Flags {
    /// Serve this target; may be given several times [setting target, USERSYNC_TARGET; default: every enabled target]
    #[arg(long = "target", value_name = "NAME")]
    pub target: Vec<String>,
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
    /// The targets to serve.
    pub targets: Vec<TargetConfig>,
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
        let expected = "names of targets in the catalogue";
        let mut names = reader.get("target", Names(Vec::new()), expected).0;
        // Two couriers for one target would break the order within this worker.
        names.sort();
        names.dedup();
        reader.leave(&[
            "streams.replicas",
            "intake.accept_empty_state",
            "intake.cache_mib",
        ]);
        let mut targets = Vec::new();
        for name in &names {
            match common.catalogue.get(name) {
                Some(target) if target.enabled => targets.push(target.clone()),
                Some(_) => reader.report(format!(
                    "target: {name} is disabled in the catalogue; set `enabled = true` there"
                )),
                None => {
                    let known: Vec<_> = common.catalogue.keys().map(TargetName::as_ref).collect();
                    reader.report(format!(
                        "target: {name} is not in the catalogue; expected one of {}",
                        known.join(", ")
                    ));
                }
            }
        }
        if names.is_empty() {
            targets.extend(
                common
                    .catalogue
                    .values()
                    .filter(|target| target.enabled)
                    .cloned(),
            );
        }
        if targets.is_empty() {
            reader.report("target: there is no enabled target to serve; see the catalogue that `targets` names");
        }
        for target in &targets {
            if let Err(error) = usersync_targets::connect(target) {
                reader.report(format!("target {}: {error}", target.name));
            }
        }
        reader.finish()?;
        Ok(Self { common, targets })
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
        assert_eq!(settings.targets.len(), 1);
        assert_eq!(
            settings.common.catalogue,
            usersync_core::catalogue::load(None).unwrap()
        );
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
