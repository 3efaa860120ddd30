//! The targets at run time: the KV bucket `user_targets`, followed live.
//!
//! `nats kv put user_targets NAME '{…}'`, the HTTP API and catalogue files all end here. An entry
//! that can't be used never replaces the last good one in those who follow.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use async_nats::{
    HeaderMap,
    jetstream::{
        self,
        context::{PublishError, PublishErrorKind},
        kv,
        message::{PublishMessage, StreamMessage},
        stream::LastRawMessageErrorKind,
    },
};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

pub use crate::buckets::BREAKER_AGE;
use crate::{
    catalogue, follow,
    nats::REQUEST_TIMEOUT,
    subjects::{self, header},
    target::{TargetConfig, TargetName},
};

/// The header that marks a deletion in a bucket (ADR-8 of NATS).
const KV_OPERATION: &str = "KV-Operation";
const KV_DELETE: &str = "DEL";

/// The most bytes an entry of a target may have.
pub const MAX_ENTRY: usize = 63 * 1024;
/// How many entries are read at once.
const READS: usize = 32;
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

/// Looks at an entry beyond its keys; says what is wrong with it, beginning with the key.
///
/// The same for all who follow the bucket, or they would disagree about the last good value: nothing
/// that one machine has and another lacks, secrets least of all, may decide.
pub type Check = fn(&TargetConfig) -> Result<(), String>;

/// The bucket.
#[derive(Clone, Debug)]
pub struct Registry {
    jetstream: jetstream::Context,
    store: kv::Store,
    check: Check,
}

/// One value of the bucket as it is stored, for those who write the next one.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The bucket's revision of it.
    pub revision: u64,
    /// The value, `None` for a deletion.
    pub value: Option<Bytes>,
    /// The hash of the file entry it comes from, where it comes from a file.
    pub file: Option<String>,
    /// When it was stored.
    pub time: Timestamp,
}

/// Why the bucket didn't take a value.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Somebody else has written the entry in between: read it again.
    #[error("somebody else has changed it in between")]
    Conflict,
    /// The server can't be asked, or refuses.
    #[error("{0}")]
    Refused(#[from] async_nats::Error),
}

impl Registry {
    /// The bucket, which must be there; an entry that fails `check` is a bad one.
    ///
    /// # Errors
    /// When it isn't, or the server can't be asked.
    pub async fn open(jetstream: &jetstream::Context, check: Check) -> anyhow::Result<Self> {
        let store = jetstream.get_key_value(subjects::TARGETS_BUCKET).await;
        let store = store.with_context(|| {
            format!(
                "opening the bucket {}; usersync-gateway creates it",
                subjects::TARGETS_BUCKET
            )
        })?;
        Ok(Self {
            jetstream: jetstream.clone(),
            store,
            check,
        })
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

    /// The newest value of an entry as it is stored, a deletion included; `None` when there never was one.
    ///
    /// # Errors
    /// When the server can't be asked.
    pub async fn stored(&self, name: &str) -> anyhow::Result<Option<Stored>> {
        let subject = self.subject(name);
        match self
            .store
            .stream
            .get_last_raw_message_by_subject(&subject)
            .await
        {
            Ok(message) => Ok(Some(stored(&message))),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Every value of an entry the bucket still has, oldest first.
    ///
    /// # Errors
    /// When the server can't be asked.
    pub async fn history(&self, name: &str) -> anyhow::Result<Vec<Stored>> {
        let subject = self.subject(name);
        let mut values: Vec<Stored> = Vec::new();
        loop {
            let next = values.last().map_or(1, |value| value.revision + 1);
            let asked = self.store.stream.raw_message_builder().sequence(next);
            match asked.next_by_subject(&subject).send().await {
                Ok(message) => values.push(stored(&message)),
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                    return Ok(values);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes an entry, `None` being its deletion, provided that its revision still is `expected`
    /// (0 for one that never was there); answers the new revision. `file` is the hash of the file
    /// entry it comes from.
    ///
    /// # Errors
    /// When the revision is another one by now, or the server can't be asked.
    pub async fn write(
        &self,
        name: &str,
        value: Option<Bytes>,
        expected: u64,
        file: Option<&str>,
    ) -> Result<u64, WriteError> {
        let mut headers = HeaderMap::new();
        if value.is_none() {
            headers.insert(KV_OPERATION, KV_DELETE);
        }
        if let Some(file) = file {
            headers.insert(header::FILE, file);
        }
        let message = PublishMessage::build()
            .payload(value.unwrap_or_default())
            .headers(headers)
            .expected_last_subject_sequence(expected);
        let refused = |error: PublishError| match error.kind() {
            PublishErrorKind::WrongLastSequence => WriteError::Conflict,
            _ => WriteError::Refused(error.into()),
        };
        let sent = self
            .jetstream
            .send_publish(self.subject(name), message)
            .await;
        Ok(sent.map_err(refused)?.await.map_err(refused)?.sequence)
    }

    fn subject(&self, name: &str) -> String {
        format!("{}{name}", self.store.prefix)
    }

    async fn read(&self, key: &str) -> anyhow::Result<Option<Entry>> {
        let mut entries = Entries::new();
        if let Some(newest) = self.store.entry(key).await? {
            self.take(&mut entries, &newest);
        }
        if entries
            .get(key)
            .is_some_and(|entry| entry.problem.is_some())
        {
            // The last good value is one of those before.
            entries.clear();
            let mut history = self.store.history(key).await?;
            while let Some(value) = timeout(REQUEST_TIMEOUT, history.next()).await? {
                self.take(&mut entries, &value?);
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
        // Before the entries are read, one after the other: what changes meanwhile is seen again.
        let last = self.store.stream.get_info().await?.state.last_sequence;
        let mut entries = self.entries().await?;
        send(&entries);
        let from = Some(last + 1);
        let mut watch = follow::bucket(&self.jetstream, &self.store, from).await?;
        let until = Instant::now() + RECONCILE;
        while let Ok(change) = timeout_at(until, watch.next()).await {
            let change = change.context("the watch ended")??;
            let text = change.value.as_deref();
            apply(&mut entries, self.check, &change.key, change.revision, text);
            // What comes again may be older than what was read: a deleted entry would come back.
            if change.pending == 0 {
                send(&entries);
            }
        }
        Ok(())
    }

    /// Applies one value of the bucket.
    fn take(&self, entries: &mut Entries, value: &kv::Entry) {
        let text = (value.operation == kv::Operation::Put).then_some(&*value.value);
        apply(entries, self.check, &value.key, value.revision, text);
    }
}

fn stored(message: &StreamMessage) -> Stored {
    let text = |name: &str| message.headers.get(name).map(|value| value.as_str());
    let nanos = message.time.unix_timestamp_nanos();
    Stored {
        revision: message.sequence,
        value: text(KV_OPERATION)
            .is_none()
            .then(|| message.payload.clone()),
        file: text(header::FILE).map(str::to_owned),
        time: Timestamp::from_nanosecond(nanos).unwrap_or_default(),
    }
}

/// Applies one value, unless a newer one is known; `None` is a deletion.
fn apply(entries: &mut Entries, check: Check, key: &str, revision: u64, value: Option<&[u8]>) {
    if entries
        .get(key)
        .is_some_and(|entry| entry.revision > revision)
    {
        return;
    }
    let Some(value) = value else {
        entries.remove(key);
        return;
    };
    let entry = entries.entry(key.to_owned()).or_default();
    entry.revision = revision;
    match parse(key, value).and_then(|config| check(&config).map(|()| config)) {
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

    fn no_ftp(config: &TargetConfig) -> Result<(), String> {
        match config.url.scheme() {
            "ftp" => Err("url: not this one".to_owned()),
            _ => Ok(()),
        }
    }

    #[test]
    fn a_bad_value_keeps_the_last_good_one_and_says_why() {
        let mut entries = Entries::new();
        let mut put = |revision, text: &str| {
            apply(&mut entries, no_ftp, "t", revision, Some(text.as_bytes()));
            entries["t"].clone()
        };
        put(1, r#"{"url": "http://h/1"}"#);
        let entry = put(2, r#"{"url": "http://h/2", "timeout": "soon"}"#);
        assert_eq!(entry.config.unwrap().url.path(), "/1");
        let problem = entry.problem.unwrap();
        assert_eq!(problem, "timeout: expected a duration such as 10s");
        assert_eq!(entry.revision, 2);
        let entry = put(3, r#"{"url": "ftp://h/3"}"#);
        assert_eq!(entry.config.unwrap().url.path(), "/1");
        assert_eq!(entry.problem.unwrap(), "url: not this one");
        assert_eq!(put(4, r#"{"url": "http://h/4"}"#).problem, None);
        assert_eq!(put(2, r#"{"url": "http://h/2"}"#).revision, 4);
        apply(&mut entries, no_ftp, "t", 3, None);
        assert_eq!(entries["t"].revision, 4, "older than what is known");
        apply(&mut entries, no_ftp, "t", 5, None);
        assert!(entries.is_empty());
        apply(&mut entries, no_ftp, "u", 6, Some(b"{"));
        let entry = &entries["u"];
        assert!(entry.config.is_none() && entry.problem.as_ref().unwrap().contains("JSON"));
    }
}
