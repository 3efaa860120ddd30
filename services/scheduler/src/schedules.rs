//! When every target is checked by itself: NATS message schedules, kept as the targets' entries say.
//!
//! A schedule lives in USER_CHECK and not in a process (ADR-51 of NATS), so it outlives any scheduler. All
//! of them keep the schedules; what one has written the others find as it should be.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_nats::{
    header::{NATS_SCHEDULE, NATS_SCHEDULE_TARGET},
    jetstream::{
        self,
        context::PublishErrorKind,
        message::PublishMessage,
        stream::{LastRawMessageErrorKind, Stream},
    },
};
use futures_util::TryStreamExt;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use usersync_core::{
    check::Check,
    nats::REQUEST_TIMEOUT,
    registry::Entries,
    subjects::{self, GATEWAY_TARGET, USER_CHECK},
};

/// After how long the schedules are looked at again though no entry has changed.
const RECONCILE: Duration = Duration::from_secs(60);
/// After how long, when NATS could not be asked.
const AGAIN: Duration = Duration::from_secs(1);

/// Keeps the schedules until `shutdown`. `states` is when the states themselves are checked, if they are.
pub(crate) async fn keep(
    jetstream: jetstream::Context,
    mut entries: watch::Receiver<Option<Arc<Entries>>>,
    states: Option<Check>,
    shutdown: CancellationToken,
) {
    let keeping = async {
        loop {
            let known = entries.borrow_and_update().clone();
            let next = match known {
                None => RECONCILE,
                Some(known) => {
                    match reconcile(&jetstream, &wanted(&known, states.as_ref())).await {
                        Ok(()) => RECONCILE,
                        Err(error) => {
                            let error = format!("{error:#}");
                            tracing::warn!(error, "can't look after the schedules; trying again");
                            AGAIN
                        }
                    }
                }
            };
            if let Ok(Err(_)) = timeout(next, entries.changed()).await {
                // Nobody follows the entries any more: this scheduler is stopping.
                return;
            }
        }
    };
    shutdown.run_until_cancelled(keeping).await;
}

/// What is to be checked when: the schedule by the name of what it checks.
fn wanted(entries: &Entries, states: Option<&Check>) -> BTreeMap<String, String> {
    let enabled = entries.iter().filter_map(|(name, entry)| {
        let config = entry.config.as_ref().filter(|config| config.enabled)?;
        Some((name.as_str(), &config.check))
    });
    enabled
        .chain(states.map(|check| (GATEWAY_TARGET, check)))
        .filter_map(|(name, check)| Some((name.to_owned(), check.schedule()?)))
        .collect()
}

/// Writes what isn't as wanted, and removes what isn't wanted.
async fn reconcile(
    jetstream: &jetstream::Context,
    wanted: &BTreeMap<String, String>,
) -> anyhow::Result<()> {
    let stream = jetstream.get_stream_no_info(USER_CHECK).await?;
    let found = stream.info_with_subjects(subjects::check_schedule("*"));
    let found: Vec<(String, usize)> =
        timeout(REQUEST_TIMEOUT, async { found.await?.try_collect().await }).await??;
    for (subject, _) in found {
        let name = subject.rsplit('.').next().unwrap_or_default();
        if !wanted.contains_key(name) {
            stream.purge().filter(&subject).await?;
            tracing::info!(target = name, "no longer checked by itself");
        }
    }
    for (name, schedule) in wanted {
        if write(jetstream, &stream, name, schedule).await? {
            tracing::info!(target = name, schedule, "to be checked by itself");
        }
    }
    Ok(())
}

/// Writes one schedule unless it is there: a new `@every` would begin to count anew. Says whether it wrote.
async fn write(
    jetstream: &jetstream::Context,
    stream: &Stream<()>,
    name: &str,
    schedule: &str,
) -> anyhow::Result<bool> {
    let subject = subjects::check_schedule(name);
    let expected = match stream.get_last_raw_message_by_subject(&subject).await {
        Ok(stored) => {
            let stands = stored.headers.get(NATS_SCHEDULE);
            if stands.is_some_and(|stands| stands.as_str() == schedule) {
                return Ok(false);
            }
            stored.sequence
        }
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => 0,
        Err(error) => return Err(error.into()),
    };
    let message = PublishMessage::build()
        .header(NATS_SCHEDULE, schedule)
        .header(NATS_SCHEDULE_TARGET, subjects::check(name).as_str())
        .expected_last_subject_sequence(expected);
    match jetstream.send_publish(subject, message).await?.await {
        Ok(_) => Ok(true),
        // Another scheduler was faster.
        Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use usersync_core::registry::Entry;

    use super::*;

    #[test]
    fn enabled_targets_and_the_states_are_checked_as_their_entries_say() {
        let entry = |entry: serde_json::Value| Entry {
            config: Some(Arc::new(serde_json::from_value(entry).unwrap())),
            ..Entry::default()
        };
        let url = "http://h/x";
        let entries = Entries::from([
            ("a".to_owned(), entry(json!({"name": "a", "url": url}))),
            (
                "b".to_owned(),
                entry(json!({"name": "b", "url": url, "enabled": false})),
            ),
            (
                "c".to_owned(),
                entry(json!({"name": "c", "url": url, "check": {"every": "0s"}})),
            ),
            ("d".to_owned(), Entry::default()),
        ]);
        let schedule = |name: &str| (name.to_owned(), "@every 3600s".to_owned());
        assert_eq!(wanted(&entries, None), BTreeMap::from([schedule("a")]));
        assert_eq!(
            wanted(&entries, Some(&Check::default())),
            BTreeMap::from([schedule("a"), schedule(GATEWAY_TARGET)])
        );
    }
}
