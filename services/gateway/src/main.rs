//! `usersync-gateway`: reads settings, starts logs, runs, drains.

use std::process::ExitCode;

use usersync_core::{service, telemetry};
use usersync_gateway::{Command, Flags, Settings};

/// A fifth of the work is allocating: messages, JSON, headers.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let flags: Flags = match service::flags() {
        Ok(flags) => flags,
        Err(status) => return status,
    };
    if let Some(Command::Key(key)) = &flags.command {
        return match key.run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => service::fail(&error),
        };
    }
    let settings = match Settings::read(&flags) {
        Ok(settings) => settings,
        Err(problems) => return service::fail(&problems.into()),
    };
    if let Some(name) = &flags.print_streams {
        return match usersync_gateway::print_streams(&settings, name) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => service::fail(&error),
        };
    }
    service::run(async |shutdown| {
        let shows = matches!(flags.command, Some(Command::Status(_))) && !flags.common.check;
        if !shows {
            // A screen is no place for logs.
            telemetry::init_logs(&settings.common.log, settings.common.log_format)?;
        }
        if flags.common.check {
            return usersync_gateway::check(&settings).await;
        }
        match &flags.command {
            Some(Command::Status(status)) => {
                usersync_gateway::status(status, &settings, shutdown).await
            }
            Some(Command::Notify(notify)) => usersync_gateway::notify(notify, &settings).await,
            // Keys are made above, without any settings.
            Some(Command::Key(_)) | None => usersync_gateway::run(settings, shutdown).await,
        }
    })
}
