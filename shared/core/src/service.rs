//! The life of a binary: settings, start, run, a signal, drain, exit.

use std::{future::Future, process::ExitCode, time::Duration};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{descriptors, settings::Problems};

/// The exit status for a bad configuration: `EX_USAGE` of sysexits.h.
pub const EX_USAGE: u8 = 64;

/// How long a binary may take to finish what is in flight after SIGTERM.
pub const GRACE: Duration = Duration::from_secs(10);

/// Runs `service` until it ends, or until SIGTERM or SIGINT cancels its token and it has drained.
///
/// A second signal, or [`GRACE`] running out, ends the process at once. Everything runs on one
/// thread: processes are what scales (docs/adr/0006).
pub fn run<F, Fut>(service: F) -> ExitCode
where
    F: FnOnce(CancellationToken) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    descriptors::raise();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    let result = runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut service = std::pin::pin!(service(shutdown.clone()));
        tokio::select! {
            result = &mut service => return result,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!(grace_s = GRACE.as_secs(), "stopping: finishing what is in flight");
        shutdown.cancel();
        tokio::select! {
            result = tokio::time::timeout(GRACE, &mut service) => {
                result.unwrap_or_else(|_| Err(anyhow::anyhow!("not finished within the grace period")))
            }
            _ = terminate.recv() => Err(anyhow::anyhow!("stopped by a second SIGTERM")),
            _ = interrupt.recv() => Err(anyhow::anyhow!("stopped by a second SIGINT")),
        }
    });
    runtime.shutdown_timeout(Duration::from_millis(200));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Parses the command line; the exit status instead when there is nothing to run: 0 after
/// `--help` and `--version`, 64 for a flag that isn't understood.
///
/// # Errors
/// The exit status; what there is to say is printed.
pub fn flags<F: clap::Parser>() -> Result<F, ExitCode> {
    F::try_parse().map_err(|error| {
        // Nothing can be done about a terminal that is gone.
        let _ = error.print();
        if error.use_stderr() {
            ExitCode::from(EX_USAGE)
        } else {
            ExitCode::SUCCESS
        }
    })
}

/// Prints why the process ends and gives the exit status: 64 for a bad configuration, else 1.
#[allow(
    clippy::print_stderr,
    reason = "the last word of a process, also before logs are set up"
)]
pub fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(if error.is::<Problems>() { EX_USAGE } else { 1 })
}
