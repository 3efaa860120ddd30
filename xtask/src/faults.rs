//! `cargo xtask faults`: the fault suite, against everything that the tests need.

use anyhow::Result;
use clap::Args;
use usersync_stack::{Profile, tools};

use crate::{run, setup};

/// Break real servers and our own processes under load, and have an independent checker judge what is left
///
/// Sets up what is missing, builds our programs and passes the arguments on; `--help` shows those of the suite. Each fault is in
/// tests/faults/LIST.md; a run without arguments does each once, in about ten minutes.
#[derive(Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Faults {
    /// Arguments for the suite
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

impl Faults {
    pub(crate) fn run(self) -> Result<()> {
        setup::ensure(setup::FAULTS)?;
        let packages = [
            "usersync-gateway",
            "usersync-worker",
            "usersync-scheduler",
            "user-service",
            "unified-auth",
            "usersync-faults",
        ];
        let profile = Profile::own();
        run::build_binaries(profile, &packages)?;
        let faults = tools::binary("usersync-faults", profile)?;
        run::shown(std::process::Command::new(faults).args(self.args))
    }
}
