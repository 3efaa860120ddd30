//! Intake: events in stream order, merged into states. One gateway at a time does it.
//!
//! `session` hands over events in order, `vouch` tells which of them a relay made, `turn` merges those of one user,
//! `refusal` keeps what can't be merged. Correct because of stream order per user and optimistic concurrency; the pin
//! only saves work. See docs/ARCHITECTURE.md, "Order is stream order".

mod refusal;
mod session;
mod turn;
mod vouch;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use jiff::Timestamp;
use metrics::{
    Gauge, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use moka::sync::Cache;
use tokio_util::sync::CancellationToken;
use usersync_core::{
    admin::Health,
    event::{self, Envelope, Event, InvalidEvent},
    lanes::{Lanes, Prefer},
    state::Position,
    subjects,
    trace::TraceContext,
    user_id::UserId,
};

use usersync_traces::{Span, SpanKind, Traces};

use crate::Settings;
use session::{InOrder, Lost, Pinned, Session};
use turn::{Arrival, Desk, Meters, Stored};
use vouch::Voucher;

/// Turns under way at once.
const TURNS: usize = 2_000;
/// The most events queued; the consumer's max_ack_pending is no larger.
const QUEUED: usize = 20_000;
/// How long to wait after an error before trying again.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long turns under way may take to end on shutdown.
const DRAIN: Duration = Duration::from_secs(6);

/// How long handing over to another gateway may take.
const HAND_OVER: Duration = Duration::from_secs(2);

/// The part of a gateway that merges events.
pub(crate) struct Intake {
    jetstream: jetstream::Context,
    health: Health,
    traces: Traces,
    accept_empty_state: bool,
    cache_bytes: u64,
    active: Gauge,
    /// Whether lost states were looked after in this process.
    mended: AtomicBool,
}

/// How a session came to its end.
enum Ended {
    Stopped,
    Lost(Lost),
}

impl Intake {
    pub(crate) fn new(
        jetstream: jetstream::Context,
        health: Health,
        traces: Traces,
        settings: &Settings,
    ) -> Self {
        Self {
            jetstream,
            health,
            traces,
            accept_empty_state: settings.accept_empty_state,
            cache_bytes: settings.cache_bytes,
            active: gauge!("usersync_intake_active"),
            mended: AtomicBool::new(false),
        }
    }

    /// Merges events whenever this gateway is the chosen one, until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        self.active.set(0.0);
        let events = self
            .jetstream
            .get_stream_no_info(subjects::USER_EVENTS)
            .await?;
        let states = self
            .jetstream
            .get_stream_no_info(subjects::USER_STATE)
            .await?;
        let pinned = Pinned {
            jetstream: self.jetstream.clone(),
            events,
        };
        let voucher = Voucher::new(self.jetstream.clone());
        let desk = Arc::new(Desk {
            jetstream: self.jetstream.clone(),
            states,
            known: Cache::builder()
                .max_capacity(self.cache_bytes)
                .weigher(|_: &UserId, stored: &Stored| {
                    u32::try_from(stored.payload.len() + 256).unwrap_or(u32::MAX)
                })
                .build(),
            traces: self.traces.clone(),
            meters: meters(),
        });
        let (mut pin, mut said) = (None, String::new());
        while !shutdown.is_cancelled() {
            let opened = shutdown
                .run_until_cancelled(self.open(&pinned, &desk, pin.take()))
                .await;
            let mut session = match opened {
                None => break,
                Some(Ok(Some(session))) => session,
                Some(Ok(None)) => continue,
                Some(Err(error)) => {
                    let reason = format!("{error:#}");
                    if reason != said {
                        tracing::warn!(error = reason, "can't take in events; trying again");
                    }
                    self.health.down("intake", reason.as_str());
                    said = reason;
                    shutdown
                        .run_until_cancelled(tokio::time::sleep(PATIENCE))
                        .await;
                    continue;
                }
            };
            said.clear();
            self.active.set(1.0);
            let ended = merge_events(&mut session, &desk, &voucher, &shutdown).await;
            self.active.set(0.0);
            match ended {
                Ended::Stopped => {
                    let released = tokio::time::timeout(HAND_OVER, session.release()).await;
                    if let Err(error) = released.unwrap_or_else(|late| Err(late.into())) {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "can't hand over; another gateway takes over in 3 s"
                        );
                    }
                }
                Ended::Lost(lost) => {
                    tracing::info!(reason = %lost, "intake session ended");
                    pin = lost.may_keep_pin().then(|| session.into_pin());
                }
            }
        }
        Ok(())
    }

    /// Starts a session, under `pin` if it is still good, else when this gateway is chosen.
    async fn open(
        &self,
        pinned: &Pinned,
        desk: &Desk,
        pin: Option<String>,
    ) -> anyhow::Result<Option<Session>> {
        let pin = match pin {
            Some(pin) => pin,
            None => {
                self.mend_lost_states(pinned, desk, None).await?;
                self.health.up("intake");
                pinned.stand_by().await?
            }
        };
        self.mend_lost_states(pinned, desk, Some(&pin)).await?;
        let session = pinned.start(pin).await?;
        if session.is_some() {
            tracing::info!("taking in events");
        }
        Ok(session)
    }

    /// Starts again at the first event when the states are gone; an error when older events are, too.
    async fn mend_lost_states(
        &self,
        pinned: &Pinned,
        desk: &Desk,
        pin: Option<&str>,
    ) -> anyhow::Result<()> {
        if desk.states.get_info().await?.state.messages > 0 {
            return Ok(());
        }
        let events = pinned.events.get_info().await?.state;
        if events.first_sequence > 1 && !self.accept_empty_state {
            anyhow::bail!(
                "USER_STATE is empty, but USER_EVENTS begins at {}: older events are gone, so the states can't be made from them. \
                 Bring them back from the main database (`usersync-scheduler load --source NAME`; intake goes on by itself then), \
                 restore the stream (`nats stream restore`), or start usersync-gateway once with --accept-empty-state to go on \
                 from the events that are left",
                events.first_sequence
            );
        }
        let consumer = pinned.events.consumer_info(subjects::INTAKE).await?;
        let mut pins = consumer
            .priority_groups
            .iter()
            .filter_map(|group| group.pinned_client_id.as_deref());
        let merged = consumer.ack_floor.stream_sequence > 0 && events.messages > 0;
        // Another gateway at work mends it itself. Where no event made a state, once is enough.
        if pins.any(|other| Some(other) != pin)
            || !merged
            || self.mended.swap(true, Ordering::Relaxed)
        {
            return Ok(());
        }
        tracing::warn!("USER_STATE is empty: making it again from every event in USER_EVENTS");
        desk.known.invalidate_all();
        pinned
            .events
            .reset_consumer(subjects::INTAKE, Some(events.first_sequence))
            .await?;
        Ok(())
    }
}

/// Merges the events of one session until it is lost or `shutdown`; what is under way then is finished.
async fn merge_events(
    session: &mut Session,
    desk: &Arc<Desk>,
    voucher: &Voucher,
    shutdown: &CancellationToken,
) -> Ended {
    let mut lanes = Lanes::default();
    let mut turns = FuturesUnordered::<BoxFuture<'static, Option<UserId>>>::new();
    let ended = loop {
        while turns.len() < TURNS {
            let Some((user_id, arrivals)) = lanes.take(Prefer::Urgent) else {
                break;
            };
            turns.push(Box::pin(
                turn::take(desk.clone(), user_id, arrivals).map(Some),
            ));
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break Ended::Stopped,
            Some(done) = turns.next() => {
                if let Some(user_id) = done {
                    lanes.done(&user_id);
                }
                while let Some(Some(done)) = turns.next().now_or_never() {
                    if let Some(user_id) = done {
                        lanes.done(&user_id);
                    }
                }
            }
            next = session.next(), if lanes.queued() < QUEUED => {
                let event = match next {
                    Ok(event) => event,
                    Err(lost) => break Ended::Lost(lost),
                };
                let mut span = span(desk, &event);
                let mut parsed = arrival(&event);
                if let Ok((_, relayed)) = &mut parsed {
                    let vouching = shutdown.run_until_cancelled(voucher.complete(relayed));
                    match vouching.await {
                        None => break Ended::Stopped,
                        Some(Ok(())) => {}
                        Some(Err(invalid)) => parsed = Err(invalid),
                    }
                }
                match parsed {
                    Ok((user_id, parsed)) => {
                        let at = Position { seq: event.seq, stored_us: event.stored_us };
                        lanes.push(user_id, Arrival { event: parsed, at, message: event.message, span });
                    }
                    Err(invalid) => {
                        span.fail("refused");
                        let desk = desk.clone();
                        turns.push(Box::pin(async move {
                            turn::refuse(&desk, &event.message, event.seq, &invalid).await;
                            None
                        }));
                    }
                }
            }
        }
    };
    if matches!(ended, Ended::Stopped) {
        // What is queued was never begun: it stays unacknowledged and comes again.
        let drained =
            tokio::time::timeout(DRAIN, async { while turns.next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::warn!(
                turns = turns.len(),
                "not all turns ended in time; their events come again"
            );
        }
    }
    ended
}

/// Begins the span of one event, from its being handed out to its state's being stored.
fn span(desk: &Desk, raw: &InOrder) -> Span {
    let header = |name: &str| Some(raw.message.headers.as_ref()?.get(name)?.as_str());
    let parent = TraceContext::read(header);
    let mut span = desk
        .traces
        .span(SpanKind::Consumer, "process event", parent);
    if span.is_recorded() {
        span.set("messaging.system", "nats");
        span.set("messaging.operation.type", "process");
        span.set(
            "messaging.destination.name",
            raw.message.subject.to_string(),
        );
        span.set(
            "usersync.event_seq",
            i64::try_from(raw.seq).unwrap_or(i64::MAX),
        );
    }
    span
}

/// Parses one message into an event, filling in what its publisher may leave out.
fn arrival(raw: &InOrder) -> Result<(UserId, Event), InvalidEvent> {
    let Some(kind) = subjects::event_type(&raw.message.subject) else {
        let reason = "the subject names no event type; expected user.created, user.updated, user.deleted or user.status_changed";
        return Err(InvalidEvent::new("", reason));
    };
    let message_id = raw
        .message
        .headers
        .as_ref()
        .and_then(|headers| headers.get(async_nats::header::NATS_MESSAGE_ID));
    let message_id = message_id
        .map(|id| id.as_str())
        .filter(|id| event::is_id(id));
    let id = message_id.map_or_else(|| raw.seq.to_string(), str::to_owned);
    let stored = i64::try_from(raw.stored_us).unwrap_or_default();
    let envelope = Envelope {
        kind: Some(kind),
        id: Some(id),
        timestamp: Timestamp::from_microsecond(stored).ok(),
    };
    let event = Event::parse_relayed(&raw.message.payload, envelope)?;
    Ok((event.user_id.clone(), event))
}

fn meters() -> Meters {
    describe_gauge!(
        "usersync_intake_active",
        "1 in the gateway that merges events into states, 0 in those that stand by"
    );
    describe_counter!(
        "usersync_intake_events_total",
        "Events taken in: changed a state, known already, came after_delete, or refused"
    );
    describe_histogram!(
        "usersync_intake_seconds",
        "Processing time of intake: from an event's being stored to its state's being stored"
    );
    let result =
        |result: &'static str| counter!("usersync_intake_events_total", "result" => result);
    Meters {
        changed: result("changed"),
        known: result("known"),
        after_delete: result("after_delete"),
        refused: result("refused"),
        seconds: histogram!("usersync_intake_seconds"),
    }
}
