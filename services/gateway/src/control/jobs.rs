//! Repairs and replays in bulk: at a bounded rate, with progress in KV that every gateway can read.
//!
//! A job lives in the gateway that was asked for it. One that stops half-way does no harm: what it
//! asks for are deliveries of the newest states, so it is simply started again.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use async_nats::jetstream::{context::PublishAckFuture, kv, stream::Stream};
use axum::http::StatusCode;
use futures_util::TryStreamExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, interval};
use usersync_core::{
    nats::REQUEST_TIMEOUT,
    subjects::{self, JOBS_BUCKET, USER_DEAD, USER_STATE},
    target::TargetName,
    user_id::UserId,
};
use uuid::Uuid;

use super::{
    Control,
    dead_letters::Choice,
    nats,
    scan::{self, Found, PAGE, Query},
};
use crate::problem::Problem;

/// How many repairs are asked for per second unless said otherwise, and at most.
const PER_SECOND: u32 = 2_000;
const MOST_PER_SECOND: u32 = 50_000;
/// Repairs are asked for in steps of this length.
const STEP: Duration = Duration::from_millis(50);
/// How often progress is written down.
const NOTE: Duration = Duration::from_millis(250);
/// A job whose progress is older than this has lost its gateway.
const LOST: Duration = Duration::from_secs(10);
/// How long starting waits, so that a small job is done when its start is answered.
const AT_ONCE: Duration = Duration::from_secs(1);

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum JobState {
    /// It is under way.
    Running,
    /// It was asked to stop and hasn't yet.
    Cancelling,
    /// It was stopped by an operator.
    Cancelled,
    /// Its gateway was stopped; start it again.
    Stopped,
    /// Its gateway is gone; start it again.
    Lost,
    /// NATS refused something; `error` says what.
    Failed,
    /// It is done.
    Done,
}

/// One job.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct Job {
    /// What to ask for.
    pub id: String,
    /// `repair` or `replay`.
    pub kind: String,
    /// The target, `null` for a replay of all targets.
    pub target: Option<TargetName>,
    /// How it stands.
    pub state: JobState,
    /// Deliveries asked for so far.
    pub done: u64,
    /// How many there are to ask for, as counted at the start.
    pub total: u64,
    /// How many are asked for per second.
    pub per_second: u32,
    /// When it was started.
    #[schema(value_type = String, format = DateTime)]
    pub started: Timestamp,
    /// When its progress was last written down.
    #[schema(value_type = String, format = DateTime)]
    pub updated: Timestamp,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Every job of the last day.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Jobs {
    /// The newest first.
    pub jobs: Vec<Job>,
}

/// A request that names a job.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ById {
    pub id: String,
}

/// Where the users of a job come from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// Every user there is, for one target.
    Users(TargetName),
    /// The dead letters chosen.
    Letters(Choice),
}

impl Source {
    /// What to deliver because of a message, `None` when nothing is.
    fn task(&self, found: &Found) -> Option<(TargetName, UserId)> {
        match self {
            Self::Users(target) => Some((target.clone(), subjects::user_of_state(&found.subject)?)),
            Self::Letters(choice) => choice.task(found),
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

/// Starts a job, and waits a moment for it.
pub(super) async fn start(
    control: &Arc<Control>,
    source: Source,
    per_second: u32,
    total: u64,
) -> Result<Job, Problem> {
    if control.shutdown.is_cancelled() {
        return Err(Problem::unavailable(
            "this gateway is stopping; ask another one",
        ));
    }
    let (kind, target) = match &source {
        Source::Users(target) => ("repair", Some(target.clone())),
        Source::Letters(choice) => ("replay", choice.target.clone()),
    };
    let now = Timestamp::now();
    let job = Job {
        id: Uuid::now_v7().simple().to_string(),
        kind: kind.to_owned(),
        target,
        state: JobState::Running,
        done: 0,
        total,
        per_second,
        started: now,
        updated: now,
        error: None,
    };
    let bucket = bucket(control).await?;
    let id = job.id.clone();
    let revision = bucket.put(&id, json(&job)?).await.map_err(nats)?;
    let record = Record {
        bucket,
        job,
        revision,
        noted: Instant::now(),
    };
    let running = control.clone();
    let ended = control.jobs.spawn(run(running, source, record));
    match tokio::time::timeout(AT_ONCE, ended).await {
        Ok(Ok(job)) => Ok(job),
        _ => status(control, ById { id }).await,
    }
}

/// Publishes one repair per target and user, and awaits what the server says of each.
pub(super) async fn ask_for(
    control: &Control,
    tasks: impl IntoIterator<Item = (TargetName, UserId)>,
) -> anyhow::Result<u64> {
    let mut sent = Vec::new();
    for (target, user_id) in tasks {
        sent.push(publish(control, &target, &user_id).await?);
    }
    let mut stored = 0;
    for repair in sent {
        repair.await?;
        stored += 1;
    }
    Ok(stored)
}

async fn publish(
    control: &Control,
    target: &TargetName,
    user_id: &UserId,
) -> anyhow::Result<PublishAckFuture> {
    let subject = subjects::repair(target, user_id);
    Ok(control.jetstream.publish(subject, "".into()).await?)
}

pub(crate) async fn status(control: &Control, by: ById) -> Result<Job, Problem> {
    let bucket = bucket(control).await?;
    let stored = find(&bucket, &by.id).await?;
    let job = stored.map(|(job, _)| job);
    job.ok_or_else(|| Problem::not_found(format!("there is no job {}", by.id)))
}

pub(crate) async fn list(control: &Control) -> Result<Jobs, Problem> {
    let bucket = bucket(control).await?;
    let keys = async { bucket.keys().await?.try_collect().await.map_err(Into::into) };
    let keys: anyhow::Result<Vec<String>> = tokio::time::timeout(REQUEST_TIMEOUT, keys)
        .await
        .context("listing the jobs")?;
    let mut jobs = Vec::new();
    for key in keys? {
        jobs.extend(find(&bucket, &key).await?.map(|(job, _)| job));
    }
    jobs.sort_by(|a, b| b.id.cmp(&a.id));
    Ok(Jobs { jobs })
}

/// Asks a job to stop; its gateway does within moments.
pub(crate) async fn cancel(control: &Control, by: ById) -> Result<Job, Problem> {
    let bucket = bucket(control).await?;
    for _ in 0..20 {
        let Some((mut job, revision)) = find(&bucket, &by.id).await? else {
            break;
        };
        if job.state != JobState::Running {
            return Ok(job);
        }
        job.state = JobState::Cancelling;
        if bucket.update(&job.id, json(&job)?, revision).await.is_ok() {
            return Ok(job);
        }
    }
    match find(&bucket, &by.id).await? {
        None => Err(Problem::not_found(format!("there is no job {}", by.id))),
        Some(_) => {
            let detail = "the job's progress changes too fast; try again";
            Err(Problem::new(StatusCode::CONFLICT, detail))
        }
    }
}

async fn find(bucket: &kv::Store, id: &str) -> anyhow::Result<Option<(Job, u64)>> {
    // What is no key is no job either.
    let key = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if id.is_empty() || !id.bytes().all(key) {
        return Ok(None);
    }
    let entry = bucket.entry(id).await?;
    let entry = entry.filter(|entry| entry.operation == kv::Operation::Put);
    let Some(entry) = entry else { return Ok(None) };
    let mut job: Job = serde_json::from_slice(&entry.value)?;
    let under_way = matches!(job.state, JobState::Running | JobState::Cancelling);
    let age = Timestamp::now().duration_since(job.updated);
    if under_way && age.unsigned_abs() > LOST {
        job.state = JobState::Lost;
    }
    Ok(Some((job, entry.revision)))
}

async fn bucket(control: &Control) -> anyhow::Result<kv::Store> {
    Ok(control.jetstream.get_key_value(JOBS_BUCKET).await?)
}

fn json(job: &Job) -> Result<bytes::Bytes, anyhow::Error> {
    Ok(serde_json::to_vec(job)?.into())
}

/// A job and where its progress is written down.
struct Record {
    bucket: kv::Store,
    job: Job,
    revision: u64,
    noted: Instant,
}

impl Record {
    /// Writes progress down, now and then.
    async fn note(&mut self) -> anyhow::Result<()> {
        if self.noted.elapsed() >= NOTE {
            self.write().await?;
        }
        Ok(())
    }

    async fn write(&mut self) -> anyhow::Result<()> {
        self.noted = Instant::now();
        loop {
            self.job.updated = Timestamp::now();
            let written = self
                .bucket
                .update(&self.job.id, json(&self.job)?, self.revision)
                .await;
            match written {
                Ok(revision) => {
                    self.revision = revision;
                    return Ok(());
                }
                // Somebody asks it to stop, or the server isn't to be had.
                Err(error) => match find(&self.bucket, &self.job.id).await? {
                    Some((job, revision)) if revision != self.revision => {
                        self.revision = revision;
                        if self.job.state == JobState::Running {
                            self.job.state = job.state;
                        }
                    }
                    _ => return Err(error.into()),
                },
            }
        }
    }
}

/// Runs a job to its end, and says what the end was.
async fn run(control: Arc<Control>, source: Source, mut record: Record) -> Job {
    let ended = work(&control, &source, &mut record).await;
    let asked = record.job.state;
    record.job.state = match &ended {
        Err(_) => JobState::Failed,
        Ok(true) => JobState::Done,
        Ok(false) if asked == JobState::Cancelling => JobState::Cancelled,
        Ok(false) => JobState::Stopped,
    };
    record.job.error = ended.err().map(|error| format!("{error:#}"));
    let Job { id, kind, done, .. } = &record.job;
    tracing::info!(job = id, kind, done, state = ?record.job.state, "job ended");
    if let Err(error) = record.write().await {
        let error = format!("{error:#}");
        tracing::warn!(
            job = record.job.id,
            error,
            "can't write down how a job ended"
        );
    }
    record.job
}

/// Asks for every delivery; false when it was to stop before the end.
async fn work(
    control: &Arc<Control>,
    source: &Source,
    record: &mut Record,
) -> anyhow::Result<bool> {
    let (stream, query) = match source {
        Source::Users(_) => (USER_STATE, subjects::STATES.to_owned()),
        Source::Letters(choice) => (USER_DEAD, choice.filter()),
    };
    let query = Query {
        filter: query,
        headers_only: true,
    };
    let mut last = last_sequence(control, stream).await?;
    let name = stream;
    let stream: Stream<()> = control.stream(stream).await?;
    let mut steps = interval(STEP);
    steps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let per_step = f64::from(record.job.per_second) * STEP.as_secs_f64();
    let mut allowed = 0.0_f64;
    let mut next = Some(1);
    let mut once_more = matches!(source, Source::Users(_));
    loop {
        let Some(from) = next.filter(|from| *from <= last) else {
            // Who has changed meanwhile was passed by, and need not be delivered because of the change: it
            // may be one that this target doesn't see.
            if !std::mem::take(&mut once_more) {
                return Ok(true);
            }
            next = Some(last + 1);
            last = last_sequence(control, name).await?;
            continue;
        };
        let page = scan::page(&stream, &query, from, PAGE).await?;
        next = page.next;
        let mut tasks = Vec::with_capacity(page.found.len());
        for found in page.found.iter().filter(|found| found.seq <= last) {
            tasks.extend(source.task(found));
        }
        let mut tasks = tasks.into_iter();
        while tasks.len() > 0 {
            if control.shutdown.is_cancelled() || record.job.state == JobState::Cancelling {
                return Ok(false);
            }
            steps.tick().await;
            allowed = (allowed + per_step).min(per_step.max(1.0));
            let count = allowed as usize;
            if count > 0 {
                allowed -= count as f64;
                let step: Vec<_> = tasks.by_ref().take(count).collect();
                record.job.done += ask_for(control, step).await?;
            }
            record.note().await?;
        }
        record.note().await?;
    }
}

async fn last_sequence(control: &Control, stream: &str) -> anyhow::Result<u64> {
    let stream = control.jetstream.get_stream(stream).await?;
    Ok(stream.cached_info().state.last_sequence)
}
