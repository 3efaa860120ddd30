//! `cargo xtask test`: every test, after setting up what they need.

use anyhow::Result;
use clap::Args;
use usersync_stack::Profile;

use crate::{run, setup};

const EXAMPLES: &str = "\
Examples:
  cargo xtask test                            all of them
  cargo xtask test -- -p usersync-core        one package
  cargo xtask test -- older_version           those with this in their name";

/// Run every test: sets up what is missing, builds the binaries, then `cargo test --workspace`
///
/// The tests start real servers (NATS, Redis, MariaDB, PostgreSQL, ArcadeDB) and our binaries on free ports and stop them again.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Test {
    /// Arguments for cargo test
    #[arg(last = true)]
    args: Vec<String>,
}

impl Test {
    pub(crate) fn run(self) -> Result<()> {
        setup::ensure(setup::TESTS)?;
        run::build_binaries(Profile::Debug, &[])?;
        let mut args = vec!["test".to_owned()];
        let chooses = |arg: &String| arg.starts_with("-p") || arg.starts_with("--package");
        if !self.args.iter().any(chooses) {
            args.push("--workspace".to_owned());
        }
        args.extend(self.args);
        run::shown(&mut run::cargo(args))
    }

    /// All tests, as CI runs them.
    pub(crate) fn all() -> Self {
        Self { args: Vec::new() }
    }
}
