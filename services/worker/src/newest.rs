//! The newest state of every user of a batch: from its message, or asked for.

use async_nats::{
    HeaderMap,
    jetstream::{Message, stream::DirectGetErrorKind},
};
use futures_util::future::join_all;
use usersync_core::{
    state::{State, Unreadable},
    stored_state, subjects,
    trace::TraceContext,
    user_id::UserId,
};
use usersync_targets::{Failure, Outcome};

use crate::{route::Route, task::Item};

/// What is known of a user before delivery.
pub(crate) enum Newest {
    /// This is to be delivered, with its trace context.
    State(Box<State>, Option<TraceContext>),
    /// There is nothing to deliver: a newer state is on its way, or the target has it.
    Nothing,
    /// The newest state can't be had now, or not at all.
    Failed(Outcome),
    /// A newer version of usersync has written it.
    Newer(Failure),
}

/// The newest state of every item, in order.
pub(crate) async fn of(route: &Route, items: &[Item]) -> Vec<Newest> {
    let mut newest = Vec::with_capacity(items.len());
    let mut asked = Vec::new();
    for (index, item) in items.iter().enumerate() {
        match newest_message(route, item) {
            Some(message) => newest.push(parse(
                &item.user_id,
                &message.payload,
                message.headers.as_ref(),
            )),
            None => {
                newest.push(Newest::Nothing);
                asked.push(async move { (index, ask(route, item).await) });
            }
        }
    }
    for (index, answer) in join_all(asked).await {
        newest[index] = answer;
    }
    newest
}

/// The message with the newest state, `None` when the state must be asked for.
fn newest_message<'a>(route: &Route, item: &'a Item) -> Option<&'a Message> {
    if !item.only_live() || route.was_held(item.since()) {
        return None;
    }
    item.newest().map(|arrived| &arrived.message)
}

/// Reads the newest state by direct get.
async fn ask(route: &Route, item: &Item) -> Newest {
    let subject = subjects::state(&item.user_id);
    match route.states.direct_get_last_for_subject(subject).await {
        Ok(message) => {
            // What was held while the target was away may be outdated; the newer one comes by itself.
            let held = item.newest();
            if let Some(held) = held.filter(|held| held.stream_seq > message.sequence) {
                // A replica that lags knows less than we do.
                return parse(
                    &item.user_id,
                    &held.message.payload,
                    held.message.headers.as_ref(),
                );
            }
            if item.only_live() && held.is_some_and(|held| message.sequence > held.stream_seq) {
                return Newest::Nothing;
            }
            match parse(&item.user_id, &message.payload, Some(&message.headers)) {
                Newest::State(state, _) if item.only_recheck() >= Some(state.version) => {
                    Newest::Nothing
                }
                found => found,
            }
        }
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => match item.newest() {
            None => Newest::Nothing,
            // Removed, or a replica that lags: the server hands it out again if it is still there.
            Some(_) => {
                let reason = "the newest state isn't to be found";
                Newest::Failed(Outcome::Transient(Failure::new(reason)))
            }
        },
        Err(error) => {
            let reason = format!("can't read the newest state: {error}");
            Newest::Failed(Outcome::Transient(Failure::new(reason)))
        }
    }
}

fn parse(user_id: &UserId, payload: &[u8], headers: Option<&HeaderMap>) -> Newest {
    match stored_state::read(user_id, payload) {
        Ok(state) => {
            let header = |name: &str| Some(headers?.get(name)?.as_str());
            Newest::State(Box::new(state), TraceContext::read(header))
        }
        Err(newer @ Unreadable::Newer(_)) => {
            Newest::Newer(Failure::new(format!("can't read a state: {newer}")))
        }
        Err(broken @ (Unreadable::NoState(_) | Unreadable::Beyond | Unreadable::OfAnother)) => {
            let reason = format!("what USER_STATE holds is no state: {broken}");
            Newest::Failed(Outcome::Permanent(Failure::new(reason)))
        }
    }
}
