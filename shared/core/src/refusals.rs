//! What NATS refuses for want of a permission, seen in health: such errors answer no call, they only come as events.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{Client, ServerError};

use crate::admin::{Health, PERMISSIONS};

/// After how long without a refusal all is well: what is needed is tried again more often.
const QUIET: Duration = Duration::from_secs(10);

/// Watches one connection; clones watch the same one.
#[derive(Clone, Debug)]
pub(crate) struct Refusals(Arc<Watch>);

#[derive(Debug)]
struct Watch {
    health: Health,
    client: OnceLock<Client>,
    seen: AtomicU64,
    /// A refused subscription is gone for good at the server; only a reconnect makes it anew.
    unsubscribed: AtomicBool,
    waiting: AtomicBool,
}

impl Refusals {
    pub(crate) fn new(health: Health) -> Self {
        Self(Arc::new(Watch {
            health,
            client: OnceLock::new(),
            seen: AtomicU64::new(0),
            unsubscribed: AtomicBool::new(false),
            waiting: AtomicBool::new(false),
        }))
    }

    /// The client whose connection it is, once there is one.
    pub(crate) fn of(&self, client: &Client) {
        // The one who makes the connection says so once.
        let _ = self.0.client.set(client.clone());
    }

    /// Logs what the server refused; a missing permission is shown until it has been quiet for [`QUIET`].
    pub(crate) fn saw(&self, error: &ServerError) {
        tracing::error!(%error, "NATS refused something");
        let text = error.to_string();
        // Of an answer, whoever asked has named an inbox that isn't theirs.
        if !text.contains("Permissions Violation") || text.contains("Publish to \"_INBOX") {
            return;
        }
        let watch = &self.0;
        let hint = "see the roles in nats.conf and docs/SECURITY.md";
        watch.health.down(PERMISSIONS, format!("{text}; {hint}"));
        watch.seen.fetch_add(1, Ordering::Relaxed);
        if text.contains("Subscription") {
            watch.unsubscribed.store(true, Ordering::Relaxed);
        }
        if !watch.waiting.swap(true, Ordering::Relaxed) {
            tokio::spawn(self.clone().until_quiet());
        }
    }

    async fn until_quiet(self) {
        let watch = &self.0;
        loop {
            let seen = watch.seen.load(Ordering::Relaxed);
            tokio::time::sleep(QUIET).await;
            if watch.unsubscribed.swap(false, Ordering::Relaxed) {
                if let Some(client) = watch.client.get() {
                    // Fails only for a client that is closed.
                    let _ = client.force_reconnect().await;
                }
            } else if watch.seen.load(Ordering::Relaxed) == seen {
                break;
            }
        }
        watch.health.gone(PERMISSIONS);
        watch.waiting.store(false, Ordering::Relaxed);
    }
}
