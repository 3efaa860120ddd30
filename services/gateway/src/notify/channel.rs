//! A way to tell people: what it is called, what is told by it and how often, and what its answer means.

use std::collections::BTreeSet;

use usersync_core::{
    alert::{Alert, Kind, Severity},
    subjects::{NOTIFY_EMAIL, NOTIFY_WEBHOOK},
};
use usersync_targets::Failure;

use super::{email::Email, notice::Notice, webhook::Hook};

/// Every channel's name, as labels have it.
pub(super) const NAMES: [&str; 2] = ["webhook", "email"];

/// One that the settings name.
#[derive(Clone, Debug)]
pub(crate) struct Channel {
    pub(super) scope: Scope,
    pub(super) way: Way,
}

/// What is told, and how often.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scope {
    /// The least bad that is told.
    pub(super) severity: Severity,
    /// The kinds that are told; all where there is none.
    pub(super) kinds: BTreeSet<Kind>,
    /// The most messages in a minute.
    pub(super) per_minute: usize,
}

/// How it is told.
#[derive(Clone, Debug)]
pub(super) enum Way {
    Webhook(Box<Hook>),
    Email(Box<Email>),
}

/// What became of a notice.
#[derive(Debug)]
pub(super) enum Answer {
    /// Somebody has it.
    Taken,
    /// Trying again may help.
    NotNow(Failure),
    /// This one is refused for good.
    Never(Failure),
}

impl Channel {
    pub(super) fn name(&self) -> &'static str {
        match &self.way {
            Way::Webhook(_) => NAMES[0],
            Way::Email(_) => NAMES[1],
        }
    }

    /// Its consumer on USER_ALERT.
    pub(crate) fn durable(&self) -> &'static str {
        match &self.way {
            Way::Webhook(_) => NOTIFY_WEBHOOK,
            Way::Email(_) => NOTIFY_EMAIL,
        }
    }

    /// Sends `notice`, in a bounded time. Secrets are read each time, so that a new one holds at once.
    pub(super) async fn send(&self, notice: &Notice) -> Answer {
        match &self.way {
            Way::Webhook(webhook) => webhook.send(notice).await,
            Way::Email(email) => email.send(notice).await,
        }
    }
}

impl Scope {
    /// Whether people want to hear of it.
    pub(super) fn has(&self, alert: &Alert) -> bool {
        let bad_enough = self.severity == Severity::Warning || alert.severity == Severity::Critical;
        bad_enough && (self.kinds.is_empty() || self.kinds.contains(&alert.kind))
    }
}
