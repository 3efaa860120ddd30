//! What everything that serves one target shares.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::{self, stream::Stream};
use tokio::time::Instant;
use usersync_core::target::TargetConfig;
use usersync_targets::{Failure, Rule, Target};
use usersync_traces::Traces;

use crate::{
    breaker::{Breaker, State},
    failures::Failures,
    letters::Letters,
    meters::Meters,
    recent::Recent,
    results::Results,
    settle,
    unchanged::Unchanged,
};

/// After how long without a state that only a newer worker can read there is none any more.
const FORGOTTEN: Duration = settle::UPGRADE.saturating_mul(6);

/// One target as one worker serves it.
pub(crate) struct Route {
    /// The target's entry.
    pub config: Arc<TargetConfig>,
    /// What it gets of a user.
    pub rule: Rule,
    /// How to reach it.
    pub driver: Box<dyn Target>,
    /// The JetStream connection.
    pub jetstream: jetstream::Context,
    /// USER_STATE, for direct gets.
    pub states: Stream,
    /// What is counted.
    pub meters: Meters,
    /// Its dead letters.
    pub letters: Letters,
    /// What records its spans.
    pub traces: Traces,
    /// Its delivery log.
    pub results: Results,
    breaker: Mutex<Breaker>,
    unchanged: Mutex<Unchanged>,
    failures: Mutex<Failures>,
    recent: Mutex<Recent>,
    /// The consumer sequence since which no other worker can have been handed anything.
    alone_since: AtomicU64,
    /// The consumer sequence up to which messages may have waited for the target to come back.
    held_up_to: AtomicU64,
    /// What was stored before this, in unix microseconds, is a back-fill.
    filled_from_us: AtomicU64,
    /// Whether a delivery was ever guarded by the target, and whether one ever wasn't.
    guarded: AtomicBool,
    unguarded: AtomicBool,
    /// When a state was seen last that only a newer worker can read, and why.
    newer: Mutex<Option<(Instant, Failure)>>,
}

impl Route {
    pub(crate) fn new(
        config: Arc<TargetConfig>,
        rule: Rule,
        driver: Box<dyn Target>,
        jetstream: jetstream::Context,
        states: Stream,
        traces: Traces,
    ) -> Self {
        let (name, client) = (config.name.clone(), jetstream.client());
        Self {
            meters: Meters::new(&name),
            letters: Letters::new(jetstream.clone(), name.clone()),
            results: Results::new(client, &name, config.results),
            breaker: Mutex::new(Breaker::new(config.breaker.clone(), Instant::now())),
            unchanged: Mutex::new(Unchanged::new(config.suppress_unchanged)),
            failures: Mutex::default(),
            recent: Mutex::new(Recent::new(Instant::now())),
            alone_since: AtomicU64::new(0),
            held_up_to: AtomicU64::new(0),
            filled_from_us: AtomicU64::new(0),
            guarded: AtomicBool::new(false),
            unguarded: AtomicBool::new(false),
            newer: Mutex::default(),
            config,
            rule,
            driver,
            jetstream,
            states,
            traces,
        }
    }

    pub(crate) fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a state can't be read by this version; whether that is news.
    pub(crate) fn saw_newer(&self, failure: &Failure) -> bool {
        let mut newer = self.newer.lock().unwrap_or_else(PoisonError::into_inner);
        let last = newer.replace((Instant::now(), failure.clone()));
        last.is_none_or(|(at, _)| at.elapsed() > FORGOTTEN)
    }

    /// Why users wait for a newer worker, while some do.
    pub(crate) fn newer(&self) -> Option<String> {
        let newer = self.newer.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, failure) = newer.as_ref()?;
        (at.elapsed() <= FORGOTTEN).then(|| failure.to_string())
    }

    pub(crate) fn unchanged(&self) -> MutexGuard<'_, Unchanged> {
        self.unchanged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn failures(&self) -> MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what was stored then, in unix microseconds, reaches the target because it changed, and not
    /// because the target is being filled.
    pub(crate) fn is_change(&self, stored_us: u64) -> bool {
        stored_us >= self.filled_from_us.load(Ordering::Relaxed)
    }

    pub(crate) fn set_filled_from_us(&self, created_us: u64) {
        self.filled_from_us.store(created_us, Ordering::Relaxed);
    }

    /// The consumer sequence since which this worker is alone, as far as is known.
    pub(crate) fn alone_since(&self) -> u64 {
        self.alone_since.load(Ordering::Relaxed)
    }

    pub(crate) fn set_alone_since(&self, seq: u64) {
        self.alone_since.store(seq, Ordering::Relaxed);
    }

    /// Takes note of a delivery that the target guarded, or didn't.
    pub(crate) fn set_guarded(&self, guarded: bool) {
        let seen = if guarded {
            &self.guarded
        } else {
            &self.unguarded
        };
        seen.store(true, Ordering::Relaxed);
    }

    /// Whether an older version may replace a newer one there; until it is known, it is taken to be so.
    pub(crate) fn lacks_guard(&self) -> bool {
        self.unguarded.load(Ordering::Relaxed) || !self.guarded.load(Ordering::Relaxed)
    }

    /// Messages up to this consumer sequence may be outdated: they waited.
    pub(crate) fn set_held_up_to(&self, seq: u64) {
        self.held_up_to.store(seq, Ordering::Relaxed);
    }

    /// Whether a message with this consumer sequence may have waited for the target to come back.
    pub(crate) fn was_held(&self, seq: u64) -> bool {
        seq <= self.held_up_to.load(Ordering::Relaxed) || self.breaker().state() != State::Closed
    }
}
