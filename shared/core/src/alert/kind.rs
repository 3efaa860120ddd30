//! What alerts are about, how bad each kind is, and which section of the run-book says what to do.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What an alert is about.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A target's breaker isn't closed.
    Breaker,
    /// Changes wait for a target for long.
    Backlog,
    /// Nobody serves a target.
    Worker,
    /// Half of the attempts to deliver to a target fail, or more.
    Failing,
    /// Users were given up; of target `gateway`: events were refused.
    Dead,
    /// The copies at a target differ.
    Drift,
    /// A target's check has failed, or is overdue.
    Check,
    /// A target has answered "410 Gone" and was disabled.
    Gone,
    /// No gateway merges events into states.
    Intake,
    /// The outbox of a main database isn't published.
    Outbox,
    /// Rows of an outbox make no event.
    Rows,
    /// NATS is running out of storage.
    Storage,
    /// A stream of events or states was lost, made anew, or went back.
    Streams,
    /// A user has more events within the duplicate window than a state remembers.
    Crowded,
    /// A cache has lost what it was told, and is filled again.
    Refill,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Changes don't arrive.
    Critical,
    /// Somebody should look.
    Warning,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 15] = [
        Self::Breaker,
        Self::Backlog,
        Self::Worker,
        Self::Failing,
        Self::Dead,
        Self::Drift,
        Self::Check,
        Self::Gone,
        Self::Intake,
        Self::Outbox,
        Self::Rows,
        Self::Storage,
        Self::Streams,
        Self::Crowded,
        Self::Refill,
    ];

    /// The token in the subject.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Breaker => "breaker",
            Self::Backlog => "backlog",
            Self::Worker => "worker",
            Self::Failing => "failing",
            Self::Dead => "dead",
            Self::Drift => "drift",
            Self::Check => "check",
            Self::Gone => "gone",
            Self::Intake => "intake",
            Self::Outbox => "outbox",
            Self::Rows => "rows",
            Self::Storage => "storage",
            Self::Streams => "streams",
            Self::Crowded => "crowded",
            Self::Refill => "refill",
        }
    }

    /// How bad it is; as the alert of deploy/prometheus/rules/alerts.yml has it, where there is one.
    pub const fn severity(self) -> Severity {
        match self {
            Self::Breaker
            | Self::Worker
            | Self::Gone
            | Self::Intake
            | Self::Outbox
            | Self::Streams => Severity::Critical,
            _ => Severity::Warning,
        }
    }

    /// The section of docs/RUNBOOK.md.
    pub const fn anchor(self) -> &'static str {
        match self {
            Self::Breaker => "breaker-open",
            Self::Backlog => "backlog-old",
            Self::Worker => "no-worker",
            Self::Failing => "target-failing",
            Self::Dead => "dead-letters",
            Self::Drift => "drift",
            Self::Check => "check-failed",
            Self::Gone => "target-gone",
            Self::Intake => "intake-stopped",
            Self::Outbox => "outbox-stuck",
            Self::Rows => "outbox-rows-failed",
            Self::Storage => "nats-storage",
            Self::Streams => "streams-changed",
            Self::Crowded => "crowded-user",
            Self::Refill => "cache-refilled",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
