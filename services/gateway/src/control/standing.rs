//! How the targets stand: what waits for them, what was given up, which breakers aren't closed.

use std::{collections::BTreeMap, time::Duration};

use async_nats::jetstream::{
    consumer,
    stream::{DirectGetErrorKind, Stream},
};
use futures_util::TryStreamExt;
use jiff::Timestamp;
use serde::Serialize;
use usersync_core::{
    subjects::{self, USER_REPAIR, USER_STATE},
    target::TargetName,
};

use super::{Control, breakers, breakers::Breaker, letters};

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
    /// When the consumer was made: what is older waits since then.
    #[serde(skip)]
    created: Timestamp,
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
pub(crate) struct Standing {
    users: u64,
    live: BTreeMap<String, Queue>,
    repairs: BTreeMap<String, Queue>,
    dead: BTreeMap<String, u64>,
    breakers: BTreeMap<String, Vec<Breaker>>,
}

impl Queue {
    pub(crate) fn of(info: &consumer::Info) -> Self {
        Self {
            pending: info.num_pending,
            ack_pending: info.num_ack_pending as u64,
            redelivered: info.num_redelivered as u64,
            ack_floor: info.ack_floor.stream_sequence,
            delivered: info.delivered.stream_sequence,
            paused: info.paused,
            created: time(info.created.unix_timestamp_nanos()),
        }
    }

    /// Users that aren't done.
    pub(crate) fn waiting(&self) -> u64 {
        self.pending + self.ack_pending
    }

    /// For how long the first of those under `filter` who aren't done has been waiting; zero when nobody waits.
    pub(crate) async fn oldest(
        &self,
        stream: &Stream<()>,
        filter: &str,
    ) -> anyhow::Result<Duration> {
        if self.waiting() == 0 {
            return Ok(Duration::ZERO);
        }
        let first = stream.direct_get_next_for_subject(filter, Some(self.ack_floor + 1));
        match first.await {
            Ok(message) => {
                let since = time(message.time.unix_timestamp_nanos()).max(self.created);
                let age = Timestamp::now().duration_since(since);
                Ok(Duration::try_from(age).unwrap_or_default())
            }
            // Done meanwhile.
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(Duration::ZERO),
            Err(error) => Err(error.into()),
        }
    }
}

fn time(nanos: i128) -> Timestamp {
    Timestamp::from_nanosecond(nanos).unwrap_or_default()
}

impl Standing {
    /// Of every target named.
    pub(crate) async fn of_all(
        control: &Control,
        names: impl IntoIterator<Item = &String>,
    ) -> anyhow::Result<Self> {
        let states = control.jetstream.get_stream(USER_STATE).await?;
        let targets: Vec<TargetName> = names
            .into_iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        Ok(Self {
            users: states.cached_info().state.messages,
            live: queues(&control.stream(USER_STATE).await?).await?,
            repairs: queues(&control.stream(USER_REPAIR).await?).await?,
            dead: letters::count(control, targets).await?,
            breakers: by_target(breakers::all(control).await?),
        })
    }

    /// How long the oldest state and the oldest repair of a target have been waiting.
    pub(crate) async fn oldest(
        &self,
        control: &Control,
        target: &TargetName,
    ) -> anyhow::Result<(Duration, Duration)> {
        let age = async |stream: &str, queue: Option<&Queue>, filter: &str| match queue {
            Some(queue) => queue.oldest(&control.stream(stream).await?, filter).await,
            None => Ok(Duration::ZERO),
        };
        let (live, repairs) = (
            self.live.get(target.as_ref()),
            self.repairs.get(target.as_ref()),
        );
        let repairs_of = subjects::repairs_of(target);
        tokio::try_join!(
            age(USER_STATE, live, subjects::STATES),
            age(USER_REPAIR, repairs, &repairs_of),
        )
    }

    /// Of one target.
    pub(crate) async fn of(control: &Control, target: &TargetName) -> anyhow::Result<Self> {
        let states = control.jetstream.get_stream(USER_STATE).await?;
        let name = target.to_string();
        let queue = async |stream: &'static str| {
            let stream = control.stream(stream).await?;
            let info = stream.consumer_info(target.as_ref()).await.ok();
            let queues = info.map(|info| (name.clone(), Queue::of(&info)));
            Ok::<_, anyhow::Error>(queues.into_iter().collect())
        };
        let mut breakers = breakers::all(control).await?;
        breakers.retain(|breaker| breaker.target == *target);
        Ok(Self {
            users: states.cached_info().state.messages,
            live: queue(USER_STATE).await?,
            repairs: queue(USER_REPAIR).await?,
            dead: letters::count(control, vec![target.clone()]).await?,
            breakers: by_target(breakers),
        })
    }

    /// Users there are.
    pub(crate) fn users(&self) -> u64 {
        self.users
    }

    pub(crate) fn live(&self, name: &str) -> Option<Queue> {
        self.live.get(name).cloned()
    }

    pub(crate) fn repairs(&self, name: &str) -> Option<Queue> {
        self.repairs.get(name).cloned()
    }

    pub(crate) fn dead_letters(&self, name: &str) -> u64 {
        self.dead.get(name).copied().unwrap_or(0)
    }

    pub(crate) fn breakers(&self, name: &str) -> Vec<Breaker> {
        self.breakers.get(name).cloned().unwrap_or_default()
    }

    /// How far a target is, for a back-fill to be watched.
    pub(crate) fn progress(&self, name: &str) -> Option<Progress> {
        let queue = self.live.get(name)?;
        let done = self.users.saturating_sub(queue.waiting());
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
pub(crate) async fn queues(stream: &Stream<()>) -> anyhow::Result<BTreeMap<String, Queue>> {
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
