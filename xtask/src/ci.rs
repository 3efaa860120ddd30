//! `cargo xtask ci`: what has to pass before a change goes in.

use std::process::Command;

use anyhow::Result;
use clap::Args;
use usersync_stack::tools;

use crate::test::Test;
use crate::{run, setup};

/// Run what CI runs: formatting, clippy without a warning, the fuzzers' programs, cargo-deny, every test
///
/// Stops at the first that fails. cargo-deny checks bans, licences and sources, which needs no network; for
/// known vulnerabilities run `cargo deny check advisories`.
#[derive(Args)]
pub(crate) struct Ci {}

impl Ci {
    pub(crate) fn run(self) -> Result<()> {
        setup::ensure(setup::ALL)?;
        run::shown(&mut run::cargo(["fmt", "--all", "--check"]))?;
        let clippy = [
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ];
        run::shown(&mut run::cargo(clippy))?;
        // A workspace of its own, which nothing else builds.
        let fuzz = tools::repository().join("tests/fuzz/Cargo.toml");
        let mut fuzzers = run::cargo(["check", "--locked", "--bins", "--manifest-path"]);
        run::shown(fuzzers.arg(fuzz))?;
        // cargo-deny looks at the dependencies of every platform, of which a build fetches only its own.
        run::shown(&mut run::cargo(["fetch", "--quiet"]))?;
        let mut deny = Command::new(setup::cargo_deny()?);
        deny.args(["--offline", "check", "--hide-inclusion-graph"]);
        deny.args(["bans", "licenses", "sources"]);
        run::shown(deny.current_dir(tools::repository()))?;
        Test::all().run()
    }
}
