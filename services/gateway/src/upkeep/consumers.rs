//! Every target in KV has its consumers, paused or not: adding one fills it with every user.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use usersync_core::{registry::Entries, streams, target::TargetConfig};

use crate::control::Control;

/// After how long consumers are compared with what they are to be although no entry has changed: an older gateway may have
/// changed them. Those that are deleted are made again by whoever looks at everything.
const AGAIN: Duration = Duration::from_secs(60);
/// After how long what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What is known to be so, by name.
#[derive(Default)]
struct Done {
    configs: HashMap<String, Arc<TargetConfig>>,
    /// Revisions whose problem was logged.
    problems: HashMap<String, u64>,
}

/// Follows the bucket until `shutdown`.
pub(super) async fn follow(control: &Control, shutdown: CancellationToken) {
    let registry = loop {
        match control.registry().await {
            Ok(registry) => break registry.clone(),
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    };
    let mut entries = registry.follow(shutdown);
    let mut done = Done::default();
    loop {
        let known = entries.borrow_and_update().clone();
        let complete = match known {
            None => true,
            Some(known) => take(control, &known, &mut done).await,
        };
        let patience = if complete { AGAIN } else { RETRY };
        match tokio::time::timeout(patience, entries.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) if complete => renew(control, &done).await,
            Err(_) => {}
        }
    }
}

/// Makes the consumers, unless the target was deleted since the entries were seen.
async fn make(control: &Control, name: &str, config: &TargetConfig) -> anyhow::Result<()> {
    match is_there(control, name).await? {
        true => streams::ensure_target_consumers(&control.jetstream, config).await,
        false => Ok(()),
    }
}

/// Whether a target has an entry now: consumers that an operator has deleted with it must not come back.
pub(super) async fn is_there(control: &Control, name: &str) -> anyhow::Result<bool> {
    let stored = control.registry().await?.stored(name).await?;
    Ok(stored.is_some_and(|stored| stored.value.is_some()))
}

async fn renew(control: &Control, done: &Done) {
    for (name, config) in &done.configs {
        if let Err(error) = streams::renew_target_consumers(&control.jetstream, config).await {
            let error = format!("{error:#}");
            tracing::warn!(target = name, error, "can't look after the consumers");
        }
    }
}

/// Makes what is missing; answers whether all of it could be made.
async fn take(control: &Control, entries: &Entries, done: &mut Done) -> bool {
    done.configs.retain(|name, _| entries.contains_key(name));
    let mut complete = true;
    for (name, entry) in entries {
        if let Some(problem) = &entry.problem
            && done.problems.insert(name.clone(), entry.revision) != Some(entry.revision)
        {
            let revision = entry.revision;
            tracing::error!(
                target = name,
                revision,
                problem,
                "the newest entry can't be used; the last good one holds"
            );
        }
        let Some(config) = &entry.config else {
            continue;
        };
        // All that a consumer takes from its target is how often it delivers.
        let same = |known: &Arc<TargetConfig>| known.retry.max_deliver == config.retry.max_deliver;
        if done.configs.get(name).is_some_and(same) {
            continue;
        }
        match make(control, name, config).await {
            Ok(()) => {
                done.configs.insert(name.clone(), config.clone());
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(
                    target = name,
                    error,
                    "can't make the consumers; trying again"
                );
                complete = false;
            }
        }
    }
    complete
}
