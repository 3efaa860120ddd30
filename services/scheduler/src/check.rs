//! One check: walks over what a copy is meant to hold and what it holds, looks again at everybody who differs, and
//! has what still differs repaired. The copy is a target's, or the states themselves.

mod copy;
mod journal;
mod meant;
mod repair;
mod settle;
mod sides;
mod table;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use async_nats::Message;
use futures_util::TryStreamExt as _;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use usersync_core::{
    check::{Checked, Class, LeftOut, Report, Request, Stage},
    stored_state,
    subjects::{self, GATEWAY_TARGET, USER_DEAD, USER_REPAIR},
    target::TargetName,
    user_id::UserId,
};
use usersync_digest::{Place, Row, Scanned, Side, Walk};
use usersync_targets::{Action, Holdings, Rule, Unchecked, Verdict};

pub(crate) use self::journal::{Entries, Journal, Progress};

use self::{
    copy::Copy,
    journal::Mark,
    meant::{Meant, Told},
    sides::{Seen, Sides, Unusable},
    table::{Pass, Table},
};
use crate::{claim, scheduler::Scheduler, states::States};

/// What targets are compared with.
const STATES: &str = "states";
/// Why the states can't be checked.
const NO_SOURCE: &str = "the states can't be checked: no main database is configured; give the scheduler a settings \
     file (--config) with [sources.NAME], as the gateway has it (docs/OUTBOX.md)";
/// The id of the row that stands for one that a target can't hold: no user has it.
const REFUSED: &str = " refused";
/// How much of an id that can't be one is shown, in characters.
const SHOWN: usize = 64;
/// Users looked at again at once.
const CHUNK: usize = 512;
/// Users who differ and are waited for at the end of a check, at most; more are only counted.
const WAITING: usize = 50_000;
/// How many of them another scheduler is told of: with those under repair they fit into a value of the bucket.
const CARRIED: usize = 128;
/// How long it may take to list dead letters.
const LISTED: Duration = Duration::from_secs(60);
/// How long a check waits before it looks at them again, at first and at most.
const SOON: Duration = Duration::from_millis(200);
const LATER: Duration = Duration::from_secs(3);
/// How often a paused check looks whether it may go on.
const PAUSED: Duration = Duration::from_secs(1);

/// An id that no user can have, in characters that one can: a question mark for each of the others.
fn legible(id: &str) -> UserId {
    let shown = |letter: char| {
        if letter.is_ascii_graphic() {
            letter
        } else {
            '?'
        }
    };
    let shown: String = id.chars().map(shown).take(SHOWN).collect();
    match shown.as_str() {
        "" => UserId::Text("?".into()),
        shown => UserId::Text(shown.into()),
    }
}

/// How a check ended.
pub(crate) enum End {
    /// With a report.
    Done(Box<Report>),
    /// It was stopped on the way.
    Interrupted(Box<Progress>),
}

/// Checks `name` until it is done, or `stop` says otherwise; it goes on where `journal` says, and tells it how far it is.
pub(crate) async fn run(
    scheduler: &Scheduler,
    name: &str,
    request: &Request,
    journal: Journal,
    stop: CancellationToken,
) -> End {
    let first = || Report::new(name, against(scheduler, name), request.dry_run);
    let (mark, mending) = journal.last().resumed(first);
    let mut check = Check {
        scheduler,
        request,
        begun: Instant::now(),
        before: mark.report.seconds,
        journal,
        report: mark.report.clone(),
        waiting: mark.waiting.clone(),
        mark,
        mending,
        asked: BTreeMap::new(),
        brake: 0,
        given_up: HashSet::new(),
        excused: 0,
        reads_all: false,
        refused: LeftOut::default(),
    };
    let done = stop.run_until_cancelled(check.all(name)).await;
    match done {
        None => End::Interrupted(Box::new(check.progress())),
        Some(done) => {
            let mut report = check.progress().report.unwrap_or(check.report);
            match done {
                Ok(()) if report.stage == Stage::Running => report.stage = Stage::Done,
                Ok(()) => {}
                Err(error) => {
                    report.stage = Stage::Failed;
                    report.error = Some(format!("{error:#}"));
                }
            }
            End::Done(Box::new(report))
        }
    }
}

/// A check under way.
struct Check<'a> {
    scheduler: &'a Scheduler,
    request: &'a Request,
    begun: Instant,
    /// Seconds it had taken before it was resumed.
    before: f64,
    journal: Journal,
    report: Report,
    /// Where another scheduler would go on.
    mark: Mark,
    /// Users who differ, and whose newest state was on its way when they were looked at.
    waiting: BTreeSet<UserId>,
    /// Users who are being repaired, and how they differed.
    mending: BTreeMap<UserId, Class>,
    /// Users whose repair was asked for, and how they differed: at the end they are looked at once more.
    asked: BTreeMap<UserId, Class>,
    /// How many users may be changed without asking.
    brake: u64,
    /// Users who have a dead letter of the target: they differ in every check, and count nothing towards the brake.
    given_up: HashSet<UserId>,
    /// How many of them were repaired.
    excused: u64,
    /// Whether all states are read, and not users one by one.
    reads_all: bool,
    /// Users who could not be compared when they were looked at.
    refused: LeftOut,
}

/// What `name` is compared with.
fn against(scheduler: &Scheduler, name: &str) -> String {
    if name != GATEWAY_TARGET || scheduler.sources.is_empty() {
        return STATES.to_owned();
    }
    let names: Vec<_> = scheduler.sources.keys().map(AsRef::as_ref).collect();
    names.join(", ")
}

/// Users who have a dead letter of a target.
async fn given_up(scheduler: &Scheduler, name: &TargetName) -> anyhow::Result<HashSet<UserId>> {
    let listing = async {
        let letters = scheduler.jetstream.get_stream_no_info(USER_DEAD).await?;
        let letters = letters.info_with_subjects(subjects::dead_letters_of(name));
        let letters: Vec<(String, usize)> = letters.await?.try_collect().await?;
        anyhow::Ok(letters)
    };
    let listed = tokio::time::timeout(LISTED, listing).await;
    let letters = listed
        .context("listing dead letters took too long")?
        .context("listing dead letters")?;
    let of_user =
        |(subject, _): &(String, usize)| subjects::of_dead_letter(subject).map(|(_, user)| user);
    Ok(letters.iter().filter_map(of_user).collect())
}

impl Check<'_> {
    async fn all(&mut self, name: &str) -> anyhow::Result<()> {
        match name.parse().context("there can be no such target")? {
            Checked::States => self.states().await,
            Checked::Target(name) => self.target(name).await,
        }
    }

    /// Compares the states with every main database, one after the other.
    async fn states(&mut self) -> anyhow::Result<()> {
        let scheduler = self.scheduler;
        ensure!(!scheduler.sources.is_empty(), NO_SOURCE);
        let mut tables = Vec::new();
        for (name, config) in &scheduler.sources {
            tables.push(Table::open(name, config, self.request).await?);
        }
        while let Some((sides, table)) = Pass::over(scheduler, &tables, self.mark.pass) {
            self.brake = sides.check().brake(self.users().await?);
            self.look_again(&sides).await?;
            if let Some(user) = &self.request.user_id {
                self.report.users = 1;
                let unusable = self.report.unusable;
                self.look(&sides, vec![user.clone()]).await?;
                self.note_unusable(unusable, &sides);
            } else {
                let jetstream = scheduler.jetstream.clone();
                let hash = |state: &Message| match table.hash_of_state(state) {
                    Some((id, hash)) => Told::There(id, hash),
                    // What can't be read differs from every row.
                    None => Told::Nobody,
                };
                let held = Meant::new(jetstream, Arc::default(), hash);
                self.walk(&sides, &Scanned(table), &Scanned(held)).await?;
            }
            self.wait(&sides).await?;
            if self.report.stage == Stage::Braked {
                break;
            }
            self.mark_at(self.mark.pass + 1, None);
        }
        Ok(())
    }

    async fn target(&mut self, name: TargetName) -> anyhow::Result<()> {
        let entry = self.scheduler.registry.entry(&name).await?;
        let entry = entry.with_context(|| format!("there is no target {name}"))?;
        let problem = entry.problem.unwrap_or_default();
        let config = entry
            .config
            .with_context(|| format!("the entry of {name} can't be used: {problem}"))?;
        ensure!(
            config.enabled,
            "the target is disabled, so nothing is delivered to it"
        );
        self.brake = config.check.brake(self.users().await?);
        self.given_up = given_up(self.scheduler, &name).await?;
        let egress = &self.scheduler.egress;
        let rule = Rule::compile(&config, &egress.secrets)?;
        let driver = usersync_targets::connect(&config, egress)?;
        let holdings = driver.holdings().await;
        let client = self.scheduler.jetstream.client();
        let copy = Copy {
            config: &config,
            rule: &rule,
            driver: &*driver,
            client: &client,
            states: &self.scheduler.states,
            repairs: self
                .scheduler
                .jetstream
                .get_stream_no_info(USER_REPAIR)
                .await?,
            holdings: holdings.as_deref().ok(),
            refused: Arc::default(),
        };
        self.look_again(&copy).await?;
        if let Some(user) = &self.request.user_id {
            self.report.users = 1;
            self.look(&copy, vec![user.clone()]).await?;
        } else {
            match &holdings {
                Ok(holdings) => {
                    let jetstream = self.scheduler.jetstream.clone();
                    let request = self.request;
                    let hash = |state: &Message| expected(&rule, &**holdings, state, request);
                    let meant = Meant::new(jetstream, Arc::clone(&copy.refused), hash);
                    self.walk(&copy, &Scanned(meant), holdings.side()).await?;
                }
                Err(Unchecked::OneByOne(_)) => self.one_by_one(&copy).await?,
                Err(error) => bail!(error.clone()),
            }
        }
        self.wait(&copy).await
    }

    /// Compares digests, and looks again at whom they say differ.
    async fn walk(
        &mut self,
        sides: &dyn Sides,
        meant: &dyn Side,
        held: &dyn Side,
    ) -> anyhow::Result<()> {
        self.reads_all = true;
        let mut walk = match self.mark.place {
            Some(place) => Walk::resumed(meant, held, place),
            None => Walk::new(meant, held).await?,
        };
        let (users, bytes) = (self.report.users, self.report.bytes);
        let unusable = self.report.unusable;
        loop {
            self.wait_while_paused(sides.name()).await?;
            let asked = Instant::now();
            let found = walk.next().await?;
            self.report.refused = sides.refused().and(&self.refused);
            let Some(found) = found else {
                return Ok(());
            };
            let busy = asked.elapsed();
            let read = walk.read();
            self.report.users = users + read.left.max(read.right);
            self.report.bytes = bytes + read.bytes;
            self.note_unusable(unusable, sides);
            let mut users = Vec::new();
            for difference in found {
                match difference.id.parse() {
                    Ok(user) if self.request.covers(&user) => users.push(user),
                    Ok(_) => {}
                    // Nobody of ours has such an id, so no delivery can name the row: somebody has to look for it.
                    Err(_) => {
                        let shown = legible(&difference.id);
                        self.note_left(sides.check(), Class::Orphan, &shown, false);
                    }
                }
            }
            self.look(sides, users).await?;
            if self.report.stage == Stage::Braked {
                return Ok(());
            }
            if let Some(place) = walk.place() {
                self.mark_at(self.mark.pass, Some(place));
            }
            self.tell();
            let load = sides.check().load;
            sleep(busy.mul_f64((1.0 - load) / load)).await;
        }
    }

    /// Looks at everybody there is a state of. Who is at the target and has none isn't found so.
    async fn one_by_one(&mut self, sides: &dyn Sides) -> anyhow::Result<()> {
        let mut states = States::open(&self.scheduler.jetstream).await?;
        let mut users = Vec::with_capacity(CHUNK);
        loop {
            let page = states.next().await?;
            let ended = page.is_none();
            for message in page.iter().flatten() {
                let user = subjects::user_of_state(&message.subject);
                let Some(user) = user.filter(|user| self.request.covers(user)) else {
                    continue;
                };
                match stored_state::of_message(message) {
                    Some(_) => users.push(user),
                    // It is refused by workers too, and dead-lettered there.
                    None => self.note_refused(sides, &user, copy::UNREADABLE),
                }
            }
            if !ended && users.len() < CHUNK {
                continue;
            }
            self.wait_while_paused(sides.name()).await?;
            self.report.users += users.len() as u64;
            self.look(sides, std::mem::take(&mut users)).await?;
            self.tell();
            if ended || self.report.stage == Stage::Braked {
                return Ok(());
            }
        }
    }

    /// Looks again at `users`: who really differs is noted and repaired, who may still be on the way is waited for.
    async fn look(&mut self, sides: &dyn Sides, mut users: Vec<UserId>) -> anyhow::Result<()> {
        // Their turn comes.
        users.retain(|user| !self.waiting.contains(user));
        for users in users.chunks(CHUNK) {
            let seen = sides.look(users).await?;
            self.settle(sides, users, &seen).await?;
            if self.report.stage == Stage::Braked {
                return Ok(());
            }
            for (user, seen) in users.iter().zip(seen) {
                match seen {
                    Seen::Pending => self.look_later(user),
                    // The scheduler before had begun to repair them, and has.
                    Seen::Alike => {
                        if let Some(class) = self.mending.remove(user) {
                            self.report.note(class, user, true);
                        }
                    }
                    // Reading all states has counted them.
                    Seen::Untold(_) if self.reads_all => {}
                    Seen::Untold(reason) | Seen::Unshown(reason) => {
                        self.note_refused(sides, user, &reason);
                    }
                    Seen::Expired => self.report.expired.note(user, None),
                    Seen::Drift(..) => {}
                }
            }
        }
        Ok(())
    }

    /// How many users there are, for the brake.
    async fn users(&self) -> anyhow::Result<u64> {
        let info = self.scheduler.states.get_info();
        let info = tokio::time::timeout(usersync_core::nats::REQUEST_TIMEOUT, info).await;
        Ok(info
            .context("asking for USER_STATE took too long")??
            .state
            .messages)
    }

    fn look_later(&mut self, user: &UserId) {
        match self.waiting.len() < WAITING {
            true => _ = self.waiting.insert(user.clone()),
            false => self.report.pending += 1,
        }
    }

    /// Looks at those it waits for.
    async fn look_again(&mut self, sides: &dyn Sides) -> anyhow::Result<()> {
        let users = std::mem::take(&mut self.waiting);
        self.look(sides, users.into_iter().collect()).await
    }

    /// Waits for those who were still on the way.
    async fn wait(&mut self, sides: &dyn Sides) -> anyhow::Result<()> {
        let (end, mut pause) = (Instant::now() + sides.check().wait, SOON);
        while !self.waiting.is_empty() && self.report.stage != Stage::Braked {
            if Instant::now() >= end {
                break;
            }
            sleep(pause).await;
            pause = (2 * pause).min(LATER);
            self.look_again(sides).await?;
            self.tell();
        }
        self.report.pending += std::mem::take(&mut self.waiting).len() as u64;
        self.mending.clear();
        self.look_at_repaired(sides, end).await
    }

    /// Looks whether those whose repair was asked for are as they are meant to be: who isn't, was not repaired.
    async fn look_at_repaired(&mut self, sides: &dyn Sides, end: Instant) -> anyhow::Result<()> {
        let mut pause = SOON;
        while !self.asked.is_empty() {
            // Before they are looked at: what is through by now is through for good.
            let through = sides.repairs_are_through().await?;
            let users: Vec<UserId> = self.asked.keys().cloned().collect();
            for users in users.chunks(CHUNK) {
                for (user, seen) in users.iter().zip(sides.look(users).await?) {
                    if !matches!(seen, Seen::Drift(..)) {
                        self.asked.remove(user);
                    }
                }
            }
            if through || Instant::now() >= end {
                for class in std::mem::take(&mut self.asked).into_values() {
                    self.report.was_not_repaired(class, through);
                }
            } else if !self.asked.is_empty() {
                sleep(pause).await;
                pause = (2 * pause).min(LATER);
                self.tell();
            }
        }
        Ok(())
    }

    /// Holds the check for as long as an operator wants.
    async fn wait_while_paused(&self, name: &str) -> anyhow::Result<()> {
        while claim::is_paused(&self.scheduler.jetstream, name).await? {
            sleep(PAUSED).await;
        }
        Ok(())
    }

    /// Notes what the sides had that could be no user, beside as many rows as were known `before`.
    fn note_unusable(&mut self, before: u64, sides: &dyn Sides) {
        let Unusable { rows, because } = sides.unusable();
        self.report.unusable = before + rows;
        self.report.unusable_because = self.report.unusable_because.take().or(because);
    }

    /// Notes somebody who can't be compared, beside those found when all states were read last.
    fn note_refused(&mut self, sides: &dyn Sides, user: &UserId, reason: &str) {
        self.refused.note(user, Some(reason));
        self.report.refused = sides.refused().and(&self.refused);
    }

    /// Says that everybody before this place has been looked at.
    fn mark_at(&mut self, pass: usize, place: Option<Place>) {
        // Who waits comes along, unless that would be too much for one value of the bucket.
        if self.waiting.len() <= CARRIED {
            self.mark = Mark {
                pass,
                place,
                report: self.report.clone(),
                waiting: self.waiting.clone(),
            };
        }
    }

    fn progress(&self) -> Progress {
        let report = Report {
            seconds: self.before + self.begun.elapsed().as_secs_f64(),
            ..self.report.clone()
        };
        Progress {
            report: Some(report),
            mark: Some(self.mark.clone()),
            mending: self.mending.clone(),
        }
    }

    /// Tells how far it is.
    fn tell(&self) {
        self.journal.tell(self.progress());
    }
}

/// What a target answers when it holds of the user of `state` what it is meant to.
fn expected(rule: &Rule, holdings: &dyn Holdings, state: &Message, request: &Request) -> Told {
    let Some(user) = subjects::user_of_state(&state.subject) else {
        return Told::Nobody;
    };
    let refused = |reason: String| match request.covers(&user) {
        true => Told::Refused(user.clone(), reason),
        false => Told::Nobody,
    };
    let Some(state) = stored_state::of_message(state) else {
        return refused(copy::UNREADABLE.to_owned());
    };
    match rule.apply(state) {
        Verdict::Send(delivery) => {
            let upsert = delivery.action == Action::Upsert;
            // Whom the target can't hold is looked at: nothing there equals this.
            let unequalled = || upsert.then(|| Row::new(REFUSED).hash());
            match holdings.expected(&delivery).or_else(unequalled) {
                Some(hash) => Told::There(user.to_string(), hash),
                None => Told::Nobody,
            }
        }
        Verdict::Skip { .. } => Told::Nobody,
        Verdict::Refused(failure) => refused(failure.to_string()),
    }
}
