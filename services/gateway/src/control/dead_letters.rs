//! Dead letters of targets: list, show, replay, discard.
//!
//! Replaying asks for a repair; the letter is cleared by the worker once that has succeeded.

use std::sync::Arc;

use async_nats::jetstream::{message::StreamMessage, stream::LastRawMessageErrorKind};
use serde::{Deserialize, Serialize};
use usersync_core::{
    dead_letter::{self, Class, DeadLetter},
    subjects::{self, USER_DEAD, header},
    target::TargetName,
    user_id::UserId,
};

use super::{
    Control,
    bulk::{self, Task, Work},
    jobs::{self, Job},
    nats, no_target,
    repairs::Asked,
    scan::{self, Found, PAGE, Page, Query},
};
use crate::problem::Problem;

/// Letters in one answer, unless said otherwise and at most.
const LETTERS: usize = 100;

/// Pages looked through for one answer: what is rare may be further on.
const PAGES: usize = 20;

/// Which dead letters; what is left out doesn't matter.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Choice {
    /// Those of this target.
    #[serde(default)]
    pub target: Option<TargetName>,
    /// Those of this user.
    #[serde(default)]
    pub user_id: Option<UserId>,
    /// Those of this class.
    #[serde(default)]
    pub class: Option<Class>,
    /// Those with this text in their reason.
    #[serde(default)]
    pub reason: Option<String>,
}

/// Which dead letters to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct List {
    /// Those of this target.
    #[param(value_type = Option<String>)]
    pub target: Option<TargetName>,
    /// Those of this user.
    #[param(value_type = Option<String>)]
    pub user_id: Option<UserId>,
    /// Those of this class.
    #[param(inline)]
    pub class: Option<Class>,
    /// Those with this text in their reason.
    pub reason: Option<String>,
    /// Where to go on, as the page before said.
    pub from: Option<u64>,
    /// How many, 1 to 1000; 100 unless said otherwise.
    pub limit: Option<usize>,
}

/// One page of dead letters.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Letters {
    /// The oldest first.
    pub dead_letters: Vec<Letter>,
    /// Where the next page begins, null when this is the last; one with none on it need not be.
    pub next: Option<u64>,
}

/// One dead letter.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Letter {
    /// Its sequence in USER_DEAD.
    pub seq: u64,
    /// When it was stored.
    #[schema(value_type = String, format = DateTime)]
    pub stored: jiff::Timestamp,
    /// What it says.
    #[serde(flatten)]
    pub letter: DeadLetter,
}

/// A request that names one dead letter.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct One {
    pub target: TargetName,
    pub user_id: UserId,
}

/// Which dead letters to replay.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Replay {
    /// Those of this target.
    #[serde(default)]
    pub target: Option<TargetName>,
    /// Those of this user.
    #[serde(default)]
    pub user_id: Option<UserId>,
    /// Those of this class.
    #[serde(default)]
    pub class: Option<Class>,
    /// Those with this text in their reason.
    #[serde(default)]
    pub reason: Option<String>,
    /// Needed to choose every dead letter there is.
    #[serde(default)]
    pub all: bool,
    /// How many are asked for per second.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 50000, default = 2000)]
    pub per_second: Option<u32>,
    /// Count and do nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// Which dead letters to discard.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Discard {
    /// Those of this target.
    #[serde(default)]
    pub target: Option<TargetName>,
    /// Those of this user.
    #[serde(default)]
    pub user_id: Option<UserId>,
    /// Those of this class.
    #[serde(default)]
    pub class: Option<Class>,
    /// Those with this text in their reason.
    #[serde(default)]
    pub reason: Option<String>,
    /// Needed to choose every dead letter there is.
    #[serde(default)]
    pub all: bool,
    /// Count and do nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What became of dead letters that were given up.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Discarded {
    /// How many were chosen; of a job that isn't done, how many it will be at most.
    pub matched: u64,
    /// How many are gone by now.
    pub discarded: u64,
    /// Whether nothing was done, only counted.
    pub dry_run: bool,
    /// The job that does it, where it is done in bulk.
    pub job: Option<Job>,
}

impl Choice {
    /// The subjects of the letters chosen, and maybe of others: see [`Choice::has`].
    pub(super) fn filter(&self) -> String {
        match (&self.target, &self.user_id) {
            (None, None) => "user.dead.*.*".to_owned(),
            (Some(target), None) => subjects::dead_letters_of(target),
            (None, Some(user_id)) => subjects::dead_letters_for(user_id),
            (Some(target), Some(user_id)) => subjects::dead_letter(target, user_id),
        }
    }

    /// Whether a message in USER_DEAD is one of them.
    fn has(&self, found: &Found) -> bool {
        let text = |name: &str| found.headers.get(name).map(|value| value.as_str());
        let class = self.class.map(Class::as_str);
        let reason = self.reason.as_deref();
        !dead_letter::is_cleared(&found.headers)
            && subjects::of_dead_letter(&found.subject).is_some()
            && class.is_none_or(|class| text(header::CLASS) == Some(class))
            && reason
                .is_none_or(|reason| text(header::REASON).is_some_and(|text| text.contains(reason)))
    }

    /// Whose letter it is, `None` for one that isn't chosen.
    pub(super) fn task(&self, found: &Found) -> Option<Task> {
        let (target, user_id) = subjects::of_dead_letter(&found.subject)?;
        let seq = found.seq;
        self.has(found).then_some(Task {
            target,
            user_id,
            seq,
        })
    }

    /// Refuses a choice of everything that doesn't say so.
    fn deliberate(&self, all: bool) -> Result<(), Problem> {
        if all == (*self == Self::default()) {
            return Ok(());
        }
        let detail = "expected some of target, user_id, class and reason, or all = true";
        Err(Problem::unprocessable(detail))
    }
}

pub(crate) async fn list(control: &Control, list: List) -> Result<Letters, Problem> {
    let limit = list.limit.unwrap_or(LETTERS);
    if !(1..=PAGE).contains(&limit) {
        let detail = format!("limit: expected 1 to {PAGE}");
        return Err(Problem::unprocessable(detail));
    }
    let choice = Choice {
        target: list.target,
        user_id: list.user_id,
        class: list.class,
        reason: list.reason,
    };
    let stream = control.stream(USER_DEAD).await?;
    let query = Query {
        filter: choice.filter(),
        headers_only: false,
    };
    let mut letters = Letters {
        dead_letters: Vec::new(),
        next: Some(list.from.unwrap_or(1)),
    };
    for _ in 0..PAGES {
        let Some(from) = letters.next else { break };
        let page = scan::page(&stream, &query, from, PAGE).await?;
        letters.next = page.next;
        for found in page.found {
            if letters.dead_letters.len() == limit {
                letters.next = Some(found.seq);
                return Ok(letters);
            }
            if choice.has(&found)
                && let Ok(letter) = serde_json::from_slice(&found.payload)
            {
                letters.dead_letters.push(Letter {
                    seq: found.seq,
                    stored: found.time,
                    letter,
                });
            }
        }
    }
    Ok(letters)
}

pub(crate) async fn show(control: &Control, one: One) -> Result<Letter, Problem> {
    let letter = find(control, &one.target, &one.user_id).await?;
    letter.ok_or_else(|| {
        let One { target, user_id } = one;
        Problem::not_found(format!(
            "there is no dead letter of user {user_id} at {target}"
        ))
    })
}

/// The dead letter of a user at a target, if there is one.
pub(super) async fn find(
    control: &Control,
    target: &TargetName,
    user_id: &UserId,
) -> Result<Option<Letter>, Problem> {
    let stream = control.stream(USER_DEAD).await?;
    let subject = subjects::dead_letter(target, user_id);
    match stream.get_last_raw_message_by_subject(&subject).await {
        Ok(message) => Ok(read(&message)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(nats(error)),
    }
}

fn read(message: &StreamMessage) -> Option<Letter> {
    let nanos = message.time.unix_timestamp_nanos();
    Some(Letter {
        seq: message.sequence,
        stored: jiff::Timestamp::from_nanosecond(nanos).unwrap_or_default(),
        letter: DeadLetter::read(message)?,
    })
}

/// Asks for the delivery of every letter chosen: of one user at once, else as a job.
pub(crate) async fn replay(control: &Arc<Control>, replay: Replay) -> Result<Asked, Problem> {
    let per_second = bulk::rate(replay.per_second)?;
    let choice = Choice {
        target: replay.target,
        user_id: replay.user_id,
        class: replay.class,
        reason: replay.reason,
    };
    choice.deliberate(replay.all)?;
    // Letters outlive their targets, and nobody would deliver for one that is gone.
    let targets = control.registry().await?.entries().await?;
    let is_there = |name: &TargetName| targets.contains_key(name.as_ref());
    if let Some(target) = choice.target.as_ref().filter(|name| !is_there(name)) {
        return Err(no_target(target));
    }
    if replay.dry_run {
        let count = count(control, &choice, |task| is_there(&task.target)).await?;
        return Ok(Asked::only_counted(count));
    }
    if choice.user_id.is_some() {
        let mut tasks = of_user(control, &choice).await?;
        tasks.retain(|task| is_there(&task.target));
        return Ok(Asked::at_once(bulk::ask_for(control, tasks).await?));
    }
    let job = start(control, Work::Replay(choice), per_second).await?;
    Ok(Asked::by(job))
}

/// Removes every letter chosen, unless a newer one has come in between: of one user at once, else as a job.
pub(crate) async fn discard(
    control: &Arc<Control>,
    discard: Discard,
) -> Result<Discarded, Problem> {
    let choice = Choice {
        target: discard.target,
        user_id: discard.user_id,
        class: discard.class,
        reason: discard.reason,
    };
    choice.deliberate(discard.all)?;
    let mut discarded = Discarded {
        matched: 0,
        discarded: 0,
        dry_run: discard.dry_run,
        job: None,
    };
    if discard.dry_run {
        discarded.matched = count(control, &choice, |_| true).await?;
    } else if choice.user_id.is_some() {
        let tasks = of_user(control, &choice).await?;
        discarded.discarded = bulk::clear(control, tasks).await?;
        discarded.matched = discarded.discarded;
    } else {
        // What it costs is borne by NATS alone.
        let job = start(control, Work::Discard(choice), bulk::MOST_PER_SECOND).await?;
        discarded.matched = job.total;
        discarded.discarded = job.done;
        discarded.job = Some(job);
    }
    Ok(discarded)
}

async fn start(control: &Arc<Control>, work: Work, per_second: u32) -> Result<Job, Problem> {
    let stream = control.stream(work.stream()).await?;
    let total = scan::count(&stream, &work.filter()).await?;
    jobs::start(control, work, per_second, total).await
}

/// One page of the messages among which the letters chosen are.
async fn chosen(control: &Control, choice: &Choice, from: u64) -> anyhow::Result<Page> {
    let stream = control.stream(USER_DEAD).await?;
    let query = Query {
        filter: choice.filter(),
        headers_only: true,
    };
    scan::page(&stream, &query, from, PAGE).await
}

/// How many letters are chosen and counted.
async fn count(
    control: &Control,
    choice: &Choice,
    counts: impl Fn(&Task) -> bool,
) -> anyhow::Result<u64> {
    let mut count = 0;
    let mut next = Some(1);
    while let Some(from) = next {
        let page = chosen(control, choice, from).await?;
        next = page.next;
        let tasks = page.found.iter().filter_map(|found| choice.task(found));
        count += tasks.filter(&counts).count() as u64;
    }
    Ok(count)
}

/// The letters chosen, of one user: one per target at most.
async fn of_user(control: &Control, choice: &Choice) -> anyhow::Result<Vec<Task>> {
    let page = chosen(control, choice, 1).await?;
    Ok(page
        .found
        .iter()
        .filter_map(|found| choice.task(found))
        .collect())
}
