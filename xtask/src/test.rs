//! `cargo xtask test`: every test, after setting up what they need.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use clap::Args;
use usersync_stack::{Profile, tools};

use crate::{run, setup};

const EXAMPLES: &str = "\
Examples:
  cargo xtask test                            all of them
  cargo xtask test -- -p usersync-core        one package
  cargo xtask test -- older_version           those with this in their name
  cargo xtask test --long -- v0_1_0           the upgrade from v0.1.0";

/// The version that the upgrade is tested from.
const BEFORE: (&str, &str) = ("v0.1.0", "92ba07e");

/// Run every test: sets up what is missing, builds the binaries, then `cargo test --workspace`
///
/// The tests start real servers (NATS, Redis, Valkey, MySQL, MariaDB, PostgreSQL, PgBouncer, ArcadeDB) and our binaries on free ports and stop them again.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Test {
    /// Also what takes long: ten minutes without a false alarm, a minute of fuzzing per role, and the upgrade from v0.1.0,
    /// which is built for it
    #[arg(long)]
    long: bool,
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
        let mut tests = run::cargo(args);
        if self.long {
            tests
                .env("USERSYNC_LONG", "1")
                .env("USERSYNC_V0_1_0", before()?);
        }
        run::shown(&mut tests)
    }

    /// All tests, as CI runs them.
    pub(crate) fn all() -> Self {
        Self {
            long: false,
            args: Vec::new(),
        }
    }
}

/// A worktree of the version before, with its binaries built.
fn before() -> Result<PathBuf> {
    let (tag, commit) = BEFORE;
    let folder = tools::repository().join("target").join(tag);
    if !folder.join("Cargo.toml").is_file() {
        let mut worktree = Command::new("git");
        worktree
            .current_dir(tools::repository())
            .args(["worktree", "add", "--force", "--detach"])
            .arg(&folder)
            .arg(commit);
        run::shown(&mut worktree).context("it needs the history: git fetch --unshallow --tags")?;
    }
    let target = folder.join("target");
    let mut build = run::cargo(["build", "--workspace", "--bins"]);
    build.current_dir(&folder).env("CARGO_TARGET_DIR", target);
    run::shown(&mut build)?;
    Ok(folder)
}
