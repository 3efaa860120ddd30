//! One check: walks over what a copy is meant to hold and what it holds, looks again at everybody who differs, and
//! has what still differs repaired. The copy is a target's, or the states themselves.

mod copy;
mod repair;
mod sides;
mod states;
mod table;

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use usersync_core::{
    check::{Checked, Class, Policy, Report, Request, Stage},
    state::State,
    subjects::GATEWAY_TARGET,
    target::TargetName,
    user_id::UserId,
};
use usersync_digest::{Place, RowHash, Scanned, Side, Walk};
use usersync_targets::{Holdings, Rule, Unchecked, Verdict};

use self::{
    copy::Copy,
    sides::{Seen, Sides},
    states::{Reader, States},
    table::{Pass, Table},
};
use crate::{claim, scheduler::Scheduler};

/// What targets are compared with.
const STATES: &str = "states";
/// Why the states can't be checked.
const NO_SOURCE: &str = "the states can't be checked: no main database is configured; give the scheduler a settings \
     file (--config) with [sources.NAME], as the gateway has it (docs/OUTBOX.md)";
/// Repairs under way at once.
const WINDOW: usize = 256;
/// Users looked at again at once.
const CHUNK: usize = 512;
/// Users who differ and are waited for at the end of a check, at most; more are only counted.
const WAITING: usize = 50_000;
/// How long a check waits before it looks at them again, at first and at most.
const SOON: Duration = Duration::from_millis(200);
const LATER: Duration = Duration::from_secs(3);
/// How often a paused check looks whether it may go on.
const PAUSED: Duration = Duration::from_secs(1);

/// How far a check is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// What it has found so far.
    pub report: Option<Report>,
    /// Which of the main databases is being compared.
    #[serde(default)]
    pub pass: usize,
    /// Where another scheduler can go on, and what had been found up to there.
    pub resume: Option<(Place, Report)>,
}

/// How a check ended.
pub(crate) enum End {
    /// With a report.
    Done(Box<Report>),
    /// It was stopped on the way.
    Interrupted(Box<Progress>),
}

/// Checks `name` until it is done, or `stop` says otherwise; `progress` is where it goes on and what it tells of itself.
pub(crate) async fn run(
    scheduler: &Scheduler,
    name: &str,
    request: &Request,
    progress: watch::Sender<Progress>,
    stop: CancellationToken,
) -> End {
    let begun = Instant::now();
    let Progress {
        report,
        pass,
        resume,
    } = progress.borrow().clone();
    let report = match &resume {
        Some((_, report)) => Some(report.clone()),
        // Those before it are done.
        None => report.filter(|_| pass > 0),
    };
    let report = report.unwrap_or_else(|| Report {
        target: name.to_owned(),
        against: against(scheduler, name),
        stage: Stage::Running,
        dry_run: request.dry_run,
        started: Timestamp::now(),
        seconds: 0.0,
        users: 0,
        found: Default::default(),
        pending: 0,
        bytes: 0,
        error: None,
    });
    let before = report.seconds;
    let mut check = Check {
        scheduler,
        request,
        begun,
        before,
        pass,
        resume,
        progress,
        report,
        waiting: Vec::new(),
        brake: 0,
    };
    let done = stop.run_until_cancelled(check.all(name)).await;
    match done {
        None => {
            check.tell();
            End::Interrupted(Box::new(check.progress.borrow().clone()))
        }
        Some(done) => {
            let mut report = check.report;
            report.seconds = before + begun.elapsed().as_secs_f64();
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
    /// Which of the main databases is being compared.
    pass: usize,
    resume: Option<(Place, Report)>,
    progress: watch::Sender<Progress>,
    report: Report,
    /// Users who differ, and whose newest state was on its way when they were looked at.
    waiting: Vec<UserId>,
    /// How many users may be changed without asking.
    brake: u64,
}

/// What `name` is compared with.
fn against(scheduler: &Scheduler, name: &str) -> String {
    if name != GATEWAY_TARGET || scheduler.sources.is_empty() {
        return STATES.to_owned();
    }
    let names: Vec<_> = scheduler.sources.keys().map(AsRef::as_ref).collect();
    names.join(", ")
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
            tables.push(Table::open(name, config).await?);
        }
        while let Some((sides, table)) = Pass::over(scheduler, &tables, self.pass) {
            self.brake = sides.check().brake(self.users().await?);
            if let Some(user) = &self.request.user_id {
                self.report.users = 1;
                self.look(&sides, vec![user.clone()]).await?;
            } else {
                let held = States::new(scheduler.states.clone(), |state| {
                    table.hash_of_state(&state)
                });
                self.walk(&sides, &Scanned(table), &Scanned(held)).await?;
            }
            self.wait(&sides).await?;
            if self.report.stage == Stage::Braked {
                break;
            }
            (self.pass, self.resume) = (self.pass + 1, None);
        }
        Ok(())
    }

    async fn target(&mut self, name: TargetName) -> anyhow::Result<()> {
        let entry = self.scheduler.registry.entry(&name).await?;
        let config = entry.and_then(|entry| entry.config);
        let config = config.with_context(|| format!("there is no target {name}"))?;
        ensure!(
            config.enabled,
            "the target is disabled, so nothing is delivered to it"
        );
        self.brake = config.check.brake(self.users().await?);
        let rule = Rule::compile(&config)?;
        let driver = usersync_targets::connect(&config, &self.scheduler.egress)?;
        let holdings = driver.holdings().await;
        let copy = Copy {
            config: &config,
            rule: &rule,
            driver: &*driver,
            states: &self.scheduler.states,
            holdings: holdings.as_deref().ok(),
        };
        if let Some(user) = &self.request.user_id {
            self.report.users = 1;
            self.look(&copy, vec![user.clone()]).await?;
        } else {
            match &holdings {
                Ok(holdings) => {
                    let meant = Scanned(States::new(self.scheduler.states.clone(), |state| {
                        expected(&rule, &**holdings, state)
                    }));
                    self.walk(&copy, &meant, holdings.side()).await?;
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
        let mut walk = match &self.resume {
            Some((place, _)) => Walk::resumed(meant, held, *place),
            None => Walk::new(meant, held).await?,
        };
        let (users, bytes) = (self.report.users, self.report.bytes);
        loop {
            self.wait_while_paused(sides.name()).await?;
            let asked = Instant::now();
            let Some(found) = walk.next().await? else {
                return Ok(());
            };
            let busy = asked.elapsed();
            let read = walk.read();
            self.report.users = users + read.left.max(read.right);
            self.report.bytes = bytes + read.bytes;
            let mut users = Vec::new();
            for difference in found {
                match difference.id.parse() {
                    Ok(user) if self.is_asked_for(&user) => users.push(user),
                    Ok(_) => {}
                    // Nobody of ours has such an id.
                    Err(_) => self.report.found.entry(Class::Orphan).or_default().users += 1,
                }
            }
            self.look(sides, users).await?;
            if self.report.stage == Stage::Braked {
                return Ok(());
            }
            self.tell();
            if let Some(place) = walk.place() {
                self.resume = Some((place, self.report.clone()));
            }
            let load = sides.check().load;
            sleep(busy.mul_f64((1.0 - load) / load)).await;
        }
    }

    /// Looks at everybody there is a state of. Who is at the target and has none isn't found so.
    async fn one_by_one(&mut self, sides: &dyn Sides) -> anyhow::Result<()> {
        let mut reader = Reader::open(&self.scheduler.states).await?;
        let mut users = Vec::with_capacity(CHUNK);
        loop {
            let state = reader.next().await?;
            let ended = state.is_none();
            let user = state.map(|state| state.user_id);
            users.extend(user.filter(|user| self.is_asked_for(user)));
            if ended || users.len() == CHUNK {
                self.wait_while_paused(sides.name()).await?;
                self.report.users += users.len() as u64;
                self.look(sides, std::mem::take(&mut users)).await?;
                self.tell();
            }
            if ended || self.report.stage == Stage::Braked {
                return Ok(());
            }
        }
    }

    /// Looks again at `users`: who really differs is noted and repaired, who may still be on the way is waited for.
    async fn look(&mut self, sides: &dyn Sides, users: Vec<UserId>) -> anyhow::Result<()> {
        for users in users.chunks(CHUNK) {
            let seen = sides.look(users).await?;
            self.settle(sides, users, &seen).await?;
            if self.report.stage == Stage::Braked {
                return Ok(());
            }
            for (user, seen) in users.iter().zip(seen) {
                if seen == Seen::Pending {
                    self.look_later(user);
                }
            }
        }
        Ok(())
    }

    /// Notes those who differ, and has them repaired unless that would be too many.
    async fn settle(
        &mut self,
        sides: &dyn Sides,
        users: &[UserId],
        seen: &[Seen],
    ) -> anyhow::Result<()> {
        let check = sides.check();
        let repairs = |class: Class| !self.request.dry_run && check.policy(class) == Policy::Repair;
        let differing = users
            .iter()
            .zip(seen)
            .filter_map(|(user, seen)| match seen {
                Seen::Drift(class, remedy) => Some((user, *class, remedy)),
                Seen::Alike | Seen::Pending => None,
            });
        let more = differing.clone().filter(|(_, class, _)| repairs(*class));
        let more = more.count() as u64;
        let repaired: u64 = self.report.found.values().map(|found| found.repaired).sum();
        let most = self.brake;
        let braked = !self.request.approved && repaired + more > most;
        let scheduler = self.scheduler;
        // Whether each is repaired, and `None` where something newer came: that is no drift.
        let mending = stream::iter(differing).map(async |(user, class, remedy)| {
            let repaired = match !braked && repairs(class) {
                false => Some(false),
                true => {
                    let done = remedy.apply(scheduler, sides.name(), user).await?;
                    done.then_some(true)
                }
            };
            anyhow::Ok((user, class, repaired))
        });
        let mended: Vec<_> = mending.buffered(WINDOW).try_collect().await?;
        for (user, class, repaired) in mended {
            match repaired {
                Some(repaired) => self.report.note(class, user, repaired),
                None => self.look_later(user),
            }
        }
        if braked {
            self.report.stage = Stage::Braked;
            self.report.error = Some(format!(
                "more than {most} users would be changed; look at the sample, then approve it: nats req usersync.check.approve '{{\"target\":\"{}\"}}'",
                sides.name()
            ));
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
            true => self.waiting.push(user.clone()),
            false => self.report.pending += 1,
        }
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
            let users = std::mem::take(&mut self.waiting);
            self.look(sides, users).await?;
            self.tell();
        }
        self.report.pending += std::mem::take(&mut self.waiting).len() as u64;
        Ok(())
    }

    /// Holds the check for as long as an operator wants.
    async fn wait_while_paused(&self, name: &str) -> anyhow::Result<()> {
        while claim::is_paused(&self.scheduler.jetstream, name).await? {
            sleep(PAUSED).await;
        }
        Ok(())
    }

    fn is_asked_for(&self, user: &UserId) -> bool {
        let Request { from, to, .. } = self.request;
        match user {
            UserId::Number(number) => {
                from.is_none_or(|from| *number >= from) && to.is_none_or(|to| *number <= to)
            }
            UserId::Text(_) => from.is_none() && to.is_none(),
        }
    }

    /// Tells how far it is.
    fn tell(&mut self) {
        self.report.seconds = self.before + self.begun.elapsed().as_secs_f64();
        self.progress.send_replace(Progress {
            report: Some(self.report.clone()),
            pass: self.pass,
            resume: self.resume.clone(),
        });
    }
}

/// What a target answers for the user of `state` when it holds what it is meant to; `None` when that is nothing.
fn expected(rule: &Rule, holdings: &dyn Holdings, state: State) -> Option<RowHash> {
    match rule.apply(state, None) {
        Verdict::Send(delivery) => holdings.expected(&delivery),
        Verdict::Skip { .. } | Verdict::Refused(_) => None,
    }
}
