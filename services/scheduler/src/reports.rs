//! What checks have found: the report in `user.check.result.<target>`, metrics, and an alert where there is drift.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::message::PublishMessage;
use jiff::Timestamp;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use serde_json::json;
use tokio::time::timeout;
use usersync_core::{
    check::{Class, Report, Stage},
    nats::REQUEST_TIMEOUT,
    subjects,
};

use crate::{check::Progress, scheduler::Scheduler};

/// The kind of alert that says that copies differ.
const DRIFT: &str = "drift";
/// How a check may end, as metrics have it.
const RESULTS: [&str; 4] = ["alike", "drift", "braked", "failed"];
/// How long showing an interim report may take.
const SHOWING: Duration = Duration::from_secs(1);

/// Shows how far a check is; best effort.
pub(crate) async fn show(scheduler: &Scheduler, progress: &Progress) {
    if let Some(report) = &progress.report {
        timeout(SHOWING, store(scheduler, report)).await.ok();
    }
}

/// Stores the report of a check that has ended, counts it, and raises the alert if there is drift.
///
/// # Errors
/// When it can't be stored.
pub(crate) async fn publish(scheduler: &Scheduler, report: &Report) -> anyhow::Result<()> {
    store(scheduler, report).await?;
    count(report);
    let found: Vec<_> = report
        .found
        .iter()
        .map(|(class, found)| format!("{} {class}", found.users))
        .collect();
    let (target, users, seconds) = (&report.target, report.users, report.seconds);
    let (found, against) = (found.join(", "), &report.against);
    match report.stage {
        Stage::Failed => {
            let error = report.error.as_deref();
            tracing::error!(target, against, error, "the check failed");
        }
        _ if report.drifted() > 0 => {
            tracing::warn!(target, against, users, found, seconds, stage = ?report.stage, "copies differ");
            alert(scheduler, report).await?;
        }
        _ => tracing::info!(target, against, users, seconds, "checked: all alike"),
    }
    Ok(())
}

async fn store(scheduler: &Scheduler, report: &Report) -> anyhow::Result<()> {
    let subject = subjects::check_result(&report.target);
    let payload = serde_json::to_vec(report)?.into();
    let sent = scheduler.jetstream.publish(subject, payload);
    let stored = timeout(REQUEST_TIMEOUT, async { sent.await?.await }).await;
    stored
        .context("storing the report timed out")?
        .context("storing the report")?;
    Ok(())
}

async fn alert(scheduler: &Scheduler, report: &Report) -> anyhow::Result<()> {
    let counts: std::collections::BTreeMap<_, _> = report
        .found
        .iter()
        .map(|(class, found)| (class.as_str(), found.users))
        .collect();
    let alert = json!({
        "kind": DRIFT, "target": report.target, "since": report.started, "found": counts,
        "reason": format!("{} of {} users differ from {}", report.drifted(), report.users, report.against),
        "stage": report.stage, "note": report.error,
    });
    let message = PublishMessage::build()
        .payload(alert.to_string().into())
        .message_id(format!("{DRIFT}:{}:{}", report.target, report.started));
    let sent = scheduler
        .jetstream
        .send_publish(subjects::alert(DRIFT, &report.target), message);
    timeout(REQUEST_TIMEOUT, async { sent.await?.await })
        .await
        .context("raising the alert timed out")?
        .context("raising the alert")?;
    Ok(())
}

fn count(report: &Report) {
    describe();
    let target = report.target.clone();
    let result = match report.stage {
        Stage::Failed => "failed",
        Stage::Braked => "braked",
        _ if report.drifted() > 0 => "drift",
        Stage::Running | Stage::Done => "alike",
    };
    for known in RESULTS {
        counter!("usersync_checks_total", "target" => target.clone(), "result" => known)
            .increment(u64::from(known == result));
    }
    for class in Class::ALL {
        let found = report.found.get(&class).cloned().unwrap_or_default();
        let label = class.as_str();
        counter!("usersync_drift_total", "target" => target.clone(), "class" => label)
            .increment(found.users);
        counter!("usersync_repairs_total", "target" => target.clone(), "class" => label)
            .increment(found.repaired);
    }
    histogram!("usersync_check_seconds", "target" => target.clone()).record(report.seconds);
    if matches!(report.stage, Stage::Done | Stage::Braked) {
        let now = Timestamp::now().as_second() as f64;
        gauge!("usersync_last_check_timestamp_seconds", "target" => target.clone()).set(now);
        gauge!("usersync_last_check_drift", "target" => target).set(report.drifted() as f64);
    }
}

/// What docs/METRICS.md says of each, too.
fn describe() {
    describe_counter!(
        "usersync_checks_total",
        "Checks that have ended: all alike, drift found, braked for too much of it, or failed"
    );
    describe_counter!(
        "usersync_drift_total",
        "Users that checks found to differ, by class"
    );
    describe_counter!(
        "usersync_repairs_total",
        "Repairs that checks have asked for, by class of what differed"
    );
    describe_histogram!("usersync_check_seconds", "How long checks took");
    describe_gauge!(
        "usersync_last_check_timestamp_seconds",
        "When this scheduler last ended a check of the target, in unix time"
    );
    describe_gauge!(
        "usersync_last_check_drift",
        "Users that the last check of this scheduler found to differ"
    );
}
