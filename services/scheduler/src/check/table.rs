//! The table of a main database as one side, and the states as the other.
//!
//! A difference counts only when nothing is on its way. The state is read, then the row; then the outbox has no
//! unpublished row of the user, intake has merged everything that is in USER_EVENTS by now, and the state is still the
//! same one. A change that was committed after the state was read and before the outbox was looked at would have
//! become a newer state by then: so there was none, and the two say different things of one moment (docs/adr/0023).

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use async_nats::{
    Message,
    jetstream::stream::{LastRawMessageErrorKind, Stream},
};
use async_trait::async_trait;
use futures_util::{StreamExt, TryFutureExt, TryStreamExt, stream};
use tokio::{
    sync::Mutex,
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};
use usersync_core::{
    check::{Check, Class, Policy, Request},
    event::Event,
    load,
    member::Member,
    nats::REQUEST_TIMEOUT,
    state::State,
    stored_state,
    subjects::{self, GATEWAY_TARGET, INTAKE, USER_EVENTS},
    user_id::UserId,
};
use usersync_digest::{Each, Row, RowHash, Scan, SideError};
use usersync_source::{Database, Layout, SourceConfig, SourceName};

use super::{
    repair::{Remedy, now_us, tombstone},
    sides::{Seen, Sides, Unusable},
};
use crate::{
    load::rows::{self, Rows},
    scheduler::Scheduler,
};

/// States asked for at once.
const READS: usize = 128;
/// Pages that are hashed at once, or wait to be taken.
const HASHED: usize = 2;
/// How long intake is given to merge what has just come in, before those who differ are left for later.
const MERGING: Duration = Duration::from_millis(500);
/// How often it is asked meanwhile.
const ASK: Duration = Duration::from_millis(10);

/// The table of one source.
pub(crate) struct Table {
    name: SourceName,
    config: SourceConfig,
    layout: Layout,
    members: Vec<Member>,
    /// Whether changes wait in an outbox.
    outbox: bool,
    database: Mutex<Database>,
    /// Who is asked for.
    request: Request,
    /// What was in the way when the table was read last.
    unusable: std::sync::Mutex<Unusable>,
}

impl Table {
    /// Connects, and fits the mapping to the table.
    ///
    /// # Errors
    /// When it can't be asked, or isn't as the settings say.
    pub(crate) async fn open(
        name: &SourceName,
        config: &SourceConfig,
        request: &Request,
    ) -> anyhow::Result<Self> {
        let source = || format!("source {name}");
        let mut database = Database::connect(config).await.with_context(source)?;
        let layout = database.readable().await.with_context(source)?;
        let outbox = match config.outbox {
            true => database.standing().await.with_context(source)?.is_there,
            false => false,
        };
        Ok(Self {
            name: name.clone(),
            config: config.clone(),
            members: layout.members().cloned().collect(),
            layout,
            outbox,
            database: Mutex::new(database),
            request: request.clone(),
            unusable: Default::default(),
        })
    }

    /// The user of a state, and what it is to hash to when it says what the row does; `None` where no row is expected.
    pub(crate) fn hash_of_state(&self, state: &Message) -> Option<(String, RowHash)> {
        let state = stored_state::of_message(state)?;
        if state.deleted {
            return None;
        }
        let id = state.user_id.to_string();
        // Whoever is only partly known differs from every row.
        let digest = (!state.partial).then(|| load::digest_of_state(&state, &self.members));
        let hash = hash(&id, digest);
        Some((id, hash))
    }

    /// What the rows of these users say; of a row that no event can tell of, why.
    async fn rows(
        &self,
        users: &[UserId],
    ) -> anyhow::Result<HashMap<UserId, Result<Event, String>>> {
        let ids: Vec<String> = users.iter().map(UserId::to_string).collect();
        let ids: Vec<String> = ids
            .into_iter()
            .filter(|id| self.layout.can_hold(id))
            .collect();
        let mut database = self.database.lock().await;
        let found = match database.users(&self.layout, &ids).await {
            Ok(found) => found,
            Err(_) => {
                *database = database.again().await?;
                database.users(&self.layout, &ids).await?
            }
        };
        let mut rows = HashMap::new();
        for row in found {
            let read = row.document;
            match read.and_then(|document| rows::of_document(&self.name, &document)) {
                Ok(event) => _ = rows.insert(event.user_id.clone(), Ok(event)),
                Err(reason) => {
                    if let Ok(user) = row.id.parse() {
                        rows.entry(user).or_insert(Err(reason));
                    }
                }
            }
        }
        Ok(rows)
    }

    /// Those of `users` a row of the outbox is about that isn't published yet.
    async fn waiting(&self, users: &[&UserId]) -> anyhow::Result<HashSet<String>> {
        if !self.outbox {
            return Ok(HashSet::new());
        }
        let ids: Vec<String> = users.iter().map(ToString::to_string).collect();
        let mut database = self.database.lock().await;
        let waiting = match database.waiting(&self.layout, &ids).await {
            Ok(waiting) => waiting,
            Err(_) => {
                *database = database.again().await?;
                database.waiting(&self.layout, &ids).await?
            }
        };
        Ok(waiting.into_iter().collect())
    }

    fn found(&self, unusable: Unusable) {
        *self.unusable.lock().unwrap_or_else(PoisonError::into_inner) = unusable;
    }

    async fn read(&self, each: Each<'_>) -> anyhow::Result<u64> {
        let database = Database::connect(&self.config).await?;
        let rows = Rows::read(database, self.layout.clone());
        let pages = stream::try_unfold(rows, async |mut rows| {
            anyhow::Ok(rows.next().await?.map(|page| (page, rows)))
        });
        let hashing = Arc::new(Hashing {
            name: self.name.clone(),
            members: self.members.clone(),
            request: self.request.clone(),
        });
        // Beside the states, which this process's one thread reads meanwhile (docs/adr/0006).
        let mut hashed = pages
            .map_ok(|page| {
                let hashing = Arc::clone(&hashing);
                let hashed = spawn_blocking(move || hashing.page(page));
                hashed.map_err(|_| anyhow::anyhow!("hashing rows broke off"))
            })
            .try_buffered(HASHED)
            .boxed();
        let (mut bytes, mut unusable) = (0, Unusable::default());
        while let Some(page) = hashed.try_next().await? {
            bytes += page.bytes;
            for (id, hash) in page.users {
                each(&id, hash);
            }
            unusable.add(page.unusable);
        }
        self.found(unusable);
        Ok(bytes)
    }
}

/// What it takes to hash rows.
struct Hashing {
    name: SourceName,
    members: Vec<Member>,
    request: Request,
}

/// What became of a page.
#[derive(Default)]
struct Hashed {
    users: Vec<(String, RowHash)>,
    bytes: u64,
    unusable: Unusable,
}

impl Hashing {
    fn page(&self, page: Vec<rows::Row>) -> Hashed {
        let mut hashed = Hashed::default();
        for row in page {
            hashed.bytes += row.document.len() as u64;
            match rows::event(&self.name, &row) {
                Ok(event) => {
                    let digest = load::digest_of_row(&event, &self.members);
                    let id = event.user_id.to_string();
                    let hash = hash(&id, Some(digest));
                    hashed.users.push((id, hash));
                }
                // What no event can tell of is in no state either.
                Err(reason) if self.is_asked_for(&row.id) => hashed.unusable.note(reason),
                Err(_) => {}
            }
        }
        hashed
    }

    /// Whether a row is, as the table spells its id.
    fn is_asked_for(&self, id: &str) -> bool {
        // What isn't even an id lies in no range.
        let user = id.parse().unwrap_or_else(|_| UserId::Text(id.into()));
        self.request.covers(&user)
    }
}

#[async_trait]
impl Scan for Table {
    async fn scan(&self, each: Each<'_>) -> Result<u64, SideError> {
        let read = self.read(each).await;
        read.map_err(|error| SideError::new(format!("source {}: {error:#}", self.name)))
    }
}

/// The hash of what is compared of a user.
fn hash(id: &str, digest: Option<u64>) -> RowHash {
    let mut row = Row::new(id);
    let digest = digest.map(u64::to_be_bytes);
    row.field(digest.as_ref().map(<[u8; 8]>::as_slice));
    row.hash()
}

/// The states against one of the sources.
pub(crate) struct Pass<'a> {
    scheduler: &'a Scheduler,
    tables: &'a [Table],
    table: &'a Table,
    /// Whoever is in none of the tables is found by the first pass.
    first: bool,
    check: Check,
}

impl<'a> Pass<'a> {
    /// The pass over the table at `at`, `None` when there is none.
    pub(crate) fn over(
        scheduler: &'a Scheduler,
        tables: &'a [Table],
        at: usize,
    ) -> Option<(Self, &'a Table)> {
        let table = tables.get(at)?;
        let mut check = table.config.check.clone();
        // An orphan is in none of them, so all have to agree on what follows.
        let same = |other: &Table| other.config.check.orphan == check.orphan;
        if !tables.iter().all(same) {
            check.orphan = Policy::Report;
        }
        let pass = Self {
            scheduler,
            tables,
            table,
            first: at == 0,
            check,
        };
        Some((pass, table))
    }

    /// Whether intake has merged all that is in USER_EVENTS now; it is given a moment.
    async fn is_merged(&self) -> anyhow::Result<bool> {
        let asking = async {
            let events = self.scheduler.jetstream.get_stream(USER_EVENTS).await?;
            let last = events.cached_info().state.last_sequence;
            let end = Instant::now() + MERGING;
            loop {
                let info = events.consumer_info(INTAKE).await?;
                if info.ack_floor.stream_sequence >= last {
                    return anyhow::Ok(true);
                }
                if Instant::now() >= end {
                    return Ok(false);
                }
                sleep(ASK).await;
            }
        };
        let merged = timeout(REQUEST_TIMEOUT + MERGING, asking).await;
        merged
            .context("asking for intake took too long")?
            .context("asking for intake")
    }

    /// How users stand if nothing is on its way; only those who differ, by their place in `users`.
    async fn compared(
        &self,
        users: &[UserId],
        states: Vec<(u64, Option<State>)>,
    ) -> anyhow::Result<Vec<(usize, u64, Class, Remedy)>> {
        let rows = self.table.rows(users).await?;
        let (mut found, mut orphans) = (Vec::new(), Vec::new());
        let mut unusable = Unusable::default();
        let now = now_us();
        for (place, (user, (seq, state))) in users.iter().zip(states).enumerate() {
            match (rows.get(user), state) {
                (Some(Ok(row)), state) => {
                    let class = if seq == 0 {
                        Class::Missing
                    } else {
                        Class::Different
                    };
                    if let Some(state) = load::merge(state, row, &self.table.members, now) {
                        let remedy = Remedy::Write(Box::new(state), seq);
                        found.push((place, seq, class, remedy));
                    }
                }
                (None, Some(state)) if self.first && !state.deleted => {
                    orphans.push((place, seq, state));
                }
                (Some(Err(reason)), _) => unusable.note(reason.clone()),
                (None, _) => {}
            }
        }
        // Otherwise the table is read from one end to the other.
        if self.table.request.user_id.is_some() {
            self.table.found(unusable);
        }
        for table in self.tables.iter().skip(1) {
            let asked: Vec<UserId> = orphans
                .iter()
                .map(|(_, _, state)| state.user_id.clone())
                .collect();
            let rows = table.rows(&asked).await?;
            orphans.retain(|(_, _, state)| !rows.contains_key(&state.user_id));
        }
        found.extend(orphans.into_iter().map(|(place, seq, state)| {
            let gone = tombstone(&state.user_id, Some(&state), now);
            let remedy = Remedy::Write(Box::new(gone), seq);
            (place, seq, Class::Orphan, remedy)
        }));
        Ok(found)
    }
}

#[async_trait(?Send)]
impl Sides for Pass<'_> {
    fn name(&self) -> &str {
        GATEWAY_TARGET
    }

    fn check(&self) -> &Check {
        &self.check
    }

    fn unusable(&self) -> Unusable {
        let unusable = self.table.unusable.lock();
        unusable.unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn look(&self, users: &[UserId]) -> anyhow::Result<Vec<Seen>> {
        let states = &self.scheduler.states;
        let mut seen = vec![Seen::Alike; users.len()];
        // Before the rows: what is written follows from what was read last.
        let reading = stream::iter(users).map(|user| newest(states, user));
        let before = reading.buffered(READS).try_collect().await?;
        let found = self.compared(users, before).await?;
        if found.is_empty() {
            return Ok(seen);
        }
        let differing: Vec<&UserId> = found.iter().map(|(place, ..)| &users[*place]).collect();
        let mut waiting = HashSet::new();
        for table in self.tables {
            waiting.extend(table.waiting(&differing).await?);
        }
        let merged = self.is_merged().await?;
        let again = stream::iter(&differing).map(|user| newest(states, user));
        let again: Vec<(u64, Option<State>)> = again.buffered(READS).try_collect().await?;
        for ((place, seq, class, remedy), (now, _)) in found.into_iter().zip(again) {
            let stands = merged && now == seq && !waiting.contains(&users[place].to_string());
            seen[place] = match stands {
                true => Seen::Drift(class, remedy),
                false => Seen::Pending,
            };
        }
        Ok(seen)
    }
}

/// The sequence of a user's newest state, 0 when there is none, and the state unless it can't be read. The leader is
/// asked: a replica may lag.
async fn newest(states: &Stream, user: &UserId) -> anyhow::Result<(u64, Option<State>)> {
    let subject = subjects::state(user);
    let found = timeout(
        REQUEST_TIMEOUT,
        states.get_last_raw_message_by_subject(&subject),
    );
    match found.await.context("asking for a state took too long")? {
        Ok(message) => {
            let state = stored_state::unless_newer(user, &message.payload)?;
            Ok((message.sequence, state))
        }
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok((0, None)),
        Err(error) => Err(error).context("asking for a state"),
    }
}
