//! Users whose state is another than their row, or changed while the load looked: their state is read, then
//! their row, and then it is decided.

use std::collections::HashMap;

use anyhow::Context as _;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use futures_util::{StreamExt, TryStreamExt, stream};
use usersync_core::{member::Member, state::State, stored_state, subjects, user_id::UserId};
use usersync_source::{Database, Layout, SourceName};

use super::{Contest, PATIENCE, publish::Publisher, rows};

/// Users in one round.
const ROUND: usize = 500;
/// States read at once.
const READS: usize = 128;
/// How often a user may fail for another reason than that someone else was first.
const FAILURES: u32 = 40;

/// Users to be decided about.
pub(super) struct Contested {
    states: Stream<()>,
    database: Database,
    layout: Layout,
    source: SourceName,
    waiting: Vec<Contest>,
}

impl Contested {
    pub(super) fn new(
        states: Stream<()>,
        database: Database,
        layout: Layout,
        source: SourceName,
    ) -> Self {
        Self {
            states,
            database,
            layout,
            source,
            waiting: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, user: Contest) {
        self.waiting.push(user);
    }

    pub(super) fn extend(&mut self, users: impl Iterator<Item = Contest>) {
        self.waiting.extend(users);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether there are enough for a round.
    pub(super) fn many(&self) -> bool {
        self.waiting.len() >= ROUND
    }

    /// Reads some states, then the rows of the same users, and publishes what differs; how many are equal.
    pub(super) async fn round(
        &mut self,
        publisher: &mut Publisher,
        members: &[Member],
    ) -> anyhow::Result<u64> {
        let most = self.waiting.len().min(ROUND);
        let users: Vec<Contest> = self.waiting.drain(..most).collect();
        let failures = users.iter().map(|user| user.lost).max().unwrap_or(0);
        anyhow::ensure!(
            failures < FAILURES,
            "states can't be written: {}",
            publisher
                .trouble
                .as_deref()
                .unwrap_or("NATS doesn't answer in time")
        );
        if failures > 0 {
            tokio::time::sleep(PATIENCE).await;
        }
        let states: HashMap<UserId, (u64, Option<State>)> = stream::iter(&users)
            .map(|user| self.state(&user.user_id))
            .buffer_unordered(READS)
            .try_collect()
            .await?;
        let ids: Vec<String> = users.iter().map(|user| user.id.clone()).collect();
        let mut documents: HashMap<String, Vec<u8>> = HashMap::new();
        for row in self.rows(&ids).await? {
            if let Ok(document) = row.document {
                documents.insert(row.id, document);
            }
        }
        let mut equal = 0;
        for user in users {
            // Whoever is gone by now is told of by an event; whoever can't be read was counted.
            let Some(document) = documents.get(&user.id) else {
                continue;
            };
            let Ok(row) = rows::of_document(&self.source, document) else {
                continue;
            };
            let (seq, state) = states.get(&user.user_id).cloned().unwrap_or((0, None));
            let written = publisher.publish(user, row, state, seq, members).await?;
            equal += u64::from(!written);
        }
        Ok(equal)
    }

    async fn rows(&mut self, ids: &[String]) -> anyhow::Result<Vec<usersync_source::UserRow>> {
        match self.database.users(&self.layout, ids).await {
            Ok(rows) => Ok(rows),
            Err(_) => {
                self.database = self.database.again().await?;
                Ok(self.database.users(&self.layout, ids).await?)
            }
        }
    }

    /// The newest state, from the leader: a replica may lag.
    async fn state(&self, user_id: &UserId) -> anyhow::Result<(UserId, (u64, Option<State>))> {
        let subject = subjects::state(user_id);
        let found = match self.states.get_last_raw_message_by_subject(&subject).await {
            // What is no state is replaced.
            Ok(message) => {
                let state = stored_state::unless_newer(user_id, &message.payload)?;
                (message.sequence, state)
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => (0, None),
            Err(error) => return Err(error).context("reading a state"),
        };
        Ok((user_id.clone(), found))
    }
}
