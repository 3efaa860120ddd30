//! The delivery log: what every delivery came to, a line each, to `user.result.<target>`.
//!
//! Best effort and cheap: lines are gathered and published together, without waiting for the stream.

use std::sync::{Mutex, PoisonError};

use async_nats::{Client, connection::State};
use serde::Serialize;
use usersync_core::{subjects, target::TargetName, user_id::UserId};

/// Lines are published when this many bytes have come together, else at the next tick.
const FULL: usize = 32 * 1024;
/// What comes when so many bytes wait, for NATS takes none, is dropped.
const MOST: usize = 8 * FULL;

/// More than a line has, in bytes.
const LINE: usize = 1_024;

/// The log of one target.
pub(crate) struct Results {
    subject: String,
    client: Client,
    enabled: bool,
    lines: Mutex<Vec<u8>>,
}

/// One delivery. No personal data: neither what was delivered nor what the target said in words.
#[derive(Serialize)]
pub(crate) struct Line<'a> {
    /// Who.
    pub user_id: &'a UserId,
    /// What.
    pub version: u64,
    /// `delivered`, `already_newer`, `unchanged`, `out_of_scope`, `deleted`, `retry` or `dead`.
    pub outcome: &'static str,
    /// How often it was tried.
    pub attempts: u32,
    /// How long the call took, in milliseconds.
    pub ms: f64,
    /// The code of a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'a str>,
    /// When, in unix microseconds.
    pub at_us: u64,
}

impl Results {
    pub(crate) fn new(client: Client, target: &TargetName, enabled: bool) -> Self {
        Self {
            subject: subjects::result(target),
            client,
            enabled,
            lines: Mutex::default(),
        }
    }

    /// Adds a line; says whether enough have come together to publish them now.
    pub(crate) fn add(&self, line: &Line<'_>) -> bool {
        if !self.enabled {
            return false;
        }
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() < MOST && serde_json::to_writer(&mut *lines, line).is_ok() {
            lines.push(b'\n');
        }
        lines.len() >= FULL
    }

    /// Publishes what has come together.
    pub(crate) async fn publish(&self) {
        let lines = {
            let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            if lines.is_empty() {
                return;
            }
            std::mem::replace(&mut *lines, Vec::with_capacity(FULL + LINE))
        };
        // While NATS is away these lines are dropped: nothing may wait for a log.
        if self.client.connection_state() == State::Connected {
            let published = self.client.publish(self.subject.clone(), lines.into());
            if let Err(error) = published.await {
                tracing::debug!(%error, "results are not published");
            }
        }
    }
}
