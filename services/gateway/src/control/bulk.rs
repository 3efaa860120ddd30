//! What jobs do: walk through users or dead letters page by page, and deal with each at a bounded rate.
//!
//! However many there are, one page of them is held; and what comes after a job's start isn't its own.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::context::PublishErrorKind;
use tokio::time::{MissedTickBehavior, interval};
use usersync_core::{
    dead_letter,
    subjects::{self, USER_DEAD, USER_STATE},
    target::TargetName,
    user_id::UserId,
};

use super::{
    Control,
    dead_letters::Choice,
    erase::overwrite,
    jobs::Record,
    scan::{self, Found, PAGE, Query},
};
use crate::problem::Problem;

/// How many deliveries are asked for per second unless said otherwise.
const PER_SECOND: u32 = 2_000;
/// The most of anything per second.
pub(super) const MOST_PER_SECOND: u32 = 50_000;
/// They are asked for in steps of this length.
const STEP: Duration = Duration::from_millis(50);

/// What is to be done.
#[derive(Clone, Debug)]
pub(super) enum Work {
    /// Every user there is is delivered to a target.
    Repair(TargetName),
    /// The users of the letters chosen are delivered.
    Replay(Choice),
    /// The letters chosen are removed.
    Discard(Choice),
}

/// One user at one target, and the sequence of the message that says so.
pub(super) struct Task {
    pub target: TargetName,
    pub user_id: UserId,
    pub seq: u64,
}

impl Work {
    /// As jobs name it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Repair(_) => "repair",
            Self::Replay(_) => "replay",
            Self::Discard(_) => "discard",
        }
    }

    /// The one target it is about.
    pub(super) fn target(&self) -> Option<&TargetName> {
        match self {
            Self::Repair(target) => Some(target),
            Self::Replay(choice) | Self::Discard(choice) => choice.target.as_ref(),
        }
    }

    /// The stream it walks through.
    pub(super) fn stream(&self) -> &'static str {
        match self {
            Self::Repair(_) => USER_STATE,
            Self::Replay(_) | Self::Discard(_) => USER_DEAD,
        }
    }

    /// Which of its messages it looks at.
    pub(super) fn filter(&self) -> String {
        match self {
            Self::Repair(_) => subjects::STATES.to_owned(),
            Self::Replay(choice) | Self::Discard(choice) => choice.filter(),
        }
    }

    /// What to do because of a message, `None` when nothing is.
    fn task(&self, found: &Found) -> Option<Task> {
        match self {
            Self::Repair(target) => Some(Task {
                target: target.clone(),
                user_id: subjects::user_of_state(&found.subject)?,
                seq: found.seq,
            }),
            Self::Replay(choice) | Self::Discard(choice) => choice.task(found),
        }
    }
}

/// Checks a rate.
pub(super) fn rate(per_second: Option<u32>) -> Result<u32, Problem> {
    let rate = per_second.unwrap_or(PER_SECOND);
    if (1..=MOST_PER_SECOND).contains(&rate) {
        return Ok(rate);
    }
    let detail = format!("per_second: expected 1 to {MOST_PER_SECOND}");
    Err(Problem::unprocessable(detail))
}

/// Does all of it, and writes progress down; false when it was to stop before the end.
pub(super) async fn run(
    control: &Arc<Control>,
    work: &Work,
    record: &mut Record,
) -> anyhow::Result<bool> {
    let query = Query {
        filter: work.filter(),
        headers_only: true,
    };
    // Letters outlive their targets, and nobody would deliver for one that is gone.
    let targets = match work {
        Work::Replay(_) => Some(control.registry().await?.entries().await?),
        Work::Repair(_) | Work::Discard(_) => None,
    };
    let is_there = |task: &Task| {
        let targets = targets.as_ref();
        targets.is_none_or(|targets| targets.contains_key(task.target.as_ref()))
    };
    let stream = control.stream(work.stream()).await?;
    let mut last = last_sequence(control, work.stream()).await?;
    let mut steps = interval(STEP);
    steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let per_step = f64::from(record.job.per_second) * STEP.as_secs_f64();
    let mut allowed = 0.0_f64;
    let mut next = Some(1);
    let mut once_more = matches!(work, Work::Repair(_));
    loop {
        let Some(from) = next.filter(|from| *from <= last) else {
            record.job.total = record.job.done;
            // Who has changed meanwhile was passed by, and need not be delivered because of the change: it
            // may be one that this target doesn't see.
            if !std::mem::take(&mut once_more) {
                return Ok(true);
            }
            next = Some(last + 1);
            last = last_sequence(control, work.stream()).await?;
            continue;
        };
        let page = scan::page(&stream, &query, from, PAGE).await?;
        next = page.next;
        let mut tasks = Vec::with_capacity(page.found.len());
        for found in page.found.iter().filter(|found| found.seq <= last) {
            tasks.extend(work.task(found).filter(is_there));
        }
        let to_come = match next {
            Some(next) if next <= last => page.left,
            _ => 0,
        };
        record.job.total = record.job.done + tasks.len() as u64 + to_come;
        let mut tasks = tasks.into_iter();
        while tasks.len() > 0 {
            steps.tick().await;
            if control.shutdown.is_cancelled() || !record.note().await? {
                return Ok(false);
            }
            allowed = (allowed + per_step).min(per_step.max(1.0));
            let count = allowed as usize;
            if count > 0 {
                allowed -= count as f64;
                let step = tasks.by_ref().take(count);
                record.job.done += match work {
                    Work::Discard(_) => clear(control, step).await?,
                    Work::Repair(_) | Work::Replay(_) => ask_for(control, step).await?,
                };
            }
        }
        if control.shutdown.is_cancelled() || !record.note().await? {
            return Ok(false);
        }
    }
}

async fn last_sequence(control: &Control, stream: &str) -> anyhow::Result<u64> {
    let stream = control.jetstream.get_stream(stream).await?;
    Ok(stream.cached_info().state.last_sequence)
}

/// Publishes one repair per task, and awaits what the server says of each; answers how many.
pub(super) async fn ask_for(
    control: &Control,
    tasks: impl IntoIterator<Item = Task>,
) -> anyhow::Result<u64> {
    let mut sent = Vec::new();
    for task in tasks {
        let subject = subjects::repair(&task.target, &task.user_id);
        sent.push(control.jetstream.publish(subject, "".into()).await?);
    }
    let count = sent.len() as u64;
    for repair in sent {
        repair.await?;
    }
    Ok(count)
}

/// Removes letters, but for those that newer ones have taken the place of; answers how many. Each is deleted: one that a marker
/// takes the place of is back when the server is killed after the marker has expired (nats-server#8505). Workers follow what
/// comes, not what goes, so a marker tells them.
pub(super) async fn clear(
    control: &Control,
    tasks: impl IntoIterator<Item = Task>,
) -> anyhow::Result<u64> {
    let dead = control.stream(USER_DEAD).await?;
    let tasks: Vec<Task> = tasks.into_iter().collect();
    let seqs = tasks.iter().map(|task| task.seq).collect();
    // Those that are gone are marked, whatever becomes of the others.
    let count = overwrite(&dead, seqs).await;
    let mut sent = Vec::new();
    for task in tasks {
        let subject = subjects::dead_letter(&task.target, &task.user_id);
        let clearing = dead_letter::clearing(0);
        sent.push(control.jetstream.send_publish(subject, clearing).await?);
    }
    for cleared in sent {
        match cleared.await {
            Ok(_) => {}
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => {}
            Err(error) => return Err(error.into()),
        }
    }
    count
}
