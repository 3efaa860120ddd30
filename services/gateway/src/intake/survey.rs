//! Looks at both streams before a session begins and every second while it goes on: they are those they were, and
//! nothing of them is gone. What is mended here is mended before anything merges; see `mark` for what is compared.

use std::{
    pin::pin,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use async_nats::{
    datetime,
    jetstream::{
        self,
        consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
        kv::UpdateErrorKind,
        stream::{Info, RawMessageErrorKind, Stream},
    },
};
use futures_util::StreamExt;
use jiff::{SignedDuration, Timestamp};
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
    session::Lost,
};

/// How often the streams are looked at.
const EVERY: Duration = Duration::from_secs(1);
/// Messages asked for at once.
const FETCHED: usize = 1_000;
/// How long the server keeps a consumer that nobody reads any more.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// How long before the last event that is known of a nats-server that was started anew may have lost what it had: more than
/// `sync_interval` as nats.conf has it, and than a mark is old.
const SYNCED: SignedDuration = SignedDuration::from_secs(10);

/// How far the clocks of nats-servers may be apart.
const APART: SignedDuration = SignedDuration::from_secs(5);

/// Who looks.
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

/// Renews the mark while a session goes on.
pub(super) struct Watch {
    events: Stream<()>,
    states: Stream<()>,
    marks: Marks,
    mark: Mark,
    revision: u64,
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
        let (epochs, what) = match mark::decide(known.as_ref(), &found) {
            Decision::GoOn(epochs) => (epochs, None),
            Decision::Anew { ordinal, what } => {
                (Epochs::beginning_with(Epoch::begin(ordinal)), Some(what))
            }
            Decision::Behind {
                lineage,
                ordinal,
                what,
            } => {
                let known = known
                    .as_ref()
                    .map_or(Timestamp::UNIX_EPOCH, |known| known.last_event);
                let from = self.first_after(known, &found.newest).await?;
                (lineage.and_then(ordinal, from), Some(what))
            }
        };
        let mut mark = Mark::new(epochs, &events, extent);
        let rewind = self.rewind(known.as_ref(), &events).await?;
        let known_remaking = known.as_ref().and_then(|known| known.remaking);
        (mark.incident, mark.crowded) =
            known.map_or((None, None), |known| (known.incident, known.crowded));
        if let Some(what) = what {
            let what = format!(
                "{what}. A new epoch begins: what comes now counts as newer than every state. Compare the states with the \
                 main databases (`nats pub user.check.gateway ''`): events that are gone can be seen there only"
            );
            tracing::error!(epoch = %mark.epochs.current(), reason = what, "USER_EVENTS is not what it was");
            mark.incident = Some(Incident::now(what));
        }
        if let Mending::FromEvents { what, .. } | Mending::GoOn { what } = &mending {
            tracing::error!(reason = what, "USER_STATE is not what it was");
            mark.incident = Some(Incident::now(what.as_str()));
        }
        mark.remaking = known_remaking;
        if let Mending::FromEvents { first, .. } = mending {
            self.events.reset_consumer(INTAKE, Some(first)).await?;
            mark.remaking = Some(mark.events.last_seq);
        } else if let Some(from) = rewind {
            tracing::warn!(
                event.seq = from,
                "nats-server was started anew and may have lost what it had not synced: the last events are merged again"
            );
            self.events.reset_consumer(INTAKE, Some(from)).await?;
        }
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
        let watch = Watch {
            events: self.events.clone(),
            states: self.states.clone(),
            marks,
            mark,
            revision,
        };
        Ok((ground, watch))
    }

    /// Whether USER_EVENTS has other events where it had those that are known: it was restored, or its server has lost some,
    /// and it has grown since.
    async fn is_another(
        &self,
        known: Option<&Mark>,
        newest: &Newest,
        events: &Info,
    ) -> anyhow::Result<bool> {
        let Some(known) = known else {
            return Ok(false);
        };
        if let Some(stored) = self.stored_at(known.events.last_seq).await?
            && stored != known.last_event
        {
            return Ok(true);
        }
        // A state is stored after the event that it contains, by the clock of another server where there are several.
        let apart = match events.config.num_replicas {
            0 | 1 => SignedDuration::ZERO,
            _ => APART,
        };
        if !newest.is_of(known.epochs.current()) {
            return Ok(false);
        }
        let stored = self.stored_at(newest.seq()).await?;
        Ok(stored.is_some_and(|stored| stored > newest.told + apart))
    }

    /// When USER_EVENTS stored this event; `None` where it isn't there any more, or never was.
    async fn stored_at(&self, seq: u64) -> anyhow::Result<Option<Timestamp>> {
        if seq == 0 {
            return Ok(None);
        }
        match self.events.get_raw_message(seq).await {
            Ok(message) => {
                let nanos = message.time.unix_timestamp_nanos();
                Ok(Some(Timestamp::from_nanosecond(nanos)?))
            }
            Err(error) => match error.kind() {
                RawMessageErrorKind::NoMessageFound => Ok(None),
                // Its headers may be none that can be read: that must not keep anybody from merging.
                RawMessageErrorKind::Other => {
                    tracing::warn!(event.seq = seq, %error, "can't tell when an event was stored");
                    Ok(None)
                }
                _ => Err(error).context("USER_EVENTS can't be read"),
            },
        }
    }

    /// Which nats-server answers.
    fn server(&self) -> String {
        self.jetstream.client().server_info().server_id
    }

    /// From which event on they are to be merged again, after nats-server was started anew: it may have lost states whose
    /// events it knows to be acknowledged, for it syncs each stream by itself. To merge an event twice changes nothing.
    /// `None` where there is nothing to do; with replicas another server has what one has lost.
    async fn rewind(&self, known: Option<&Mark>, events: &Info) -> anyhow::Result<Option<u64>> {
        let Some(known) = known else {
            return Ok(None);
        };
        let same = known
            .server
            .as_ref()
            .is_none_or(|server| *server == self.server());
        if same || events.config.num_replicas > 1 {
            return Ok(None);
        }
        let floor = self.events.consumer_info(INTAKE).await?;
        let floor = floor.ack_floor.stream_sequence;
        let from = match known.remaking {
            Some(_) => 1,
            None => self.first_since(known.last_event - SYNCED).await?,
        };
        let from = from.max(events.state.first_sequence).max(1);
        Ok((from <= floor).then_some(from))
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

    /// The first sequence of USER_EVENTS that is none of before: stored later than anything that was known, and not
    /// acknowledged in the consumer that was restored with it.
    async fn first_after(&self, known: Timestamp, newest: &Newest) -> anyhow::Result<u64> {
        let merged = i64::try_from(newest.stored_us).unwrap_or_default() + 1;
        let after = known
            .max(Timestamp::from_microsecond(merged)?)
            .checked_add(SignedDuration::from_nanos(1))?;
        let first = self.first_since(after).await?;
        let floor = self
            .events
            .consumer_info(INTAKE)
            .await?
            .ack_floor
            .stream_sequence;
        Ok(first.max(floor + 1))
    }

    /// The first event that was stored then or later; behind the last one where there is none.
    async fn first_since(&self, start: Timestamp) -> anyhow::Result<u64> {
        let start = start.max(Timestamp::UNIX_EPOCH).as_nanosecond();
        let start_time = datetime::from_nanos(start).map_err(anyhow::Error::from_boxed)?;
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartTime { start_time },
            headers_only: true,
            ..reading()
        };
        let consumer: PullConsumer = self.events.create_consumer(config).await?;
        let info = consumer.cached_info();
        let mut first = self.events.get_info().await?.state.last_sequence + 1;
        if info.num_pending > 0 {
            let messages = consumer.fetch().max_messages(1).messages().await?;
            let message = timeout(REQUEST_TIMEOUT, pin!(messages).next()).await;
            if let Some(message) = message.context("USER_EVENTS: no answer")? {
                let message = message.map_err(anyhow::Error::from_boxed)?;
                first = message
                    .info()
                    .map_err(anyhow::Error::from_boxed)?
                    .stream_sequence;
            }
        }
        self.events.delete_consumer(&info.name).await?;
        Ok(first)
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

/// A consumer that is read once and acknowledges nothing.
fn reading() -> pull::Config {
    pull::Config {
        ack_policy: AckPolicy::None,
        inactive_threshold: FORGOTTEN,
        memory_storage: true,
        num_replicas: 1,
        ..pull::Config::default()
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

    /// A user has more events than a state remembers.
    pub(super) fn crowd(&self) {
        self.crowded.store(true, Ordering::Relaxed);
    }
}

impl Watch {
    /// Looks every second, until the streams aren't what they were.
    pub(super) async fn run(&mut self, ground: &Ground) -> Lost {
        loop {
            tokio::time::sleep(EVERY).await;
            if let Ok(Err(lost)) = timeout(REQUEST_TIMEOUT, self.look(ground)).await {
                return lost;
            }
        }
    }

    /// Looks once. What can't be asked now is asked next time: a session doesn't live without its streams anyway.
    pub(super) async fn look(&mut self, ground: &Ground) -> Result<(), Lost> {
        let least = ground.intact.least();
        // States first: none of them contains an event that isn't seen after them.
        let Ok(states) = self.states.get_info().await else {
            return Ok(());
        };
        if !ground.intact.is_so(&states, least) {
            return Err(Lost::States);
        }
        let Ok(events) = self.events.get_info().await else {
            return Ok(());
        };
        let mut mark = self.mark.clone();
        (mark.states, mark.events) = (Extent::of(&states), Extent::of(&events));
        mark.last_event = mark::last_event(&events);
        let named = events.config.metadata.get(EPOCH).cloned();
        let same = named.is_none_or(|named| named == mark.epochs.current().to_string());
        if !same || !self.mark.events.can_become(&mark.events) {
            return Err(Lost::Events);
        }
        if events.config.duplicate_window != ground.history.window {
            return Err(Lost::Window(events.config.duplicate_window));
        }
        if let Some(until) = mark.remaking
            && let Ok(consumer) = self.events.consumer_info(INTAKE).await
            && consumer.ack_floor.stream_sequence >= until
        {
            mark.remaking = None;
        }
        if ground.crowded.swap(false, Ordering::Relaxed) {
            mark.crowded = Some(Timestamp::now());
        }
        if mark == self.mark {
            return Ok(());
        }
        match self.marks.write(&mark, self.revision).await {
            Ok(revision) => (self.mark, self.revision) = (mark, revision),
            Err(error) if is_overtaken(&error) => return Err(Lost::Pin),
            Err(error) => tracing::debug!(error = format!("{error:#}"), "can't renew the mark"),
        }
        Ok(())
    }
}

/// Whether somebody else has written the mark.
fn is_overtaken(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<jetstream::kv::UpdateError>();
    error.is_some_and(|error| error.kind() == UpdateErrorKind::WrongLastRevision)
}
