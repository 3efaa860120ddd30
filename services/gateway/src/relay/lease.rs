//! The right to relay an outbox: a connection that does nothing but hold the database's lock and show that it lives. The
//! server ends it after a silence, so that another gateway takes over from one that was stopped or cut off, whatever TCP
//! believes of it.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use usersync_source::{Database, SourceError};

/// How often the server hears of us.
const EVERY: Duration = Duration::from_secs(3);
/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(4);
/// After so long a silence it gives the lock away.
const SILENCE: Duration = Duration::from_secs(9);

/// A lock that is kept until it is given back or lost.
pub(super) struct Lease {
    keeping: JoinHandle<Option<SourceError>>,
    enough: CancellationToken,
}

impl Lease {
    /// Keeps the lock that `holder` has taken.
    ///
    /// # Errors
    /// When the server can't be told how long a silence means our end.
    pub(super) async fn of(mut holder: Database) -> Result<Self, SourceError> {
        holder.end_after(SILENCE).await?;
        let enough = CancellationToken::new();
        let keeping = tokio::spawn(keep(holder, enough.clone()));
        Ok(Self { keeping, enough })
    }

    /// Why it was lost, as soon as it is.
    pub(super) async fn lost(&mut self) -> SourceError {
        let lost = (&mut self.keeping).await.ok().flatten();
        lost.unwrap_or_else(|| SourceError::Unavailable("the relay's lock was lost".to_owned()))
    }

    /// Lets another have the lock at once.
    pub(super) async fn give_back(mut self) {
        self.enough.cancel();
        if !self.keeping.is_finished() {
            let _ = (&mut self.keeping).await;
        }
    }
}

impl Drop for Lease {
    /// Nobody keeps a lock for a relay that has ended, however it did.
    fn drop(&mut self) {
        self.enough.cancel();
    }
}

/// Why the lock is lost; none when there is enough of it.
async fn keep(mut holder: Database, enough: CancellationToken) -> Option<SourceError> {
    loop {
        let pausing = tokio::time::sleep(EVERY);
        if enough.run_until_cancelled(pausing).await.is_none() {
            holder.close().await;
            return None;
        }
        if let Err(error) = holder.keep_lock(PATIENCE).await {
            return Some(error);
        }
    }
}
