//! One user: the newest state, and how far each target is with it.
//!
//! Nobody writes down each delivery. How a task stands follows from what is there anyway: the
//! consumers, waiting repairs, dead letters, and what workers remember of failures.

use std::{collections::BTreeMap, sync::Arc};

use async_nats::jetstream::{message::StreamMessage, stream::DirectGetErrorKind};
use axum::http::StatusCode;
use bytes::Bytes;
use futures_util::{TryStreamExt, future::join_all};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use usersync_core::{
    state::State,
    stored_state,
    streams::DELIVERY_WAIT,
    subjects::{self, USER_DEAD, USER_REPAIR, USER_STATE},
    target::{TargetConfig, TargetName},
    user_id::UserId,
};

use super::{
    Control, aside,
    breakers::{self, Breaker},
    dead_letters,
    meant::{self, Meant, Told},
    nats, presences,
    standing::{Queue, queues},
    workers,
};
use crate::problem::Problem;

/// A request that names a user.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ById {
    pub user_id: UserId,
}

/// How every target stands with a user.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Tasks {
    /// Who.
    pub user_id: UserId,
    /// The version of the newest state.
    pub version: u64,
    /// Whether the user is deleted.
    pub deleted: bool,
    /// One for every target, by name.
    pub targets: Vec<Task>,
}

/// How a target stands with a user.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Task {
    /// `<target>:<user_id>:<version>`, as deliveries have it.
    pub id: String,
    /// Which target.
    pub target: TargetName,
    /// Whether the target is delivered to.
    pub enabled: bool,
    /// Why it is delivered: `live` a new state, `repair` because somebody asked for it.
    pub priority: Priority,
    /// How it stands.
    pub status: Status,
    /// The version of the newest state.
    pub version: u64,
    /// How often it was tried, as far as is known: those who succeed at once don't say.
    pub attempts: u32,
    /// Why it failed last.
    pub error: Option<String>,
    /// When the state was stored, or the repair asked for.
    #[schema(value_type = String, format = DateTime)]
    pub created: Timestamp,
    /// When it last failed or was given up, as far as is known; else when it was created.
    #[schema(value_type = String, format = DateTime)]
    pub updated: Timestamp,
    /// When it is tried again, as far as is known.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next_attempt: Option<Timestamp>,
    /// What holds up a delivery that is `pending` or `retrying`, as far as is known.
    pub waiting: Option<Waiting>,
    /// What the target is meant to have, by the rule of its entry.
    pub rule: Meant,
}

/// What holds up deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Waiting {
    /// The target is disabled.
    Paused,
    /// Its breaker isn't closed.
    BreakerOpen,
    /// No worker of the target answers.
    NoWorker,
}

/// Why something is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Priority {
    /// A new state.
    Live,
    /// Somebody asked for it.
    Repair,
}

/// How a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    /// The target has it.
    Synced,
    /// The target took it, and has no guard; a worker vanished, or a call was not answered, so that something older may have
    /// landed since. It is delivered again by itself.
    Unproven,
    /// It waits for its first attempt, or nobody can say that it is done.
    Pending,
    /// It has failed and is tried again.
    Retrying,
    /// It was given up: see its dead letter.
    Dead,
    /// The filter isn't true of the user: the target is told nothing, or has been told that they are gone.
    OutOfScope,
    /// The user is deleted, and the target isn't told of that.
    Ignored,
}

/// What a worker knows of a user.
#[derive(Clone, Debug, Default, Deserialize)]
struct Memory {
    #[serde(default)]
    held: bool,
    #[serde(default)]
    attempts: u32,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    first_failure: Option<Timestamp>,
    #[serde(default)]
    last_failure: Option<Timestamp>,
    #[serde(default)]
    next_attempt: Option<Timestamp>,
    #[serde(default)]
    version: Option<u64>,
    /// How many users fail in this worker.
    #[serde(default)]
    failing: u64,
}

/// The newest state as it is stored, a tombstone included.
pub(crate) async fn state(control: &Control, by: &ById) -> Result<StreamMessage, Problem> {
    let stream = control.stream(USER_STATE).await?;
    let subject = subjects::state(&by.user_id);
    match stream.direct_get_last_for_subject(subject).await {
        Ok(message) => match stored_state::read(&by.user_id, &message.payload) {
            Ok(_) => Ok(message),
            Err(error) => Err(Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("what USER_STATE holds of this user can't be read: {error}"),
            )),
        },
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => {
            Err(Problem::not_found("no event has named this user"))
        }
        Err(_) => Err(Problem::unavailable("NATS did not answer")),
    }
}

/// The newest state as JSON.
pub(crate) async fn show(control: &Control, by: ById) -> Result<serde_json::Value, Problem> {
    let message = state(control, &by).await?;
    serde_json::from_slice(&shown(&by.user_id, message.payload)).map_err(nats)
}

/// A state with its user's id as every answer has it: older states have large numbers in them.
pub(crate) fn shown(user_id: &UserId, state: Bytes) -> Bytes {
    let UserId::Number(number) = user_id else {
        return state;
    };
    let (held, answered) = (number.to_string(), serde_json::json!(user_id).to_string());
    let head = |id: &str| format!("{{\"user_id\":{id}");
    match state.strip_prefix(head(&held).as_bytes()) {
        Some(rest) if held != answered && rest.starts_with(b",") => {
            [head(&answered).as_bytes(), rest].concat().into()
        }
        _ => state,
    }
}

/// How every target stands with a user.
pub(crate) async fn tasks(control: &Control, by: ById) -> Result<Tasks, Problem> {
    tasks_at(control, &by, None).await
}

/// How the target `only` stands with a user, or every target.
pub(super) async fn tasks_at(
    control: &Control,
    by: &ById,
    only: Option<&TargetName>,
) -> Result<Tasks, Problem> {
    let message = state(control, by).await?;
    let user = &by.user_id;
    let newest = stored_state::read(user, &message.payload).map_err(nats)?;
    let live = queues(&control.stream(USER_STATE).await?).await?;
    let repairs = existing(control, USER_REPAIR, &subjects::repairs_for(user)).await?;
    let letters = existing(control, USER_DEAD, &subjects::dead_letters_for(user)).await?;
    let breakers = breakers::all(control).await?;
    let entries = control.registry().await?.entries().await?;
    let configs: Vec<_> = entries
        .into_values()
        .filter_map(|entry| entry.config)
        .filter(|config| only.is_none_or(|only| config.name == *only))
        .collect();
    let (rules, grants, state) = (
        configs.clone(),
        control.egress.secrets.clone(),
        newest.clone(),
    );
    // The keys of masks are read from files.
    let meant = aside(move || meant::by_target(&rules, &grants, &state)).await;
    let meant = meant.map_err(Problem::unprocessable)?;
    let known = Known {
        control,
        state: &newest,
        seq: message.sequence,
        stored: time_of(&message),
        live: &live,
        repairs: &repairs,
        letters: &letters,
        breakers: &breakers,
    };
    let tasks = configs.into_iter().zip(meant);
    let targets = join_all(tasks.map(|(config, meant)| known.task(config, meant))).await;
    let mut targets: Vec<Task> = targets.into_iter().collect::<Result<_, _>>()?;
    // Last, so that what has been proven meanwhile counts.
    let unproven = presences::unproven(control).await?;
    for task in &mut targets {
        let told = task.rule.outcome != Told::Nothing
            && matches!(task.status, Status::Synced | Status::OutOfScope);
        if told && unproven.contains(&task.target) {
            task.status = Status::Unproven;
        }
    }
    Ok(Tasks {
        user_id: newest.user_id.clone(),
        version: newest.version,
        deleted: newest.deleted,
        targets,
    })
}

/// Everything that is known of a user without asking workers.
struct Known<'a> {
    control: &'a Control,
    state: &'a State,
    /// The state's sequence in USER_STATE.
    seq: u64,
    stored: Timestamp,
    live: &'a BTreeMap<String, Queue>,
    repairs: &'a [String],
    letters: &'a [String],
    breakers: &'a [Breaker],
}

impl Known<'_> {
    async fn task(&self, config: Arc<TargetConfig>, rule: Meant) -> Result<Task, Problem> {
        let (name, user) = (&config.name, &self.state.user_id);
        let version = self.state.version;
        let mut task = Task {
            id: subjects::task(name, user, version),
            target: name.clone(),
            enabled: config.enabled,
            priority: Priority::Live,
            status: match rule.in_scope {
                true if rule.outcome == Told::Nothing => Status::Ignored,
                true => Status::Synced,
                false => Status::OutOfScope,
            },
            version,
            attempts: 0,
            error: None,
            created: self.stored,
            updated: self.stored,
            next_attempt: None,
            waiting: None,
            rule,
        };
        if task.rule.outcome == Told::Nothing {
            return Ok(task);
        }
        let repair = subjects::repair(name, user);
        let repair = match self.repairs.contains(&repair) {
            true => self.repair(&repair).await?,
            false => None,
        };
        if let Some(asked) = repair {
            task.priority = Priority::Repair;
            (task.created, task.updated) = (asked, asked);
        } else if self.letters.contains(&subjects::dead_letter(name, user)) {
            // A repair that waits may still bring it there; without one the letter is the last word.
            let letter = dead_letters::find(self.control, name, user).await?;
            if let Some(found) = letter.filter(|found| found.letter.version >= version) {
                task.status = Status::Dead;
                task.attempts = found.letter.attempts;
                task.error = Some(found.letter.reason);
                task.updated = found.letter.last_failure.unwrap_or(found.stored);
                return Ok(task);
            }
        }
        let queue = self.live.get(name.as_ref());
        let above_floor = queue.is_none_or(|queue| queue.ack_floor < self.seq);
        if repair.is_none() && !above_floor {
            return Ok(task);
        }
        let question = (subjects::worker_task(name), user.to_string());
        let answers: Vec<Memory> = workers::ask(self.control, [question]).await?;
        let failed = answers
            .iter()
            .filter(|memory| memory.attempts > 0)
            .filter(|memory| {
                memory
                    .version
                    .is_none_or(|tried| tried == 0 || tried >= version)
            })
            .max_by_key(|memory| memory.attempts);
        if let Some(memory) = failed {
            task.status = Status::Retrying;
            task.attempts = memory.attempts;
            task.error = memory.error.clone();
            task.next_attempt = memory.next_attempt;
            let seen = memory.last_failure.or(memory.first_failure);
            task.updated = seen.unwrap_or(task.updated);
        } else if repair.is_some() || !self.long_done(&config, queue, &answers) {
            task.status = Status::Pending;
        }
        if matches!(task.status, Status::Pending | Status::Retrying) {
            task.waiting = self.waiting(&config, &answers);
        }
        Ok(task)
    }

    /// What holds up the deliveries of a target whose workers said this.
    fn waiting(&self, config: &TargetConfig, answers: &[Memory]) -> Option<Waiting> {
        let breaks = |breaker: &Breaker| breaker.target == config.name;
        if !config.enabled {
            return Some(Waiting::Paused);
        }
        if answers.is_empty() {
            return Some(Waiting::NoWorker);
        }
        let open = self.breakers.iter().any(breaks);
        open.then_some(Waiting::BreakerOpen)
    }

    /// Whether a state above the ack floor must have been dealt with: something older is still being
    /// tried again, but this one was handed out, failed nowhere, and is too old to be on its way, or to
    /// wait for the server to notice that its worker died.
    fn long_done(&self, config: &TargetConfig, queue: Option<&Queue>, answers: &[Memory]) -> bool {
        let handed_out = |queue: &Queue| queue.pending == 0 && queue.delivered >= self.seq;
        // More than the workers know of wait to be tried again: one that was started since doesn't remember.
        let known: u64 = answers.iter().map(|memory| memory.failing).sum();
        let remembered = |queue: &Queue| queue.ack_pending <= known;
        let age = Timestamp::now().duration_since(self.stored).unsigned_abs();
        // An open breaker has workers hold what they were handed.
        let breaks = |breaker: &Breaker| breaker.target == config.name;
        queue.is_some_and(|queue| handed_out(queue) && remembered(queue))
            && !answers.is_empty()
            && !answers.iter().any(|memory| memory.held)
            && !self.breakers.iter().any(breaks)
            && age > DELIVERY_WAIT + config.timeout
    }

    /// When a repair was asked for, `None` when it is done by now.
    async fn repair(&self, subject: &str) -> Result<Option<Timestamp>, Problem> {
        let stream = self.control.stream(USER_REPAIR).await?;
        let found = stream.get_last_raw_message_by_subject(subject).await;
        Ok(found.ok().map(|message| time_of(&message)))
    }
}

/// The subjects under `filter` that have a message.
async fn existing(control: &Control, stream: &str, filter: &str) -> anyhow::Result<Vec<String>> {
    let stream = control.stream(stream).await?;
    let subjects = stream.info_builder().subjects(filter).fetch().await?;
    Ok(subjects
        .map_ok(|(subject, _)| subject)
        .try_collect()
        .await?)
}

fn time_of(message: &StreamMessage) -> Timestamp {
    let nanos = message.time.unix_timestamp_nanos();
    Timestamp::from_nanosecond(nanos).unwrap_or_default()
}
