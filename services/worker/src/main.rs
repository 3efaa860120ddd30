//! `usersync-worker`: reads settings, starts logs, runs, drains.

use std::process::ExitCode;

use usersync_core::{service, telemetry};
use usersync_worker::{Flags, Settings};

/// A fifth of the work is allocating: messages, JSON, headers.
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
            return usersync_worker::check(&settings).await;
        }
        if let Some(name) = &flags.init_target {
            return usersync_worker::init_target(&settings, name, flags.dry_run).await;
        }
        usersync_worker::run(settings, shutdown).await
    })
}
