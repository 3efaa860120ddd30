//! Targets whose copies are in doubt: a worker of theirs has vanished, and calls of its may have landed late.

use std::{collections::BTreeSet, time::Duration};

use async_nats::jetstream::kv;
use futures_util::TryStreamExt;
use jiff::Timestamp;
use usersync_core::{
    nats::REQUEST_TIMEOUT,
    presence::{Presence, RENEWED, VANISHED},
    subjects::WORKERS_BUCKET,
    target::TargetName,
};

use super::Control;

/// How long the others need to notice, and to say so themselves.
const NOTICED: Duration = RENEWED.saturating_mul(3);

/// A worker's key.
struct Key {
    target: TargetName,
    renewed: Timestamp,
    presence: Presence,
}

/// Those of which some users may not hold what they were told last.
pub(super) async fn unproven(control: &Control) -> anyhow::Result<BTreeSet<TargetName>> {
    let keys = tokio::time::timeout(REQUEST_TIMEOUT, all(control)).await??;
    let now = keys.iter().map(|key| key.renewed).max().unwrap_or_default();
    let unproven = keys.iter().filter(|key| key.is_in_doubt(now));
    Ok(unproven.map(|key| key.target.clone()).collect())
}

async fn all(control: &Control) -> anyhow::Result<Vec<Key>> {
    let store = control.jetstream.get_key_value(WORKERS_BUCKET).await?;
    let names: Vec<String> = store.keys().await?.try_collect().await?;
    let mut keys = Vec::with_capacity(names.len());
    for name in names {
        let entry = store.entry(name).await?;
        keys.extend(entry.and_then(|entry| Key::of(&entry)));
    }
    Ok(keys)
}

impl Key {
    fn of(entry: &kv::Entry) -> Option<Self> {
        let (target, _) = entry.key.split_once('.')?;
        let renewed = Timestamp::from_nanosecond(entry.created.unix_timestamp_nanos());
        Some(Self {
            target: target.parse().ok()?,
            renewed: renewed.ok()?,
            presence: serde_json::from_slice(&entry.value).ok()?,
        })
    }

    /// Whether this worker says so, or has vanished so lately that the others don't say it yet. `now` is by the clock of NATS.
    fn is_in_doubt(&self, now: Timestamp) -> bool {
        let silent = now.duration_since(self.renewed).unsigned_abs();
        self.presence.unproven || (silent >= VANISHED && silent < VANISHED + NOTICED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_falls_silent_puts_its_target_in_doubt_until_the_others_say_so() {
        let now = Timestamp::from_second(1_000).unwrap();
        for (unproven, silent, expected) in [
            (false, 0, false),
            (true, 0, true),
            (true, 30, true),
            (false, 7, false),
            (false, 8, true),
            (false, 13, true),
            (false, 14, false),
        ] {
            let key = Key {
                target: "audit".parse().unwrap(),
                renewed: now - Duration::from_secs(silent),
                presence: Presence {
                    unproven,
                    given_up: 0,
                },
            };
            assert_eq!(key.is_in_doubt(now), expected, "{unproven}, {silent} s");
        }
    }
}
