//! Reads the flags, starts logs and metrics, runs, drains.

use std::process::ExitCode;

use basic_server::Settings;
use clap::Parser;
use usersync_core::{service, telemetry};

fn main() -> ExitCode {
    let settings = Settings::parse();
    service::run(async |shutdown| {
        telemetry::init_logs(&settings.log, None)?;
        let metrics = telemetry::init_metrics(true, shutdown.clone())?;
        basic_server::run(settings, metrics, shutdown).await
    })
}
