//! What the tests share: events and states on NATS, and HTTP peers under the test's control.

mod api;
mod backup;
mod bus;
mod load;
mod recorder;
mod stall;

use std::time::Duration;

use usersync_stack::{Stack, StackBuilder};

pub(crate) use api::Api;
pub(crate) use backup::Backup;
pub(crate) use bus::Bus;
pub(crate) use load::Load;
pub(crate) use recorder::{Call, Gate, Recorder, answer};
pub(crate) use stall::Stall;

/// Long enough for anything that happens at once, on a machine that is busy.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// For what takes its time: a load, or messages of a dead process, which come again after 30 s.
pub(crate) const LATER: Duration = Duration::from_secs(90);

/// A stack without the examples, whose only enabled targets are those in `catalogue` (TOML).
pub(crate) fn only(catalogue: impl Into<String>) -> StackBuilder {
    let catalogue = catalogue.into();
    Stack::builder()
        .examples(false)
        .targets_toml(move |_| format!("[redis-cache]\nenabled = false\n{catalogue}"))
}
