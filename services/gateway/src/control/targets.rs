//! Targets: list, show, test. How each stands, and what is wrong with it.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use usersync_core::{registry::Entry, target::TargetConfig};

use super::{
    Control, Named, aside, breakers,
    changes::wrong_key,
    no_target,
    standing::{Progress, Queue, Standing},
};
use crate::{problem::Problem, upkeep::FilesStatus};

/// One target and how it stands.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct View {
    /// Its name.
    pub name: String,
    /// The bucket's revision of its entry, also its ETag.
    pub revision: u64,
    /// Whether it is delivered to; false means paused.
    pub enabled: bool,
    /// What is wrong with the newest value of the entry: until it is put right, the last good one runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Whether the entry is as a catalogue file has it, and follows that file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_file: Option<bool>,
    /// The entry that runs, every key with its value; null when there never was a good one.
    #[schema(value_type = Option<TargetConfig>)]
    pub entry: Option<Arc<TargetConfig>>,
    /// How it stands with new states.
    pub live: Option<Queue>,
    /// How it stands with repairs.
    pub repairs: Option<Queue>,
    /// How far it is with all users: a new target is filled with every user.
    pub backfill: Option<Progress>,
    /// The breakers of its workers that aren't closed.
    pub breakers: Vec<breakers::Breaker>,
    /// How many users it could not be given.
    pub dead_letters: u64,
}

/// Every target.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Views {
    /// Sorted by name.
    pub targets: Vec<View>,
    /// How the catalogue files of this gateway stand.
    pub files: FilesStatus,
}

/// What a connection test found.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Tested {
    /// The target's name.
    pub name: String,
    /// Whether it answers and lets this gateway in.
    pub reachable: bool,
    /// Why not.
    pub reason: Option<String>,
    /// The code it answered with, where its protocol has one.
    pub code: Option<String>,
    /// How long it took, in milliseconds.
    pub milliseconds: u64,
    /// What is wrong with the newest value of the entry: this is where the last good one leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Why a check could not read it, although users can be delivered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

pub(crate) async fn list(control: &Control) -> Result<Views, Problem> {
    let entries = control.registry().await?.entries().await?;
    let files = control.files.status(&entries);
    let standing = Standing::of_all(control, entries.keys()).await?;
    let mut targets = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        targets.push(view(name, entry, &standing));
    }
    Ok(Views { targets, files })
}

pub(crate) async fn show(control: &Control, named: Named) -> Result<View, Problem> {
    let Named { name } = named;
    let registry = control.registry().await?;
    let entry = control.entry(&name).await?;
    let entry = entry.ok_or_else(|| no_target(&name))?;
    let standing = Standing::of(control, &name).await?;
    let mut view = view(name.to_string(), entry, &standing);
    let stored = registry.stored(name.as_ref()).await?;
    view.from_file = stored.map(|stored| stored.file.is_some());
    Ok(view)
}

fn view(name: String, entry: Entry, standing: &Standing) -> View {
    View {
        revision: entry.revision,
        enabled: entry.config.as_ref().is_some_and(|config| config.enabled),
        problem: entry.problem.clone(),
        from_file: None,
        live: standing.live(&name),
        repairs: standing.repairs(&name),
        backfill: standing.progress(&name),
        breakers: standing.breakers(&name),
        dead_letters: standing.dead_letters(&name),
        entry: entry.config,
        name,
    }
}

/// Asks the target whether it answers, as this gateway reaches it.
pub(crate) async fn test(control: &Control, named: Named) -> Result<Tested, Problem> {
    let (config, problem) = control.running(&named.name).await?;
    let tested = probe(control, &config).await?;
    Ok(Tested { problem, ..tested })
}

pub(super) async fn probe(
    control: &Control,
    config: &Arc<TargetConfig>,
) -> Result<Tested, Problem> {
    let (made, egress) = (config.clone(), control.egress.clone());
    let driver = aside(move || usersync_targets::connect(&made, &egress)).await;
    let driver = driver.and_then(|made| made.map_err(|error| error.to_string()));
    let driver = driver.map_err(|problem| wrong_key(&problem))?;
    let started = std::time::Instant::now();
    let answer = driver.probe().await;
    let failure = answer.err();
    let unreadable = match failure {
        Some(_) => None,
        None => driver.probe_reading().await.err(),
    };
    Ok(Tested {
        name: config.name.to_string(),
        reachable: failure.is_none(),
        code: failure
            .as_ref()
            .and_then(|failure| failure.code.as_deref().map(str::to_owned)),
        reason: failure.map(|failure| failure.reason.into_owned()),
        milliseconds: started.elapsed().as_millis() as u64,
        problem: None,
        unreadable: unreadable.map(|failure| failure.to_string()),
    })
}

/// The JSON Schema of an entry.
pub(crate) fn schema() -> Value {
    usersync_core::schema::of_target()
}
