//! Raises and resolves alerts by what a look has found.
//!
//! Several gateways do it side by side: what is raised is what the stream says, and each message names the one it
//! follows. What is true but not for long enough changes nothing, so a gateway that has just begun resolves nothing
//! that another has raised.

mod findings;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_nats::jetstream::account::Account;
use jiff::{Timestamp, fmt::serde::unsigned_duration::friendly::compact as duration};
use serde::Deserialize;
use usersync_core::{
    alert::{self, Alert, Kind, Newest, Runbook},
    settings::Reader,
    subjects::USER_ALERT,
};

use crate::control::{Control, look::Look};
use findings::{Finding, age, is_over};

/// How long something has to be so before people are told: `[alerts]`.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    breaker: Duration,
    backlog: Duration,
    worker: Duration,
    failing: Duration,
    dead: Duration,
    intake: Duration,
    outbox: Duration,
    /// A check is overdue when the last one began longer ago than twice its `every`, and this.
    check: Duration,
    /// The share of the storage that may be used.
    storage: f64,
    /// The storage there is where the account has no limit, in bytes.
    store: u64,
}

/// A duration as settings have it.
#[derive(Deserialize)]
pub(crate) struct Span(#[serde(with = "duration::required")] pub(crate) Duration);

impl Settings {
    /// Reads `[alerts]` but for `runbook`; problems stay in `reader`.
    pub(crate) fn read(reader: &mut Reader) -> Self {
        let mut span = |key, seconds| {
            let default = Span(Duration::from_secs(seconds));
            reader.get(key, default, "a duration such as 5m").0
        };
        let (breaker, worker) = (span("alerts.breaker", 120), span("alerts.worker", 300));
        let (backlog, failing) = (span("alerts.backlog", 300), span("alerts.failing", 300));
        let (dead, intake) = (span("alerts.dead", 300), span("alerts.intake", 120));
        let (outbox, check) = (span("alerts.outbox", 120), span("alerts.check", 600));
        let share = "a share from 0 to 1, such as 0.8";
        let storage = reader.get("alerts.storage", 0.8, share);
        if !(0.0..=1.0).contains(&storage) {
            reader.problem("alerts.storage", share);
        }
        let expected = "max_file_store of nats.conf in gibibytes, from 1 to 1048576";
        let store: u64 = reader.get("alerts.store_gib", 64, expected);
        if !(1..=1_048_576).contains(&store) {
            reader.problem("alerts.store_gib", expected);
        }
        Self {
            breaker,
            backlog,
            worker,
            failing,
            dead,
            intake,
            outbox,
            check,
            storage,
            store: store.saturating_mul(1 << 30),
        }
    }

    /// How many bytes the streams may take: the account's limit. Without one it is the server's `max_file_store`,
    /// which an account isn't told and the settings have to say.
    pub(super) fn storage_limit(&self, account: &Account) -> u64 {
        let limit = account.limits.max_storage.filter(|limit| *limit > 0);
        let limit = limit.and_then(|limit| u64::try_from(limit).ok());
        limit.unwrap_or(self.store)
    }
}

/// How long what an alert says may be outdated while it is raised.
const FRESH: Duration = Duration::from_secs(60 * 60);

/// What this gateway knows of alerts.
pub(super) struct Alerts {
    settings: Settings,
    runbook: Runbook,
    /// Since when each finding has been seen here.
    seen: BTreeMap<(Kind, String), Timestamp>,
    /// When each source was last spoken of, or this gateway began to listen.
    sources: BTreeMap<String, Timestamp>,
    /// First and last sequence, and number of messages of USER_ALERT when it was read.
    read_at: (u64, u64, u64),
    newest: BTreeMap<(Kind, String), Newest>,
}

impl Alerts {
    pub(super) fn new(settings: Settings, runbook: Runbook) -> Self {
        Self {
            settings,
            runbook,
            seen: BTreeMap::new(),
            sources: BTreeMap::new(),
            read_at: (0, 0, 0),
            newest: BTreeMap::new(),
        }
    }

    /// How many bytes the streams may take.
    pub(super) fn storage_limit(&self, account: &Account) -> u64 {
        self.settings.storage_limit(account)
    }

    /// Raises what has been so for long enough, and resolves what is no longer so.
    pub(super) async fn tell(
        &mut self,
        control: &Control,
        look: &Look,
        account: &Account,
    ) -> anyhow::Result<()> {
        self.refresh(control).await?;
        let now = Timestamp::now();
        let findings = self.settings.find(control, look, account, now).await?;
        let wrong: BTreeSet<_> = findings.iter().map(Finding::key).collect();
        self.seen.retain(|key, _| wrong.contains(key));
        for finding in findings {
            let key = finding.key();
            let first = *self.seen.entry(key.clone()).or_insert(now);
            let since = finding.since.unwrap_or(first);
            let newest = self.newest.get(&key);
            let raised = newest.and_then(Newest::raised);
            if raised.is_none() && age(now, since) < finding.patience {
                continue;
            }
            let (kind, target) = (finding.kind, &finding.target);
            let alert = Alert::raised(kind, target, since, finding.summary, &self.runbook);
            let alert = match raised {
                None => alert,
                Some(before) if age(now, before.updated.unwrap_or(before.since)) < FRESH => {
                    continue;
                }
                Some(before) => match alert.in_place_of(before) {
                    Some(updated) => updated,
                    None => continue,
                },
            };
            // One that somebody else stores first is read with the next look.
            let follows = newest.map_or(0, |newest| newest.seq);
            alert.publish(&control.jetstream, follows).await?;
        }
        let raised = self.newest.iter().filter_map(|(key, newest)| {
            let alert = newest.raised()?;
            Some((key, newest.seq, alert))
        });
        for (key, seq, alert) in raised {
            if !wrong.contains(key) && is_over(alert, look, &mut self.sources) {
                alert.resolved().publish(&control.jetstream, seq).await?;
            }
        }
        Ok(())
    }

    /// Reads what is raised, unless nothing has been said since it was read.
    async fn refresh(&mut self, control: &Control) -> anyhow::Result<()> {
        let stream = control.jetstream.get_stream(USER_ALERT).await?;
        let state = &stream.cached_info().state;
        let at = (state.first_sequence, state.last_sequence, state.messages);
        if at != self.read_at {
            self.newest = alert::all(&control.jetstream).await?;
            self.read_at = at;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_limit_is_the_accounts_own_or_what_the_settings_say() {
        let mut reader = Reader::new(None);
        let settings = Settings::read(&mut reader);
        reader.finish().unwrap();
        for (limit, expected) in [
            (json!(5_000), 5_000),
            (json!(-1), 64 << 30),
            (json!(0), 64 << 30),
        ] {
            let account = json!({
                "memory": 0, "storage": 7, "reserved_memory": 0, "reserved_storage": 0, "streams": 0, "consumers": 0, "api": {"total": 0, "errors": 0},
                "limits": {"max_memory": -1, "max_storage": limit, "max_streams": -1, "max_consumers": -1,
                           "max_bytes_required": false, "max_ack_pending": 0,
                           "memory_max_stream_bytes": -1, "storage_max_stream_bytes": -1},
            });
            let account: Account = serde_json::from_value(account).unwrap();
            assert_eq!(settings.storage_limit(&account), expected, "{limit}");
        }
    }
}
