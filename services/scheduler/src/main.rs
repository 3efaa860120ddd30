//! `usersync-scheduler`: reads settings, starts logs, does what its subcommand says.

use std::process::ExitCode;

use usersync_core::{service, telemetry};
use usersync_scheduler::{Flags, Settings};

/// Much of a load is allocating: rows, JSON, messages.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
        if flags.common.check {
            return usersync_scheduler::check(&settings).await;
        }
        usersync_scheduler::run(settings, shutdown).await
    })
}
