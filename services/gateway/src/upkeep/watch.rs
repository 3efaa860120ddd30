//! Looks at everything every few seconds, for metrics, alerts and this gateway's health.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, timeout};
use usersync_core::{admin::Health, alert::Runbook, nats::REQUEST_TIMEOUT, streams};

use super::{
    alerts::{self, Alerts},
    gauges::Gauges,
};
use crate::control::{Control, look::Look};

/// How often.
const EVERY: Duration = Duration::from_secs(5);

/// Looks for ever.
pub(super) async fn run(
    control: &Control,
    health: &Health,
    settings: alerts::Settings,
    runbook: Runbook,
) {
    let mut gauges = Gauges::new();
    let mut alerts = Alerts::new(settings, runbook);
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let looked = timeout(
            4 * REQUEST_TIMEOUT,
            look(control, health, &mut gauges, &mut alerts),
        );
        if let Err(error) = looked
            .await
            .map_err(anyhow::Error::from)
            .and_then(|looked| looked)
        {
            let error = format!("{error:#}");
            tracing::debug!(error, "gauges and alerts stay as they are");
        }
    }
}

async fn look(
    control: &Control,
    health: &Health,
    gauges: &mut Gauges,
    alerts: &mut Alerts,
) -> anyhow::Result<()> {
    match &*streams::missing(&control.jetstream).await? {
        [] => health.up("streams"),
        missing => {
            let missing = missing.join(", ");
            health.down(
                "streams",
                format!("missing: {missing}; start this gateway again to have them made, or restore them"),
            );
        }
    }
    let look = Look::at(control).await;
    let look = look.map_err(|problem| anyhow::anyhow!("{}", problem.detail))?;
    let account = control.jetstream.query_account().await?;
    gauges.set(&look, &account, alerts.storage_limit(&account));
    alerts.tell(control, &look, &account).await
}
