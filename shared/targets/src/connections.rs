//! Connections kept open between calls: at most as many as calls under way, opened when first needed.
//!
//! A connection is kept only when its call ended well; one whose call was cut off or broke is closed, for
//! nobody knows what is still to come on it.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, SemaphorePermit};

/// One that was idle for longer is asked whether it still works, before it is trusted.
pub(crate) const TRUSTED: Duration = Duration::from_secs(1);

/// Connections of one target.
pub(crate) struct Connections<C> {
    idle: Mutex<Vec<(C, Instant)>>,
    permits: Semaphore,
}

/// The right to one connection.
pub(crate) struct Lease<'a, C> {
    connections: &'a Connections<C>,
    _permit: Option<SemaphorePermit<'a>>,
}

impl<C> Connections<C> {
    /// At most `most` at the same time.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            idle: Mutex::new(Vec::new()),
            permits: Semaphore::new(most),
        }
    }

    /// Waits for the right to a connection.
    pub(crate) async fn lease(&self) -> Lease<'_, C> {
        Lease {
            connections: self,
            // It is never closed.
            _permit: self.permits.acquire().await.ok(),
        }
    }
}

impl<C> Connections<C> {
    /// Closes those that nobody uses: they lead to a server that is of no more use.
    pub(crate) fn close_idle(&self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.clear();
    }
}

impl<C> Lease<'_, C> {
    /// The connection used last, and for how long it has been idle.
    pub(crate) fn idle(&self) -> Option<(C, Duration)> {
        let mut idle = self.lock();
        let (connection, since) = idle.pop()?;
        Some((connection, since.elapsed()))
    }

    /// Keeps a connection for the next call.
    pub(crate) fn keep(self, connection: C) {
        self.lock().push((connection, Instant::now()));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(C, Instant)>> {
        let idle = self.connections.idle.lock();
        idle.unwrap_or_else(PoisonError::into_inner)
    }
}
