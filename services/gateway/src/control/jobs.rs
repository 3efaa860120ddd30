//! Repairs, replays, discards and erasures: progress in KV that every gateway can read, equal ones never at once.
//!
//! A job lives in the gateway that was asked for it. One that stops half-way does no harm: it is simply
//! started again. What it does is in `bulk` and `erase`.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use async_nats::jetstream::kv;
use axum::http::StatusCode;
use futures_util::TryStreamExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use usersync_core::{
    nats::REQUEST_TIMEOUT,
    subjects::{self, JOBS_BUCKET},
    target::TargetName,
};
use uuid::Uuid;

use super::{Control, bulk, erase::Erase, erasure::Erasure, nats};
use crate::problem::Problem;

/// How often progress is written down.
const NOTE: Duration = Duration::from_millis(250);
/// A job whose progress is older than this has lost its gateway.
const LOST: Duration = Duration::from_secs(10);
/// How long starting waits, so that a small job is done when its start is answered.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How often a job says again that it does what it does: well within what the bucket keeps.
const CLAIM: Duration = Duration::from_secs(60 * 60);
/// How often others may be faster at starting an equal job.
const TRIES: usize = 5;

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

impl JobState {
    fn is_under_way(self) -> bool {
        matches!(self, Self::Running | Self::Cancelling)
    }
}

/// One job.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct Job {
    /// What to ask for.
    pub id: String,
    /// `repair`, `replay`, `discard` or `erase`.
    pub kind: String,
    /// The target, `null` where it is about all targets.
    pub target: Option<TargetName>,
    /// How it stands.
    pub state: JobState,
    /// How many deliveries are asked for, letters discarded, or messages looked through so far.
    pub done: u64,
    /// How many it will be at most: what isn't looked at yet may not be among those chosen.
    pub total: u64,
    /// How many are dealt with per second at most.
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
    /// What an erasure has come to so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erasure: Option<Erasure>,
}

/// What a job does.
#[derive(Clone, Debug)]
pub(super) enum Work {
    /// Something with many users or letters.
    Bulk(bulk::Work),
    /// Erases one user.
    Erase(Erase),
}

impl From<bulk::Work> for Work {
    fn from(work: bulk::Work) -> Self {
        Self::Bulk(work)
    }
}

impl Work {
    fn kind(&self) -> &'static str {
        match self {
            Self::Bulk(work) => work.kind(),
            Self::Erase(_) => "erase",
        }
    }

    /// The one target it is about.
    fn target(&self) -> Option<&TargetName> {
        match self {
            Self::Bulk(work) => work.target(),
            Self::Erase(_) => None,
        }
    }

    fn erasure(&self) -> Option<Erasure> {
        match self {
            Self::Bulk(_) => None,
            Self::Erase(erase) => Some(Erasure::of(erase)),
        }
    }

    /// The same for work that is equal, in 128 bits: a choice may hold any text.
    fn print(&self) -> String {
        let hash = Sha256::digest(format!("{self:?}"));
        let hash = hash.iter().take(16);
        hash.map(|byte| format!("{byte:02x}")).collect()
    }
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

/// Starts a job, and waits a moment for it. `total` is how many messages it will look at.
pub(super) async fn start(
    control: &Arc<Control>,
    work: impl Into<Work>,
    per_second: u32,
    total: u64,
) -> Result<Job, Problem> {
    let work = work.into();
    if control.shutdown.is_cancelled() {
        return Err(Problem::unavailable(
            "this gateway is stopping; ask another one",
        ));
    }
    let now = Timestamp::now();
    let job = Job {
        id: Uuid::now_v7().simple().to_string(),
        kind: work.kind().to_owned(),
        target: work.target().cloned(),
        state: JobState::Running,
        done: 0,
        total,
        per_second,
        started: now,
        updated: now,
        error: None,
        erasure: work.erasure(),
    };
    let bucket = bucket(control).await?;
    let id = job.id.clone();
    let claim = subjects::claim_of_job(&work.print());
    let revision = bucket.put(&id, json(&job)?).await.map_err(nats)?;
    if let Err(problem) = stake(&bucket, &claim, &id).await {
        // It has never begun.
        bucket.purge(&id).await.map_err(nats)?;
        return Err(problem);
    }
    let record = Record {
        bucket,
        job,
        revision,
        noted: Instant::now(),
        claim,
        claimed: Instant::now(),
    };
    let running = control.clone();
    let ended = control.jobs.spawn(run(running, work, record));
    match tokio::time::timeout(AT_ONCE, ended).await {
        Ok(Ok(job)) => Ok(job),
        _ => status(control, ById { id }).await,
    }
}

/// Makes a job the one that does what it does, unless an equal one is under way.
async fn stake(bucket: &kv::Store, claim: &str, id: &str) -> Result<(), Problem> {
    for _ in 0..TRIES {
        let held = bucket.entry(claim).await.map_err(nats)?;
        let mut revision = 0;
        if let Some(held) = held {
            revision = held.revision;
            let other = String::from_utf8_lossy(&held.value);
            let other = find(bucket, &other).await?.map(|(job, _)| job);
            if let Some(other) = other.filter(|job| job.state.is_under_way()) {
                return Err(equal(&other));
            }
        }
        let staked = bucket.update(claim, id.to_owned().into(), revision).await;
        match staked {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => {}
            Err(error) => return Err(nats(error)),
        }
    }
    Err(Problem::new(
        StatusCode::CONFLICT,
        "others start equal jobs all the time; see the list of jobs",
    ))
}

fn equal(job: &Job) -> Problem {
    let Job {
        id,
        kind,
        started,
        done,
        total,
        ..
    } = job;
    let detail = format!(
        "job {id} is an equal {kind}, started {started:.0}, and has done {done} of at most {total}; wait for it or cancel it"
    );
    Problem::new(StatusCode::CONFLICT, detail)
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
    for key in keys?.iter().filter(|key| is_job(key)) {
        jobs.extend(find(&bucket, key).await?.map(|(job, _)| job));
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
    if !is_job(id) {
        return Ok(None);
    }
    let entry = bucket.entry(id).await?;
    let entry = entry.filter(|entry| entry.operation == kv::Operation::Put);
    let Some(entry) = entry else { return Ok(None) };
    let mut job: Job = serde_json::from_slice(&entry.value)?;
    let age = Timestamp::now().duration_since(job.updated);
    if job.state.is_under_way() && age.unsigned_abs() > LOST {
        job.state = JobState::Lost;
    }
    Ok(Some((job, entry.revision)))
}

/// Whether a text can be a job's id: what has a dot is a claim, and what is no key is no job either.
fn is_job(id: &str) -> bool {
    let key = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    !id.is_empty() && id.bytes().all(key)
}

async fn bucket(control: &Control) -> anyhow::Result<kv::Store> {
    Ok(control.jetstream.get_key_value(JOBS_BUCKET).await?)
}

fn json(job: &Job) -> Result<bytes::Bytes, anyhow::Error> {
    Ok(serde_json::to_vec(job)?.into())
}

/// A job and where its progress is written down.
pub(super) struct Record {
    bucket: kv::Store,
    pub(super) job: Job,
    revision: u64,
    noted: Instant,
    claim: String,
    claimed: Instant,
}

impl Record {
    /// Writes progress down, now and then; false when the job is to stop.
    pub(super) async fn note(&mut self) -> anyhow::Result<bool> {
        if self.noted.elapsed() >= NOTE {
            self.write().await?;
        }
        if self.claimed.elapsed() >= CLAIM {
            let id = self.job.id.clone();
            self.bucket.put(&self.claim, id.into()).await?;
            self.claimed = Instant::now();
        }
        Ok(self.job.state == JobState::Running)
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
async fn run(control: Arc<Control>, work: Work, mut record: Record) -> Job {
    let ended = match &work {
        Work::Bulk(work) => bulk::run(&control, work, &mut record).await,
        Work::Erase(erase) => erase.run(&control, &mut record).await,
    };
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
