//! One courier per target: pulls, queues per user, keeps calls under way, drains on shutdown.
//!
//! Knows nothing of what a delivery is or how it ended; see `parcel` and `settle`.

use std::{pin::pin, sync::Arc, time::Duration};

use async_nats::jetstream::{AckKind, Message};
use futures_util::{
    FutureExt, StreamExt,
    future::{Fuse, FusedFuture},
    stream::FuturesUnordered,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use usersync_core::{
    admin::Health,
    feed::{Feed, Source},
    lanes::{Lanes, Prefer},
    streams::DELIVERY_WAIT,
    subjects,
    user_id::UserId,
};
use usersync_targets::Limits;

use crate::{
    board::Board,
    breaker::State,
    freshness::{Freshness, Unproven},
    hand_back::hand_back,
    memory::Memory,
    overtaken,
    pace::Pace,
    parcel::{self, Carried, Later},
    presence::Crew,
    route::Route,
    share::Share,
    task::{Arrived, Item, Task},
    throttle::{Admission, Throttle},
};

/// How often deliveries are proven to be the newest, results published, gauges set.
const TICK: Duration = Duration::from_millis(250);
/// How long telling of all that is queued may take: who isn't told of comes again, which costs an attempt.
const ALIVE: Duration = Duration::from_secs(1);
/// While the breaker is open, so many who have failed are held before no more are asked for.
const MOST_FAILED: usize = 1_000;
/// The least room for queued tasks: what a fast target takes while the next messages are pulled.
const LEAST_QUEUED: usize = 1_024;
/// The most: what is queued is kept alive, and handed back when the worker stops.
const MOST_QUEUED: usize = 16_384;
/// How long a replica may lag behind.
const LAGGING: Duration = Duration::from_secs(10);
/// How long calls under way may take to end on shutdown.
const DRAIN: Duration = Duration::from_secs(7);
/// One call in this many goes to live work first, however many repairs wait.
const LIVE_SHARE: usize = 4;
/// How long a probe may take beyond the target's own timeout, which a kind may apply per step.
const PROBE: Duration = Duration::from_secs(10);

/// Serves one target.
pub(crate) struct Courier {
    route: Arc<Route>,
    health: Health,
    board: Board,
    resets: Arc<Notify>,
    /// How the breaker stood when it was last shown.
    shown: State,
    limits: Limits,
    lanes: Lanes<Task>,
    freshness: Freshness,
    /// The server that counts what is handed out, in a cluster.
    leader: Option<String>,
    crew: Crew,
    share: Share,
    memory: Memory,
    /// Tasks queued or under way because a delivery is in doubt.
    doubts: usize,
    /// Whether more is delivered in a while than can be remembered.
    crowded: bool,
    pace: Pace,
    throttle: Throttle,
    /// Whether the next call has been put off by the rate limit.
    limited: bool,
    /// The most tasks queued before pulling stops.
    capacity: usize,
    /// Repairs among the tasks queued.
    repairs: usize,
    /// Counts calls.
    turn: usize,
}

impl Courier {
    pub(crate) fn new(
        route: Arc<Route>,
        health: Health,
        board: Board,
        crew: Crew,
        share: Share,
        memory: Memory,
    ) -> Self {
        let limits = route.driver.limits();
        let config = &route.config;
        Self {
            resets: board.resets(&config.name),
            shown: State::Closed,
            lanes: Lanes::default(),
            freshness: Freshness::default(),
            leader: None,
            crew,
            share,
            memory,
            doubts: 0,
            crowded: false,
            pace: Pace::new(limits.concurrency, Instant::now()),
            throttle: Throttle::new(config.rate_limit, limits.batch, config.linger),
            limited: false,
            capacity: (2 * limits.concurrency * limits.batch).clamp(LEAST_QUEUED, MOST_QUEUED),
            repairs: 0,
            turn: 0,
            limits,
            route,
            health,
            board,
        }
    }

    /// Serves the target until `shutdown`; then finishes calls under way and hands the rest back. Answers what is in doubt,
    /// and whether no call is under way any more.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> (Memory, bool) {
        let route = self.route.clone();
        let target = &route.config.name;
        self.crew.announce(target).await;
        let mut live = self.feed(subjects::USER_STATE);
        let mut repairs = self.feed(subjects::USER_REPAIR);
        self.health.up(target.as_ref());
        route.meters.serving.set(1);
        let Limits { concurrency, batch } = self.limits;
        tracing::info!(%target, concurrency, batch, "serving");

        self.memory.doubt.set_timeout(self.route.config.timeout);
        let mut vanished = self.memory.vanished.clone();
        let mut parcels = FuturesUnordered::new();
        let mut tick = tokio::time::interval(TICK);
        let mut progress = tokio::time::interval(DELIVERY_WAIT / 3);
        let mut proof = pin!(Fuse::terminated());
        let mut probe = pin!(Fuse::terminated());
        loop {
            let wake = loop {
                match self.next_call(parcels.len()) {
                    Ok(items) => parcels.push(parcel::carry(route.clone(), items)),
                    Err(wake) => break wake,
                }
            };
            let (room, repair_room) = self.room(parcels.is_empty());
            let probe_at = route.breaker().probe_at().filter(|_| probe.is_terminated());
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                // The timers come before the work, which under load is always ready.
                _ = tick.tick() => {
                    if proof.is_terminated() && !self.freshness.is_empty() {
                        self.freshness.asking();
                        proof.set(handed_out(route.clone()).fuse());
                    }
                    self.recheck_later();
                    self.deliver_again();
                    timeout(TICK, self.report(parcels.len())).await.ok();
                }
                _ = progress.tick() => {
                    // Bounded, because nothing else is looked at meanwhile and NATS may be away.
                    timeout(ALIVE, parcel::progress(self.lanes.items())).await.ok();
                }
                () = self.resets.notified() => {
                    route.breaker().reset();
                    self.show();
                }
                Ok(()) = vanished.changed() => {
                    self.memory.vanished.mark_unchanged();
                    self.memory.doubt.vanished(Instant::now());
                }
                () = sleep_until(probe_at.unwrap_or_else(Instant::now)), if probe_at.is_some() => {
                    probe.set(ask(route.clone()).fuse());
                }
                answer = &mut probe => {
                    match answer {
                        Ok(()) => route.breaker().answered(),
                        Err(reason) => route.breaker().unanswered(reason, Instant::now()),
                    }
                    self.show();
                }
                Some(carried) = parcels.next() => {
                    self.finish(carried);
                    while let Some(Some(carried)) = parcels.next().now_or_never() {
                        self.finish(carried);
                    }
                    self.show();
                }
                handed_out = &mut proof => self.prove(handed_out),
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
                message = repairs.next(repair_room) => self.repair(message).await,
                message = live.next(room) => {
                    route.set_filled_from_us(live.created_us());
                    self.live(message).await;
                    while let Some(message) = live.ready() {
                        self.live(message).await;
                    }
                    route.set_alone_since(self.freshness.alone_since());
                }
            }
        }
        // What was never begun goes back: another worker may have it at once.
        let (live, repairs) = tokio::join!(live.close(), repairs.close());
        let mut back: Vec<Message> = live.into_iter().chain(repairs).collect();
        let mut unproven = std::mem::take(&mut self.freshness).into_unproven();
        while let Some((user, tasks)) = self.lanes.take(Prefer::Urgent) {
            for task in &tasks {
                match *task {
                    Task::Recheck { version: 0, .. } => self.memory.doubt.again(user.clone()),
                    Task::Recheck { version, .. } => unproven.push(Unproven {
                        user_id: user.clone(),
                        version,
                        since: 0,
                    }),
                    _ => {}
                }
            }
            back.extend(tasks.into_iter().filter_map(Task::into_message));
        }
        let finish = async {
            hand_back(&route, back).await;
            while let Some(carried) = parcels.next().await {
                for user in carried.unguarded {
                    self.memory.doubt.delivered(user, Instant::now());
                }
                unproven.extend(carried.unproven);
                for later in carried.later {
                    self.memory.put_off(later);
                }
                let tasks = carried.held.into_iter().flat_map(|item| item.tasks);
                hand_back(&route, tasks.filter_map(Task::into_message)).await;
            }
            overtaken::ask(&route, unproven).await;
            route.results.publish().await;
        };
        let is_through = timeout(DRAIN, finish).await.is_ok();
        if !is_through {
            tracing::warn!(%target, calls = parcels.len(), "not all calls ended in time; their users come again");
        }
        self.board.show(target, State::Closed, "");
        route.meters.serving.set(0);
        route.meters.breaker_state.set(0);
        route.meters.in_hand.set(0);
        self.health.gone(target.as_ref());
        self.health.gone(&self.newer());
        tracing::info!(%target, "drained");
        (self.memory, is_through)
    }

    fn feed(&self, stream: &'static str) -> Feed {
        Feed::new(Source {
            jetstream: self.route.jetstream.clone(),
            stream,
            consumer: self.route.config.name.to_string(),
            health: self.health.clone(),
        })
    }

    /// The next call to begin while `under_way` others are; or, as the error, when to look again.
    fn next_call(&mut self, under_way: usize) -> Result<Vec<Item>, Option<Instant>> {
        let (most, users, share) = match self.route.breaker().state() {
            State::Closed => {
                let most = self.pace.limit().min(self.share.of_one());
                (most, usize::MAX, LIVE_SHARE)
            }
            // One user decides: not always one of the same queue.
            State::HalfOpen => (1, 1, 2),
            State::Open | State::Gone => return Err(None),
        };
        let ready = self.lanes.ready();
        if under_way >= most {
            if ready > 0 {
                self.pace.reached();
            }
            return Err(None);
        }
        let users = match self.throttle.admit(ready, Instant::now()) {
            Admission::Call(admitted) => admitted.min(users),
            Admission::Wait(until) => return Err(Some(until)),
            Admission::Limited(until) => {
                if !std::mem::replace(&mut self.limited, true) {
                    self.route.meters.rate_limited.increment(1);
                }
                return Err(Some(until));
            }
            Admission::Nobody => return Err(None),
        };
        self.limited = false;
        self.turn = self.turn.wrapping_add(1);
        let prefer = if self.turn.is_multiple_of(share) {
            Prefer::Waiting
        } else {
            Prefer::Urgent
        };
        let state = self.route.breaker().state();
        let items = match state {
            State::HalfOpen => self.take_decider(prefer).into_iter().collect(),
            _ => self.take(users, prefer),
        };
        if items.is_empty() {
            Err(None)
        } else {
            Ok(items)
        }
    }

    /// The user whose delivery decides whether the target is back: rather one whose last didn't fail, and last of all one who
    /// fails while others don't.
    fn take_decider(&mut self, prefer: Prefer) -> Option<Item> {
        let route = self.route.clone();
        let breaker = route.breaker();
        let (user_id, tasks) = self
            .lanes
            .take_fit(prefer, |user| !breaker.has_failed(user))
            .or_else(|| self.lanes.take_fit(prefer, |user| !breaker.is_poison(user)))
            .or_else(|| self.lanes.take(prefer))?;
        self.repairs -= repairs(&tasks);
        Some(Item { user_id, tasks })
    }

    /// Up to `most` users who are not busy, with everything queued for them.
    fn take(&mut self, most: usize, prefer: Prefer) -> Vec<Item> {
        let mut items = Vec::new();
        while items.len() < most {
            let Some((user_id, tasks)) = self.lanes.take(prefer) else {
                break;
            };
            self.repairs -= repairs(&tasks);
            items.push(Item { user_id, tasks });
        }
        items
    }

    /// How many states, and how many repairs, may be asked for.
    fn room(&self, idle: bool) -> (usize, usize) {
        let breaker = self.route.breaker();
        let is_fresh = |user: &UserId| !breaker.has_failed(user);
        match breaker.state() {
            State::Closed => {
                let room = self.capacity.saturating_sub(self.lanes.queued());
                // Half the room is for live states, however many repairs wait.
                (
                    room,
                    room.min((self.capacity / 2).saturating_sub(self.repairs)),
                )
            }
            // Somebody is needed for the call that decides, and rather one who hasn't failed.
            State::HalfOpen | State::Open
                if idle
                    && self.lanes.queued() < self.capacity
                    && (self.lanes.ready() < 2
                        || (self.lanes.ready() < MOST_FAILED && !self.lanes.has_fit(is_fresh))) =>
            {
                (1, 1)
            }
            State::HalfOpen | State::Open | State::Gone => (0, 0),
        }
    }

    fn finish(&mut self, carried: Carried) {
        for user in &carried.users {
            self.lanes.done(user);
        }
        for Item { user_id, tasks } in carried.held {
            self.repairs += repairs(&tasks);
            self.lanes.put_back(&user_id, tasks);
        }
        let now = Instant::now();
        for user in carried.unguarded {
            let crowded = self.memory.doubt.delivered(user, now);
            if crowded && !std::mem::replace(&mut self.crowded, true) {
                let target = &self.route.config.name;
                tracing::warn!(%target, "more users are delivered than can be remembered: check the target after a worker has vanished");
            }
        }
        for unproven in carried.unproven {
            self.freshness.delivered(unproven);
        }
        self.doubts -= carried.doubts;
        for later in carried.later {
            self.memory.put_off(later);
        }
        if let Some((took, failed)) = carried.call {
            self.pace.ended(took, failed, Instant::now());
        }
    }

    async fn live(&mut self, message: Message) {
        let arrived = Arrived::from(message);
        if self.freshness.received(arrived.consumer_seq) {
            // Somebody made the consumer anew, so that all is delivered again.
            self.route.unchanged().forget_all();
            self.route.set_held_up_to(0);
        }
        if self.shown != State::Closed {
            self.route.set_held_up_to(self.freshness.last_received());
        }
        match subjects::user_of_state(&arrived.message.subject) {
            Some(user) => self.lanes.push(user, Task::Live(arrived)),
            None => give_up(arrived.message).await,
        }
    }

    async fn repair(&mut self, message: Message) {
        let arrived = Arrived::from(message);
        self.freshness.repaired(arrived.consumer_seq);
        match subjects::user_of_repair(&arrived.message.subject) {
            Some(user) => {
                self.repairs += 1;
                self.lanes.push_urgent(user, Task::Repair(arrived));
            }
            None => give_up(arrived.message).await,
        }
        self.route.set_alone_since(self.freshness.alone_since());
    }

    /// The server says how far it has handed out states and repairs; unknown counts as further than we saw.
    fn prove(&mut self, handed_out: HandedOut) {
        // Far beyond what was seen, and still a number to count on from.
        let unknown = u64::MAX - 1;
        let states = handed_out.states.unwrap_or(unknown);
        let repairs = handed_out.repairs.unwrap_or(unknown);
        let replicated = handed_out.leader.is_some();
        if replicated && handed_out.leader != self.leader {
            // It may have handed out numbers again that the one before had handed out and told nobody of.
            self.freshness.not_alone();
            self.leader = handed_out.leader;
        }
        for Unproven {
            user_id, version, ..
        } in self.freshness.suspects(states, repairs)
        {
            // Every repair is followed by one: beside live states they would take the share of those.
            self.recheck(user_id.clone(), version, 0);
            if replicated && version != 0 {
                // A replica that lags, as one that was stopped and goes on, may have answered.
                self.memory.put_off(Later {
                    at: Instant::now() + LAGGING,
                    user_id,
                    version,
                    tries: 0,
                });
            }
        }
        self.route.set_alone_since(self.freshness.alone_since());
    }

    /// Queues the rechecks whose time has come.
    fn recheck_later(&mut self) {
        for later in self.memory.due(Instant::now()) {
            self.recheck(later.user_id, later.version, later.tries);
        }
    }

    fn recheck(&mut self, user_id: UserId, version: u64, tries: u32) {
        let task = Task::Recheck { version, tries };
        self.doubts += usize::from(task.is_doubt());
        self.lanes.push_urgent(user_id, task);
    }

    /// Queues those who are to be delivered again because a worker has vanished, and shows how far that is.
    fn deliver_again(&mut self) {
        let room = self.capacity.saturating_sub(self.lanes.queued());
        for user_id in self.memory.doubt.due(room, Instant::now()) {
            self.recheck(user_id, 0, 0);
        }
        let target = &self.route.config.name;
        if self.route.lacks_guard() {
            let unproven = self.doubts > 0 || self.memory.is_in_doubt();
            self.crew.serves(target, unproven);
        } else {
            self.crew.leaves(target);
        }
    }

    /// Shows the breaker where people look, if it has changed; sees to what its closing asks for.
    fn show(&mut self) {
        let (state, reason, outline, mistaken) = {
            let mut breaker = self.route.breaker();
            let reason = breaker.reason().to_owned();
            let outline = breaker.outline();
            (breaker.state(), reason, outline, breaker.mistaken())
        };
        for user in mistaken {
            self.recheck(user, 0, 0);
        }
        if state == self.shown {
            return;
        }
        let target = &self.route.config.name;
        match state {
            State::Closed => {
                // What has been waiting may be outdated; the newer states come by themselves.
                self.route.set_held_up_to(self.freshness.last_received());
                tracing::info!(%target, "breaker closed: the target is back");
            }
            State::HalfOpen => tracing::info!(%target, "breaker half-open: one delivery decides"),
            State::Open => {
                tracing::warn!(%target, reason, "breaker open: nothing is delivered until the target is back");
            }
            State::Gone => {
                tracing::error!(%target, reason, "the target says that it is gone; nothing is delivered until its breaker is reset");
            }
        }
        let level = match state {
            State::Closed => 0,
            State::HalfOpen => 1,
            State::Open => 2,
            State::Gone => 3,
        };
        self.route.meters.breaker_state.set(level);
        match outline {
            None => self.health.up(target.as_ref()),
            // Another worker would be no readier.
            Some(why) => self.health.waiting(
                target.as_ref(),
                format!("nothing is delivered: {why}; see this worker's log and `usersync.breakers.list`"),
            ),
        }
        self.board.show(target, state, &reason);
        self.shown = state;
    }

    /// The part of this worker's health that says that users wait for a newer worker.
    fn newer(&self) -> String {
        format!("states for {}", self.route.config.name)
    }

    /// What is seen from outside, and the delivery log.
    async fn report(&self, under_way: usize) {
        let newer = self.newer();
        match self.route.newer() {
            Some(reason) => self.health.waiting(&newer, format!("users wait: {reason}")),
            None => self.health.gone(&newer),
        }
        let meters = &self.route.meters;
        meters.concurrency.set(self.pace.limit() as f64);
        meters.in_hand.set((self.lanes.queued() + under_way) as f64);
        self.route.results.publish().await;
    }
}

fn repairs(tasks: &[Task]) -> usize {
    let repair = |task: &&Task| matches!(task, Task::Repair(_));
    tasks.iter().filter(repair).count()
}

/// A subject that names no user can only come from a hand-made publish.
async fn give_up(message: Message) {
    tracing::error!(subject = %message.subject, "names no user; dropped");
    timeout(TICK, message.ack_with(AckKind::Term)).await.ok();
}

/// The last sequences the server handed out to any worker of this target; unknown where it can't be asked.
struct HandedOut {
    states: Option<u64>,
    repairs: Option<u64>,
    /// The server that counts those of states, in a cluster.
    leader: Option<String>,
}

async fn handed_out(route: Arc<Route>) -> HandedOut {
    let last = async |stream: &str| {
        let stream = route.jetstream.get_stream_no_info(stream).await.ok()?;
        let info = stream.consumer_info(&route.config.name).await.ok()?;
        let leader = info.cluster.and_then(|cluster| cluster.leader);
        Some((info.delivered.consumer_sequence, leader))
    };
    let (states, repairs) = tokio::join!(last(subjects::USER_STATE), last(subjects::USER_REPAIR));
    let leader = states.as_ref().and_then(|(_, leader)| leader.clone());
    HandedOut {
        states: states.map(|(last, _)| last),
        repairs: repairs.map(|(last, _)| last),
        leader,
    }
}

/// Asks whether a delivery may be tried; the error says why the target can't be used.
async fn ask(route: Arc<Route>) -> Result<(), String> {
    match timeout(route.config.timeout + PROBE, route.driver.answers()).await {
        Ok(answer) => answer.map_err(|failure| failure.to_string()),
        Err(_) => Err("the probe timed out".to_owned()),
    }
}
