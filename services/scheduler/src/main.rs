//! `usersync-scheduler`: reads settings, starts logs, runs, drains.

use std::process::ExitCode;

use usersync_core::{service, telemetry};
use usersync_scheduler::{Command, Flags, Settings};

fn main() -> ExitCode {
    let flags: Flags = match service::flags() {
        Ok(flags) => flags,
        Err(status) => return status,
    };
    let settings = match Settings::read(&flags) {
        Ok(settings) => settings,
        Err(problems) => return service::fail(&problems.into()),
    };
    service::run(async |shutdown| {
        telemetry::init_logs(&settings.common.log, settings.common.log_format)?;
        match &flags.command {
            Some(Command::Check(check)) => check.run(&settings, shutdown).await,
            None if flags.common.check => usersync_scheduler::check(&settings).await,
            None => usersync_scheduler::run(settings, shutdown).await,
        }
    })
}
