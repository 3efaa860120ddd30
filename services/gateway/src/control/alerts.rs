//! Alerts: those that are raised now.

use serde::Serialize;
use usersync_core::alert::{self, Alert};

use super::{Control, nats};
use crate::problem::Problem;

/// What is wrong now.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Alerts {
    /// Sorted by kind and target.
    pub alerts: Vec<Alert>,
}

pub(crate) async fn list(control: &Control) -> Result<Alerts, Problem> {
    let all = alert::all(&control.jetstream).await.map_err(nats)?;
    let alerts = all.values().filter_map(|newest| newest.raised());
    Ok(Alerts {
        alerts: alerts.cloned().collect(),
    })
}
