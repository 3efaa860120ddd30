//! What is queued for a user, and what a call carries of it.

use async_nats::jetstream::Message;
use usersync_core::{repair::Repair, subjects::header, user_id::UserId};

/// A message, and where it stands: read once, because its reply subject has to be parsed for that.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub message: Message,
    /// In its stream; 0 when unknown.
    pub stream_seq: u64,
    /// In the order its consumer handed messages out; 0 when unknown.
    pub consumer_seq: u64,
    /// How often it was handed out.
    pub attempts: u32,
}

impl From<Message> for Arrived {
    fn from(message: Message) -> Self {
        let (stream_seq, consumer_seq, attempts) = match message.info() {
            Ok(info) => (info.stream_sequence, info.consumer_sequence, info.delivered),
            Err(_) => (0, 0, 1),
        };
        Self {
            message,
            stream_seq,
            consumer_seq,
            attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
        }
    }
}

/// Why a user is to be delivered.
#[derive(Debug)]
pub(crate) enum Task {
    /// A new state arrived: the message holds it.
    Live(Arrived),
    /// Someone asked for the newest state to be delivered.
    Repair(Arrived),
    /// What was delivered may not be what the target has: deliver the newest state.
    Recheck {
        /// Only if it is newer than this.
        version: u64,
        /// How often that has failed.
        tries: u32,
    },
}

impl Task {
    /// What will be acknowledged.
    pub(crate) fn arrived(&self) -> Option<&Arrived> {
        match self {
            Self::Live(arrived) | Self::Repair(arrived) => Some(arrived),
            Self::Recheck { .. } => None,
        }
    }

    /// Whether the newest state is to be delivered, although the target has taken it.
    pub(crate) fn is_doubt(&self) -> bool {
        matches!(self, Self::Recheck { version: 0, .. })
    }

    pub(crate) fn into_message(self) -> Option<Message> {
        match self {
            Self::Live(arrived) | Self::Repair(arrived) => Some(arrived.message),
            Self::Recheck { .. } => None,
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
        self.arrived().map(|arrived| &arrived.message)
    }

    fn arrived(&self) -> impl Iterator<Item = &Arrived> {
        self.tasks.iter().filter_map(Task::arrived)
    }

    /// The version of the target's that is to be forgotten before anything is delivered, where a repair says so.
    pub(crate) fn damaged_version(&self) -> Option<u64> {
        self.tasks.iter().find_map(|task| match task {
            Task::Repair(arrived) => Repair::read(&arrived.message.payload).damaged_version,
            Task::Live(_) | Task::Recheck { .. } => None,
        })
    }

    /// The messages with a state.
    fn live(&self) -> impl Iterator<Item = &Arrived> {
        self.tasks.iter().filter_map(|task| match task {
            Task::Live(arrived) => Some(arrived),
            Task::Repair(_) | Task::Recheck { .. } => None,
        })
    }

    /// The newest state that arrived.
    pub(crate) fn newest(&self) -> Option<&Arrived> {
        self.live().max_by_key(|arrived| arrived.stream_seq)
    }

    /// Whether the newest state that arrived isn't stored only to remember an event: the change may be of long ago.
    pub(crate) fn is_new_version(&self) -> bool {
        let headers = self
            .newest()
            .and_then(|newest| newest.message.headers.as_ref());
        headers.is_none_or(|headers| headers.get(header::UNCHANGED).is_none())
    }

    /// Nothing but states that arrived.
    pub(crate) fn only_live(&self) -> bool {
        let live = |task: &Task| matches!(task, Task::Live(_));
        self.tasks.iter().all(live)
    }

    /// The consumer sequence received when what is delivered was the newest; 0 when unknown.
    pub(crate) fn since(&self) -> u64 {
        let seqs = self.live().map(|arrived| arrived.consumer_seq);
        seqs.max().unwrap_or(0)
    }

    /// The lowest version to be rechecked, `None` when anything else is to be done.
    pub(crate) fn only_recheck(&self) -> Option<u64> {
        let versions = self.tasks.iter().map(|task| match task {
            Task::Recheck { version, .. } => Some(*version),
            Task::Live(_) | Task::Repair(_) => None,
        });
        versions.collect::<Option<Vec<_>>>()?.into_iter().min()
    }

    /// How many of its tasks are there because what was delivered is in doubt, whatever its version.
    pub(crate) fn doubts(&self) -> usize {
        self.tasks.iter().filter(|task| task.is_doubt()).count()
    }

    /// How often the newest of its messages was handed out. A newer state starts anew, whatever an
    /// older one that waits beside it has used up.
    pub(crate) fn attempts(&self) -> u32 {
        let attempts = self.arrived().map(|arrived| arrived.attempts);
        let rechecks = self.tasks.iter().filter_map(|task| match task {
            Task::Recheck { tries, .. } => Some(tries + 1),
            Task::Live(_) | Task::Repair(_) => None,
        });
        attempts.min().or(rechecks.max()).unwrap_or(1)
    }
}
