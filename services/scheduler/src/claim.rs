//! A check under way, in the bucket `user_checks`: who does it, and how far it is.
//!
//! The work queue gives every request to one scheduler. A newer request for the same target is another one,
//! so the claim makes the second wait; and it tells whoever goes on after a crash where that is.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::{
    self,
    kv::{self, CreateErrorKind, UpdateErrorKind},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::interval;
use usersync_core::{
    check::Request,
    subjects::{self, CHECKS_BUCKET},
};

use crate::check::{Entries, Progress};

/// A claim that hasn't been renewed for this long belongs to a scheduler that is gone.
pub(crate) const LOST: Duration = Duration::from_secs(30);

/// The key that lets all checks wait.
const PAUSE: &str = "pause";

/// What the bucket holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    scheduler: String,
    renewed: Timestamp,
    request: Request,
    progress: Progress,
}

/// The right to check one target.
#[derive(Debug)]
pub(crate) struct Claim {
    bucket: kv::Store,
    target: String,
    revision: u64,
    record: Record,
}

impl Claim {
    /// Claims the check of `target` for `scheduler`; `None` while another one works on it.
    ///
    /// # Errors
    /// When the bucket can't be asked.
    pub(crate) async fn take(
        jetstream: &jetstream::Context,
        target: &str,
        scheduler: &str,
        request: &Request,
    ) -> anyhow::Result<Option<Self>> {
        let bucket = jetstream.get_key_value(CHECKS_BUCKET).await?;
        let mut record = Record {
            scheduler: scheduler.to_owned(),
            renewed: Timestamp::now(),
            request: request.clone(),
            progress: Progress::default(),
        };
        let found = bucket.entry(target).await?;
        let found = found.filter(|entry| entry.operation == kv::Operation::Put);
        let revision = match found {
            None => match bucket.create(target, text(&record)?).await {
                Ok(revision) => revision,
                Err(error) if error.kind() == CreateErrorKind::AlreadyExists => return Ok(None),
                Err(error) => return Err(error.into()),
            },
            Some(entry) => {
                let held: Option<Record> = serde_json::from_slice(&entry.value).ok();
                if let Some(held) = held {
                    // Also where it is this scheduler's: it may do several checks at once.
                    if age(held.renewed) < LOST {
                        return Ok(None);
                    }
                    if held.request == *request {
                        record.progress = held.progress;
                    }
                }
                match bucket.update(target, text(&record)?, entry.revision).await {
                    Ok(revision) => revision,
                    Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                        return Ok(None);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        };
        Ok(Some(Self {
            bucket,
            target: target.to_owned(),
            revision,
            record,
        }))
    }

    /// How far whoever had it before came.
    pub(crate) fn progress(&self) -> &Progress {
        &self.record.progress
    }

    /// Keeps the claim while `work` goes on: stores what is in its journal now and then, and then calls `kept` with it;
    /// and at once where the work waits for that.
    ///
    /// # Errors
    /// When the bucket can't be asked, or somebody else has the claim by now. Then somebody else may be at it, so the
    /// work is given up.
    pub(crate) async fn during<T>(
        &mut self,
        work: impl Future<Output = T>,
        mut entries: Entries,
        every: Duration,
        mut kept: impl AsyncFnMut(&Progress),
    ) -> anyhow::Result<T> {
        let mut work = std::pin::pin!(work);
        let mut renew = interval(every);
        loop {
            tokio::select! {
                end = &mut work => return Ok(end),
                _ = renew.tick() => {
                    let now = entries.newest();
                    self.renew(now.clone()).await?;
                    kept(&now).await;
                }
                asked = entries.asked() => {
                    self.renew(entries.newest()).await?;
                    // The work may have ended meanwhile.
                    let _ = asked.send(());
                }
            }
        }
    }

    /// Says that the check goes on, and how far it is.
    async fn renew(&mut self, progress: Progress) -> anyhow::Result<()> {
        self.record.progress = progress;
        self.record.renewed = Timestamp::now();
        let value = text(&self.record)?;
        let renewed = self.bucket.update(&self.target, value, self.revision).await;
        let lost = || format!("another scheduler has the check of {} by now", self.target);
        self.revision = renewed.with_context(lost)?;
        Ok(())
    }

    /// Lets go without an end: whoever comes next goes on from there.
    pub(crate) async fn leave(mut self, progress: Progress) -> anyhow::Result<()> {
        self.record.scheduler.clear();
        self.record.progress = progress;
        self.record.renewed = Timestamp::UNIX_EPOCH;
        let value = text(&self.record)?;
        self.bucket
            .update(&self.target, value, self.revision)
            .await?;
        Ok(())
    }

    /// Ends the check.
    pub(crate) async fn end(self) -> anyhow::Result<()> {
        let revision = Some(self.revision);
        self.bucket
            .delete_expect_revision(&self.target, revision)
            .await?;
        Ok(())
    }
}

/// Whether an operator holds all checks, or those of `target`: `nats kv put user_checks pause.<target> ''`, or
/// `pause` for all.
///
/// # Errors
/// When the bucket can't be asked.
pub(crate) async fn is_paused(
    jetstream: &jetstream::Context,
    target: &str,
) -> anyhow::Result<bool> {
    let bucket = jetstream.get_key_value(CHECKS_BUCKET).await?;
    for key in [PAUSE.to_owned(), subjects::check_pause(target)] {
        if bucket.get(key).await?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn text(record: &Record) -> anyhow::Result<bytes::Bytes> {
    Ok(serde_json::to_vec(record)?.into())
}

fn age(since: Timestamp) -> Duration {
    Timestamp::now()
        .duration_since(since)
        .try_into()
        .unwrap_or_default()
}
