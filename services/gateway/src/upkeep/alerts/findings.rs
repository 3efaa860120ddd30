//! What is wrong now, by what a look has found.

use std::{collections::BTreeMap, time::Duration};

use async_nats::{
    header::NATS_SCHEDULE,
    jetstream::{account::Account, stream::LastRawMessageErrorKind},
};
use jiff::Timestamp;
use usersync_core::{
    alert::{Alert, Kind},
    check::{Check, Report, Stage},
    seen::MOST_SEEN,
    subjects::{CHECKS_BUCKET, GATEWAY_TARGET, USER_CHECK, check_pause, check_schedule},
};

use super::Settings;
use crate::{
    control::{
        Control,
        look::{Look, Target},
        status::FAILING,
    },
    relay::{Notice, State},
};

/// A relay that works may have looked as long ago as this.
const BLIND: Duration = Duration::from_secs(15);
/// For how long people are told of what has happened to a stream, or of a user with too many events.
const TOLD: Duration = Duration::from_secs(60 * 60);
/// A source that no gateway has spoken of for so long isn't relayed any more by anybody's settings.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Something that is wrong now.
pub(super) struct Finding {
    pub kind: Kind,
    pub target: String,
    /// Since when, where what was looked at says so; else since it was found first.
    pub since: Option<Timestamp>,
    /// How long it has to be so.
    pub patience: Duration,
    pub summary: String,
}

impl Finding {
    /// One that has been so since it is found.
    fn new(kind: Kind, target: &str, patience: Duration, summary: impl Into<String>) -> Self {
        Self {
            kind,
            target: target.to_owned(),
            since: None,
            patience,
            summary: summary.into(),
        }
    }

    fn since(self, since: Option<Timestamp>) -> Self {
        Self { since, ..self }
    }

    pub(super) fn key(&self) -> (Kind, String) {
        (self.kind, self.target.clone())
    }
}

impl Settings {
    /// All that is wrong.
    ///
    /// # Errors
    /// When it can't be read which checks are paused.
    pub(super) async fn find(
        &self,
        control: &Control,
        look: &Look,
        account: &Account,
        now: Timestamp,
    ) -> anyhow::Result<Vec<Finding>> {
        let mut found = self.of_all(look, account, now);
        for target in look.targets.iter().filter(|target| target.enabled()) {
            found.extend(self.of_target(target, look, now));
        }
        for (source, notices) in &look.relays {
            found.extend(self.of_outbox(source, notices, now));
        }
        for (name, report) in &look.checks {
            found.extend(self.of_check(control, look, name, report, now).await?);
        }
        Ok(found)
    }

    fn of_all(&self, look: &Look, account: &Account, now: Timestamp) -> Vec<Finding> {
        let mut found = Vec::new();
        let of_all =
            |kind, patience, summary| Finding::new(kind, GATEWAY_TARGET, patience, summary);
        if look.refused > 0 {
            let refused = look.refused;
            let summary = format!("{refused} events were refused and wait for somebody to look");
            found.push(of_all(Kind::Dead, self.dead, summary));
        }
        if look.oldest_event > self.intake {
            let summary = "events are taken in and aren't merged into states; /readyz of the gateways says why";
            let waiting = of_all(Kind::Intake, self.intake, summary.to_owned());
            found.push(waiting.since(before(now, look.oldest_event)));
        }
        let (used, limit) = (account.storage, self.storage_limit(account));
        if used as f64 > self.storage * limit as f64 {
            let summary =
                format!("NATS is running out of storage: {used} of {limit} bytes are used");
            found.push(of_all(Kind::Storage, Duration::ZERO, summary));
        }
        if let Some((used, granted)) = look.events_room
            && used as f64 > self.storage * granted as f64
        {
            let summary = format!(
                "USER_EVENTS is running out of room: {used} of {granted} bytes are used; a full one refuses events"
            );
            found.push(of_all(Kind::Storage, Duration::ZERO, summary));
        }
        let recent = |at: &Timestamp| age(now, *at) < TOLD;
        let mark = look.mark.as_ref();
        let incident = mark.and_then(|mark| mark.incident.as_ref());
        if let Some(incident) = incident.filter(|incident| recent(&incident.at)) {
            let what = of_all(Kind::Streams, Duration::ZERO, incident.what.clone());
            found.push(what.since(Some(incident.at)));
        }
        if mark
            .and_then(|mark| mark.crowded)
            .is_some_and(|at| recent(&at))
        {
            let summary = format!(
                "a user has more than {MOST_SEEN} events within the duplicate window: an older one that is repeated is not recognised"
            );
            found.push(of_all(Kind::Crowded, Duration::ZERO, summary));
        }
        found
    }

    fn of_outbox(&self, source: &str, notices: &[Notice], now: Timestamp) -> Vec<Finding> {
        let stuck = format!("the outbox of {source} is not published: changes there reach nobody");
        let stuck = Finding::new(Kind::Outbox, source, self.outbox, stuck);
        let mut relaying = notices.iter();
        let Some(notice) = relaying.find(|notice| notice.state == State::Relaying) else {
            return vec![stuck];
        };
        let mut found = Vec::new();
        // A relay that can't look any more doesn't say so.
        let waiting = notice.waiting(now);
        // Of changes that leave no note nobody would hear otherwise.
        if let Some(broken) = &notice.broken {
            let broken = Finding::new(Kind::Outbox, source, Duration::ZERO, broken.clone());
            found.push(broken);
        } else if waiting > self.outbox.max(BLIND) {
            found.push(stuck.since(before(now, waiting)));
        } else if let Some(at) = notice.put_back.filter(|at| age(now, *at) < TOLD) {
            let summary = format!(
                "the database of {source} was put back to an earlier time; what it has lost stays as it was published: \
                 `usersync-scheduler load --source {source}` publishes everybody as they are there now"
            );
            let put_back = Finding::new(Kind::Outbox, source, Duration::ZERO, summary);
            found.push(put_back.since(Some(at)));
        }
        if notice.failed > 0 {
            let failed = notice.failed;
            let summary = format!("{failed} rows in the outbox of {source} make no event");
            found.push(Finding::new(Kind::Rows, source, self.dead, summary));
        }
        found
    }

    fn of_target(&self, target: &Target, look: &Look, now: Timestamp) -> Vec<Finding> {
        let name = target.name.as_ref();
        let mut found = Vec::new();
        let mut add = |kind, since, patience, summary| {
            found.push(Finding::new(kind, name, patience, summary).since(since));
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
            let seconds = self.backlog.as_secs();
            let summary = format!("{name} is behind: changes wait for more than {seconds} s");
            add(Kind::Backlog, before(now, oldest), self.backlog, summary);
        }
        if target.answers.is_empty() {
            let summary = format!("no worker serves {name}");
            add(Kind::Worker, None, self.worker, summary);
        }
        // Of one whose breaker isn't closed that is said already.
        if breakers.is_empty() && target.error_rate() > Some(FAILING) {
            let summary = format!("deliveries to {name} fail");
            add(Kind::Failing, None, self.failing, summary);
        }
        let letters = look.standing.dead_letters(name);
        if letters > 0 {
            let summary = format!("{name} has dead letters: {letters} users were given up");
            add(Kind::Dead, None, self.dead, summary);
        }
        found
    }

    /// A check that has failed, or is overdue although nobody has paused it.
    async fn of_check(
        &self,
        control: &Control,
        look: &Look,
        name: &str,
        report: &Report,
        now: Timestamp,
    ) -> anyhow::Result<Option<Finding>> {
        let target = look
            .targets
            .iter()
            .find(|target| target.name.as_ref() == name);
        if name != GATEWAY_TARGET && !target.is_some_and(Target::enabled) {
            return Ok(None);
        }
        let what = if report.stage == Stage::Failed {
            format!("a check of {name} failed")
        } else if self.is_overdue(every(control, target).await?, report, now)
            && !is_paused(control, name).await?
        {
            format!("the check of {name} is overdue")
        } else {
            return Ok(None);
        };
        let summary = format!("{what}: whether its copies are equal is not known");
        Ok(Some(Finding::new(
            Kind::Check,
            name,
            Duration::ZERO,
            summary,
        )))
    }

    /// Whether the newest check is older than one of `every` so often may be.
    fn is_overdue(&self, every: Option<Duration>, report: &Report, now: Timestamp) -> bool {
        every.is_some_and(|every| age(now, report.started) > 2 * every + self.check)
    }
}

/// How often `target` is checked by its entry; of the states, which have none, by the schedule that the schedulers keep:
/// a gateway need not know the main database. `None` for never, and at the times of a cron line.
async fn every(control: &Control, target: Option<&Target>) -> anyhow::Result<Option<Duration>> {
    let Some(target) = target else {
        let stream = control.jetstream.get_stream_no_info(USER_CHECK).await?;
        let schedule = check_schedule(GATEWAY_TARGET);
        return match stream.get_last_raw_message_by_subject(&schedule).await {
            Ok(stored) => {
                let schedule = stored.headers.get(NATS_SCHEDULE);
                Ok(schedule.and_then(|schedule| Check::interval(schedule.as_str())))
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(error.into()),
        };
    };
    let schedule = target.entry.config.as_ref();
    let schedule = schedule.and_then(|config| config.check.schedule());
    Ok(schedule.as_deref().and_then(Check::interval))
}

async fn is_paused(control: &Control, name: &str) -> anyhow::Result<bool> {
    let bucket = control.jetstream.get_key_value(CHECKS_BUCKET).await?;
    let (one, all) = (check_pause(name), "pause".to_owned());
    Ok(bucket.get(one).await?.is_some() || bucket.get(all).await?.is_some())
}

/// Whether an alert whose finding is gone is resolved by that.
pub(super) fn is_over(
    alert: &Alert,
    look: &Look,
    sources: &mut BTreeMap<String, Timestamp>,
) -> bool {
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
        // It has happened: people are told for a while.
        Kind::Streams | Kind::Refill => age(Timestamp::now(), alert.since) > TOLD,
        Kind::Outbox | Kind::Rows => {
            let now = Timestamp::now();
            let notices = look.relays.get(&alert.target);
            let last = sources.entry(alert.target.clone()).or_insert(now);
            let Some(notices) = notices.filter(|notices| !notices.is_empty()) else {
                return age(now, *last) > FORGOTTEN;
            };
            *last = now;
            // Whoever can't read the outbox doesn't know whether rows in it are mended.
            let mut notices = notices.iter();
            alert.kind == Kind::Outbox || notices.any(|notice| notice.state == State::Relaying)
        }
        _ => true,
    }
}

pub(super) fn age(now: Timestamp, since: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

fn before(now: Timestamp, age: Duration) -> Option<Timestamp> {
    now.checked_sub(age).ok()
}
