//! That a worker delivers to a target without a guard: its key in the KV bucket `user_workers` (ADR 42).

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How often a worker renews its key.
pub const RENEWED: Duration = Duration::from_secs(2);
/// After how long without that it counts as vanished.
pub const VANISHED: Duration = Duration::from_secs(8);

/// What a worker says of a target: the value of its key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Presence {
    /// Calls that nobody waits for any more may have landed after newer ones: users who were delivered lately are delivered
    /// again, and some still wait for that.
    pub unproven: bool,
    /// How often it has given up calls that may still land: each time is like a worker that vanishes.
    pub given_up: u64,
}
