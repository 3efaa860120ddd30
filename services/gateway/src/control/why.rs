//! Why a user is, or isn't, at a target: from the newest event to the last check, and the answer in one sentence.

use serde::{Deserialize, Serialize};
use usersync_core::{
    check::{Checked, Stage},
    state::Cause,
    stored_state,
    target::TargetName,
    user_id::UserId,
};

use super::{
    Control,
    breakers::{self, Breaker},
    checks,
    meant::Told,
    nats,
    users::{self, ById, Status, Task, Waiting},
};
use crate::problem::Problem;

/// A request that names a user and a target.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OfUser {
    pub user_id: UserId,
    pub target: TargetName,
}

/// Why a target has of a user what it has.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Why {
    /// Who.
    pub user_id: UserId,
    /// Which target.
    pub target: TargetName,
    /// In one sentence.
    pub answer: String,
    /// The event that the newest state has taken in last.
    pub event: Cause,
    /// The version of the newest state.
    pub version: u64,
    /// Whether the user is deleted.
    pub deleted: bool,
    /// Whether only some members are known, for no `user.created` was ever seen.
    pub partial: bool,
    /// How the target stands with the user, and what its rule makes of them.
    pub task: Task,
    /// The breakers of the target that aren't closed.
    pub breakers: Vec<Breaker>,
    /// The last check of all users of the target.
    pub last_check: Option<LastCheck>,
}

/// What the last check said.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct LastCheck {
    /// How it stands.
    pub stage: Stage,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    pub started: jiff::Timestamp,
    /// How many users differed.
    pub drifted: u64,
    /// Whether this user is in its sample of those who did.
    pub names_user: bool,
}

pub(crate) async fn why(control: &Control, of: OfUser) -> Result<Why, Problem> {
    let OfUser { user_id, target } = of;
    control.running(&target).await?;
    let by = ById { user_id };
    let state = users::state(control, &by).await?;
    let state = stored_state::read(&by.user_id, &state.payload).map_err(nats)?;
    let mut tasks = users::tasks_at(control, &by, Some(&target)).await?.targets;
    let task = tasks.pop().ok_or_else(|| super::no_target(&target))?;
    let mut breakers = breakers::all(control).await?;
    breakers.retain(|breaker| breaker.target == target);
    let checked = checks::telling(control, &Checked::Target(target.clone())).await?;
    let last_check = checked.map(|report| LastCheck {
        stage: report.stage,
        started: report.started,
        drifted: report.drifted(),
        names_user: report
            .found
            .values()
            .any(|found| found.sample.contains(&by.user_id)),
    });
    Ok(Why {
        answer: answer(&task, &breakers),
        user_id: by.user_id,
        target,
        event: state.event,
        version: state.version,
        deleted: state.deleted,
        partial: state.partial,
        task,
        breakers,
        last_check,
    })
}

/// The whole of it in one sentence.
fn answer(task: &Task, breakers: &[Breaker]) -> String {
    let because = task.rule.because.as_deref().unwrap_or_default();
    let reason = |error: &Option<String>| error.clone().unwrap_or_else(|| "unknown".to_owned());
    let what = match task.status {
        Status::Synced if task.rule.outcome == Told::Refused => {
            format!("the rule has no answer for the user here: {because}")
        }
        Status::Synced if because.is_empty() => "the target has taken the newest state".to_owned(),
        Status::Synced => format!("the target has been told: {because}"),
        Status::OutOfScope | Status::Ignored => because.to_owned(),
        Status::Unproven => {
            "the target has taken the newest state, and a call of a worker that vanished may have landed since; it is delivered again"
                .to_owned()
        }
        Status::Dead => format!(
            "it was given up after {} attempts: {}",
            task.attempts,
            reason(&task.error)
        ),
        Status::Retrying => format!(
            "it has failed {} times and is tried again: {}",
            task.attempts,
            reason(&task.error)
        ),
        Status::Pending => "it waits for its delivery".to_owned(),
    };
    match task.waiting {
        None => what,
        Some(Waiting::Paused) => format!("{what}; the target is paused"),
        Some(Waiting::NoWorker) => format!("{what}; no worker of the target answers"),
        Some(Waiting::BreakerOpen) => {
            let why = breakers
                .iter()
                .find_map(|breaker| breaker.reason.as_deref());
            let why = why.unwrap_or("it doesn't take users");
            format!("{what}; the breaker of the target is open: {why}")
        }
    }
}
