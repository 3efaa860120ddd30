//! Repairs: deliver the newest state of some users, or of all, to a target now.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use usersync_core::{
    subjects::{self, USER_STATE},
    target::TargetName,
    user_id::UserId,
};

use super::{
    Control,
    bulk::{self, Task, Work},
    jobs::{self, Job},
    scan,
};
use crate::problem::Problem;

/// The most users in one list.
const MOST_USERS: usize = 1_000;

/// What to deliver again.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Repair {
    /// The target to deliver to.
    pub target: TargetName,
    /// One user.
    #[serde(default)]
    pub user_id: Option<UserId>,
    /// Some users, at most 1000.
    #[serde(default)]
    pub user_ids: Vec<UserId>,
    /// Every user there is; runs as a job.
    #[serde(default)]
    pub all: bool,
    /// How many are asked for per second, for `all`.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 50000, default = 2000)]
    pub per_second: Option<u32>,
    /// Count and do nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What was asked for.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Asked {
    /// How many users or dead letters were chosen; of a job that isn't done, how many it will be at most.
    pub matched: u64,
    /// How many deliveries are asked for by now.
    pub published: u64,
    /// Whether nothing was done, only counted.
    pub dry_run: bool,
    /// The job that does it, where it is done in bulk.
    pub job: Option<Job>,
}

impl Asked {
    pub(super) fn only_counted(matched: u64) -> Self {
        Self {
            matched,
            published: 0,
            dry_run: true,
            job: None,
        }
    }

    pub(super) fn at_once(published: u64) -> Self {
        Self {
            matched: published,
            published,
            dry_run: false,
            job: None,
        }
    }

    pub(super) fn by(job: Job) -> Self {
        Self {
            matched: job.total,
            published: job.done,
            dry_run: false,
            job: Some(job),
        }
    }
}

/// Asks for deliveries; in bulk as a job.
pub(crate) async fn start(control: &Arc<Control>, repair: Repair) -> Result<Asked, Problem> {
    let Repair { target, .. } = repair;
    let per_second = bulk::rate(repair.per_second)?;
    control.config(&target).await?;
    let mut users = repair.user_ids;
    users.extend(repair.user_id);
    if repair.all != users.is_empty() {
        let detail = "expected one of user_id, user_ids and all = true";
        return Err(Problem::unprocessable(detail));
    }
    if repair.all {
        let states = control.stream(USER_STATE).await?;
        let total = scan::count(&states, subjects::STATES).await?;
        if repair.dry_run {
            return Ok(Asked::only_counted(total));
        }
        let job = jobs::start(control, Work::Repair(target), per_second, total).await?;
        return Ok(Asked::by(job));
    }
    if users.len() > MOST_USERS {
        let detail = format!("user_ids: at most {MOST_USERS} users are taken; use all = true");
        return Err(Problem::unprocessable(detail));
    }
    users.sort();
    users.dedup();
    if repair.dry_run {
        return Ok(Asked::only_counted(users.len() as u64));
    }
    let tasks = users.into_iter().map(|user_id| Task {
        target: target.clone(),
        user_id,
        seq: 0,
    });
    Ok(Asked::at_once(bulk::ask_for(control, tasks).await?))
}
