//! How everything stands, on one screen: a line per target, for `usersync-gateway status`, HTTP and NATS alike.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use usersync_core::{check::Stage, dead_letter::Class, registry::Entry, target::TargetName};

use super::{
    Control,
    breakers::Breaker,
    changes,
    look::{Look, Target},
    standing::Queue,
};
use crate::{
    problem::Problem,
    relay::{Notice, State},
};

/// A target whose oldest change waits longer than this is behind.
const BEHIND: Duration = Duration::from_secs(60);
/// A target is failing when at least this share of its attempts does.
pub(crate) const FAILING: f64 = 0.5;

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
    /// The main databases whose outboxes the gateways publish, sorted by name.
    #[serde(default)]
    pub sources: Vec<SourceStatus>,
    /// Sorted by name.
    pub targets: Vec<TargetStatus>,
}

/// How the outbox of one main database stands.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct SourceStatus {
    /// Its name.
    pub source: String,
    /// All of it in a word.
    pub state: Relayed,
    /// Why changes aren't noted, or not published, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// For how long the oldest change has been waiting, in seconds, when it was looked at last; 0 where nobody has.
    pub oldest_seconds: f64,
    /// Rows of the outbox that make no event.
    pub failed: u64,
}

/// Whether an outbox is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Relayed {
    /// No gateway publishes it: changes there reach nobody.
    Stopped,
    /// Changes leave no notes, or not all of them do: they reach nobody.
    Unnoted,
    /// A change has been waiting for more than a minute.
    Behind,
    /// Nothing is wrong.
    Ok,
}

/// How one target stands.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct TargetStatus {
    /// Its name.
    #[schema(value_type = String)]
    pub target: TargetName,
    /// All of it in a word.
    pub state: Condition,
    /// What is wrong with the newest value of its entry, where it can't be used; an earlier one goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
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
    /// Somebody has disabled it.
    Paused,
    /// It said that it is gone, and was disabled for that.
    Gone,
    /// A breaker is not closed: it can't be reached, or refuses us.
    Down,
    /// No worker serves it.
    NoWorker,
    /// Half of the attempts or more fail.
    Failing,
    /// Something has been waiting for more than a minute.
    Behind,
    /// Users were given up, and nobody has looked after them.
    DeadLetters,
    /// The last check found users who differ, and hasn't repaired all of them.
    Drift,
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
    /// Those of them who still do.
    #[serde(default)]
    pub left: u64,
    /// Users who could not be compared, for the target can't be told of them.
    #[serde(default)]
    pub refused: u64,
}

pub(crate) async fn status(control: &Control) -> Result<Status, Problem> {
    let look = Look::at(control).await?;
    let at = Timestamp::now();
    let sources = look.relays.iter();
    Ok(Status {
        at,
        users: look.standing.users(),
        events_pending: look.events_pending,
        events_refused: look.refused,
        sources: sources
            .map(|(source, notices)| SourceStatus::of(source, notices, at))
            .collect(),
        targets: look
            .targets
            .iter()
            .map(|target| of(target, &look))
            .collect(),
    })
}

fn of(target: &Target, look: &Look) -> TargetStatus {
    let (name, standing) = (target.name.as_ref(), &look.standing);
    let waiting = |queue: Option<Queue>| queue.map_or(0, |queue| queue.waiting());
    let failed = target.answers.iter();
    let failed = failed.filter_map(|answer| answer.last_failure);
    let check = look.checks.get(name).map(|report| LastCheck {
        stage: report.stage,
        started: report.started,
        drifted: report.drifted(),
        left: report.left(),
        refused: report.refused.users,
    });
    let mut status = TargetStatus {
        state: Condition::Ok,
        problem: target.entry.problem.clone(),
        workers: target.answers.len() as u64,
        pending: waiting(standing.live(name)),
        repairs: waiting(standing.repairs(name)),
        oldest_seconds: target.oldest.max(target.oldest_repair).as_secs_f64(),
        rate: target.rate(),
        error_rate: target.error_rate(),
        last_error: failed.max_by_key(|error| error.at),
        breaker: worst(&standing.breakers(name)),
        dead_letters: standing.dead_letters(name),
        last_check: check,
        target: target.name.clone(),
    };
    status.state = status.condition(&target.entry);
    status
}

impl SourceStatus {
    fn of(source: &str, notices: &[Notice], now: Timestamp) -> Self {
        let mut relaying = notices.iter();
        let relaying = relaying.find(|notice| notice.state == State::Relaying);
        // Where nobody relays, whoever looked last knows best.
        let known = relaying.or_else(|| notices.iter().max_by_key(|notice| notice.looked));
        let waiting = relaying.map_or(Duration::ZERO, |notice| notice.waiting(now));
        Self {
            source: source.to_owned(),
            state: match relaying {
                None => Relayed::Stopped,
                Some(notice) if notice.broken.is_some() => Relayed::Unnoted,
                Some(_) if waiting > BEHIND => Relayed::Behind,
                Some(_) => Relayed::Ok,
            },
            problem: known.and_then(|notice| notice.broken.clone()),
            oldest_seconds: known.map_or(0.0, |notice| notice.oldest_seconds),
            failed: known.map_or(0, |notice| notice.failed),
        }
    }
}

impl Status {
    /// What somebody should look after.
    pub(crate) fn wrong(&self) -> Vec<String> {
        let fine =
            |target: &&TargetStatus| !matches!(target.state, Condition::Ok | Condition::Paused);
        let targets = self.targets.iter().filter(fine);
        let targets = targets.map(|target| format!("target {}", target.target));
        let noted = |source: &&SourceStatus| source.state != Relayed::Ok || source.failed > 0;
        let sources = self.sources.iter().filter(noted);
        let sources = sources.map(|source| format!("source {}", source.source));
        let refused = (self.events_refused > 0).then(|| "refused events".to_owned());
        targets.chain(sources).chain(refused).collect()
    }
}

impl TargetStatus {
    fn condition(&self, entry: &Entry) -> Condition {
        let Some(config) = &entry.config else {
            return Condition::Invalid;
        };
        match self.breaker.as_str() {
            "gone" => Condition::Gone,
            _ if !config.enabled && is_gone(config.note.as_deref()) => Condition::Gone,
            _ if !config.enabled => Condition::Paused,
            "open" | "half-open" => Condition::Down,
            _ if self.workers == 0 => Condition::NoWorker,
            _ if self.error_rate >= Some(FAILING) => Condition::Failing,
            _ if self.oldest_seconds > BEHIND.as_secs_f64() => Condition::Behind,
            _ if self.dead_letters > 0 => Condition::DeadLetters,
            _ if self.last_check.is_some_and(|check| check.left > 0) => Condition::Drift,
            _ => Condition::Ok,
        }
    }
}

/// Whether an entry's note says that it was disabled for that.
fn is_gone(note: Option<&str>) -> bool {
    note.is_some_and(|note| note.contains(changes::GONE_FOR_GOOD))
}

/// The state of the breaker that is furthest from closed.
fn worst(breakers: &[Breaker]) -> String {
    let order = ["half-open", "open", "gone"];
    let place = |breaker: &&Breaker| order.iter().position(|state| *state == breaker.state);
    let worst = breakers.iter().max_by_key(place);
    worst.map_or_else(|| "closed".to_owned(), |breaker| breaker.state.clone())
}
