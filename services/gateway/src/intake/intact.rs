//! Whether USER_STATE still has every state it had. Asked before a user is taken for new: where the states were deleted,
//! purged or restored while a gateway runs, an update would else be stored as all that is known of its user.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use async_nats::jetstream::stream::{Info, Stream};
use tokio::sync::Mutex;

use super::mark::Extent;

/// What USER_STATE has at least.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Least {
    pub users: u64,
    pub last_seq: u64,
}

impl Least {
    pub(super) fn max(self, other: Self) -> Self {
        Self {
            users: self.users.max(other.users),
            last_seq: self.last_seq.max(other.last_seq),
        }
    }

    pub(super) fn is_met(&self, info: &Info) -> bool {
        info.state.messages >= self.users && !self.went_back(info)
    }

    /// Whether it is an older copy, or begun anew.
    pub(super) fn went_back(&self, info: &Info) -> bool {
        info.state.last_sequence < self.last_seq
    }
}

/// Looks whether it has.
pub(super) struct Intact {
    states: Stream<()>,
    created: String,
    /// Users. Only intake and bulk loads add some, and nobody takes any away.
    users: AtomicU64,
    last_seq: AtomicU64,
    /// When the last look began, and what it found.
    last: Mutex<Option<(Instant, bool)>>,
}

impl Intact {
    /// The stream as it is found at the begin of a session.
    pub(super) fn new(states: Stream<()>, found: &Extent) -> Self {
        Self {
            states,
            created: found.created.clone(),
            users: AtomicU64::new(found.messages),
            last_seq: AtomicU64::new(found.last_seq),
            last: Mutex::default(),
        }
    }

    /// A state is stored at `seq`; the first of its user, or another.
    pub(super) fn stored(&self, seq: u64, first: bool) {
        self.users.fetch_add(u64::from(first), Ordering::Relaxed);
        self.last_seq.fetch_max(seq, Ordering::Relaxed);
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
        let least = self.least();
        let intact = self.is_so(&self.states.get_info().await?, least);
        *last = Some((began, intact));
        Ok(intact)
    }

    /// What to compare a look with that begins now.
    pub(super) fn least(&self) -> Least {
        Least {
            users: self.users.load(Ordering::Relaxed),
            last_seq: self.last_seq.load(Ordering::Relaxed),
        }
    }

    pub(super) fn is_so(&self, info: &Info, least: Least) -> bool {
        info.created.to_string() == self.created && least.is_met(info)
    }
}
