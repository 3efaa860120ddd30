//! Consistency checks: asked for, held and looked at here; schedulers do them.

use async_nats::jetstream::stream::{DirectGetErrorKind, Stream};
use axum::http::StatusCode;
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use usersync_core::{
    check::{Checked, Report, Request},
    nats::REQUEST_TIMEOUT,
    subjects::{self, CHECKS_BUCKET, USER_CHECK},
    user_id::UserId,
};

use super::{Control, nats};
use crate::problem::Problem;

/// What to check.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Run {
    pub target: Checked,
    #[serde(default)]
    user_id: Option<UserId>,
    #[serde(default)]
    from: Option<u64>,
    #[serde(default)]
    to: Option<u64>,
    #[serde(default)]
    dry_run: bool,
}

/// A request that names a target.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Of {
    pub target: Checked,
}

/// Which report to show.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Show {
    pub target: Checked,
    /// That of the last check of one user or a range of ids, instead of the last of all.
    #[serde(default)]
    pub some: bool,
}

/// What was asked for.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Asked {
    /// The target, or `gateway`.
    #[schema(value_type = String)]
    pub target: Checked,
    /// Where the request waits for a scheduler, in USER_CHECK.
    pub seq: u64,
}

/// What the last checks found.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Reports {
    /// By target.
    pub checks: Vec<Report>,
}

/// Whether checks of a target wait.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Held {
    /// The target, or `gateway`.
    #[schema(value_type = String)]
    pub target: Checked,
    /// Whether they do.
    pub paused: bool,
}

pub(crate) async fn run(control: &Control, run: Run) -> Result<Asked, Problem> {
    let request = Request {
        user_id: run.user_id,
        from: run.from,
        to: run.to,
        dry_run: run.dry_run,
        approved: false,
    };
    ask(control, run.target, request).await
}

/// Has a target checked again, and whatever differs repaired, however much that is.
pub(crate) async fn approve(control: &Control, of: Of) -> Result<Asked, Problem> {
    let approved = Request {
        approved: true,
        ..Request::default()
    };
    ask(control, of.target, approved).await
}

pub(crate) async fn ask(
    control: &Control,
    target: Checked,
    request: Request,
) -> Result<Asked, Problem> {
    if let Checked::Target(name) = &target
        && !control.config(name).await?.enabled
    {
        let detail = format!("target {name} is disabled, so nothing is delivered to it");
        return Err(Problem::unprocessable(detail));
    }
    let body = serde_json::to_vec(&request).map_err(anyhow::Error::from)?;
    let subject = subjects::check(target.as_ref());
    let sent = control.jetstream.publish(subject, body.into());
    let stored = sent.await.map_err(nats)?.await.map_err(nats)?;
    Ok(Asked {
        target,
        seq: stored.sequence,
    })
}

pub(crate) async fn show(control: &Control, of: Show) -> Result<Report, Problem> {
    let stream = control.stream(USER_CHECK).await?;
    let name = of.target.as_ref();
    let newest = match of.some {
        true => report_at(&stream, subjects::check_result_of_some(name)).await?,
        false => {
            let telling = report_at(&stream, subjects::check_result(name)).await?;
            let dry_run = report_at(&stream, subjects::check_result_of_dry_run(name)).await?;
            let reports = [telling, dry_run].into_iter().flatten();
            reports.max_by_key(|report| report.started)
        }
    };
    newest.ok_or_else(|| {
        let detail = format!("{} has not been checked yet", of.target);
        Problem::not_found(detail)
    })
}

/// The report of the last check of all users that was no dry run.
pub(super) async fn telling(
    control: &Control,
    target: &Checked,
) -> Result<Option<Report>, Problem> {
    let stream = control.stream(USER_CHECK).await?;
    report_at(&stream, subjects::check_result(target.as_ref())).await
}

async fn report_at(stream: &Stream<()>, subject: String) -> Result<Option<Report>, Problem> {
    match stream.direct_get_last_for_subject(subject).await {
        Ok(message) => serde_json::from_slice(&message.payload)
            .map(Some)
            .map_err(|_| unreadable(&message.subject)),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
        Err(error) => Err(nats(error)),
    }
}

fn unreadable(subject: &str) -> Problem {
    let detail = format!(
        "the report at {subject} in USER_CHECK can't be read; the next check of the target puts another in its place"
    );
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
}

pub(crate) async fn list(control: &Control) -> Result<Reports, Problem> {
    let stream = control.stream(USER_CHECK).await?;
    let found = stream.info_with_subjects(subjects::check_result("*"));
    let found = async { found.await.map_err(nats)?.try_collect().await.map_err(nats) };
    let found: Vec<(String, usize)> = tokio::time::timeout(REQUEST_TIMEOUT, found)
        .await
        .map_err(anyhow::Error::from)??;
    let mut checks = Vec::new();
    for (subject, _) in found {
        let name = subject.rsplit('.').next().unwrap_or_default();
        if name.parse::<Checked>().is_ok() {
            match report_at(&stream, subject.clone()).await {
                Ok(report) => checks.extend(report),
                // Who asks for it is told; of all others there is something to say.
                Err(problem) if problem.status == StatusCode::INTERNAL_SERVER_ERROR => {
                    tracing::debug!(subject, "a report can't be read");
                }
                Err(problem) => return Err(problem),
            }
        }
    }
    checks.sort_by(|a, b| a.target.cmp(&b.target));
    Ok(Reports { checks })
}

/// Lets checks of a target wait, also one that is under way.
pub(crate) async fn pause(control: &Control, of: Of) -> Result<Held, Problem> {
    if let Checked::Target(name) = &of.target {
        control.config(name).await?;
    }
    let bucket = control.jetstream.get_key_value(CHECKS_BUCKET).await;
    let bucket = bucket.map_err(nats)?;
    let key = subjects::check_pause(of.target.as_ref());
    bucket.put(key, "".into()).await.map_err(nats)?;
    Ok(Held {
        target: of.target,
        paused: true,
    })
}

/// Lets them go on.
pub(crate) async fn resume(control: &Control, of: Of) -> Result<Held, Problem> {
    let bucket = control.jetstream.get_key_value(CHECKS_BUCKET).await;
    let bucket = bucket.map_err(nats)?;
    let key = subjects::check_pause(of.target.as_ref());
    bucket.delete(key).await.map_err(nats)?;
    Ok(Held {
        target: of.target,
        paused: false,
    })
}
