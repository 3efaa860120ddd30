//! The channel `webhook`: a call signed as Standard Webhooks says, with the alerts as an array.

use usersync_core::{egress::Egress, target::TargetConfig};
use usersync_targets::{ConfigError, Failure, Outcome, Webhook};

use super::{channel::Answer, notice::Notice};

/// Where it is called, and what signs.
#[derive(Clone, Debug)]
pub(super) struct Hook {
    pub(super) config: TargetConfig,
    pub(super) egress: Egress,
}

impl Hook {
    /// Makes what calls it, with the secrets as they are now.
    ///
    /// # Errors
    /// What doesn't fit, beginning with the setting.
    pub(super) fn open(&self) -> Result<Webhook, String> {
        let opened = Webhook::new(&self.config, &self.egress);
        opened.map_err(|error| match error {
            ConfigError::Url(reason) => format!("notify.webhook.url: {reason}"),
            error => format!("notify.webhook.{error}"),
        })
    }

    pub(super) async fn send(&self, notice: &Notice) -> Answer {
        let webhook = match self.open() {
            Ok(webhook) => webhook,
            Err(problem) => return Answer::NotNow(Failure::new(problem)),
        };
        match webhook.call(&notice.id, &notice.body()).await {
            Outcome::Delivered { .. } | Outcome::AlreadyNewer => Answer::Taken,
            Outcome::Transient(failure) | Outcome::Fault(failure) | Outcome::Down(failure) => {
                Answer::NotNow(failure)
            }
            Outcome::Conflict(conflict) => Answer::NotNow(conflict.failure),
            Outcome::Permanent(failure) | Outcome::Gone(failure) => Answer::Never(failure),
        }
    }
}
