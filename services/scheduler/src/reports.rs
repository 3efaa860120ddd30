//! What checks have found: the report in `user.check.result.<target>`, metrics, and the alert that there is drift.

use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use tokio::time::timeout;
use usersync_core::{
    alert::{self, Alert, Kind},
    check::{Class, Report, Request, Stage},
    nats::REQUEST_TIMEOUT,
    subjects,
};

use crate::{check::Progress, scheduler::Scheduler};

/// How a check may end, as metrics have it.
const RESULTS: [&str; 5] = ["alike", "drift", "refused", "braked", "failed"];
/// How long showing an interim report may take.
const SHOWING: Duration = Duration::from_secs(1);

/// Shows how far a check is; best effort.
pub(crate) async fn show(scheduler: &Scheduler, request: &Request, progress: &Progress) {
    if let Some(report) = &progress.report {
        let storing = store(scheduler, request, report);
        timeout(SHOWING, storing).await.ok();
    }
}

/// Who has a check done, and so whom its alerts would be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// Everybody who looks after the target: a schedule, or an operator who asked the schedulers.
    Everybody,
    /// Somebody who waits for the answer.
    Caller,
}

/// Where the report of a check goes: one of some users, or a dry run, never takes the place of the one of all.
pub(crate) fn subject(target: &str, request: &Request) -> String {
    match (request.is_of_all(), request.dry_run) {
        (true, false) => subjects::check_result(target),
        (true, true) => subjects::check_result_of_dry_run(target),
        (false, _) => subjects::check_result_of_some(target),
    }
}

/// Stores the report of a check that has ended, and counts it. One that is telling resolves the alert if it has found
/// nobody, and raises it for everybody if it has.
///
/// # Errors
/// When it can't be stored.
pub(crate) async fn publish(
    scheduler: &Scheduler,
    request: &Request,
    report: &Report,
    whom: For,
) -> anyhow::Result<()> {
    store(scheduler, request, report).await?;
    count(request, report);
    let found: Vec<_> = report
        .found
        .iter()
        .map(|(class, found)| format!("{} {class}", found.users))
        .collect();
    let (target, users, seconds) = (&report.target, report.users, report.seconds);
    let (found, against) = (found.join(", "), &report.against);
    if report.unusable > 0 {
        let (rows, reason) = (report.unusable, report.unusable_because.as_deref());
        tracing::warn!(
            target,
            against,
            rows,
            reason,
            "rows that can't be users are left out; this is why the first can't"
        );
    }
    let refused = &report.refused;
    if !refused.is_empty() {
        let (users, reason) = (refused.users, refused.because.as_deref());
        tracing::warn!(
            target,
            users,
            reason,
            "users can't be held, so they aren't compared; this is why the first can't"
        );
    }
    match report.stage {
        Stage::Failed => {
            let error = report.error.as_deref();
            tracing::error!(target, against, error, "the check failed");
        }
        _ if report.drifted() > 0 => {
            tracing::warn!(target, against, users, found, seconds, stage = ?report.stage, "copies differ");
            if request.is_telling() && whom == For::Everybody {
                raise(scheduler, report).await?;
            }
        }
        _ => {
            let alike = report.is_alike();
            tracing::info!(
                target,
                against,
                users,
                seconds,
                alike,
                "checked: nobody differs"
            );
            if request.is_telling() {
                let resolved = |newest: &alert::Newest| newest.raised().map(Alert::resolved);
                alert::tell(&scheduler.jetstream, Kind::Drift, target, resolved).await?;
            }
        }
    }
    Ok(())
}

async fn store(scheduler: &Scheduler, request: &Request, report: &Report) -> anyhow::Result<()> {
    let subject = subject(&report.target, request);
    let payload = serde_json::to_vec(report)?.into();
    let sent = scheduler.jetstream.publish(subject, payload);
    let stored = timeout(REQUEST_TIMEOUT, async { sent.await?.await }).await;
    stored
        .context("storing the report timed out")?
        .context("storing the report")?;
    Ok(())
}

async fn raise(scheduler: &Scheduler, report: &Report) -> anyhow::Result<()> {
    let (target, drifted) = (&report.target, report.drifted());
    let found = report.found.iter();
    let reason = format!(
        "{drifted} of {} users differ from {}",
        report.users, report.against
    );
    let summary = format!("copies at {target} differ: {drifted} users");
    let alert = Alert {
        found: Some(found.map(|(class, found)| (*class, found.users)).collect()),
        reason: Some(reason),
        stage: Some(report.stage),
        note: report.error.clone(),
        ..Alert::raised(
            Kind::Drift,
            target,
            report.started,
            summary,
            &scheduler.runbook,
        )
    };
    alert::tell(
        &scheduler.jetstream,
        Kind::Drift,
        target,
        |newest| match newest.raised() {
            None => Some(alert.clone()),
            Some(before) => alert.in_place_of(before),
        },
    )
    .await
}

fn count(request: &Request, report: &Report) {
    describe();
    let target = report.target.clone();
    let result = match report.stage {
        Stage::Failed => "failed",
        Stage::Braked => "braked",
        _ if report.drifted() > 0 => "drift",
        _ if !report.refused.is_empty() => "refused",
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
    counter!("usersync_unusable_rows_total", "target" => target.clone()).increment(report.unusable);
    counter!("usersync_check_refused_users_total", "target" => target.clone())
        .increment(report.refused.users);
    histogram!("usersync_check_seconds", "target" => target.clone()).record(report.seconds);
    // What is found of some says nothing of all.
    if request.is_telling() && matches!(report.stage, Stage::Done | Stage::Braked) {
        let now = Timestamp::now().as_second() as f64;
        gauge!("usersync_last_check_timestamp_seconds", "target" => target.clone()).set(now);
        gauge!("usersync_last_check_refused", "target" => target.clone())
            .set(report.refused.users as f64);
        gauge!("usersync_last_check_drift", "target" => target).set(report.drifted() as f64);
    }
}

/// What docs/METRICS.md says of each, too.
fn describe() {
    describe_counter!(
        "usersync_checks_total",
        "Checks that have ended: all alike, drift found, none but users who can't be held, braked for too much of it, or failed"
    );
    describe_counter!(
        "usersync_drift_total",
        "Users that checks found to differ, by class"
    );
    describe_counter!(
        "usersync_repairs_total",
        "Repairs that checks have asked for, by class of what differed"
    );
    describe_counter!(
        "usersync_unusable_rows_total",
        "Rows of main databases that checks left out, for they can't be users"
    );
    describe_counter!(
        "usersync_check_refused_users_total",
        "Users whom checks could not compare, for the target can't be told of them"
    );
    describe_gauge!(
        "usersync_last_check_refused",
        "Users whom the last check of this scheduler could not compare"
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
