//! Caches that have lost what they were told, as their workers say: they are told all of it again (ADR 43).

use jiff::Timestamp;
use usersync_core::{
    alert::{self, Alert, Kind, Runbook},
    refill::Mark,
    streams,
    subjects::{self, EPOCHS_BUCKET, USER_STATE, WORKERS_BUCKET},
    target::{TargetConfig, TargetName},
};

use crate::control::{Control, changes::is_missing, look::Look};

/// Has every target filled again that says it has `refill` and lost something.
///
/// # Errors
/// When NATS can't be asked, or refuses something.
pub(super) async fn refill(
    control: &Control,
    look: &Look,
    runbook: &Runbook,
) -> anyhow::Result<()> {
    for target in &look.targets {
        let config = target.entry.config.as_ref();
        if let Some(config) = config.filter(|config| config.enabled && config.refill) {
            one(control, config, runbook).await?;
        }
    }
    Ok(())
}

async fn one(control: &Control, config: &TargetConfig, runbook: &Runbook) -> anyhow::Result<()> {
    let target = &config.name;
    let jetstream = &control.jetstream;
    let marks = jetstream.get_key_value(WORKERS_BUCKET).await?;
    let Some(mark) = marks.get(subjects::refill_mark(target)).await? else {
        return Ok(());
    };
    let Mark { made, .. } = serde_json::from_slice(&mark)?;
    let done = jetstream.get_key_value(EPOCHS_BUCKET).await?;
    let key = subjects::refilled(target);
    let before: Option<u64> = match done.get(key.clone()).await? {
        Some(before) => serde_json::from_slice(&before).ok(),
        None => None,
    };
    if before.is_some_and(|before| made <= before) {
        return Ok(());
    }
    // The first mark says nothing of what was there before.
    if before.is_some() {
        begin_again(control, config).await?;
        raise(control, target, runbook).await?;
    }
    done.put(key, serde_json::to_vec(&made)?.into()).await?;
    Ok(())
}

/// Makes the target's consumer anew, which begins at the first state. Another gateway may do so, too: then it begins once more.
async fn begin_again(control: &Control, config: &TargetConfig) -> anyhow::Result<()> {
    let states = control.jetstream.get_stream_no_info(USER_STATE).await?;
    match states.delete_consumer(config.name.as_ref()).await {
        Err(error) if !is_missing(&error) => return Err(error.into()),
        _ => {}
    }
    streams::ensure_target_consumers(&control.jetstream, config).await
}

async fn raise(control: &Control, target: &TargetName, runbook: &Runbook) -> anyhow::Result<()> {
    let summary = "it has lost what it was told, and is told all of it again";
    let now = Timestamp::now();
    let alert = Alert::raised(Kind::Refill, target.as_ref(), now, summary, runbook);
    alert::tell(&control.jetstream, Kind::Refill, target.as_ref(), |_| {
        Some(alert.clone())
    })
    .await
}
