//! One check: walks over what a target is meant to hold and what it holds, looks again at everybody who differs, and
//! has what still differs repaired.

mod copy;
mod repair;
mod states;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use usersync_core::{
    check::{Class, Policy, Report, Request, Stage},
    state::State,
    target::{TargetConfig, TargetName},
    user_id::UserId,
};
use usersync_digest::{Place, RowHash, Scanned, Side, Walk};
use usersync_targets::{Holdings, Rule, Unchecked, Verdict};

use self::{
    copy::{Copy, Seen},
    states::{Reader, States},
};
use crate::{claim, scheduler::Scheduler};

/// What targets are compared with where no main database is asked.
const STATES: &str = "states";
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
    let resume = progress.borrow().resume.clone();
    let report = resume.as_ref().map(|(_, report)| report.clone());
    let report = report.unwrap_or_else(|| Report {
        target: name.to_owned(),
        against: STATES.to_owned(),
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
        resume,
        progress,
        report,
        waiting: Vec::new(),
        brake: 0,
    };
    let done = stop.run_until_cancelled(check.target(name)).await;
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
    resume: Option<(Place, Report)>,
    progress: watch::Sender<Progress>,
    report: Report,
    /// Users who differ, and whose newest state was on its way when they were looked at.
    waiting: Vec<UserId>,
    /// How many users may be changed without asking.
    brake: u64,
}

impl Check<'_> {
    async fn target(&mut self, name: &str) -> anyhow::Result<()> {
        let name: TargetName = name.parse().context("there can be no such target")?;
        let entry = self.scheduler.registry.entry(&name).await?;
        let config = entry.and_then(|entry| entry.config);
        let config = config.with_context(|| format!("there is no target {name}"))?;
        ensure!(
            config.enabled,
            "the target is disabled, so nothing is delivered to it"
        );
        self.brake = config.check.brake(self.users().await?);
        let rule = Rule::compile(&config)?;
        let driver = usersync_targets::connect(&config)?;
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
                Ok(holdings) => self.walk(&copy, &**holdings).await?,
                Err(Unchecked::OneByOne(_)) => self.one_by_one(&copy).await?,
                Err(error) => bail!(error.clone()),
            }
        }
        self.wait(&copy).await
    }

    /// Compares digests, and looks again at whom they say differ.
    async fn walk(&mut self, copy: &Copy<'_>, holdings: &dyn Holdings) -> anyhow::Result<()> {
        let meant = Scanned(States::new(self.scheduler.states.clone(), |state| {
            expected(copy.rule, holdings, state)
        }));
        let (left, right): (&dyn Side, &dyn Side) = (&meant, holdings.side());
        let mut walk = match &self.resume {
            Some((place, _)) => Walk::resumed(left, right, *place),
            None => Walk::new(left, right).await?,
        };
        let (users, bytes) = (self.report.users, self.report.bytes);
        loop {
            self.wait_while_paused(&copy.config.name).await?;
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
            self.look(copy, users).await?;
            if self.report.stage == Stage::Braked {
                return Ok(());
            }
            self.tell();
            if let Some(place) = walk.place() {
                self.resume = Some((place, self.report.clone()));
            }
            let load = copy.config.check.load;
            sleep(busy.mul_f64((1.0 - load) / load)).await;
        }
    }

    /// Looks at everybody there is a state of. Who is at the target and has none isn't found so.
    async fn one_by_one(&mut self, copy: &Copy<'_>) -> anyhow::Result<()> {
        let mut reader = Reader::open(&self.scheduler.states).await?;
        let mut users = Vec::with_capacity(CHUNK);
        loop {
            let state = reader.next().await?;
            let ended = state.is_none();
            let user = state.map(|state| state.user_id);
            users.extend(user.filter(|user| self.is_asked_for(user)));
            if ended || users.len() == CHUNK {
                self.wait_while_paused(&copy.config.name).await?;
                self.report.users += users.len() as u64;
                self.look(copy, std::mem::take(&mut users)).await?;
                self.tell();
            }
            if ended || self.report.stage == Stage::Braked {
                return Ok(());
            }
        }
    }

    /// Looks again at `users`: who really differs is noted and repaired, who is still being delivered is waited for.
    async fn look(&mut self, copy: &Copy<'_>, users: Vec<UserId>) -> anyhow::Result<()> {
        for users in users.chunks(CHUNK) {
            let seen = copy.look(users).await?;
            self.settle(copy.config, users, &seen).await?;
            if self.report.stage == Stage::Braked {
                return Ok(());
            }
            for (user, seen) in users.iter().zip(seen) {
                match seen {
                    Seen::Pending if self.waiting.len() < WAITING => {
                        self.waiting.push(user.clone())
                    }
                    Seen::Pending => self.report.pending += 1,
                    Seen::Alike | Seen::Drift(_) | Seen::Ahead => {}
                }
            }
        }
        Ok(())
    }

    /// Notes those who differ, and has them repaired unless that would be too many.
    async fn settle(
        &mut self,
        config: &Arc<TargetConfig>,
        users: &[UserId],
        seen: &[Seen],
    ) -> anyhow::Result<()> {
        let jetstream = &self.scheduler.jetstream;
        let mut differing = Vec::new();
        for (user, seen) in users.iter().zip(seen) {
            let class = match seen {
                Seen::Drift(class) => *class,
                // It has what no state says, in a version that no state has.
                Seen::Ahead => Class::Different,
                Seen::Alike | Seen::Pending => continue,
            };
            differing.push((user, class, *seen == Seen::Ahead));
        }
        let repairs =
            |class: &Class| !self.request.dry_run && config.check.policy(*class) == Policy::Repair;
        let more = differing
            .iter()
            .filter(|(_, class, _)| repairs(class))
            .count() as u64;
        let repaired: u64 = self.report.found.values().map(|found| found.repaired).sum();
        let most = self.brake;
        let braked = !self.request.approved && repaired + more > most;
        let mut deliver = Vec::new();
        for (user, class, ahead) in differing {
            let repair = !braked && repairs(&class);
            if repair {
                match self.known(user).await? {
                    _ if ahead => {
                        repair::renew(jetstream, &self.scheduler.states, user).await?;
                    }
                    true => deliver.push(user.clone()),
                    false => repair::bury(jetstream, user).await?,
                }
            }
            self.report.note(class, user, repair);
        }
        repair::deliver(jetstream, &config.name, &deliver).await?;
        if braked {
            self.report.stage = Stage::Braked;
            self.report.error = Some(format!(
                "more than {most} users would be changed; look at the sample, then approve it: nats req usersync.check.approve '{{\"target\":\"{}\"}}'",
                config.name
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

    /// Whether there is a state of this user.
    async fn known(&self, user: &UserId) -> anyhow::Result<bool> {
        Ok(copy::newest(&self.scheduler.states, user).await?.is_some())
    }

    /// Waits for those who were still being delivered.
    async fn wait(&mut self, copy: &Copy<'_>) -> anyhow::Result<()> {
        let (end, mut pause) = (Instant::now() + copy.config.check.wait, SOON);
        while !self.waiting.is_empty() && self.report.stage != Stage::Braked {
            if Instant::now() >= end {
                break;
            }
            sleep(pause).await;
            pause = (2 * pause).min(LATER);
            let users = std::mem::take(&mut self.waiting);
            self.look(copy, users).await?;
            self.tell();
        }
        self.report.pending += self.waiting.len() as u64;
        Ok(())
    }

    /// Holds the check for as long as an operator wants.
    async fn wait_while_paused(&self, target: &TargetName) -> anyhow::Result<()> {
        while claim::is_paused(&self.scheduler.jetstream, target.as_ref()).await? {
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
