//! Raises and resolves alerts by what a look has found.
//!
//! Several gateways do it side by side: what is raised is what the stream says, and each message names the one it
//! follows. What is true but not for long enough changes nothing, so a gateway that has just begun resolves nothing
//! that another has raised.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_nats::jetstream::account::Account;
use jiff::{Timestamp, fmt::serde::unsigned_duration::friendly::compact as duration};
use serde::Deserialize;
use usersync_core::{
    alert::{self, Alert, Kind, Newest, Runbook},
    check::{Report, Stage},
    settings::Reader,
    subjects::{CHECKS_BUCKET, GATEWAY_TARGET, USER_ALERT, check_pause},
};

use super::gauges::storage_limit;
use crate::control::{
    Control,
    look::{Look, Target},
    status::FAILING,
};
use crate::relay::{Notice, State};

/// A check is overdue when its target's last one began longer ago than twice its `every`, and this.
const CHECK_GRACE: Duration = Duration::from_secs(600);

/// A relay that works may have looked as long ago as this.
const BLIND: Duration = Duration::from_secs(15);
/// A source that no gateway has spoken of for so long isn't relayed any more by anybody's settings.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// How long something has to be so before people are told: `[alerts]`.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    breaker: Duration,
    backlog: Duration,
    worker: Duration,
    failing: Duration,
    dead: Duration,
    intake: Duration,
    outbox: Duration,
    /// The share of the storage that may be used.
    storage: f64,
    /// The storage there is where the account has no limit, in bytes.
    store: u64,
}

/// A duration as settings have it.
#[derive(Deserialize)]
pub(crate) struct Span(#[serde(with = "duration::required")] pub(crate) Duration);

impl Settings {
    /// Reads `[alerts]` but for `runbook`; problems stay in `reader`.
    pub(crate) fn read(reader: &mut Reader) -> Self {
        let mut span = |key, seconds| {
            let default = Span(Duration::from_secs(seconds));
            reader.get(key, default, "a duration such as 5m").0
        };
        let (breaker, worker) = (span("alerts.breaker", 120), span("alerts.worker", 300));
        let (backlog, failing) = (span("alerts.backlog", 300), span("alerts.failing", 300));
        let (dead, intake) = (span("alerts.dead", 300), span("alerts.intake", 120));
        let outbox = span("alerts.outbox", 120);
        let share = "a share from 0 to 1, such as 0.8";
        let storage = reader.get("alerts.storage", 0.8, share);
        if !(0.0..=1.0).contains(&storage) {
            reader.problem("alerts.storage", share);
        }
        let expected = "max_file_store of nats.conf in gibibytes, from 1 to 1048576";
        let store: u64 = reader.get("alerts.store_gib", 64, expected);
        if !(1..=1_048_576).contains(&store) {
            reader.problem("alerts.store_gib", expected);
        }
        Self {
            breaker,
            backlog,
            worker,
            failing,
            dead,
            intake,
            outbox,
            storage,
            store: store.saturating_mul(1 << 30),
        }
    }
}

/// Something that is wrong now.
struct Finding {
    kind: Kind,
    target: String,
    /// Since when, where what was looked at says so; else since it was found first.
    since: Option<Timestamp>,
    /// How long it has to be so.
    patience: Duration,
    summary: String,
}

/// What this gateway knows of alerts.
pub(super) struct Alerts {
    settings: Settings,
    runbook: Runbook,
    /// Since when each finding has been seen here.
    seen: BTreeMap<(Kind, String), Timestamp>,
    /// When each source was last spoken of, or this gateway began to listen.
    sources: BTreeMap<String, Timestamp>,
    /// First and last sequence, and number of messages of USER_ALERT when it was read.
    read_at: (u64, u64, u64),
    newest: BTreeMap<(Kind, String), Newest>,
}

impl Alerts {
    pub(super) fn new(settings: Settings, runbook: Runbook) -> Self {
        Self {
            settings,
            runbook,
            seen: BTreeMap::new(),
            sources: BTreeMap::new(),
            read_at: (0, 0, 0),
            newest: BTreeMap::new(),
        }
    }

    /// Raises what has been so for long enough, and resolves what is no longer so.
    pub(super) async fn tell(
        &mut self,
        control: &Control,
        look: &Look,
        account: &Account,
    ) -> anyhow::Result<()> {
        self.refresh(control).await?;
        let now = Timestamp::now();
        let mut findings = self.settings.find(look, account, now);
        findings.extend(checks(control, look, now).await?);
        let wrong: BTreeSet<_> = findings.iter().map(Finding::key).collect();
        self.seen.retain(|key, _| wrong.contains(key));
        for finding in findings {
            let key = finding.key();
            let first = *self.seen.entry(key.clone()).or_insert(now);
            let since = finding.since.unwrap_or(first);
            let newest = self.newest.get(&key);
            if newest.is_some_and(|newest| newest.raised().is_some())
                || age(now, since) < finding.patience
            {
                continue;
            }
            let (kind, target) = (finding.kind, &finding.target);
            let alert = Alert::raised(kind, target, since, finding.summary, &self.runbook);
            // One that somebody else stores first is read with the next look.
            let follows = newest.map_or(0, |newest| newest.seq);
            alert.publish(&control.jetstream, follows).await?;
        }
        let raised = self.newest.iter().filter_map(|(key, newest)| {
            let alert = newest.raised()?;
            Some((key, newest.seq, alert))
        });
        for (key, seq, alert) in raised {
            if !wrong.contains(key) && is_over(alert, look, &mut self.sources) {
                alert.resolved().publish(&control.jetstream, seq).await?;
            }
        }
        Ok(())
    }

    /// Reads what is raised, unless nothing has been said since it was read.
    async fn refresh(&mut self, control: &Control) -> anyhow::Result<()> {
        let stream = control.jetstream.get_stream(USER_ALERT).await?;
        let state = &stream.cached_info().state;
        let at = (state.first_sequence, state.last_sequence, state.messages);
        if at != self.read_at {
            self.newest = alert::all(&control.jetstream).await?;
            self.read_at = at;
        }
        Ok(())
    }
}

impl Finding {
    fn key(&self) -> (Kind, String) {
        (self.kind, self.target.clone())
    }
}

impl Settings {
    /// All that is wrong, but for checks.
    fn find(&self, look: &Look, account: &Account, now: Timestamp) -> Vec<Finding> {
        let mut found = Vec::new();
        for target in look.targets.iter().filter(|target| target.enabled()) {
            self.find_of(target, look, now, &mut found);
        }
        for (source, notices) in &look.relays {
            self.find_in_outbox(source, notices, now, &mut found);
        }
        let mut of_all = |kind, since, patience, summary| {
            let target = GATEWAY_TARGET.to_owned();
            found.push(Finding {
                kind,
                target,
                since,
                patience,
                summary,
            });
        };
        if look.refused > 0 {
            let summary = format!(
                "{} events were refused and wait for somebody to look",
                look.refused
            );
            of_all(Kind::Dead, None, self.dead, summary);
        }
        if look.oldest_event > self.intake {
            let summary =
                "no gateway merges events into states: they are taken in and wait".to_owned();
            of_all(
                Kind::Intake,
                before(now, look.oldest_event),
                self.intake,
                summary,
            );
        }
        let limit = storage_limit(account).and_then(|limit| u64::try_from(limit).ok());
        let limit = limit.unwrap_or(self.store);
        if account.storage as f64 > self.storage * limit as f64 {
            let used = account.storage;
            let summary =
                format!("NATS is running out of storage: {used} of {limit} bytes are used");
            of_all(Kind::Storage, None, Duration::ZERO, summary);
        }
        found
    }

    fn find_in_outbox(
        &self,
        source: &str,
        notices: &[Notice],
        now: Timestamp,
        found: &mut Vec<Finding>,
    ) {
        let mut add = |kind, since, patience, summary| {
            let target = source.to_owned();
            found.push(Finding {
                kind,
                target,
                since,
                patience,
                summary,
            });
        };
        let mut relaying = notices.iter();
        let stuck = format!("the outbox of {source} is not published: changes there reach nobody");
        let Some(notice) = relaying.find(|notice| notice.state == State::Relaying) else {
            add(Kind::Outbox, None, self.outbox, stuck);
            return;
        };
        // A relay that can't look any more doesn't say so.
        let waiting = Duration::from_secs_f64(notice.oldest_seconds) + age(now, notice.looked);
        if waiting > self.outbox.max(BLIND) {
            add(Kind::Outbox, before(now, waiting), self.outbox, stuck);
        }
        if notice.failed > 0 {
            let summary = format!(
                "{} rows in the outbox of {source} make no event",
                notice.failed
            );
            add(Kind::Rows, None, self.dead, summary);
        }
    }

    fn find_of(&self, target: &Target, look: &Look, now: Timestamp, found: &mut Vec<Finding>) {
        let name = target.name.as_ref();
        let mut add = |kind, since, patience, summary| {
            let target = name.to_owned();
            found.push(Finding {
                kind,
                target,
                since,
                patience,
                summary,
            });
        };
        let breakers = look.standing.breakers(name);
        if !breakers.is_empty() {
            let since = breakers
                .iter()
                .filter_map(|breaker| breaker.since.as_ref()?.parse().ok());
            let summary = format!("{name} can not be used: its breaker is not closed");
            add(Kind::Breaker, since.min(), self.breaker, summary);
        }
        let oldest = target.oldest.max(target.oldest_repair);
        if oldest > self.backlog {
            let summary = format!(
                "{name} is behind: changes wait for more than {} s",
                self.backlog.as_secs()
            );
            add(Kind::Backlog, before(now, oldest), self.backlog, summary);
        }
        if target.answers.is_empty() {
            add(
                Kind::Worker,
                None,
                self.worker,
                format!("no worker serves {name}"),
            );
        }
        // Of one whose breaker isn't closed that is said already.
        if breakers.is_empty() && target.error_rate() > Some(FAILING) {
            add(
                Kind::Failing,
                None,
                self.failing,
                format!("deliveries to {name} fail"),
            );
        }
        let letters = look.standing.dead_letters(name);
        if letters > 0 {
            let summary = format!("{name} has dead letters: {letters} users were given up");
            add(Kind::Dead, None, self.dead, summary);
        }
    }
}

/// Checks that have failed, or are overdue although nobody has paused them.
async fn checks(control: &Control, look: &Look, now: Timestamp) -> anyhow::Result<Vec<Finding>> {
    let mut found = Vec::new();
    for (name, report) in &look.checks {
        let target = look
            .targets
            .iter()
            .find(|target| target.name.as_ref() == name);
        if name != GATEWAY_TARGET && !target.is_some_and(Target::enabled) {
            continue;
        }
        let summary = match report.stage {
            Stage::Failed => {
                format!("a check of {name} failed: whether its copies are equal is not known")
            }
            _ if is_overdue(target, report, now) && !is_paused(control, name).await? => {
                format!("the check of {name} is overdue: whether its copies are equal is not known")
            }
            _ => continue,
        };
        found.push(Finding {
            kind: Kind::Check,
            target: name.clone(),
            since: None,
            patience: Duration::ZERO,
            summary,
        });
    }
    Ok(found)
}

/// Whether the newest check is older than the entry's `every` allows.
fn is_overdue(target: Option<&Target>, report: &Report, now: Timestamp) -> bool {
    let check = target.and_then(|target| target.entry.config.as_ref());
    let check = check.map(|config| &config.check);
    let every = check.filter(|check| check.cron.is_none() && !check.every.is_zero());
    every.is_some_and(|check| age(now, report.started) > 2 * check.every + CHECK_GRACE)
}

async fn is_paused(control: &Control, name: &str) -> anyhow::Result<bool> {
    let bucket = control.jetstream.get_key_value(CHECKS_BUCKET).await?;
    let (one, all) = (check_pause(name), "pause".to_owned());
    Ok(bucket.get(one).await?.is_some() || bucket.get(all).await?.is_some())
}

/// Whether an alert whose finding is gone is resolved by that.
fn is_over(alert: &Alert, look: &Look, sources: &mut BTreeMap<String, Timestamp>) -> bool {
    let targets = &mut look.targets.iter();
    let target = targets.find(|target| target.name.as_ref() == alert.target);
    match alert.kind {
        // An entry that was written after it was disabled, and is enabled.
        Kind::Gone => target.is_none_or(|target| {
            target.enabled()
                && alert
                    .revision
                    .is_none_or(|revision| target.entry.revision > revision)
        }),
        // Else a later check says so.
        Kind::Drift => alert.target != GATEWAY_TARGET && !target.is_some_and(Target::enabled),
        Kind::Outbox | Kind::Rows => {
            let now = Timestamp::now();
            let spoken = look.relays.contains_key(&alert.target);
            let last = sources.entry(alert.target.clone()).or_insert(now);
            if spoken {
                *last = now;
            }
            spoken || age(now, *last) > FORGOTTEN
        }
        _ => true,
    }
}

fn age(now: Timestamp, since: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

fn before(now: Timestamp, age: Duration) -> Option<Timestamp> {
    now.checked_sub(age).ok()
}
