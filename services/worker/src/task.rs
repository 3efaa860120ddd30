//! What is queued for a user, and what a call carries of it.

use async_nats::jetstream::Message;
use usersync_core::user_id::UserId;

/// Why a user is to be delivered.
#[derive(Debug)]
pub(crate) enum Task {
    /// A new state arrived: the message holds it.
    Live(Message),
    /// Someone asked for the newest state to be delivered.
    Repair(Message),
    /// What was delivered may not be what the target has: deliver the newest state if it is newer than this.
    Recheck(u64),
}

impl Task {
    pub(crate) fn message(&self) -> Option<&Message> {
        match self {
            Self::Live(message) | Self::Repair(message) => Some(message),
            Self::Recheck(_) => None,
        }
    }

    pub(crate) fn into_message(self) -> Option<Message> {
        match self {
            Self::Live(message) | Self::Repair(message) => Some(message),
            Self::Recheck(_) => None,
        }
    }
}

/// One user of a batch, with everything queued for them.
#[derive(Debug)]
pub(crate) struct Item {
    pub user_id: UserId,
    pub tasks: Vec<Task>,
}

impl Item {
    /// Everything that will be acknowledged.
    pub(crate) fn messages(&self) -> impl Iterator<Item = &Message> {
        self.tasks.iter().filter_map(Task::message)
    }

    /// The messages with a state.
    pub(crate) fn live(&self) -> impl Iterator<Item = &Message> {
        self.tasks.iter().filter_map(|task| match task {
            Task::Live(message) => Some(message),
            Task::Repair(_) | Task::Recheck(_) => None,
        })
    }

    /// Nothing but states that arrived.
    pub(crate) fn only_live(&self) -> bool {
        let live = |task: &Task| matches!(task, Task::Live(_));
        self.tasks.iter().all(live)
    }

    /// The consumer sequence received when what is delivered was the newest; 0 when unknown.
    pub(crate) fn since(&self) -> u64 {
        self.live().map(consumer_sequence).max().unwrap_or(0)
    }

    /// The lowest version to be rechecked, `None` when anything else is to be done.
    pub(crate) fn only_recheck(&self) -> Option<u64> {
        let versions = self.tasks.iter().map(|task| match task {
            Task::Recheck(version) => Some(*version),
            Task::Live(_) | Task::Repair(_) => None,
        });
        versions.collect::<Option<Vec<_>>>()?.into_iter().min()
    }

    /// How often the newest of its messages was handed out. A newer state starts anew, whatever an
    /// older one that waits beside it has used up.
    pub(crate) fn attempts(&self) -> u32 {
        let delivered = |message: &Message| {
            message
                .info()
                .map_or(1, |info| u32::try_from(info.delivered).unwrap_or(u32::MAX))
        };
        self.messages().map(delivered).min().unwrap_or(1)
    }
}

/// Where in its consumer's order a message was handed out; 0 when unknown.
pub(crate) fn consumer_sequence(message: &Message) -> u64 {
    message.info().map_or(0, |info| info.consumer_sequence)
}

/// Where in its stream a message stands; 0 when unknown.
pub(crate) fn stream_sequence(message: &Message) -> u64 {
    message.info().map_or(0, |info| info.stream_sequence)
}
