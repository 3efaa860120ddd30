//! The targets at run time: the KV bucket `user_targets`, followed live.
//!
//! `nats kv put user_targets NAME '{…}'`, the HTTP API and catalogue files all end here. An entry
//! that can't be used never replaces the last good one in those who follow.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use async_nats::jetstream::{self, kv};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    catalogue,
    nats::REQUEST_TIMEOUT,
    subjects,
    target::{TargetConfig, TargetName},
};

/// How many values of an entry the bucket keeps: the last good one is looked for among them.
const HISTORY: i64 = 16;
/// How many entries are read at once.
const READS: usize = 32;
/// After how long a breaker's entry that isn't renewed is forgotten.
pub const BREAKER_AGE: Duration = Duration::from_secs(120);
/// How long to wait before watching again.
const AGAIN: Duration = Duration::from_millis(250);
/// After how long the whole bucket is read again, whatever the watch says.
const RECONCILE: Duration = Duration::from_secs(60);

/// Every entry of the bucket, by its key.
pub type Entries = BTreeMap<String, Entry>;

/// One entry, as far as it can be used.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entry {
    /// The last good value.
    pub config: Option<Arc<TargetConfig>>,
    /// What is wrong with the newest value, where it isn't the last good one.
    pub problem: Option<String>,
    /// The bucket's revision of the newest value.
    pub revision: u64,
}

/// The bucket.
#[derive(Clone, Debug)]
pub struct Registry {
    store: kv::Store,
}

/// Creates the buckets that are missing.
///
/// # Errors
/// When the server refuses.
pub async fn ensure_buckets(jetstream: &jetstream::Context, replicas: usize) -> anyhow::Result<()> {
    let bucket = |name: &str, description: &str| kv::Config {
        bucket: name.to_owned(),
        description: description.to_owned(),
        max_value_size: 64 * 1024,
        num_replicas: replicas,
        history: 1,
        ..kv::Config::default()
    };
    let targets = kv::Config {
        history: HISTORY,
        ..bucket(
            subjects::TARGETS_BUCKET,
            "The targets: name -> entry as JSON",
        )
    };
    let breakers = kv::Config {
        // A worker that is gone leaves its entry behind; those that live renew theirs.
        max_age: BREAKER_AGE,
        ..bucket(
            subjects::BREAKERS_BUCKET,
            "Breakers that aren't closed: target.worker -> state as JSON",
        )
    };
    for config in [targets, breakers] {
        let name = config.bucket.clone();
        if jetstream.get_key_value(&name).await.is_err() {
            let created = jetstream.create_key_value(config).await;
            created.with_context(|| format!("creating the bucket {name}"))?;
            tracing::info!(bucket = name, "created");
        }
    }
    Ok(())
}

impl Registry {
    /// The bucket, which must be there.
    ///
    /// # Errors
    /// When it isn't, or the server can't be asked.
    pub async fn open(jetstream: &jetstream::Context) -> anyhow::Result<Self> {
        let store = jetstream.get_key_value(subjects::TARGETS_BUCKET).await;
        let store = store.with_context(|| {
            format!(
                "opening the bucket {}; usersync-gateway creates it",
                subjects::TARGETS_BUCKET
            )
        })?;
        Ok(Self { store })
    }

    /// The bucket itself, for those who write it.
    pub fn store(&self) -> &kv::Store {
        &self.store
    }

    /// Every entry.
    ///
    /// # Errors
    /// When the server can't be asked.
    pub async fn entries(&self) -> anyhow::Result<Entries> {
        let keys: Vec<String> =
            timeout(REQUEST_TIMEOUT, self.store.keys().await?.try_collect()).await??;
        let mut read = stream::iter(keys)
            .map(async |key| Ok::<_, anyhow::Error>((key.clone(), self.read(&key).await?)))
            .buffer_unordered(READS);
        let mut entries = Entries::new();
        while let Some((key, entry)) = read.try_next().await? {
            entries.extend(entry.map(|entry| (key, entry)));
        }
        Ok(entries)
    }

    /// One entry, `None` when there is none.
    ///
    /// # Errors
    /// When the server can't be asked.
    pub async fn entry(&self, name: &TargetName) -> anyhow::Result<Option<Entry>> {
        self.read(name.as_ref()).await
    }

    async fn read(&self, key: &str) -> anyhow::Result<Option<Entry>> {
        let mut entries = Entries::new();
        if let Some(newest) = self.store.entry(key).await? {
            take(&mut entries, &newest);
        }
        if entries
            .get(key)
            .is_some_and(|entry| entry.problem.is_some())
        {
            // The last good value is one of those before.
            let mut history = self.store.history(key).await?;
            while let Some(value) = timeout(REQUEST_TIMEOUT, history.next()).await? {
                take(&mut entries, &value?);
            }
        }
        Ok(entries.remove(key))
    }

    /// Follows the bucket until `shutdown`; the receiver has every entry, once they are known.
    ///
    /// Survives the loss of the connection and of the bucket: what was known stays until it is back.
    pub fn follow(self, shutdown: CancellationToken) -> watch::Receiver<Option<Arc<Entries>>> {
        let (sender, receiver) = watch::channel(None);
        tokio::spawn(shutdown.run_until_cancelled_owned(async move {
            loop {
                if let Err(error) = self.watch(&sender).await {
                    let error = format!("{error:#}");
                    tracing::warn!(error, bucket = subjects::TARGETS_BUCKET, "watching again");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }));
        receiver
    }

    /// Sends the bucket as it stands, then every change, until all is to be read again.
    async fn watch(&self, sender: &watch::Sender<Option<Arc<Entries>>>) -> anyhow::Result<()> {
        let send = |entries: &Entries| {
            sender.send_if_modified(|sent| {
                let changed = sent.as_deref() != Some(entries);
                if changed {
                    *sent = Some(Arc::new(entries.clone()));
                }
                changed
            });
        };
        let mut entries = self.entries().await?;
        send(&entries);
        let read = entries.values().map(|entry| entry.revision).max();
        let next = read.unwrap_or(0) + 1;
        let mut watch = self.store.watch_all_from_revision(next).await?;
        let until = Instant::now() + RECONCILE;
        while let Ok(change) = timeout_at(until, watch.next()).await {
            take(&mut entries, &change.context("the watch ended")??);
            send(&entries);
        }
        Ok(())
    }
}

/// Applies one value of the bucket.
fn take(entries: &mut Entries, value: &kv::Entry) {
    let text = (value.operation == kv::Operation::Put).then_some(&*value.value);
    apply(entries, &value.key, value.revision, text);
}

/// Applies one value; `None` is a deletion.
fn apply(entries: &mut Entries, key: &str, revision: u64, value: Option<&[u8]>) {
    let Some(value) = value else {
        entries.remove(key);
        return;
    };
    let entry = entries.entry(key.to_owned()).or_default();
    entry.revision = revision;
    match parse(key, value) {
        Ok(config) => {
            entry.config = Some(Arc::new(config));
            entry.problem = None;
        }
        Err(problem) => entry.problem = Some(problem),
    }
}

fn parse(name: &str, value: &[u8]) -> Result<TargetConfig, String> {
    let table = serde_json::from_slice(value).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!("not valid JSON at line {line} column {column}; expected an object such as {{\"url\": \"http://host/path\"}}")
    })?;
    catalogue::entry(name, table).map_err(|problems| problems.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_value_keeps_the_last_good_one_and_says_why() {
        let mut entries = Entries::new();
        let mut put = |revision, text: &str| {
            apply(&mut entries, "t", revision, Some(text.as_bytes()));
            entries["t"].clone()
        };
        put(1, r#"{"url": "http://h/1"}"#);
        let entry = put(2, r#"{"url": "http://h/2", "timeout": "soon"}"#);
        assert_eq!(entry.config.unwrap().url.path(), "/1");
        let problem = entry.problem.unwrap();
        assert_eq!(problem, "timeout: expected a duration such as 10s");
        assert_eq!(entry.revision, 2);
        assert_eq!(put(3, r#"{"url": "http://h/3"}"#).problem, None);
        apply(&mut entries, "t", 4, None);
        assert!(entries.is_empty());
        apply(&mut entries, "u", 5, Some(b"{"));
        let entry = &entries["u"];
        assert!(entry.config.is_none() && entry.problem.as_ref().unwrap().contains("JSON"));
    }
}
