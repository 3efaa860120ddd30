//! Publishing many rows at once, in their order: behind a row that isn't stored, none is. So two rows of one user
//! never change places, although nobody waits for the first one's answer.

use async_nats::{HeaderMap, header::NATS_MESSAGE_ID};
use tokio_util::sync::CancellationToken;
use usersync_core::batch::{Batches, NotSent, Outcome};
use usersync_source::Failure;

use super::event::Ready;

/// What became of some rows. Those in no list stay as they are, to be tried again.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Stored in USER_EVENTS, now or before.
    pub published: Vec<i64>,
    /// When those were written, in unix microseconds.
    pub created_us: Vec<i64>,
    /// Of whom nothing is to be said.
    pub silent: Vec<i64>,
    /// Never to be published.
    pub failed: Vec<Failure>,
    /// Why some could not be published now.
    pub trouble: Option<String>,
}

/// An event that is to be published.
pub(super) struct Sending {
    /// The row that fails if it does.
    pub blamed: i64,
    /// All rows it settles, that one too, and when each was written.
    pub settles: Vec<(i64, i64)>,
    pub event: Ready,
}

/// Publishes `events` in their order until all are through, something fails, or `shutdown`; what is under way then is
/// awaited.
pub(super) async fn publish(
    batches: &mut Batches,
    events: Vec<Sending>,
    shutdown: &CancellationToken,
) -> Window {
    let mut window = Window::default();
    let mut sent = Vec::with_capacity(events.len());
    for Sending {
        blamed,
        settles,
        event,
    } in events
    {
        if shutdown.is_cancelled() {
            break;
        }
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, event.id);
        let added = batches.add(event.kind.as_str().into(), headers, event.body);
        match added.await {
            Ok(()) => sent.push((blamed, settles)),
            Err(NotSent::Ended) => break,
            Err(never @ NotSent::TooLarge) => window.fail(blamed, &settles, never.to_string()),
        }
    }
    batches.commit().await;
    let mut all = true;
    for ((blamed, settles), outcome) in sent.into_iter().zip(batches.outcomes()) {
        match outcome {
            Outcome::Stored => {
                let (ids, created): (Vec<_>, Vec<_>) = settles.into_iter().unzip();
                window.published.extend(ids);
                window.created_us.extend(created);
            }
            Outcome::TooLarge => {
                let reason = "it is larger than USER_EVENTS takes (max_msg_size)".to_owned();
                window.fail(blamed, &settles, reason);
            }
            Outcome::Outdated | Outcome::Doubtful => all = false,
        }
    }
    let unexplained = || (!all).then(|| "not all events were stored".to_owned());
    window.trouble = batches.trouble().or_else(unexplained);
    window
}

impl Window {
    /// An event failed, and with it one row; of the others it settles, nothing more is to be said.
    pub(super) fn fail(&mut self, row: i64, settles: &[(i64, i64)], reason: String) {
        let others = settles.iter().map(|(id, _)| *id);
        self.silent.extend(others.filter(|id| *id != row));
        self.failed.push(Failure { id: row, reason });
    }
}
