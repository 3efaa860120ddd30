//! The relay: what waits in the outbox of a main database becomes events. Per database, one gateway
//! at a time does it, the one that holds the database's lock.
//!
//! A row of the outbox is a note of who changed. `plan` says what notes come to once the users' rows are read, `brake` when
//! they delete too many, `newest` which of them say what the states do already; `failed` has those that failed. `event`
//! makes events, `window` publishes many in their order, `lease` holds the lock, `stored` finds rows that are published and
//! don't say so, `pace` says when to look again, `epochs` what intake is to know of an outbox and how it is seen that its
//! database was put back, `key` what proves that a gateway says so. While one window is published, the one before is marked and the next one read.
//! Rows are chosen by their state, never by "behind the last id": a transaction may take the lower id and commit later. A
//! row is marked only after NATS has confirmed its event, so it can be published twice; intake knows it by its note.
//! See docs/OUTBOX.md.

mod board;
mod brake;
mod epochs;
mod event;
mod failed;
mod key;
mod lease;
mod meters;
mod newest;
mod pace;
mod plan;
mod stored;
mod window;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use async_nats::jetstream;
use futures_util::future::join3;
use jiff::Timestamp;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use usersync_core::{
    admin::Health,
    batch::{Batches, Mode},
    event::{Event, EventType},
};
use usersync_source::{
    About, Database, Layout, OutboxRow, RowsUnderWay, SourceConfig, SourceError, SourceName,
    Watched,
};

use board::Board;
pub(crate) use board::{Notice, State};
use brake::Brake;
pub(crate) use epochs::Epochs;
use epochs::Ledger;
use event::Origin;
use failed::Failed;
use key::Key;
use lease::Lease;
use meters::Meters;
use newest::{Differs, Newest};
use pace::Pace;
use plan::{Found, Plan, What};
use stored::Stored;
use window::{Sending, Window};

/// The most rows in one window.
const WINDOW: u32 = 2_000;
/// Users whose rows are read at once.
const USERS: usize = 500;
/// The most rows removed at once: more than are published meanwhile.
const PRUNED: u32 = 2 * WINDOW;
/// How often a relay looks for rows to remove, unless there are plenty.
const PRUNE_EVERY: Duration = Duration::from_secs(10);
/// How often a relay looks how far it is behind.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often a standby tries to get the lock.
const STAND_BY: Duration = Duration::from_secs(1);
/// How often it asks whether a gateway says that it has the lock.
const ASK_EVERY: u32 = 3;
/// Why a gateway that stands by isn't ready.
const OWNERLESS: &str = "standing by: another session of the server holds the outbox's lock, and no gateway has said lately that \
     it relays; if none does, end that session";
/// Why a relay begins anew.
const PUT_BACK: &str = "the database was put back to an earlier time; its outbox is read from the beginning, in another epoch";
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
    ahead: Option<Noted>,
}

/// Rows of the outbox, and what the rows of their users said later.
struct Noted {
    rows: Vec<OutboxRow>,
    found: Found,
}

/// What a relay that has the lock knows of its source.
struct Source {
    layout: Layout,
    origin: Origin,
    /// What is written down of its outbox; none of an older version.
    ledger: Option<Ledger>,
    /// Rows up to here were there when this relay took the lock: another one may have them in hand, so they are always
    /// published, and its late copies count for nothing.
    fence: i64,
    /// Deletions to be looked at once more.
    held: HashSet<i64>,
    failed: Failed,
    brake: Brake,
    newest: Newest,
}

impl Source {
    fn was_put_back(&self) -> Option<Timestamp> {
        self.ledger.as_ref().and_then(Ledger::was_put_back)
    }

    /// The highest id of those that were published.
    fn last_published(&self) -> Option<i64> {
        let last = self.ledger.as_ref().and_then(Ledger::last);
        last.map(|last| last.id)
    }
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
            if began.elapsed() > PAUSES.1 {
                pause = PAUSES.0;
                said.clear();
            }
            let reason = error.to_string();
            self.board.down(&self.name, &reason);
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
        let mut holder = Database::connect(&self.config).await?;
        // Before there is a lock in a session that isn't ours alone.
        let mut beside = holder.again().await?;
        holder.is_its_own(&mut beside).await?;
        beside.close().await;
        if !self.has_lock(&mut holder).await? {
            return Ok(());
        }
        let mut database = holder.again().await?;
        holder.is_its_own(&mut database).await?;
        let mut lease = Lease::of(holder).await?;
        let relaying = async {
            let mut source = self.source(&mut database).await?;
            tracing::info!(source = %self.name, "relaying the outbox");
            self.meters.active();
            let lag = database.lag().await?;
            self.meters.lag(lag);
            let put_back = source.was_put_back();
            self.board.relaying(&self.name, lag, None, put_back);
            self.relay(&mut database, &mut source).await
        };
        let relayed = tokio::select! {
            relayed = relaying => relayed,
            lost = lease.lost() => Err(lost),
        };
        if relayed.is_ok() {
            database.close().await;
        }
        lease.give_back().await;
        relayed
    }

    /// Waits for the lock; says whether it came before `shutdown`.
    async fn has_lock(&self, holder: &mut Database) -> Result<bool, SourceError> {
        let mut tries = 0;
        while !holder.try_lock().await? {
            if tries == 0 {
                tracing::info!(source = %self.name, "another gateway relays the outbox; standing by");
                self.board.standby(&self.name);
            }
            if tries % ASK_EVERY == 0 {
                // Whoever holds it says how the database is.
                match self.board.is_relayed(&self.jetstream, &self.name).await {
                    Ok(true) => self.health.up(&self.part),
                    Ok(false) => self.health.down(&self.part, OWNERLESS),
                    Err(error) => {
                        let why = format!("standing by; can't ask who relays: {error:#}");
                        self.health.down(&self.part, why);
                    }
                }
            }
            tries += 1;
            self.pause(STAND_BY).await;
            if self.shutdown.is_cancelled() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What is to be known before the first row is published.
    async fn source(&self, database: &mut Database) -> Result<Source, SourceError> {
        let layout = database.readable().await?;
        let mut about = database.about().await?;
        let mut ledger = None;
        if let Some(of) = &about {
            let opened = self.ledger(database, Key::from(of.epoch.clone())).await?;
            about = self.about(database, &opened).await?;
            ledger = Some(opened);
        }
        let key = ledger.as_ref().map(|ledger| ledger.key().clone());
        let epoch = key
            .as_ref()
            .map_or_else(String::new, |key| key.name().to_owned());
        let newest = Newest::new(self.jetstream.clone(), self.name.to_string(), epoch);
        let gone = match &about {
            Some(about) => database.gone_within(brake::SPAN, about.approved).await?,
            None => Vec::new(),
        };
        let gone = gone
            .into_iter()
            .map(|(user, ago)| (layout.spelled(&user).into_owned(), ago));
        let brake = Brake::of(gone, std::time::Instant::now());
        Ok(Source {
            origin: Origin {
                source: self.name.clone(),
                about,
                key,
                owned: layout.members().cloned().collect(),
            },
            fence: database.highest().await?,
            held: HashSet::new(),
            failed: Failed::read(database, &layout).await?,
            brake,
            layout,
            newest: newest.await.map_err(unavailable)?,
            ledger,
        })
    }

    /// Writes down whose changes these are: intake takes none of an outbox that it hasn't heard of.
    async fn ledger(&self, database: &mut Database, outbox: Key) -> Result<Ledger, SourceError> {
        let published = database.last_published().await?;
        let has_past = published.is_some();
        let opening = Ledger::open(&self.jetstream, self.name.as_ref(), outbox, has_past);
        let mut ledger = opening.await.map_err(unavailable)?;
        match ledger.last() {
            Some(last) => {
                if database.has_lost(last).await? {
                    self.put_back(&mut ledger).await?;
                }
            }
            // Ids come again: what was published before says nothing of this epoch.
            None if ledger.was_put_back().is_some() => {}
            // A gateway of an older version has published it.
            None => {
                if let Some(last) = published {
                    ledger.publishing(last).await.map_err(unavailable)?;
                }
            }
        }
        Ok(ledger)
    }

    /// Begins another epoch: the database was put back, and gives ids that states know already to changes that nobody knows.
    async fn put_back(&self, ledger: &mut Ledger) -> Result<(), SourceError> {
        let last = ledger.last().map(|last| last.id);
        ledger.put_back().await.map_err(unavailable)?;
        tracing::error!(source = %self.name, outbox.id = last,
            "the database was put back to an earlier time: the last row that was published isn't in its outbox any more. Changes \
             count from now on in another epoch; what the database has lost stays as it was published until `usersync-scheduler load`");
        Ok(())
    }

    /// Makes sure that ids of the outbox are given once, as far as `rows` that are to be published next tell.
    async fn goes_on(
        &self,
        database: &mut Database,
        source: &mut Source,
        rows: &[OutboxRow],
    ) -> Result<(), SourceError> {
        let Some(ledger) = &mut source.ledger else {
            return Ok(());
        };
        let Some(last) = ledger.last().cloned() else {
            return Ok(());
        };
        let begins_anew = rows.iter().any(|row| last.is_far_above(row));
        if begins_anew || database.has_lost(&last).await? {
            // Before another gateway can take the lock.
            self.put_back(ledger).await?;
            return Err(SourceError::Refused(PUT_BACK.to_owned()));
        }
        Ok(())
    }

    /// Which outbox it is, as far as its ids count in this epoch.
    async fn about(
        &self,
        database: &mut Database,
        ledger: &Ledger,
    ) -> Result<Option<About>, SourceError> {
        let mut about = database.about().await?;
        if let Some(about) = &mut about {
            let highest = database.highest().await?;
            // What an older version has written, and what was approved, is gone where ids began anew.
            if ledger.was_put_back().is_some() || about.first > highest.saturating_add(1) {
                about.first = i64::MIN;
            }
            if about.approved > highest {
                about.approved = i64::MIN;
            }
        }
        Ok(about)
    }

    async fn relay(&self, database: &mut Database, source: &mut Source) -> Result<(), SourceError> {
        let mut pace = Pace::new(self.config.relay);
        let mut troubled = PAUSES.0;
        // Rows may be published that aren't marked: by a gateway that died, or an answer that never came.
        let (mut stored, mut doubtful) = (Stored::default(), true);
        let client = self.jetstream.client();
        let batches = Batches::new(client, Mode::InOrder).await;
        let mut batches = batches.map_err(|error| SourceError::Unavailable(error.to_string()))?;
        let (mut look_at, mut prune_at) = (Instant::now(), Instant::now());
        let (mut at_hand, mut watched) = (AtHand::default(), Watched::Good);
        while !self.shutdown.is_cancelled() {
            let noted = match at_hand.ahead.take() {
                Some(noted) => noted,
                None => {
                    let rows = database.unpublished(WINDOW).await?;
                    noted_of(database, source, rows).await?
                }
            };
            let last = source.last_published();
            if noted
                .rows
                .first()
                .is_some_and(|first| last >= Some(first.id))
            {
                self.goes_on(database, source, &noted.rows).await?;
            }
            if doubtful
                && let Some(oldest) = noted.rows.first()
                && Stored::may_be_forgotten(oldest)
            {
                let marking = stored.mark(&self.jetstream, &source.origin, database, oldest);
                if let Some(marked) = self.shutdown.run_until_cancelled(marking).await {
                    marked?;
                }
                doubtful = false;
                continue;
            }
            let found = noted.rows.len();
            let mut trouble = None;
            if found > 0 {
                let publishing = self.publish(&mut batches, database, source, &mut at_hand, noted);
                trouble = publishing.await?;
                doubtful = trouble.is_some();
            }
            if look_at <= Instant::now() {
                if let Err(error) = source.newest.look().await {
                    tracing::debug!(source = %self.name, error = format!("{error:#}"), "can't ask how far intake is");
                }
                if let Some(ledger) = &mut source.ledger {
                    // Somebody may have deleted or emptied the bucket since.
                    ledger.look().await.map_err(unavailable)?;
                }
                self.goes_on(database, source, &[]).await?;
                watched = self.watched(database, watched).await?;
                let lag = database.lag().await?;
                self.meters.lag(lag);
                let put_back = source.was_put_back();
                self.board
                    .relaying(&self.name, lag, broken(&watched), put_back);
                look_at = Instant::now() + LOOK_EVERY;
            }
            if prune_at <= Instant::now() {
                // It shows that the database is the same.
                let kept = source.last_published().unwrap_or(i64::MIN);
                if database.prune(kept, PRUNED).await? < u64::from(PRUNED) {
                    prune_at = Instant::now() + PRUNE_EVERY;
                }
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
                    match broken(&watched) {
                        None => self.health.up(&self.part),
                        Some(why) => self.health.down(&self.part, why),
                    }
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
        self.mark(database, source, &at_hand.published).await
    }

    /// Looks whether changes are noted, and says so when that isn't as `before`.
    async fn watched(
        &self,
        database: &mut Database,
        before: Watched,
    ) -> Result<Watched, SourceError> {
        let watched = match (database.watch().await?, before.clone()) {
            // Who may no longer look knows what was seen last.
            (Watched::Unknown(_), Watched::Broken(why)) => Watched::Broken(why),
            (watched, _) => watched,
        };
        if watched != before {
            match &watched {
                Watched::Good => tracing::info!(source = %self.name, "changes are noted again"),
                Watched::Broken(why) => tracing::error!(source = %self.name, "{why}"),
                Watched::Older(why) | Watched::Unknown(why) => {
                    tracing::warn!(source = %self.name, "{why}");
                }
            }
        }
        Ok(watched)
    }

    /// Publishes what rows come to; marks what was published before and reads what waits behind them meanwhile. Why not
    /// all could be published, if so.
    async fn publish(
        &self,
        batches: &mut Batches,
        database: &mut Database,
        source: &mut Source,
        at_hand: &mut AtHand,
        mut noted: Noted,
    ) -> Result<Option<String>, SourceError> {
        let full = noted.rows.len() == WINDOW as usize;
        let under_way = noted.rows.last().filter(|_| full).map(|last| RowsUnderWay {
            last: last.id,
            count: i64::from(WINDOW),
        });
        let joined = source.failed.join(&mut noted.rows);
        let last = noted.rows.iter().max_by_key(|row| row.id);
        let last = last.map(OutboxRow::stamp);
        let marked = source.layout.deleted.is_some();
        let plan = plan::plan(noted.rows, &mut noted.found, &source.held, marked);
        self.brake(database, source, &plan).await?;
        // What came back has a note behind these: both are read anew, together.
        let under_way = under_way.filter(|_| plan.held.is_empty() && !joined);
        source.held = plan.held.iter().copied().collect();
        let (events, told) = told(source, plan).await;
        let last = last.filter(|_| !events.is_empty());
        let mut ledger = source.ledger.take();
        let writing = async {
            match (&mut ledger, last) {
                (Some(ledger), Some(last)) => ledger.publishing(last).await,
                _ => Ok(()),
            }
        };
        let publishing = window::publish(batches, events, &self.shutdown);
        let meanwhile = async {
            self.mark(database, source, &at_hand.published).await?;
            let Some(under_way) = under_way else {
                return Ok(None);
            };
            match database.unpublished_behind(under_way, WINDOW).await? {
                Some(rows) => noted_of(database, source, rows).await.map(Some),
                None => Ok(None),
            }
        };
        let (written, mut window, ahead) = join3(writing, publishing, meanwhile).await;
        source.ledger = ledger;
        written.map_err(unavailable)?;
        window.silent.extend(told.silent);
        window.failed.extend(told.failed);
        self.meters.window(&window);
        let trouble = window.trouble.take();
        // Behind a row that isn't published, its user's next may wait: they are read again.
        at_hand.ahead = ahead?.filter(|noted| !noted.rows.is_empty() && trouble.is_none());
        if at_hand.ahead.is_none() {
            self.mark(database, source, &window).await?;
            window = Window::default();
        }
        if joined {
            source.failed = Failed::read(database, &source.layout).await?;
        }
        at_hand.published = window;
        Ok(trouble)
    }

    /// Stops before more users are deleted than anybody would mean to.
    async fn brake(
        &self,
        database: &mut Database,
        source: &mut Source,
        plan: &Plan,
    ) -> Result<(), SourceError> {
        let brake = &mut source.brake;
        let mut gone: HashMap<&str, i64> = HashMap::new();
        for step in &plan.steps {
            match step.what {
                What::Gone => _ = gone.insert(&step.row.user, step.row.id),
                What::Row { .. } => {
                    gone.remove(step.row.user.as_str());
                    brake.back(&step.row.user);
                }
                What::Payload => {}
            }
        }
        let now = std::time::Instant::now();
        let mut left = unapproved(&gone, source.origin.about.as_ref());
        let count = brake.with(&left, now);
        if !Brake::is_loose(count) {
            let users = database.estimate().await?;
            if Brake::stops(count, users).is_some() {
                source.origin.about = match &source.ledger {
                    Some(ledger) => self.about(database, ledger).await?,
                    None => database.about().await?,
                };
                left = unapproved(&gone, source.origin.about.as_ref());
                let stops = Brake::stops(brake.with(&left, now), users);
                if let Some(why) = stops.filter(|_| !left.is_empty()) {
                    return Err(SourceError::Refused(why));
                }
            }
        }
        brake.count(&left, now);
        Ok(())
    }

    /// Marks what a window came to.
    async fn mark(
        &self,
        database: &mut Database,
        source: &mut Source,
        window: &Window,
    ) -> Result<(), SourceError> {
        let done = [window.published.as_slice(), window.silent.as_slice()].concat();
        database.mark_published(&done).await?;
        for failure in &window.failed {
            tracing::error!(source = %self.name, outbox.id = failure.id, reason = failure.reason,
                "a row of the outbox can't be published; its state is 2 now");
        }
        database.mark_failed(&window.failed).await?;
        match window.failed.iter().map(|failure| failure.id).min() {
            Some(first) => source.failed.add(database, &source.layout, first).await,
            None => Ok(()),
        }
    }

    async fn pause(&self, pause: Duration) {
        let pausing = tokio::time::sleep(pause);
        self.shutdown.run_until_cancelled(pausing).await;
    }
}

fn unavailable(error: anyhow::Error) -> SourceError {
    SourceError::Unavailable(format!("{error:#}"))
}

/// Why changes aren't noted, if so.
fn broken(watched: &Watched) -> Option<String> {
    match watched {
        Watched::Broken(why) => Some(why.clone()),
        Watched::Good | Watched::Older(_) | Watched::Unknown(_) => None,
    }
}

/// Those who are gone by a note that nobody has approved. An older outbox knows no approval.
fn unapproved<'a>(gone: &HashMap<&'a str, i64>, about: Option<&About>) -> Vec<&'a str> {
    let approved = about.map_or(i64::MAX, |about| about.approved);
    let left = gone.iter().filter(|(_, note)| **note > approved);
    left.map(|(user, _)| *user).collect()
}

/// Reads the rows of the users that rows of the outbox are about: later than these, so that no change is missed.
async fn noted_of(
    database: &mut Database,
    source: &Source,
    mut rows: Vec<OutboxRow>,
) -> Result<Noted, SourceError> {
    if !rows.is_empty() {
        let about = database.about().await?;
        let epoch = |about: &Option<About>| about.as_ref().map(|about| about.epoch.clone());
        if epoch(&about) != epoch(&source.origin.about) {
            return Err(SourceError::Refused(
                "the outbox was made anew, or another epoch begun: it is read from the beginning"
                    .to_owned(),
            ));
        }
    }
    for row in &mut rows {
        row.user = source.layout.spelled(&row.user).into_owned();
    }
    let notes = rows.iter().filter(|row| row.payload.is_none());
    let mut users: Vec<String> = notes.map(|row| row.user.clone()).collect();
    if source.origin.about.is_none() && !users.is_empty() {
        return Err(SourceError::Refused(
            "there are notes in an outbox that an older version has made; `usersync-scheduler outbox install` renews it"
                .to_owned(),
        ));
    }
    users.sort_unstable();
    users.dedup();
    let mut found = Found::new();
    users.retain(|user| {
        // Some servers refuse to be asked for it.
        let possible = source.layout.can_hold(user);
        if !possible {
            let reason = "its id is none that a user can have, or none that the table can hold";
            found.insert(user.clone(), Err(reason.to_owned()));
        }
        possible
    });
    for users in users.chunks(USERS) {
        for row in database.users(&source.layout, users).await? {
            found.insert(row.id, row.document);
        }
    }
    Ok(Noted { rows, found })
}

/// An event of a step.
struct Telling {
    event: Event,
    message_id: String,
    settles: Vec<(i64, i64)>,
    blamed: i64,
    /// Nobody can have published it before.
    fresh: bool,
}

impl Telling {
    /// Whether the state may say the same already.
    fn may_be_known(&self) -> bool {
        self.fresh && self.event.kind == EventType::Updated && self.event.outbox.is_some()
    }
}

/// The events of a plan that say something, and the rest of what it comes to.
async fn told(source: &mut Source, plan: Plan) -> (Vec<Sending>, Window) {
    let mut rest = Window {
        silent: plan.silent,
        failed: plan.failed,
        ..Window::default()
    };
    let mut events = Vec::with_capacity(plan.steps.len());
    for step in plan.steps {
        let mut settles = step.others.clone();
        settles.push((step.row.id, step.row.created_us));
        let blamed = step.blamed;
        match source.origin.event(&step, source.layout.id.kind) {
            Ok(event) => {
                let first = settles.iter().map(|(id, _)| *id).min();
                let fresh = first.is_some_and(|first| first > source.fence);
                events.push(Telling {
                    event,
                    message_id: source.origin.id(step.row.id),
                    settles,
                    blamed,
                    fresh,
                });
            }
            Err(reason) => rest.fail(blamed, &settles, reason),
        }
    }
    let owned = &source.origin.owned;
    let rows = events.iter().filter(|telling| telling.may_be_known());
    let rows: Vec<&Event> = rows.map(|telling| &telling.event).collect();
    let mut compared = source.newest.compare(&rows, owned).await.into_iter();
    let mut sending = Vec::with_capacity(events.len());
    for mut telling in events {
        let differs = match telling.may_be_known() {
            true => compared.next().unwrap_or(Differs::Yes),
            false => Differs::Yes,
        };
        match differs {
            Differs::No => {
                rest.silent
                    .extend(telling.settles.iter().map(|(id, _)| *id));
                continue;
            }
            Differs::Status => telling.event.kind = EventType::StatusChanged,
            Differs::Yes => {}
        }
        let Telling {
            event,
            message_id,
            settles,
            blamed,
            ..
        } = telling;
        match event::written(&event, message_id) {
            Ok(ready) => {
                let note = event.outbox.as_ref().map(|outbox| outbox.note);
                source.newest.sent(event.user_id, note);
                sending.push(Sending {
                    blamed,
                    settles,
                    event: ready,
                });
            }
            Err(reason) => rest.fail(blamed, &settles, reason),
        }
    }
    (sending, rest)
}
