//! Reads the flags, starts logs and metrics, runs, drains.

use std::process::ExitCode;

use clap::Parser;
use unified_auth::Settings;
use usersync_core::{service, telemetry};

fn main() -> ExitCode {
    let settings = Settings::parse();
    service::run(async |shutdown| {
        telemetry::init_logs(&settings.common.log, None)?;
        let metrics = telemetry::init_metrics(true, shutdown.clone())?;
        unified_auth::run(settings, metrics, shutdown).await
    })
}
