//! Looks at both streams before a session begins and every second while it goes on: they are those they were, and
//! nothing of them is gone. What is mended here is mended before anything merges; see `mark` for what is compared.

use std::sync::{
    OnceLock,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use anyhow::Context as _;
use async_nats::jetstream::{
    self,
    consumer::{DeliverPolicy, PullConsumer, pull},
    stream::{Info, Stream},
};
use futures_util::StreamExt;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use usersync_core::{
    epoch::{Epoch, Epochs},
    json,
    nats::REQUEST_TIMEOUT,
    pull::{MOST_OCTETS, connects},
    state::History,
    streams,
    subjects::INTAKE,
};

use super::{
    intact::{Intact, Least},
    mark::{self, Decision, EPOCH, Extent, Found, Incident, Mark, Marks, Newest},
    past::reading,
    session::Lost,
    watch::Watch,
};

/// Messages asked for at once.
const FETCHED: usize = 1_000;

/// Who looks.
#[derive(Clone)]
pub(super) struct Survey {
    pub jetstream: jetstream::Context,
    pub events: Stream<()>,
    pub states: Stream<()>,
    /// Whether to go on although states are gone for good.
    pub accept_empty_state: bool,
}

/// What the session before knew and the mark may not.
#[derive(Default)]
pub(super) struct Expected {
    /// What USER_STATE has at least.
    pub states: Least,
    /// An epoch that a state is of.
    pub epoch: Option<Epoch>,
}

/// What a session stands on.
pub(super) struct Ground {
    pub history: History,
    pub intact: Intact,
    /// Whether a user had more events than a state remembers.
    crowded: AtomicBool,
    /// A sequence that USER_EVENTS has reached.
    reached: AtomicU64,
    /// How often this client had been connected when the streams were looked at.
    pub connects: u64,
    lost: OnceLock<Lost>,
    ended: CancellationToken,
}

/// What follows from states that are missing.
enum Mending {
    /// None are.
    Nothing,
    /// All events are there: they are merged again from the first.
    FromEvents { first: u64, what: String },
    /// They stay away until somebody brings them back.
    GoOn { what: String },
}

impl Survey {
    /// Looks before this gateway stands by. Where states are to be made again and nobody does, events are handed out
    /// from the first on, so that somebody is chosen to.
    ///
    /// # Errors
    /// When a stream can't be read, or states are gone for good: what brings them back.
    pub(super) async fn stand_by(&self, expected: &Expected) -> anyhow::Result<()> {
        let (known, _) = self.marks().await?.read().await?;
        let (states, events) = (self.states_info().await?, self.events_info().await?);
        let rewind = self.rewind(known.as_ref(), &events).await?;
        let least = known.map(|known| known.least().max(expected.states));
        let mending = self.mending(least, &states, &events).await?;
        let from = match mending {
            Mending::FromEvents { first, .. } => Some(first),
            Mending::Nothing | Mending::GoOn { .. } => rewind,
        };
        if let Some(first) = from {
            let consumer = self.events.consumer_info(INTAKE).await?;
            let mut groups = consumer.priority_groups.iter();
            if !groups.any(|group| group.pinned_client_id.is_some()) {
                self.events.reset_consumer(INTAKE, Some(first)).await?;
            }
        }
        Ok(())
    }

    /// Looks when this gateway is chosen, and mends what can be mended: a new epoch begins where USER_EVENTS isn't what
    /// it was, and events are merged again where states are gone.
    ///
    /// # Errors
    /// Those of [`Self::stand_by`], and when another gateway does the same.
    pub(super) async fn begin(&self, expected: &Expected) -> anyhow::Result<(Ground, Watch)> {
        let connects = connects(&self.jetstream);
        let marks = self.marks().await?;
        let (known, revision) = marks.read().await?;
        let least = known.as_ref();
        let least = least.map(|known| known.least().max(expected.states));
        let states = self.states_info().await?;
        let extent = Extent::of(&states);
        let from = match &known {
            Some(known) if known.states.can_become(&extent) => known.states.last_seq + 1,
            _ => 1,
        };
        let mut newest = self.newest_since(from).await?;
        newest.see(expected.epoch.clone(), 0, 0, Timestamp::UNIX_EPOCH);
        // After the states: none of them contains an event that isn't seen here.
        let events = self.events_info().await?;
        let mending = self.mending(least, &states, &events).await?;
        let named = events.config.metadata.get(EPOCH);
        let found = Found {
            named: named.and_then(|epoch| epoch.parse().ok()),
            events: Extent::of(&events),
            is_another: self.is_another(known.as_ref(), &newest, &events).await?,
            newest,
        };
        let (epochs, incident) = self.epochs(known.as_ref(), &found).await?;
        let mut mark = Mark::new(epochs, &events, extent);
        let rewind = self.rewind(known.as_ref(), &events).await?;
        if let Some(known) = known {
            (mark.incident, mark.crowded, mark.merged) =
                (known.incident, known.crowded, known.merged);
        }
        mark.incident = incident.or(mark.incident);
        if let Mending::FromEvents { what, .. } | Mending::GoOn { what } = &mending {
            tracing::error!(reason = what, "USER_STATE is not what it was");
            mark.incident = Some(Incident::now(what.as_str()));
        }
        if let Mending::FromEvents { first, .. } = mending {
            self.events.reset_consumer(INTAKE, Some(first)).await?;
        } else if let Some(from) = rewind {
            tracing::warn!(
                event.seq = from,
                "nats-server was started anew and may have lost what it had not synced: the last events are merged again"
            );
            self.events.reset_consumer(INTAKE, Some(from)).await?;
        }
        let floor = self.floor().await?;
        mark.merged = mark.merged.map(|merged| merged.min(floor));
        mark.server = Some(self.server());
        let written = marks.write(&mark, revision).await;
        let revision = written.context("another gateway looks at the streams, too")?;
        let current = mark.epochs.current();
        if found.named.as_ref() != Some(current) {
            self.name_epoch(&self.events, current).await?;
        }
        // Tells a stream that is restored from one that is made anew.
        if !states.config.metadata.contains_key(EPOCH) {
            self.name_epoch(&self.states, current).await?;
        }
        let ground = Ground {
            history: History {
                epochs: mark.epochs.clone(),
                window: events.config.duplicate_window,
            },
            intact: Intact::new(self.states.clone(), &mark.states),
            crowded: AtomicBool::new(false),
            reached: AtomicU64::new(mark.events.last_seq),
            connects,
            lost: OnceLock::new(),
            ended: CancellationToken::new(),
        };
        Ok((ground, Watch::new(self.clone(), marks, mark, revision)))
    }

    /// The epochs to go on with, and what people are told where a new one begins.
    async fn epochs(
        &self,
        known: Option<&Mark>,
        found: &Found,
    ) -> anyhow::Result<(Epochs, Option<Incident>)> {
        let (epochs, what) = match mark::decide(known, found) {
            Decision::GoOn(epochs) => return Ok((epochs, None)),
            Decision::Anew { ordinal, what } => {
                (Epochs::beginning_with(Epoch::begin(ordinal)), what)
            }
            Decision::Behind {
                lineage,
                ordinal,
                what,
            } => {
                let known = known.map_or(Timestamp::UNIX_EPOCH, |known| known.last_event);
                let from = self.first_after(known, &found.newest, found.is_another);
                (lineage.and_then(ordinal, from.await?), what)
            }
        };
        let what = format!(
            "{what}. A new epoch begins: what comes now counts as newer than every state. Compare the states with the \
             main databases (`nats pub user.check.gateway ''`): events that are gone can be seen there only"
        );
        tracing::error!(epoch = %epochs.current(), reason = what, "USER_EVENTS is not what it was");
        Ok((epochs, Some(Incident::now(what))))
    }

    async fn marks(&self) -> anyhow::Result<Marks> {
        Marks::open(&self.jetstream).await
    }

    async fn states_info(&self) -> anyhow::Result<Info> {
        let missing = "USER_STATE can't be read; where it is missing, start a gateway again to have it made, or restore it";
        self.states.get_info().await.context(missing)
    }

    /// With its consumer made where it is missing: who restores a stream needs not know of it.
    async fn events_info(&self) -> anyhow::Result<Info> {
        let missing = "USER_EVENTS can't be read; where it is missing, start a gateway again to have it made, or restore it";
        let info = self.events.get_info().await.context(missing)?;
        if self.events.consumer_info(INTAKE).await.is_err() {
            streams::ensure_consumers(&self.jetstream).await?;
        }
        Ok(info)
    }

    /// Whether states are missing, and what is to be done about it.
    ///
    /// # Errors
    /// When they are gone for good.
    async fn mending(
        &self,
        least: Option<Least>,
        states: &Info,
        events: &Info,
    ) -> anyhow::Result<Mending> {
        let (has, events) = (states.state.messages, &events.state);
        let least = match least {
            Some(least) => least,
            // Before there was a mark: whoever has merged events has states.
            None if has == 0 && events.messages > 0 => {
                let consumer = self.events.consumer_info(INTAKE).await?;
                let merged = consumer.ack_floor.stream_sequence > 0 || events.first_sequence > 1;
                Least {
                    users: u64::from(merged),
                    last_seq: 0,
                }
            }
            None => Least::default(),
        };
        if least.is_met(states) {
            return Ok(Mending::Nothing);
        }
        let users = least.users;
        let gone = match has {
            0 => "USER_STATE is empty".to_owned(),
            _ if has < users => format!("USER_STATE has {has} of {users} users"),
            _ => format!(
                "USER_STATE is older than before: it ends at {}, not behind {}",
                states.state.last_sequence, least.last_seq
            ),
        };
        let first = events.first_sequence.max(1);
        // An older copy contains all events up to the newest it knows, but for those that come again anyway.
        let restored = least.went_back(states) && states.config.metadata.contains_key(EPOCH);
        let contained = match restored {
            true => self.newest_since(1).await?.seq(),
            false => 0,
        };
        if first <= contained + 1 {
            let what = format!(
                "{gone}. The states are made again from every event in USER_EVENTS; users who came by a bulk load come \
                 back by another (`usersync-scheduler load --source NAME`)"
            );
            return Ok(Mending::FromEvents { first, what });
        }
        if self.accept_empty_state || has * 2 > users {
            let what = format!(
                "{gone}, and USER_EVENTS begins at {first}: those who are missing come back by a bulk load only \
                 (`usersync-scheduler load --source NAME`), or from a backup"
            );
            return Ok(Mending::GoOn { what });
        }
        anyhow::bail!(
            "{gone}, but USER_EVENTS begins at {first}: older events are gone, so the states can't be made from them. \
             Bring them back from the main database (`usersync-scheduler load --source NAME`; intake goes on by itself \
             once most users are there), restore the stream (`nats stream restore`), or start usersync-gateway once with \
             --accept-empty-state to go on from the events that are left"
        );
    }

    /// The newest event that states from sequence `from` of USER_STATE on contain.
    async fn newest_since(&self, from: u64) -> anyhow::Result<Newest> {
        let mut newest = Newest::default();
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: from,
            },
            ..reading()
        };
        let consumer: PullConsumer = self.states.create_consumer(config).await?;
        let name = consumer.cached_info().name.clone();
        let mut left = consumer.cached_info().num_pending;
        if left > 0 {
            let messages = consumer.stream().max_messages_per_batch(FETCHED);
            let messages = messages.max_bytes_per_batch(MOST_OCTETS);
            let mut messages = messages.messages().await?;
            while left > 0 {
                let message = timeout(REQUEST_TIMEOUT, messages.next()).await;
                let message = message.context("USER_STATE: no answer")?;
                let message = message.context("USER_STATE: reading ended")??;
                let info = message.info().map_err(anyhow::Error::from_boxed)?;
                left = info.pending;
                let told = Timestamp::from_nanosecond(info.published.unix_timestamp_nanos())?;
                if let Ok(contained) = json::read::<Contained>(&message.payload) {
                    newest.see(
                        contained.epoch,
                        contained.event_seq,
                        contained.event.stored_us,
                        told,
                    );
                }
            }
        }
        self.states.delete_consumer(&name).await?;
        Ok(newest)
    }

    /// Writes the epoch into the metadata of a stream, where a backup takes it along.
    async fn name_epoch(&self, stream: &Stream<()>, epoch: &Epoch) -> anyhow::Result<()> {
        // Read just before: somebody may edit it.
        let mut config = stream.get_info().await?.config;
        config.metadata.insert(EPOCH.to_owned(), epoch.to_string());
        let updated = self.jetstream.update_stream(&config).await;
        updated.with_context(|| format!("naming the epoch in the metadata of {}", config.name))?;
        Ok(())
    }
}

/// What of a state tells which events it contains.
#[derive(Deserialize)]
struct Contained {
    #[serde(default)]
    epoch: Option<Epoch>,
    event_seq: u64,
    event: Stored,
}

#[derive(Deserialize)]
struct Stored {
    stored_us: u64,
}

impl Ground {
    /// Ends the session.
    pub(super) fn lose(&self, lost: Lost) {
        let _ = self.lost.set(lost);
        self.ended.cancel();
    }

    /// Waits until somebody ends it.
    pub(super) async fn lost(&self) -> Lost {
        self.ended.cancelled().await;
        self.lost.get().cloned().unwrap_or(Lost::States)
    }

    /// A sequence that USER_EVENTS has reached, and may have passed.
    pub(super) fn reached(&self) -> u64 {
        self.reached.load(Ordering::Relaxed)
    }

    /// USER_EVENTS has reached `seq`.
    pub(super) fn reach(&self, seq: u64) {
        self.reached.fetch_max(seq, Ordering::Relaxed);
    }

    /// Whether a user had more events than a state remembers, since this was asked last.
    pub(super) fn is_crowded(&self) -> bool {
        self.crowded.swap(false, Ordering::Relaxed)
    }

    /// A user has more events than a state remembers.
    pub(super) fn crowd(&self) {
        self.crowded.store(true, Ordering::Relaxed);
    }
}
