//! What a gateway does for the targets by itself: files into KV, KV into consumers, the backstop for
//! dead letters, the end of targets that are gone, gauges of how all stand, and alerts. Several gateways may do it side by side.

pub(crate) mod alerts;
mod backstop;
mod consumers;
mod deleted;
mod files;
mod gauges;
mod gone;
mod refill;
pub(crate) mod seed;
mod watch;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use usersync_core::{admin::Health, streams};

use self::{deleted::Deleted, watch::Watch};
use crate::{
    Settings,
    control::{Control, former_refused},
};

pub(crate) use files::{Files, FilesStatus};

/// Brings the files' entries into KV and makes the consumers of every target, once. One target whose
/// consumers can't be made doesn't keep the others waiting: [`run`] tries it again.
///
/// # Errors
/// When the bucket can't be read or written.
pub(crate) async fn begin(control: &Control) -> anyhow::Result<()> {
    former_refused::bring_over(control).await?;
    let registry = control.registry().await?;
    control.files.seed(registry).await?;
    for (name, entry) in registry.entries().await? {
        match (&entry.config, &entry.problem) {
            (Some(config), _) => {
                let made = streams::ensure_target_consumers(&control.jetstream, config).await;
                if let Err(error) = made {
                    let error = format!("{error:#}");
                    tracing::warn!(
                        target = name,
                        error,
                        "can't make the consumers; trying again"
                    );
                }
            }
            (None, problem) => {
                let problem = problem.as_deref().unwrap_or_default();
                tracing::warn!(target = name, problem, "the entry can't be used");
            }
        }
    }
    Ok(())
}

/// Goes on with it until `shutdown`.
pub(crate) async fn run(
    control: Arc<Control>,
    settings: Settings,
    health: Health,
    shutdown: CancellationToken,
) {
    let runbook = settings.common.runbook;
    let deleted = Deleted::new(settings.streams, settings.notify, runbook.clone());
    let watch = Watch::new(deleted, settings.alerts, runbook.clone());
    let work = async {
        tokio::join!(
            consumers::follow(&control, shutdown.clone()),
            files::follow(&control),
            gone::follow(&control, &runbook),
            backstop::run(&control),
            former_refused::follow(&control),
            watch.run(&control, &health),
        )
    };
    shutdown.run_until_cancelled(work).await;
}
