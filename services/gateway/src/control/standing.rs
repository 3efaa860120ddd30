//! How the targets stand: what waits for them, what was given up, which breakers aren't closed.

use std::collections::BTreeMap;

use async_nats::jetstream::{consumer, stream::Stream};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use usersync_core::{
    subjects::{self, USER_DEAD, USER_REPAIR, USER_STATE},
    target::TargetName,
};

use super::{Control, breakers, breakers::Breaker, scan};

/// Targets whose letters are counted at once.
const COUNTS: usize = 8;

/// How a target stands on one stream.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Queue {
    /// Users that weren't handed to a worker yet.
    pub pending: u64,
    /// Users in the hands of workers, or waiting to be tried again.
    pub ack_pending: u64,
    /// Those of them that were handed out more than once.
    pub redelivered: u64,
    /// The stream sequence up to which everything is done.
    pub ack_floor: u64,
    /// The stream sequence up to which everything was handed out.
    pub delivered: u64,
    /// Whether the consumer itself is paused, by `nats consumer pause`.
    pub paused: bool,
}

/// How far a target is with all users.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Progress {
    /// Users that are done.
    pub done: u64,
    /// Users there are.
    pub total: u64,
    /// The share that is done, 0 to 1.
    pub ratio: f64,
}

/// Everything that is known of targets without asking their workers.
pub(super) struct Standing {
    users: u64,
    live: BTreeMap<String, Queue>,
    repairs: BTreeMap<String, Queue>,
    dead: BTreeMap<String, u64>,
    breakers: BTreeMap<String, Vec<Breaker>>,
}

impl Queue {
    fn of(info: &consumer::Info) -> Self {
        Self {
            pending: info.num_pending,
            ack_pending: info.num_ack_pending as u64,
            redelivered: info.num_redelivered as u64,
            ack_floor: info.ack_floor.stream_sequence,
            delivered: info.delivered.stream_sequence,
            paused: info.paused,
        }
    }
}

impl Standing {
    /// Of every target named.
    pub(super) async fn of_all(
        control: &Control,
        names: impl IntoIterator<Item = &String>,
    ) -> anyhow::Result<Self> {
        let states = control.jetstream.get_stream(USER_STATE).await?;
        let dead = control.stream(USER_DEAD).await?;
        let targets: Vec<TargetName> = names
            .into_iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        // Counted by the server: their subjects may be as many as the users.
        let letters = stream::iter(targets)
            .map(async |target| {
                let count = scan::count(&dead, &subjects::dead_letters_of(&target)).await?;
                Ok::<_, anyhow::Error>((target.to_string(), count))
            })
            .buffer_unordered(COUNTS)
            .try_collect()
            .await?;
        Ok(Self {
            users: states.cached_info().state.messages,
            live: queues(&control.stream(USER_STATE).await?).await?,
            repairs: queues(&control.stream(USER_REPAIR).await?).await?,
            dead: letters,
            breakers: by_target(breakers::all(control).await?),
        })
    }

    /// Of one target.
    pub(super) async fn of(control: &Control, target: &TargetName) -> anyhow::Result<Self> {
        let states = control.jetstream.get_stream(USER_STATE).await?;
        let name = target.to_string();
        let queue = async |stream: &'static str| {
            let stream = control.stream(stream).await?;
            let info = stream.consumer_info(target.as_ref()).await.ok();
            let queues = info.map(|info| (name.clone(), Queue::of(&info)));
            Ok::<_, anyhow::Error>(queues.into_iter().collect())
        };
        let dead = control.stream(USER_DEAD).await?;
        let letters = scan::count(&dead, &subjects::dead_letters_of(target)).await?;
        let mut breakers = breakers::all(control).await?;
        breakers.retain(|breaker| breaker.target == *target);
        Ok(Self {
            users: states.cached_info().state.messages,
            live: queue(USER_STATE).await?,
            repairs: queue(USER_REPAIR).await?,
            dead: BTreeMap::from([(name.clone(), letters)]),
            breakers: by_target(breakers),
        })
    }

    pub(super) fn live(&self, name: &str) -> Option<Queue> {
        self.live.get(name).cloned()
    }

    pub(super) fn repairs(&self, name: &str) -> Option<Queue> {
        self.repairs.get(name).cloned()
    }

    pub(super) fn dead_letters(&self, name: &str) -> u64 {
        self.dead.get(name).copied().unwrap_or(0)
    }

    pub(super) fn breakers(&self, name: &str) -> Vec<Breaker> {
        self.breakers.get(name).cloned().unwrap_or_default()
    }

    /// How far a target is, for a back-fill to be watched.
    pub(super) fn progress(&self, name: &str) -> Option<Progress> {
        let queue = self.live.get(name)?;
        let left = queue.pending + queue.ack_pending;
        let done = self.users.saturating_sub(left);
        Some(Progress {
            done,
            total: self.users,
            ratio: match self.users {
                0 => 1.0,
                users => done as f64 / users as f64,
            },
        })
    }
}

/// The consumers of a stream, by name.
pub(super) async fn queues(stream: &Stream<()>) -> anyhow::Result<BTreeMap<String, Queue>> {
    let mut queues = BTreeMap::new();
    let mut consumers = stream.consumers();
    while let Some(info) = consumers.try_next().await? {
        queues.insert(info.name.clone(), Queue::of(&info));
    }
    Ok(queues)
}

fn by_target(breakers: Vec<Breaker>) -> BTreeMap<String, Vec<Breaker>> {
    let mut sorted: BTreeMap<String, Vec<Breaker>> = BTreeMap::new();
    for breaker in breakers {
        let target = breaker.target.to_string();
        sorted.entry(target).or_default().push(breaker);
    }
    sorted
}
