//! The control plane: each operation once, as a function; `api` and `micro` are its doors.
//!
//! A request is a struct that JSON fills, an answer one that becomes JSON, an error a problem
//! document: so HTTP and NATS can't differ in anything but the way in.

pub(crate) mod alerts;
pub(crate) mod breakers;
mod bulk;
pub(crate) mod changes;
pub(crate) mod checks;
pub(crate) mod dead_letters;
pub(crate) mod erase;
mod erasure;
mod evidence;
pub(crate) mod former_refused;
pub(crate) mod jobs;
pub(crate) mod letters;
pub(crate) mod look;
pub(crate) mod meant;
mod presences;
pub(crate) mod preview;
pub(crate) mod refused;
mod relays;
pub(crate) mod repairs;
mod scan;
pub(crate) mod standing;
pub(crate) mod status;
pub(crate) mod targets;
pub(crate) mod users;
pub(crate) mod why;
mod workers;

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::{self, stream::Stream};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use usersync_core::{
    egress::Egress,
    grant::Grants,
    registry::{Entry, Registry},
    target::{TargetConfig, TargetName},
};
use usersync_traces::Traces;

use crate::{problem::Problem, upkeep::Files};

/// How long jobs may take to write down where they stopped.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What every operation needs.
pub(crate) struct Control {
    /// The JetStream connection.
    pub jetstream: jetstream::Context,
    /// What records spans.
    pub traces: Traces,
    /// How the catalogue files stand.
    pub files: Files,
    /// Where targets may be and what they may be told, for connection tests and previews.
    egress: Egress,
    registry: OnceCell<Registry>,
    letters: letters::Counted,
    jobs: TaskTracker,
    shutdown: CancellationToken,
}

/// A request that names a target.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Named {
    pub name: TargetName,
}

/// An answer that says no more than how many.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Count {
    /// How many there are, or were dealt with.
    pub matched: u64,
    /// Whether nothing was done, only counted.
    pub dry_run: bool,
}

impl Control {
    pub(crate) fn new(
        jetstream: jetstream::Context,
        traces: Traces,
        files: Files,
        egress: Egress,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            jetstream,
            traces,
            files,
            egress,
            registry: OnceCell::new(),
            letters: letters::Counted::default(),
            jobs: TaskTracker::new(),
            shutdown,
        })
    }

    /// The targets' bucket.
    pub(crate) async fn registry(&self) -> anyhow::Result<&Registry> {
        let open = async || Registry::open(&self.jetstream, usersync_targets::check).await;
        self.registry.get_or_try_init(open).await
    }

    async fn stream(&self, name: &str) -> anyhow::Result<Stream<()>> {
        Ok(self.jetstream.get_stream_no_info(name).await?)
    }

    /// The entry of a target, `None` when there is no such target.
    async fn entry(&self, name: &TargetName) -> Result<Option<Entry>, Problem> {
        Ok(self.registry().await?.entry(name).await?)
    }

    /// The configuration a target runs with.
    async fn config(&self, name: &TargetName) -> Result<Arc<TargetConfig>, Problem> {
        Ok(self.running(name).await?.0)
    }

    /// The same, with what is wrong with the entry's newest value, where that isn't what runs.
    async fn running(
        &self,
        name: &TargetName,
    ) -> Result<(Arc<TargetConfig>, Option<String>), Problem> {
        let Entry {
            config, problem, ..
        } = self.entry(name).await?.ok_or_else(|| no_target(name))?;
        match config {
            Some(config) => Ok((config, problem)),
            None => {
                let problem = problem.unwrap_or_default();
                let detail = format!("target {name} can't be used: {problem}");
                Err(Problem::unprocessable(detail))
            }
        }
    }

    /// Waits for jobs under way to end: they stop with the shutdown token.
    pub(crate) async fn drained(&self) {
        self.jobs.close();
        if tokio::time::timeout(LAST_WORDS, self.jobs.wait())
            .await
            .is_err()
        {
            tracing::warn!("a job did not stop in time; start it again");
        }
    }
}

/// Has an entry's rule and kind look at it, beyond what every entry has; answers what else its owner should know. No
/// secret of it is read: workers do, and a test of the connection.
pub(crate) fn fits(config: &TargetConfig, grants: &Grants) -> Result<Vec<String>, String> {
    usersync_targets::check(config)?;
    let refused = grants.check_all(config).err();
    let warning = refused.map(|(key, refused)| format!("{key}: {refused}"));
    Ok(warning.into_iter().collect())
}

/// Does something that takes a while beside everything else.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| "looking at the entry panicked".to_owned())
}

fn no_target(name: &TargetName) -> Problem {
    Problem::not_found(format!(
        "there is no target {name}; see the list of targets"
    ))
}

/// Turns any error of the client library into a problem.
fn nats<E: Into<anyhow::Error>>(error: E) -> Problem {
    Problem::from(error.into())
}
