//! What a worker gives back when it stops.

use std::collections::HashMap;

use async_nats::jetstream::{AckKind, Message};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use usersync_core::{subjects, user_id::UserId};

use crate::{breaker::State, route::Route};

/// How many repairs wait for the server's answer at once.
const ASKED_AT_ONCE: usize = 256;

/// Gives back `messages` nobody was called about, so that any worker may have them at once.
///
/// While the target is up the server hands them out again. In an outage that would cost an attempt each, for a
/// call that was never made: then a repair is asked for, which starts anew, and takes the message's place once
/// it is stored (ADR 12).
pub(crate) async fn hand_back(route: &Route, messages: impl IntoIterator<Item = Message>) {
    if route.breaker().state() == State::Closed {
        for message in messages {
            acknowledge(&message, AckKind::Nak(None)).await;
        }
        return;
    }
    let mut users: HashMap<UserId, Vec<Message>> = HashMap::new();
    for message in messages {
        let user = subjects::user_of_state(&message.subject)
            .or_else(|| subjects::user_of_repair(&message.subject));
        // One that names no user is given up by whom it is handed to next.
        if let Some(user) = user {
            users.entry(user).or_default().push(message);
        }
    }
    stream::iter(users)
        .for_each_concurrent(ASKED_AT_ONCE, |(user, messages)| async move {
            let kind = match ask(route, &user).await {
                Ok(()) => AckKind::Ack,
                Err(error) => {
                    tracing::warn!(target = %route.config.name, %error, "can't ask for a repair; handing the message back costs an attempt");
                    AckKind::Nak(None)
                }
            };
            for message in &messages {
                acknowledge(message, kind).await;
            }
        })
        .await;
}

/// Asks for the newest state of `user` to be delivered; done when that is stored.
pub(crate) async fn ask(
    route: &Route,
    user: &UserId,
) -> Result<(), async_nats::jetstream::context::PublishError> {
    let subject = subjects::repair(&route.config.name, user);
    route
        .jetstream
        .publish(subject, Bytes::new())
        .await?
        .await?;
    Ok(())
}

async fn acknowledge(message: &Message, kind: AckKind) {
    if let Err(error) = message.ack_with(kind).await {
        tracing::warn!(%error, "can't hand a message back; it comes again after ack_wait");
    }
}
