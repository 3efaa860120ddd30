//! Publishing many rows at once, in their order: behind a row that isn't stored, none is. So two rows of one user
//! never change places, although nobody waits for the first one's answer.

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
    let mut events = events.into_iter();
    let mut unsent = None;
    for sending in events.by_ref() {
        if shutdown.is_cancelled() {
            break;
        }
        let (subject, headers, body) = sending.event.message();
        match batches.add(subject, headers, body).await {
            Ok(()) => sent.push(sending),
            Err(NotSent::Ended) => {
                unsent = Some(sending);
                break;
            }
            Err(never @ NotSent::TooLarge) => {
                window.fail(sending.blamed, &sending.settles, never.to_string());
            }
        }
    }
    batches.commit().await;
    let mut outcomes: Vec<Outcome> = batches.outcomes().collect();
    if batches.is_crowded() {
        sent.extend(unsent.take().into_iter().chain(events));
        outcomes.resize(sent.len(), Outcome::Doubtful);
        one_by_one(batches, &sent, &mut outcomes, shutdown).await;
    }
    let mut all = unsent.is_none();
    for (sending, outcome) in sent.into_iter().zip(outcomes) {
        let Sending {
            blamed, settles, ..
        } = sending;
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
    let trouble = batches.trouble();
    let unexplained = || "not all events were stored".to_owned();
    window.trouble = (!all).then(|| trouble.unwrap_or_else(unexplained));
    window
}

/// The same for what isn't stored because others have as many batches under way as the server takes: any publisher may.
async fn one_by_one(
    batches: &mut Batches,
    sent: &[Sending],
    outcomes: &mut [Outcome],
    shutdown: &CancellationToken,
) {
    let rest = sent.iter().zip(outcomes);
    for (sending, outcome) in rest.skip_while(|(_, outcome)| **outcome == Outcome::Stored) {
        if shutdown.is_cancelled() {
            return;
        }
        let (subject, headers, body) = sending.event.message();
        *outcome = batches.alone(subject, headers, body).await;
        // What never can be stored holds nobody up.
        if !matches!(outcome, Outcome::Stored | Outcome::TooLarge) {
            return;
        }
    }
}

impl Window {
    /// An event failed, and with it one row; of the others it settles, nothing more is to be said.
    pub(super) fn fail(&mut self, row: i64, settles: &[(i64, i64)], reason: String) {
        let others = settles.iter().map(|(id, _)| *id);
        self.silent.extend(others.filter(|id| *id != row));
        self.failed.push(Failure { id: row, reason });
    }
}
