//! `cargo xtask bench`: the benchmarks, in release builds.

use anyhow::Result;
use clap::Args;
use usersync_stack::{Profile, tools};

use crate::{run, setup};

/// Run the benchmarks: ours and the limit in the same run, with release builds
///
/// Sets up what is missing, builds what it measures with --release and passes the arguments on; `--help` shows
/// those of the benchmark program.
#[derive(Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Bench {
    /// Arguments for the benchmark program
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

impl Bench {
    pub(crate) fn run(self) -> Result<()> {
        setup::ensure(setup::BENCH)?;
        let packages = [
            "usersync-gateway",
            "usersync-worker",
            "usersync-scheduler",
            "usersync-bench",
        ];
        run::build_binaries(Profile::Release, &packages)?;
        let bench = tools::binary("usersync-bench", Profile::Release)?;
        run::shown(std::process::Command::new(bench).args(self.args))
    }
}
