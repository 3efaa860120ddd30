//! How everything stands, on one screen: a line per target, for `usersync-gateway status`, HTTP and NATS alike.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::try_join_all;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use usersync_core::{
    check::Stage,
    dead_letter::Class,
    registry::Entry,
    subjects::{self, INTAKE, USER_EVENTS},
    target::TargetName,
};

use super::{
    Control,
    breakers::Breaker,
    checks, letters, nats,
    standing::{Queue, Standing},
    workers,
};
use crate::problem::Problem;

/// A target whose oldest change waits longer than this is behind.
const BEHIND: Duration = Duration::from_secs(60);
/// A target is failing when at least this share of its attempts does.
const FAILING: f64 = 0.5;

/// How everything stands.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct Status {
    /// When this was so.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Users there are, deleted ones included.
    pub users: u64,
    /// Events that aren't merged into states yet.
    pub events_pending: u64,
    /// Events that could not be taken in.
    pub events_refused: u64,
    /// Sorted by name.
    pub targets: Vec<TargetStatus>,
}

/// How one target stands.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct TargetStatus {
    /// Its name.
    #[schema(value_type = String)]
    pub target: TargetName,
    /// All of it in a word.
    pub state: Condition,
    /// Workers that serve it and have answered.
    pub workers: u64,
    /// Users whose newest state it doesn't have yet.
    pub pending: u64,
    /// Deliveries asked for that aren't done.
    pub repairs: u64,
    /// For how long the oldest of both has been waiting, in seconds.
    pub oldest_seconds: f64,
    /// Attempts per second, one per user, over the last minute.
    pub rate: f64,
    /// The share of them that failed, 0 to 1; null when there were none.
    pub error_rate: Option<f64>,
    /// The last failure that a worker remembers.
    pub last_error: Option<LastError>,
    /// The worst breaker of its workers: `closed`, `half-open`, `open` or `gone`.
    pub breaker: String,
    /// Users it could not be given.
    pub dead_letters: u64,
    /// Its newest check.
    pub last_check: Option<LastCheck>,
}

/// A target's condition, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Condition {
    /// There never was an entry for it that could be used.
    Invalid,
    /// Somebody has disabled it, or it said that it is gone.
    Paused,
    /// It says that it is gone.
    Gone,
    /// A breaker is not closed: it can't be reached, or refuses us.
    Down,
    /// No worker serves it.
    NoWorker,
    /// Half of the attempts or more fail.
    Failing,
    /// Something has been waiting for more than a minute.
    Behind,
    /// Nothing is wrong.
    Ok,
}

/// A failure's kind; what the target said is in the worker's log, for it may name somebody.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct LastError {
    /// What kind of failure.
    pub class: Class,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// A check in short.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct LastCheck {
    /// How it stands.
    pub stage: Stage,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    pub started: Timestamp,
    /// Users who differed.
    pub drifted: u64,
}

/// What a worker says of a target.
#[derive(Clone, Debug, Deserialize)]
struct Answer {
    target: TargetName,
    attempts_per_second: f64,
    failures_per_second: f64,
    last_failure: Option<LastError>,
}

pub(crate) async fn status(control: &Control) -> Result<Status, Problem> {
    let entries = control.registry().await?.entries().await?;
    let named: Vec<(TargetName, Entry)> = entries
        .into_iter()
        .filter_map(|(name, entry)| Some((name.parse().ok()?, entry)))
        .collect();
    let names: Vec<String> = named.iter().map(|(name, _)| name.to_string()).collect();
    let questions: Vec<_> = named
        .iter()
        .map(|(name, _)| (subjects::worker_status(name), String::new()))
        .collect();
    let (standing, answers, checks, refused, events) = tokio::try_join!(
        async { Standing::of_all(control, &names).await.map_err(nats) },
        async {
            workers::ask::<Answer>(control, questions)
                .await
                .map_err(nats)
        },
        checks::list(control),
        async { letters::refused(control).await.map_err(nats) },
        async { events_pending(control).await.map_err(nats) },
    )?;
    let checks: BTreeMap<_, _> = checks
        .checks
        .into_iter()
        .map(|report| {
            let check = LastCheck {
                stage: report.stage,
                started: report.started,
                drifted: report.drifted(),
            };
            (report.target, check)
        })
        .collect();
    let known = Known {
        control,
        standing: &standing,
        answers: &answers,
        checks: &checks,
    };
    let targets = named
        .into_iter()
        .map(|(name, entry)| known.target(name, entry));
    Ok(Status {
        at: Timestamp::now(),
        users: standing.users(),
        events_pending: events,
        events_refused: refused,
        targets: try_join_all(targets).await?,
    })
}

/// Events that wait for intake.
pub(crate) async fn events_pending(control: &Control) -> anyhow::Result<u64> {
    let events = control.stream(USER_EVENTS).await?;
    let info = events.consumer_info(INTAKE).await?;
    Ok(info.num_pending + info.num_ack_pending as u64)
}

struct Known<'a> {
    control: &'a Control,
    standing: &'a Standing,
    answers: &'a [Answer],
    checks: &'a BTreeMap<String, LastCheck>,
}

impl Known<'_> {
    async fn target(&self, target: TargetName, entry: Entry) -> Result<TargetStatus, Problem> {
        let name = target.as_ref();
        let answers: Vec<&Answer> = self
            .answers
            .iter()
            .filter(|answer| answer.target == target)
            .collect();
        let (live, repairs) = self
            .standing
            .oldest(self.control, &target)
            .await
            .map_err(nats)?;
        let sum = |of: fn(&Answer) -> f64| answers.iter().map(|answer| of(answer)).sum::<f64>();
        let rate = sum(|answer| answer.attempts_per_second);
        let failures = sum(|answer| answer.failures_per_second);
        let waiting = |queue: Option<Queue>| queue.map_or(0, |queue| queue.waiting());
        let failed = answers.iter().filter_map(|answer| answer.last_failure);
        let mut status = TargetStatus {
            state: Condition::Ok,
            workers: answers.len() as u64,
            pending: waiting(self.standing.live(name)),
            repairs: waiting(self.standing.repairs(name)),
            oldest_seconds: live.max(repairs).as_secs_f64(),
            rate,
            error_rate: (rate > 0.0).then(|| failures / rate),
            last_error: failed.max_by_key(|error| error.at),
            breaker: worst(&self.standing.breakers(name)),
            dead_letters: self.standing.dead_letters(name),
            last_check: self.checks.get(name).copied(),
            target,
        };
        status.state = status.condition(&entry);
        Ok(status)
    }
}

impl TargetStatus {
    fn condition(&self, entry: &Entry) -> Condition {
        let Some(config) = &entry.config else {
            return Condition::Invalid;
        };
        match self.breaker.as_str() {
            _ if !config.enabled => Condition::Paused,
            "gone" => Condition::Gone,
            "open" | "half-open" => Condition::Down,
            _ if self.workers == 0 => Condition::NoWorker,
            _ if self.error_rate >= Some(FAILING) => Condition::Failing,
            _ if self.oldest_seconds > BEHIND.as_secs_f64() => Condition::Behind,
            _ => Condition::Ok,
        }
    }
}

/// The state of the breaker that is furthest from closed.
fn worst(breakers: &[Breaker]) -> String {
    let order = ["half-open", "open", "gone"];
    let place = |breaker: &&Breaker| order.iter().position(|state| *state == breaker.state);
    let worst = breakers.iter().max_by_key(place);
    worst.map_or_else(|| "closed".to_owned(), |breaker| breaker.state.clone())
}
