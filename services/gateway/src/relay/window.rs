//! Publishing many rows at once. A user's next row is sent only after the PubAck of the one before: two
//! under way at once could change places when one of them fails.

use std::collections::{HashMap, VecDeque};

use async_nats::jetstream::{
    self,
    context::{PublishError, PublishErrorKind},
    message::PublishMessage,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio_util::sync::CancellationToken;
use usersync_core::user_id::UserId;
use usersync_source::{Failure, OutboxRow, SourceName};

use super::event::{self, Ready};

/// Rows under way at once.
const UNDER_WAY: usize = 1_000;

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
    jetstream: &jetstream::Context,
    source: &SourceName,
    rows: Vec<OutboxRow>,
    shutdown: &CancellationToken,
) -> Window {
    let mut window = Window::default();
    let mut ready: Vec<(i64, i64, Ready)> = Vec::with_capacity(rows.len());
    for row in rows {
        match event::of(source, &row) {
            Ok(event) => ready.push((row.id, row.created_us, event)),
            Err(reason) => window.failed.push(Failure { id: row.id, reason }),
        }
    }
    let (mut next, successors) = order(ready.iter().map(|(_, _, event)| &event.user_id));
    let mut under_way = FuturesUnordered::new();
    loop {
        while under_way.len() < UNDER_WAY && window.trouble.is_none() && !shutdown.is_cancelled() {
            let Some(at) = next.pop_front() else { break };
            let event = &ready[at].2;
            let message = PublishMessage::build()
                .payload(event.body.clone())
                .message_id(&event.id);
            match jetstream.send_publish(event.kind.as_str(), message).await {
                Ok(ack) => under_way.push(async move { (at, ack.await) }),
                Err(error) => settle(&mut window, &ready[at], Err(error)),
            }
        }
        let Some((at, acknowledged)) = under_way.next().await else {
            break;
        };
        let through = window.published.len() + window.failed.len();
        settle(&mut window, &ready[at], acknowledged.map(drop));
        if window.published.len() + window.failed.len() > through {
            next.extend(successors[at]);
        }
    }
    window
}

fn settle(
    window: &mut Window,
    (id, created, _): &(i64, i64, Ready),
    result: Result<(), PublishError>,
) {
    match result {
        Ok(()) => {
            window.published.push(*id);
            window.created_us.push(*created);
        }
        Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
            let reason = "it is larger than the NATS server takes (max_payload)".to_owned();
            window.failed.push(Failure { id: *id, reason });
        }
        Err(error) => window.trouble = Some(error.to_string()),
    }
}

/// Where each user begins, and what follows each of them for the same user.
fn order<'a>(users: impl Iterator<Item = &'a UserId>) -> (VecDeque<usize>, Vec<Option<usize>>) {
    let mut last: HashMap<&UserId, usize> = HashMap::new();
    let (mut first, mut successors) = (VecDeque::new(), Vec::new());
    for (at, user) in users.enumerate() {
        successors.push(None);
        match last.insert(user, at) {
            None => first.push_back(at),
            Some(before) => successors[before] = Some(at),
        }
    }
    (first, successors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_users_rows_follow_one_another() {
        let users: Vec<UserId> = [1, 2, 1, 3, 1, 2].map(UserId::from).into();
        let (first, successors) = order(users.iter());
        assert_eq!(first, [0, 1, 3]);
        assert_eq!(successors, [Some(2), Some(5), Some(4), None, None, None]);
    }
}
