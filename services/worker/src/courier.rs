//! One courier per target: pulls, queues per user, keeps calls under way, drains on shutdown.
//!
//! Knows nothing of what a delivery is or how it ended; see `parcel` and `settle`.

use std::{pin::pin, sync::Arc, time::Duration};

use async_nats::jetstream::{self, AckKind, Message, stream::Stream};
use futures_util::{FutureExt, StreamExt, future::FusedFuture, stream::FuturesUnordered};
use tokio_util::sync::CancellationToken;
use usersync_core::{
    admin::Health,
    lanes::{Lanes, Prefer},
    streams::{self, ACK_WAIT},
    subjects,
    target::TargetConfig,
};
use usersync_targets::{Rule, Target};

use crate::{
    feed::{Feed, Source},
    freshness::Freshness,
    meters::Meters,
    parcel::{self, Carried, Item, Route, Task},
};

/// How often deliveries without a guard are proven to be the newest.
const PROVE_EVERY: Duration = Duration::from_millis(250);
/// The least room for queued tasks: what a fast target takes while the next messages are pulled.
const LEAST_QUEUED: usize = 1_024;
/// How long calls under way may take to end on shutdown.
const DRAIN: Duration = Duration::from_secs(7);
/// One call in this many goes to live work first, however many repairs wait.
const LIVE_SHARE: usize = 4;

/// Serves one target.
pub(crate) struct Courier {
    config: TargetConfig,
    rule: Rule,
    driver: Box<dyn Target>,
    jetstream: jetstream::Context,
    health: Health,
}

/// What a courier has in hand.
struct Load {
    lanes: Lanes<Task>,
    freshness: Freshness,
    /// The most tasks queued before pulling stops.
    capacity: usize,
    /// Repairs among the tasks queued.
    repairs: usize,
}

impl Courier {
    pub(crate) fn new(
        config: TargetConfig,
        rule: Rule,
        driver: Box<dyn Target>,
        jetstream: jetstream::Context,
        health: Health,
    ) -> Self {
        health.down(config.name.as_ref(), "starting");
        Self {
            config,
            rule,
            driver,
            jetstream,
            health,
        }
    }

    /// Serves the target until `shutdown`; then finishes calls under way and hands the rest back.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let waiting = streams::wait_for_stream(&self.jetstream, subjects::USER_STATE);
        let Some(states) = shutdown.run_until_cancelled(waiting).await else {
            return;
        };
        let limits = self.driver.limits();
        let capacity = (2 * limits.concurrency * limits.batch).max(LEAST_QUEUED);
        let feed = |stream| {
            Feed::new(Source {
                jetstream: self.jetstream.clone(),
                stream,
                consumer: self.config.name.to_string(),
                health: self.health.clone(),
            })
        };
        let mut live = feed(subjects::USER_STATE);
        let mut repairs = feed(subjects::USER_REPAIR);
        self.health.up(self.config.name.as_ref());
        tracing::info!(target = %self.config.name, limits.concurrency, limits.batch, "serving");

        let mut load = Load {
            lanes: Lanes::default(),
            freshness: Freshness::default(),
            capacity,
            repairs: 0,
        };
        let mut parcels = FuturesUnordered::new();
        let mut prove = tokio::time::interval(PROVE_EVERY);
        let mut progress = tokio::time::interval(ACK_WAIT / 3);
        let mut turn = 0_usize;
        let meters = Meters::new(&self.config.name);
        let route = Arc::new(Route {
            config: self.config,
            rule: self.rule,
            driver: self.driver,
            jetstream: self.jetstream,
            states,
            meters,
        });
        let mut proof = pin!(futures_util::future::Fuse::terminated());
        loop {
            while parcels.len() < limits.concurrency {
                turn = turn.wrapping_add(1);
                let prefer = if turn.is_multiple_of(LIVE_SHARE) {
                    Prefer::Waiting
                } else {
                    Prefer::Urgent
                };
                let items = load.batch(limits.batch, prefer);
                if items.is_empty() {
                    break;
                }
                parcels.push(parcel::carry(route.clone(), items));
            }
            let room = load.capacity.saturating_sub(load.lanes.queued());
            // Half the room is for live states, however many repairs wait.
            let repair_room = room.min((load.capacity / 2).saturating_sub(load.repairs));
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                // The timers come before the work, which under load is always ready.
                _ = prove.tick(), if proof.is_terminated() && !load.freshness.is_empty() => {
                    load.freshness.asking();
                    proof.set(handed_out(route.states.clone(), route.config.name.to_string()).fuse());
                }
                _ = progress.tick() => {
                    // Bounded, because nothing else is looked at meanwhile and NATS may be away.
                    tokio::time::timeout(PROVE_EVERY, parcel::progress(load.lanes.items())).await.ok();
                }
                Some(carried) = parcels.next() => {
                    load.finish(carried);
                    while let Some(Some(carried)) = parcels.next().now_or_never() {
                        load.finish(carried);
                    }
                }
                handed_out = &mut proof => load.prove(handed_out),
                message = repairs.next(repair_room) => load.repair(message).await,
                message = live.next(room) => {
                    load.live(message).await;
                    while let Some(message) = live.ready() {
                        load.live(message).await;
                    }
                }
            }
        }
        // What was never begun goes back: another worker may have it at once.
        let (live, repairs) = tokio::join!(live.close(), repairs.close());
        let queued = load.lanes.items().filter_map(Task::message);
        let hand_back = async {
            for message in queued.chain(&live).chain(&repairs) {
                if let Err(error) = message.ack_with(AckKind::Nak(None)).await {
                    tracing::warn!(%error, "can't hand a message back; it comes again after ack_wait");
                }
            }
        };
        let finish = async { while parcels.next().await.is_some() {} };
        let drained = tokio::time::timeout(DRAIN, async { tokio::join!(hand_back, finish) }).await;
        if drained.is_err() {
            tracing::warn!(target = %route.config.name, calls = parcels.len(), "not all calls ended in time; their users come again");
        }
        tracing::info!(target = %route.config.name, "drained");
    }
}

impl Load {
    /// Up to `most` users who are not busy, with everything queued for them.
    fn batch(&mut self, most: usize, prefer: Prefer) -> Vec<Item> {
        let mut items = Vec::new();
        while items.len() < most {
            let Some((user_id, tasks)) = self.lanes.take(prefer) else {
                break;
            };
            self.repairs -= tasks
                .iter()
                .filter(|task| matches!(task, Task::Repair(_)))
                .count();
            items.push(Item { user_id, tasks });
        }
        items
    }

    fn finish(&mut self, carried: Carried) {
        for user in &carried.users {
            self.lanes.done(user);
        }
        for unproven in carried.unproven {
            self.freshness.delivered(unproven);
        }
    }

    async fn live(&mut self, message: Message) {
        if let Ok(info) = message.info() {
            self.freshness.received(info.consumer_sequence);
        }
        match subjects::user_of_state(&message.subject) {
            Some(user) => self.lanes.push(user, Task::Live(message)),
            None => give_up(message).await,
        }
    }

    async fn repair(&mut self, message: Message) {
        match subjects::user_of_repair(&message.subject) {
            Some(user) => {
                self.repairs += 1;
                self.lanes.push_urgent(user, Task::Repair(message));
            }
            None => give_up(message).await,
        }
    }

    fn prove(&mut self, handed_out: Option<u64>) {
        // Unknown: as if the server had handed out more than we saw.
        for suspect in self.freshness.suspects(handed_out.unwrap_or(u64::MAX)) {
            self.lanes
                .push(suspect.user_id, Task::Recheck(suspect.version));
        }
    }
}

/// A subject that names no user can only come from a hand-made publish.
async fn give_up(message: Message) {
    tracing::error!(subject = %message.subject, "names no user; dropped");
    let _ = message.ack_with(AckKind::Term).await;
}

/// The last consumer sequence the server handed out to any worker of this target.
async fn handed_out(states: Stream, consumer: String) -> Option<u64> {
    let info = states.consumer_info(consumer).await.ok()?;
    Some(info.delivered.consumer_sequence)
}
