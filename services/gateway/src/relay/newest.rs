//! Whether the newest state of a user says what the row does already: then there is nothing to publish.
//!
//! Only the word of a state that contains every event that this relay has published of its user counts. Which of them
//! intake has merged is asked from time to time; until then the state has to say so itself, by the note it contains.

use std::collections::HashMap;

use async_nats::jetstream::{
    self,
    stream::{DirectGetErrorKind, Stream},
};
use futures_util::{StreamExt, stream};
use tokio::time::timeout;
use usersync_core::{
    event::{Event, EventType},
    load,
    member::Member,
    nats::REQUEST_TIMEOUT,
    state::State,
    stored_state,
    subjects::{self, INTAKE, USER_EVENTS, USER_STATE},
    user_id::UserId,
};

/// States asked for at once.
const READS: usize = 256;
/// The most users that are remembered; beyond, every row is published.
const MOST: usize = 200_000;

/// What is known of the states of one source.
pub(super) struct Newest {
    jetstream: jetstream::Context,
    states: Stream<()>,
    source: String,
    epoch: String,
    /// Whose events were published since the last look at intake, and since the one before.
    sent: [Sent; 2],
    /// What intake has to have merged for the older ones to be in the states.
    until: u64,
}

/// Users whose events may not be merged yet, and the note of the last one.
#[derive(Default)]
struct Sent {
    users: HashMap<UserId, i64>,
    /// They are too many to be remembered.
    all: bool,
}

/// How a row differs from the newest state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Differs {
    No,
    /// In the status alone.
    Status,
    Yes,
}

impl Newest {
    pub(super) async fn new(
        jetstream: jetstream::Context,
        source: String,
        epoch: String,
    ) -> anyhow::Result<Self> {
        let mut newest = Self {
            states: jetstream.get_stream_no_info(USER_STATE).await?,
            jetstream,
            source,
            epoch,
            sent: Default::default(),
            until: 0,
        };
        // Whoever relayed before may have published what isn't merged yet.
        match newest.merged().await {
            Ok((last, merged)) if merged >= last => {}
            Ok((last, _)) => (newest.sent[1].all, newest.until) = (true, last),
            Err(_) => newest.sent[0].all = true,
        }
        Ok(newest)
    }

    /// An event of this user is published, with this note; one without a note is in no state that says so.
    pub(super) fn sent(&mut self, user: UserId, note: Option<i64>) {
        let young = &mut self.sent[0];
        if young.users.len() >= MOST {
            *young = Sent {
                all: true,
                ..Sent::default()
            };
        }
        if !young.all {
            young.users.insert(user, note.unwrap_or(i64::MAX));
        }
    }

    /// Asks how far intake is. Called while nothing is being published.
    ///
    /// # Errors
    /// When NATS can't be asked.
    pub(super) async fn look(&mut self) -> anyhow::Result<()> {
        let (last, merged) = self.merged().await?;
        if merged >= self.until {
            let [young, old] = &mut self.sent;
            *old = std::mem::take(young);
            self.until = last;
        }
        Ok(())
    }

    /// The last event, and the one up to which intake has merged all.
    async fn merged(&self) -> anyhow::Result<(u64, u64)> {
        let asking = async {
            let events = self.jetstream.get_stream(USER_EVENTS).await?;
            let merged = events
                .consumer_info(INTAKE)
                .await?
                .ack_floor
                .stream_sequence;
            anyhow::Ok((events.cached_info().state.last_sequence, merged))
        };
        timeout(REQUEST_TIMEOUT, asking).await?
    }

    /// How these rows, which own the members `owned`, differ from the newest states; what can't be told differs.
    pub(super) async fn compare(&self, rows: &[&Event], owned: &[Member]) -> Vec<Differs> {
        if self.sent.iter().any(|sent| sent.all) {
            return vec![Differs::Yes; rows.len()];
        }
        let users = rows.iter().map(|row| row.user_id.clone());
        let reading: Vec<_> = users.map(|user| read(self.states.clone(), user)).collect();
        let states: Vec<Option<State>> = stream::iter(reading).buffered(READS).collect().await;
        let compared = states.iter().zip(rows).map(|(state, row)| match state {
            Some(state) if self.is_newest(state) => differs(state, row, owned),
            _ => Differs::Yes,
        });
        compared.collect()
    }

    /// Whether a state contains all that was published of its user.
    fn is_newest(&self, state: &State) -> bool {
        let sent = self.sent.iter();
        let sent = sent.filter_map(|sent| sent.users.get(&state.user_id)).max();
        sent.is_none_or(|sent| {
            state
                .notes
                .get(&self.source)
                .is_some_and(|known| known.epoch == self.epoch && known.note >= *sent)
        })
    }
}

/// A user's state as any replica has it; none when there is none, or nobody can tell.
async fn read(states: Stream<()>, user: UserId) -> Option<State> {
    let subject = subjects::state(&user);
    let reading = timeout(REQUEST_TIMEOUT, states.direct_get_last_for_subject(subject));
    match reading.await.ok()? {
        Ok(message) => stored_state::read(&user, &message.payload).ok(),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => None,
        Err(error) => {
            tracing::debug!(user.id = %user, %error, "can't read a state");
            None
        }
    }
}

/// How a row differs from a state that contains it or is older.
fn differs(state: &State, row: &Event, owned: &[Member]) -> Differs {
    if state.deleted || state.partial {
        return Differs::Yes;
    }
    let equal = |members: &[Member]| {
        load::digest_of_state(state, members) == load::digest_of_row(row, members)
    };
    if equal(owned) {
        return Differs::No;
    }
    let rest = owned.iter().filter(|member| **member != Member::Status);
    let rest: Vec<Member> = rest.cloned().collect();
    match row.kind == EventType::Updated && rest.len() < owned.len() && equal(&rest) {
        true => Differs::Status,
        false => Differs::Yes,
    }
}
