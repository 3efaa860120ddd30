//! Intake: events in stream order, merged into states. One gateway at a time does it.
//!
//! `survey` looks whether the streams are what they were, by the `mark` of before and by whether the states are `intact`;
//! `session` hands over events in order, `vouch` tells which of them a relay made, `turn` merges those of one user,
//! `known` keeps states at hand, `refusal` what can't be merged. Correct because of stream order per user and optimistic
//! concurrency; the pin only saves work. See docs/ARCHITECTURE.md, "Order is stream order".

mod intact;
mod known;
mod mark;
mod past;
mod refusal;
mod session;
mod survey;
mod turn;
mod vouch;
mod watch;

use std::{sync::Arc, time::Duration};

use async_nats::jetstream;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use jiff::Timestamp;
use metrics::{
    Gauge, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use serde::{Deserialize, de::IgnoredAny};
use tokio_util::sync::CancellationToken;
use usersync_core::{
    admin::Health,
    event::{self, Envelope, Event, InvalidEvent},
    json,
    lanes::{Lanes, Prefer},
    state::{Position, Repeated},
    subjects,
    trace::TraceContext,
    user_id::UserId,
};

use usersync_traces::{Span, SpanKind, Traces};

use crate::Settings;
pub(crate) use mark::{Mark, Marks};
use session::{InOrder, Lost, Pinned, Session};
use survey::{Expected, Ground, Survey};
use turn::{Arrival, Desk, Meters};
use vouch::Voucher;
use watch::Watch;

/// Turns under way at once.
const TURNS: usize = 2_000;
/// Events that are queued without looking at anything else.
const AT_ONCE: u32 = 64;
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
        let survey = Survey {
            jetstream: self.jetstream.clone(),
            events: events.clone(),
            states: states.clone(),
            accept_empty_state: self.accept_empty_state,
        };
        let pinned = Pinned {
            jetstream: self.jetstream.clone(),
            events,
        };
        let voucher = Voucher::new(self.jetstream.clone());
        let desk = Arc::new(Desk {
            jetstream: self.jetstream.clone(),
            states,
            known: known::within(self.cache_bytes),
            traces: self.traces.clone(),
            meters: meters(),
            health: self.health.clone(),
        });
        let (mut pin, mut said, mut expected) = (None, String::new(), Expected::default());
        while !shutdown.is_cancelled() {
            let opened = shutdown
                .run_until_cancelled(self.open(&survey, &pinned, pin.take(), &expected))
                .await;
            let (mut session, ground, mut watch) = match opened {
                None => break,
                Some(Ok(Some(opened))) => {
                    voucher.forget();
                    opened
                }
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
            expected = Expected::default();
            self.active.set(1.0);
            let ended = {
                let watching = watch.run(&ground);
                merge_events(&mut session, &desk, &ground, &voucher, watching, &shutdown).await
            };
            self.active.set(0.0);
            // Whoever merges next says so again.
            self.health.gone(turn::NEWER);
            match ended {
                Ended::Stopped => {
                    // The next gateway finds all of it in the mark.
                    let _ = tokio::time::timeout(HAND_OVER, watch.look(&ground)).await;
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
                    // A server that was away may have lost what is known of it.
                    if let Lost::States | Lost::Events | Lost::Stopped(_) = lost {
                        desk.known.clear();
                    }
                    expected.states = ground.intact.least();
                    if let Lost::Outdated(epoch) = &lost {
                        expected.epoch = Some(epoch.clone());
                    }
                    pin = lost.may_keep_pin().then(|| session.into_pin());
                }
            }
        }
        Ok(())
    }

    /// Starts a session, under `pin` if it is still good, else when this gateway is chosen.
    async fn open(
        &self,
        survey: &Survey,
        pinned: &Pinned,
        pin: Option<String>,
        expected: &Expected,
    ) -> anyhow::Result<Option<(Session, Arc<Ground>, Watch)>> {
        let pin = match pin {
            Some(pin) => pin,
            None => {
                survey.stand_by(expected).await?;
                self.health.up("intake");
                pinned.stand_by().await?
            }
        };
        let (ground, watch) = survey.begin(expected).await?;
        let Some(session) = pinned.start(pin).await? else {
            return Ok(None);
        };
        self.health.up("intake");
        tracing::info!(epoch = %ground.history.epochs.current(), "taking in events");
        Ok(Some((session, Arc::new(ground), watch)))
    }
}

/// Merges the events of one session until it is lost or `shutdown`; what is under way then is finished.
async fn merge_events(
    session: &mut Session,
    desk: &Arc<Desk>,
    ground: &Arc<Ground>,
    voucher: &Voucher,
    watching: impl Future<Output = Lost>,
    shutdown: &CancellationToken,
) -> Ended {
    let lost = async {
        tokio::select! {
            lost = watching => lost,
            lost = ground.lost() => lost,
        }
    };
    tokio::pin!(lost);
    let mut lanes = Lanes::default();
    let mut turns = FuturesUnordered::<BoxFuture<'static, Option<UserId>>>::new();
    let ended = 'session: loop {
        while turns.len() < TURNS {
            let Some((user_id, arrivals)) = lanes.take(Prefer::Urgent) else {
                break;
            };
            turns.push(Box::pin(
                turn::take(desk.clone(), ground.clone(), user_id, arrivals).map(Some),
            ));
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break Ended::Stopped,
            lost = &mut lost => break Ended::Lost(lost),
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
                // What has arrived with it comes along: to look around costs as much as an event.
                let (mut next, mut left) = (Some(next), AT_ONCE);
                while let Some(event) = next.take() {
                    let event = match event {
                        Ok(event) => event,
                        Err(lost) => break 'session Ended::Lost(lost),
                    };
                    match receive(desk, voucher, event, shutdown).await {
                        None => break 'session Ended::Stopped,
                        Some(Ok((user_id, arrival))) => lanes.push(user_id, arrival),
                        Some(Err((event, invalid))) => {
                            let desk = desk.clone();
                            turns.push(Box::pin(async move {
                                turn::refuse(&desk, &event.message, event.seq, &invalid).await;
                                None
                            }));
                        }
                    }
                    left -= 1;
                    if left > 0 {
                        next = session.next().now_or_never();
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

/// Makes what is to be merged of an event, or says why it is refused; `None` on shutdown.
async fn receive(
    desk: &Desk,
    voucher: &Voucher,
    event: InOrder,
    shutdown: &CancellationToken,
) -> Option<Result<(UserId, Arrival), (InOrder, InvalidEvent)>> {
    let mut span = span(desk, &event);
    let mut parsed = arrival(&event);
    if let Ok((relayed, _)) = &mut parsed
        && relayed.outbox.is_some()
    {
        let vouching = voucher.complete(relayed);
        if let Err(invalid) = shutdown.run_until_cancelled(vouching).await? {
            parsed = Err(invalid);
        }
    }
    Some(match parsed {
        Ok((parsed, repeated)) => {
            let at = Position {
                seq: event.seq,
                stored_us: event.stored_us,
                repeated,
            };
            let message = event.message;
            let arrival = Arrival {
                event: parsed,
                at,
                message,
                span,
            };
            Ok((arrival.event.user_id.clone(), arrival))
        }
        Err(invalid) => {
            span.fail("refused");
            Err((event, invalid))
        }
    })
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
fn arrival(raw: &InOrder) -> Result<(Event, Repeated), InvalidEvent> {
    let Some(kind) = subjects::event_type(&raw.message.subject) else {
        let reason = "the subject names no event type; expected user.created, user.updated, user.deleted or user.status_changed";
        return Err(InvalidEvent::new("", reason));
    };
    let headers = raw.message.headers.as_ref();
    if let Some(invalid) = headers.and_then(refusal::of_headers) {
        return Err(invalid);
    }
    let message_id = headers.and_then(|headers| headers.get(async_nats::header::NATS_MESSAGE_ID));
    let message_id = message_id.map(|id| id.as_str());
    let unnamed = message_id
        .filter(|id| event::is_id(id))
        .map_or_else(|| raw.seq.to_string(), str::to_owned);
    let stored = i64::try_from(raw.stored_us).unwrap_or_default();
    let envelope = Envelope {
        kind: Some(kind),
        id: Some(unnamed.clone()),
        timestamp: Timestamp::from_microsecond(stored).ok(),
    };
    let event = Event::parse_relayed(&raw.message.payload, envelope)?;
    let repeated = match message_id {
        Some(message_id) if message_id == event.key().message_id() => Repeated::ByStream,
        _ if event.id != unnamed || names_id(&raw.message.payload) => Repeated::ByState,
        Some(_) => Repeated::ByStream,
        None => Repeated::Never,
    };
    Ok((event, repeated))
}

/// Whether an event that was parsed says its id itself: it may be the one that it would get.
fn names_id(payload: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Named {
        id: Option<IgnoredAny>,
    }
    json::read::<Named>(payload).is_ok_and(|named| named.id.is_some())
}

fn meters() -> Meters {
    describe_gauge!(
        "usersync_intake_active",
        "1 in the gateway that merges events into states, 0 in those that stand by"
    );
    describe_counter!(
        "usersync_intake_events_total",
        "Events taken in: changed a state, unchanged because it said so already, known already, came after_delete, or refused"
    );
    describe_counter!(
        "usersync_intake_forgotten_total",
        "Events within the duplicate window that a state had to forget: a user has more than it remembers"
    );
    describe_histogram!(
        "usersync_intake_seconds",
        "Processing time of intake: from an event's being stored to its state's being stored"
    );
    let result =
        |result: &'static str| counter!("usersync_intake_events_total", "result" => result);
    Meters {
        changed: result("changed"),
        unchanged: result("unchanged"),
        known: result("known"),
        after_delete: result("after_delete"),
        refused: result("refused"),
        forgotten: counter!("usersync_intake_forgotten_total"),
        seconds: histogram!("usersync_intake_seconds"),
    }
}
