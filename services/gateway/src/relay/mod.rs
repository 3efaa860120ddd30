//! The relay: what waits in the outbox of a main database becomes events. Per database, one gateway
//! at a time does it, the one that holds the database's lock.
//!
//! `event` makes an event of a row, `window` publishes many in their order, `stored` finds rows that are
//! published and don't say so, `pace` says when to look again. While one window is published, the one before
//! is marked and the next one read. Rows are chosen by their state, never by "behind the last id": a transaction
//! may take the lower id and commit later. A row is marked only after NATS has confirmed its event, so it can be
//! published twice, under the same id. See docs/OUTBOX.md.

mod board;
mod event;
mod meters;
mod pace;
mod stored;
mod window;

use std::{collections::BTreeMap, time::Duration};

use async_nats::jetstream;
use futures_util::future::join;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use usersync_core::{
    admin::Health,
    batch::{Batches, Mode},
};
use usersync_source::{Database, OutboxRow, RowsUnderWay, SourceConfig, SourceError, SourceName};

use board::Board;
pub(crate) use board::{Notice, State};
use meters::Meters;
use pace::Pace;
use stored::Stored;
use window::Window;

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

/// What a relay has while there is more than one window of rows.
#[derive(Default)]
struct AtHand {
    /// Published and not marked yet.
    published: Window,
    /// Those behind them, read already.
    ahead: Option<Vec<OutboxRow>>,
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
        let client = self.jetstream.client();
        let batches = Batches::new(client, Mode::InOrder).await;
        let mut batches = batches.map_err(|error| SourceError::Unavailable(error.to_string()))?;
        let (mut look_at, mut prune_at) = (Instant::now(), Instant::now());
        let mut at_hand = AtHand::default();
        while !self.shutdown.is_cancelled() {
            let rows = match at_hand.ahead.take() {
                Some(rows) => rows,
                None => database.unpublished(WINDOW).await?,
            };
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
                let publishing = self.publish(&mut batches, database, &mut at_hand, rows);
                trouble = publishing.await?;
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
                    let more = at_hand.ahead.is_some() || found == WINDOW as usize;
                    match pace.after(found > 0) {
                        _ if more => {}
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
        self.mark(database, &at_hand.published).await
    }

    /// Publishes `rows`; marks what was published before and reads what waits behind them meanwhile. Why not all
    /// could be published, if so.
    async fn publish(
        &self,
        batches: &mut Batches,
        database: &mut Database,
        at_hand: &mut AtHand,
        rows: Vec<OutboxRow>,
    ) -> Result<Option<String>, SourceError> {
        let full = rows.len() == WINDOW as usize;
        let under_way = rows.last().filter(|_| full).map(|last| RowsUnderWay {
            last: last.id,
            count: i64::from(WINDOW),
        });
        let publishing = window::publish(batches, &self.name, rows, &self.shutdown);
        let meanwhile = async {
            self.mark(database, &at_hand.published).await?;
            match under_way {
                Some(under_way) => database.unpublished_behind(under_way, WINDOW).await,
                None => Ok(None),
            }
        };
        let (mut window, ahead) = join(publishing, meanwhile).await;
        self.meters.window(&window);
        let trouble = window.trouble.take();
        // Behind a row that isn't published, its user's next may wait: they are read again.
        at_hand.ahead = ahead?.filter(|rows| !rows.is_empty() && trouble.is_none());
        if at_hand.ahead.is_none() {
            self.mark(database, &window).await?;
            window = Window::default();
        }
        at_hand.published = window;
        Ok(trouble)
    }

    /// Marks what a window came to.
    async fn mark(&self, database: &mut Database, window: &Window) -> Result<(), SourceError> {
        database.mark_published(&window.published).await?;
        for failure in &window.failed {
            tracing::error!(source = %self.name, outbox.id = failure.id, reason = failure.reason,
                "a row of the outbox can't be published; its state is 2 now");
        }
        database.mark_failed(&window.failed).await
    }

    async fn pause(&self, pause: Duration) {
        let pausing = tokio::time::sleep(pause);
        self.shutdown.run_until_cancelled(pausing).await;
    }
}
