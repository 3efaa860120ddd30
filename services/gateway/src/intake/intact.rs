//! Whether USER_STATE still has every user it had. Asked before a user is taken for new: where the states were deleted,
//! purged or restored while a gateway runs, an update would else be stored as all that is known of its user.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use async_nats::jetstream::stream::{Info, Stream};
use tokio::sync::Mutex;

use super::mark::Extent;

/// What USER_STATE has at least.
pub(super) struct Intact {
    states: Stream<()>,
    created: String,
    /// Users. Only intake and bulk loads add some, and nobody takes any away.
    least: AtomicU64,
    /// When the last look began, and what it found.
    last: Mutex<Option<(Instant, bool)>>,
}

impl Intact {
    /// The stream as it is found at the begin of a session.
    pub(super) fn new(states: Stream<()>, found: &Extent) -> Self {
        Self {
            states,
            created: found.created.clone(),
            least: AtomicU64::new(found.messages),
            last: Mutex::default(),
        }
    }

    /// A user more is stored.
    pub(super) fn one_more(&self) {
        self.least.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether no user was missing at some time after the call. Those who ask at the same time share one look.
    pub(super) async fn check(&self) -> anyhow::Result<bool> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        if let Some((began, intact)) = *last
            && began >= asked
        {
            return Ok(intact);
        }
        let began = Instant::now();
        let least = self.least.load(Ordering::Relaxed);
        let intact = self.is_so(&self.states.get_info().await?, least);
        *last = Some((began, intact));
        Ok(intact)
    }

    /// What to compare a look with that begins now.
    pub(super) fn least(&self) -> u64 {
        self.least.load(Ordering::Relaxed)
    }

    pub(super) fn is_so(&self, info: &Info, least: u64) -> bool {
        info.created.to_string() == self.created && info.state.messages >= least
    }
}
