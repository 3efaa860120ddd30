//! Publishing many rows at once, in their order: behind a row that isn't stored, none is. So two rows of one user
//! never change places, although nobody waits for the first one's answer.

use async_nats::{HeaderMap, header::NATS_MESSAGE_ID};
use tokio_util::sync::CancellationToken;
use usersync_core::batch::{Batches, NotSent, Outcome};
use usersync_source::{Failure, OutboxRow, SourceName};

use super::event;

/// What became of some rows. Those in no list stay as they are, to be tried again.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Stored in USER_EVENTS, now or before.
    pub published: Vec<i64>,
    /// When those were written, in unix microseconds.
    pub created_us: Vec<i64>,
    /// Never to be published.
    pub failed: Vec<Failure>,
    /// Why some could not be published now.
    pub trouble: Option<String>,
}

/// Publishes `rows`, which come in the order of their ids, until all are through, something fails, or
/// `shutdown`; what is under way then is awaited.
pub(super) async fn publish(
    batches: &mut Batches,
    source: &SourceName,
    rows: Vec<OutboxRow>,
    shutdown: &CancellationToken,
) -> Window {
    let mut window = Window::default();
    let mut sent = Vec::with_capacity(rows.len());
    for row in rows {
        if shutdown.is_cancelled() {
            break;
        }
        let event = match event::of(source, &row) {
            Ok(event) => event,
            Err(reason) => {
                window.failed.push(Failure { id: row.id, reason });
                continue;
            }
        };
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, event.id);
        let added = batches.add(event.kind.as_str().into(), headers, event.body);
        match added.await {
            Ok(()) => sent.push((row.id, row.created_us)),
            Err(NotSent::Ended) => break,
            Err(never @ NotSent::TooLarge) => {
                let reason = never.to_string();
                window.failed.push(Failure { id: row.id, reason });
            }
        }
    }
    batches.commit().await;
    let mut all = true;
    for ((id, created_us), outcome) in sent.into_iter().zip(batches.outcomes()) {
        match outcome {
            Outcome::Stored => {
                window.published.push(id);
                window.created_us.push(created_us);
            }
            Outcome::TooLarge => {
                let reason = "it is larger than USER_EVENTS takes (max_msg_size)".to_owned();
                window.failed.push(Failure { id, reason });
            }
            Outcome::Outdated | Outcome::Doubtful => all = false,
        }
    }
    let unexplained = || (!all).then(|| "not all events were stored".to_owned());
    window.trouble = batches.trouble().or_else(unexplained);
    window
}
