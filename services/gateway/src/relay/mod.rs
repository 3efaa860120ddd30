//! The relay: what waits in the outbox of a main database becomes events. Per database, one gateway
//! at a time does it, the one that holds the database's lock.
//!
//! `event` makes an event of a row, `window` publishes many and keeps each user's order, `stored` finds
//! rows that are published and don't say so, `pace` says when to look again. Rows are chosen by their
//! state, never by "behind the last id": a transaction may take the lower id and commit later. A row is
//! marked only after its PubAck, so it can be published twice, under the same id. See docs/OUTBOX.md.

mod board;
mod event;
mod meters;
mod pace;
mod stored;
mod window;

use std::{collections::BTreeMap, time::Duration};

use async_nats::jetstream;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use usersync_core::admin::Health;
use usersync_source::{Database, SourceConfig, SourceError, SourceName};

use board::Board;
pub(crate) use board::{Notice, State};
use meters::Meters;
use pace::Pace;
use stored::Stored;

/// The most rows in one window.
const WINDOW: u32 = 2_000;
/// The most rows removed at once: more than are published meanwhile.
const PRUNED: u32 = 2 * WINDOW;
/// How often a relay looks for rows to remove, unless there are plenty.
const PRUNE_EVERY: Duration = Duration::from_secs(10);
/// How often a relay looks how far it is behind.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often a standby tries to get the lock.
const STAND_BY: Duration = Duration::from_secs(1);
/// The pauses after failures, doubling.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// Relays every source whose outbox is on, until `shutdown`.
pub(crate) async fn run(
    sources: BTreeMap<SourceName, SourceConfig>,
    jetstream: jetstream::Context,
    health: Health,
    shutdown: CancellationToken,
) {
    let mut relays = JoinSet::new();
    let board = Board::new();
    for (name, config) in sources.into_iter().filter(|(_, config)| config.outbox) {
        let part = format!("source {name}");
        health.down(&part, "connecting");
        let relay = Relay {
            meters: Meters::new(&name),
            board: board.clone(),
            jetstream: jetstream.clone(),
            health: health.clone(),
            shutdown: shutdown.clone(),
            name,
            part,
            config,
        };
        relays.spawn(relay.run());
    }
    relays.spawn(board.run(jetstream, shutdown));
    while let Some(ended) = relays.join_next().await {
        if let Err(panic) = ended
            && let Ok(panic) = panic.try_into_panic()
        {
            // A gateway without its relay must not go on.
            std::panic::resume_unwind(panic);
        }
    }
}

/// The relay of one source.
struct Relay {
    name: SourceName,
    /// Its name in health.
    part: String,
    config: SourceConfig,
    jetstream: jetstream::Context,
    health: Health,
    meters: Meters,
    board: Board,
    shutdown: CancellationToken,
}

impl Relay {
    async fn run(self) {
        let mut pause = PAUSES.0;
        let mut said = String::new();
        while !self.shutdown.is_cancelled() {
            let began = Instant::now();
            let Err(error) = self.serve().await else {
                break;
            };
            self.meters.idle();
            self.board.idle(&self.name, State::Down);
            if began.elapsed() > PAUSES.1 {
                pause = PAUSES.0;
                said.clear();
            }
            let reason = error.to_string();
            if reason != said {
                tracing::warn!(source = %self.name, error = reason, "can't relay the outbox; trying again");
            }
            self.health.down(&self.part, reason.as_str());
            said = reason;
            self.pause(pause).await;
            pause = PAUSES.1.min(2 * pause);
        }
        self.meters.idle();
    }

    /// Connects, waits for the lock and relays until `shutdown`.
    async fn serve(&self) -> Result<(), SourceError> {
        let mut database = Database::connect(&self.config).await?;
        let mut said = false;
        while !database.try_lock().await? {
            self.board.idle(&self.name, State::Standby);
            // Whoever holds it says how the database is.
            self.health.up(&self.part);
            if !said {
                tracing::info!(source = %self.name, "another gateway relays the outbox; standing by");
                said = true;
            }
            self.pause(STAND_BY).await;
            if self.shutdown.is_cancelled() {
                return Ok(());
            }
        }
        tracing::info!(source = %self.name, "relaying the outbox");
        self.meters.active();
        let relayed = self.relay(&mut database).await;
        if relayed.is_ok() {
            database.close().await;
        }
        relayed
    }

    async fn relay(&self, database: &mut Database) -> Result<(), SourceError> {
        let mut pace = Pace::new(self.config.relay);
        let mut troubled = PAUSES.0;
        // Rows may be published that aren't marked: by a gateway that died, or an answer that never came.
        let (mut stored, mut doubtful) = (Stored::default(), true);
        let (mut look_at, mut prune_at) = (Instant::now(), Instant::now());
        while !self.shutdown.is_cancelled() {
            let rows = database.unpublished(WINDOW).await?;
            if doubtful
                && let Some(oldest) = rows.first()
                && Stored::may_be_forgotten(oldest)
            {
                let marking = stored.mark(&self.jetstream, &self.name, database, oldest);
                if let Some(marked) = self.shutdown.run_until_cancelled(marking).await {
                    marked?;
                }
                doubtful = false;
                continue;
            }
            let found = rows.len();
            let mut trouble = None;
            if found > 0 {
                let window =
                    window::publish(&self.jetstream, &self.name, rows, &self.shutdown).await;
                database.mark_published(&window.published).await?;
                for failure in &window.failed {
                    tracing::error!(source = %self.name, outbox.id = failure.id, reason = failure.reason,
                        "a row of the outbox can't be published; its state is 2 now");
                }
                database.mark_failed(&window.failed).await?;
                self.meters.window(&window);
                trouble = window.trouble;
                doubtful = trouble.is_some();
            }
            if look_at <= Instant::now() {
                let lag = database.lag().await?;
                self.meters.lag(lag);
                self.board.relaying(&self.name, lag);
                look_at = Instant::now() + LOOK_EVERY;
            }
            if prune_at <= Instant::now() && database.prune(PRUNED).await? < u64::from(PRUNED) {
                prune_at = Instant::now() + PRUNE_EVERY;
            }
            match trouble {
                Some(reason) => {
                    tracing::warn!(source = %self.name, error = reason, "can't publish events of the outbox; trying again");
                    self.health
                        .down(&self.part, format!("can't publish: {reason}"));
                    self.pause(troubled).await;
                    troubled = PAUSES.1.min(2 * troubled);
                }
                None => {
                    self.health.up(&self.part);
                    troubled = PAUSES.0;
                    let full = found == WINDOW as usize;
                    match pace.after(found > 0) {
                        _ if full => {}
                        // Whoever writes now will write again in a moment: one look for all of it.
                        pause if found > 0 => self.pause(pause).await,
                        pause => {
                            let waiting = database.wait(pause);
                            self.shutdown.run_until_cancelled(waiting).await;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    async fn pause(&self, pause: Duration) {
        let pausing = tokio::time::sleep(pause);
        self.shutdown.run_until_cancelled(pausing).await;
    }
}
