//! Logs and metrics of a binary: human lines on a terminal, JSON otherwise; Prometheus text on request.

use std::{io::IsTerminal, time::Duration};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Upper bounds of every `*_seconds` histogram, from a fifth of a millisecond to half an hour.
const SECONDS: [f64; 20] = [
    0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0,
    5.0, 15.0, 60.0, 300.0, 1800.0,
];

/// Where the NATS client logs whole answers of the server, users in them: nothing logs a payload, whatever is asked for.
const WITHOUT_PAYLOADS: &str = "async_nats::jetstream::context=error";

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object per line.
    Json,
}

/// Sends log lines to standard error. `filter` is a tracing filter: `info`, `debug,async_nats=warn`.
///
/// # Errors
/// When the filter doesn't parse.
pub fn init_logs(filter: &str, format: Option<LogFormat>) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter)?.add_directive(WITHOUT_PAYLOADS.parse()?);
    let on_terminal = std::io::stderr().is_terminal();
    let format = format.unwrap_or(if on_terminal {
        LogFormat::Human
    } else {
        LogFormat::Json
    });
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Human => lines
            .with_ansi(on_terminal && std::env::var_os("NO_COLOR").is_none())
            .init(),
        LogFormat::Json => lines.json().flatten_event(true).with_target(false).init(),
    }
    Ok(())
}

/// Starts recording metrics, those of the process itself (`process_*`) too; the handle renders them. Where metrics
/// aren't `wanted` nothing is recorded, and the handle renders nothing.
///
/// # Errors
/// When a recorder is already installed in this process.
pub fn init_metrics(wanted: bool, shutdown: CancellationToken) -> anyhow::Result<PrometheusHandle> {
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?;
    if !wanted {
        return Ok(builder.build_recorder().handle());
    }
    let handle = builder.install_recorder()?;
    let upkeep = handle.clone();
    let process = metrics_process::Collector::default();
    process.describe();
    process.collect();
    tokio::spawn(async move {
        let mut every = tokio::time::interval(Duration::from_secs(1));
        while shutdown.run_until_cancelled(every.tick()).await.is_some() {
            upkeep.run_upkeep();
            process.collect();
        }
    });
    Ok(handle)
}
