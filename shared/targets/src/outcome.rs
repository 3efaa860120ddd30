//! What became of one delivery, as its target kind classifies it. What follows from it is decided in the worker.

use std::{borrow::Cow, time::Duration};

use serde::Serialize;
use usersync_core::retry::{Code, Retry};

/// The result of one delivery.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The target has this version.
    Delivered {
        /// Whether the target itself refuses older versions, so that order across workers is safe.
        guarded: bool,
    },
    /// The target already had a newer version, and kept it.
    AlreadyNewer,
    /// Trying again may help: this delivery failed, others may work.
    Transient(Failure),
    /// Trying again won't help: the target refuses this very user.
    Permanent(Failure),
    /// The target as a whole can't be used: not reachable, or it refuses us.
    Fault(Failure),
    /// The target says that it is gone for good (HTTP 410).
    Gone(Failure),
}

/// Why a call failed. Never holds a payload, a secret or personal data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    /// In words, for people.
    pub reason: Cow<'static, str>,
    /// The code the target answered, where its protocol has one: HTTP status, SQLSTATE, Redis or Neo4j code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<Cow<'static, str>>,
    /// How long the target asks us to wait.
    #[serde(skip)]
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure without a code.
    pub fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason: reason.into(),
            code: None,
            retry_after: None,
        }
    }
}

impl Outcome {
    /// The outcome as the target's own codes (`retry.permanent_status`, `retry.transient_status`) want it.
    pub fn reclassified(self, retry: &Retry) -> Self {
        let (Self::Transient(failure)
        | Self::Permanent(failure)
        | Self::Fault(failure)
        | Self::Gone(failure)) = &self
        else {
            return self;
        };
        let named = |codes: &[Code]| {
            failure
                .code
                .as_deref()
                .is_some_and(|code| codes.iter().any(|named| named == code))
        };
        if named(&retry.permanent_status) {
            Self::Permanent(failure.clone())
        } else if named(&retry.transient_status) {
            Self::Transient(failure.clone())
        } else {
            self
        }
    }
}
