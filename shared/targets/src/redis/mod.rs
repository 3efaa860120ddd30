//! Redis targets: `user:<id>` holds the projected document as JSON for a day, guarded by version.
//!
//! A batch is one call of a script, so it costs one round trip and is atomic per user. In a cluster it is one call for
//! each slot, and one round trip to each node (ADR 33). Users who are to be disabled cost another: their documents are
//! read first, and written if they are the same still.

mod cluster;
mod document;
mod errors;
mod holdings;
mod key;
mod server;

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use redis::{
    Cmd, ErrorKind, RedisError, Script, ServerErrorKind, Value, aio::MultiplexedConnection,
};
use usersync_core::{
    json,
    refill::Mark,
    target::TargetConfig,
    user_id::{Ids, UserId},
};
use usersync_digest::Scanned;

use self::{
    cluster::{Answer, Cluster},
    errors::{classify, code, describe, failed, is_down, is_fault, unwritable},
    holdings::RedisHoldings,
    server::{Server, is_of_a_cluster},
};
use crate::{
    Action, ConfigError, Delivery, Failure, Holdings, Limits, Outcome, Standing, Target, Unchecked,
    shown, way::Way,
};

const CONCURRENCY: usize = 4;
const BATCH: usize = 128;
/// How long a document lives, and how long a deleted user's version is remembered.
const SECONDS: u32 = 86_400;

/// How long a test of writing is kept where it may not be removed.
const PROBE_SECONDS: u32 = 60;

/// A target that holds documents under `user:<id>`.
pub(crate) struct RedisTarget {
    server: Server,
    /// Found with the first call, then shared by all and kept until it breaks.
    place: Mutex<Option<Place>>,
    script: Script,
    timeout: Duration,
    limits: Limits,
    verify: bool,
    /// How integer ids are written.
    ids: Ids,
}

/// What the URL leads to.
#[derive(Clone)]
enum Place {
    Alone(MultiplexedConnection),
    Cluster(Arc<Cluster>),
}

/// What the script is to write for one user.
struct Entry {
    /// Which delivery of the batch it is.
    index: usize,
    /// The document and the tombstone.
    keys: [String; 2],
    /// The version, and for a change of what is there `:` and the version held.
    version: String,
    /// Empty for a deletion.
    body: Vec<u8>,
}

impl RedisTarget {
    pub(crate) fn new(config: &TargetConfig, way: Way) -> Result<Self, ConfigError> {
        if let Some(found) = config.method.as_deref().filter(|method| *method != "SET") {
            return Err(ConfigError::Method {
                found: found.to_owned(),
                expected: "SET",
            });
        }
        Ok(Self {
            server: Server::new(config, way)?,
            place: Mutex::new(None),
            timeout: config.timeout,
            script: Script::new(include_str!("write.lua")),
            limits: Limits::of(config, CONCURRENCY, BATCH),
            verify: config.verify,
            ids: config.ids,
        })
    }

    /// Writes every user of `batch`.
    async fn write(&self, batch: &[Delivery]) -> Result<Vec<Outcome>, RedisError> {
        let place = self.place().await?;
        let mut outcomes = vec![None; batch.len()];
        let entries = self.entries(&place, batch, &mut outcomes).await?;
        match &place {
            Place::Alone(connection) => {
                let all: Vec<&Entry> = entries.iter().collect();
                let call = self.call(&all, true);
                let answer = evaluate(&self.script, &mut connection.clone(), &call).await?;
                settle(&all, Ok(answer), &mut outcomes);
            }
            Place::Cluster(cluster) => {
                let mut by_slot = BTreeMap::<u16, Vec<&Entry>>::new();
                for entry in &entries {
                    let slot = key::slot(&batch[entry.index].user_id);
                    by_slot.entry(slot).or_default().push(entry);
                }
                let (slots, groups): (Vec<_>, Vec<_>) = by_slot.into_iter().unzip();
                let call = |group: usize| self.call(&groups[group], false);
                let answers = cluster.call(&self.server, &slots, call, Some(&self.script));
                for (group, answer) in groups.iter().zip(answers.await) {
                    settle(group, answer, &mut outcomes);
                }
            }
        }
        let unanswered =
            || Outcome::Transient(Failure::new("Redis answered another number of users"));
        let outcomes = outcomes.into_iter();
        Ok(outcomes
            .map(|outcome| outcome.unwrap_or_else(unanswered))
            .collect())
    }

    /// What is to be written of each delivery. Who is to be disabled and can't be read has an outcome instead.
    async fn entries(
        &self,
        place: &Place,
        batch: &[Delivery],
        outcomes: &mut [Option<Outcome>],
    ) -> Result<Vec<Entry>, RedisError> {
        let disabled = batch
            .iter()
            .filter(|delivery| delivery.action == Action::Disable);
        let disabled: Vec<_> = disabled.map(|delivery| &delivery.user_id).collect();
        let held = self.read(place, &disabled, key::document).await?;
        let mut held = held.into_iter();
        let mut entries = Vec::with_capacity(batch.len());
        for (index, delivery) in batch.iter().enumerate() {
            let user_id = &delivery.user_id;
            let (mut version, body) = match delivery.action {
                Action::Upsert => upsert(delivery, self.ids)?,
                Action::Delete => (delivery.version.to_string(), Vec::new()),
                Action::Disable => match held.next() {
                    Some(Err(error)) => {
                        outcomes[index] = Some(failed(&error));
                        continue;
                    }
                    held => disable(delivery, held.and_then(Result::ok).flatten()),
                },
            };
            // A cluster never had tombstones of before.
            if let (Place::Alone(_), Some(user)) = (place, key::formerly_remembered(user_id)) {
                version += &format!(" {}", key::tombstone(&user));
            }
            entries.push(Entry {
                index,
                keys: [key::document(user_id), key::tombstone(user_id)],
                version,
                body,
            });
        }
        Ok(entries)
    }

    /// One call of the script.
    fn call(&self, entries: &[&Entry], formerly: bool) -> Cmd {
        let size = entries.iter().map(|entry| entry.size()).sum::<usize>();
        let mut call = Cmd::with_capacity(5 + 4 * entries.len(), 64 + size);
        call.arg("EVALSHA");
        call.arg(self.script.get_hash()).arg(2 * entries.len());
        for entry in entries {
            call.arg(&entry.keys[0]).arg(&entry.keys[1]);
        }
        call.arg(SECONDS).arg(u8::from(formerly));
        for entry in entries {
            call.arg(&entry.version).arg(&entry.body);
        }
        call
    }

    /// What is at one key of each user, in their order.
    async fn read(
        &self,
        place: &Place,
        users: &[&UserId],
        key: impl Fn(&UserId) -> String,
    ) -> Result<Vec<Result<Option<Vec<u8>>, RedisError>>, RedisError> {
        if users.is_empty() {
            return Ok(Vec::new());
        }
        match place {
            Place::Alone(connection) => {
                let mut call = redis::cmd("MGET");
                for user in users {
                    call.arg(key(user));
                }
                let held: Vec<Option<Vec<u8>>> = call.query_async(&mut connection.clone()).await?;
                Ok(held.into_iter().map(Ok).collect())
            }
            Place::Cluster(cluster) => {
                let slots: Vec<u16> = users.iter().map(|user| key::slot(user)).collect();
                let call = |at: usize| {
                    let mut call = redis::cmd("GET");
                    call.arg(key(users[at]));
                    call
                };
                let answers = cluster.call(&self.server, &slots, call, None).await;
                Ok(answers.into_iter().map(holdings::document).collect())
            }
        }
    }

    /// How each user of `batch` stands. Of who is missing, the tombstone is read: a version there that can't be would keep
    /// them away for as long as it lives.
    async fn standings(&self, batch: &[Delivery]) -> Result<Vec<Standing>, RedisError> {
        let place = self.place().await?;
        let users: Vec<_> = batch.iter().map(|delivery| &delivery.user_id).collect();
        let documents = self.read(&place, &users, key::document).await?;
        let mut standings = Vec::with_capacity(batch.len());
        for (document, delivery) in documents.into_iter().zip(batch) {
            standings.push(match document {
                Ok(document) => compare(document.as_deref(), delivery, self.ids),
                Err(error) => Standing::Unknown(failed(&error)),
            });
        }
        let missing = |standing: &Standing| *standing == Standing::Missing;
        let gone = batch.iter().zip(&standings);
        let gone = gone.filter(|(_, standing)| missing(standing));
        let gone: Vec<_> = gone.map(|(delivery, _)| &delivery.user_id).collect();
        let tombstones = self.read(&place, &gone, key::tombstone).await?;
        let waiting = batch.iter().zip(&mut standings);
        let waiting = waiting.filter(|(_, standing)| missing(standing));
        for ((delivery, standing), tombstone) in waiting.zip(tombstones) {
            *standing = match tombstone {
                Ok(tombstone) => match tombstone.as_deref().and_then(key::buried) {
                    Some(version) if version > delivery.version => Standing::Newer(version),
                    _ => Standing::Missing,
                },
                Err(error) => Standing::Unknown(failed(&error)),
            };
        }
        if let Place::Alone(connection) = &place {
            self.tell_others(connection, batch, &mut standings).await?;
        }
        Ok(standings)
    }

    /// Of who seems to be missing, what is no text is told apart: MGET answers nothing for it, and no delivery takes its place.
    async fn tell_others(
        &self,
        connection: &MultiplexedConnection,
        batch: &[Delivery],
        standings: &mut [Standing],
    ) -> Result<(), RedisError> {
        let mut asked = redis::pipe();
        let missing = batch.iter().zip(standings);
        let missing: Vec<_> = missing
            .filter(|(_, standing)| **standing == Standing::Missing)
            .map(|(delivery, standing)| {
                asked.cmd("TYPE").arg(key::document(&delivery.user_id));
                standing
            })
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let types: Vec<String> = asked.query_async(&mut connection.clone()).await?;
        for (standing, found) in missing.into_iter().zip(types) {
            if found != "none" && found != "string" {
                *standing = compare_other();
            }
        }
        Ok(())
    }

    /// `call`, which may begin with connecting, for as long as a call may take.
    async fn within_timeout<T>(
        &self,
        call: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, RedisError> {
        let answered = tokio::time::timeout(self.timeout, call).await;
        let answered = answered.unwrap_or_else(|_| Err(self.server.late()));
        if answered.as_ref().is_err_and(|error| {
            error.is_unrecoverable_error()
                || code(error).is_some_and(|code| is_fault(code) || is_down(code))
        }) {
            self.forget_server();
        }
        answered.map_err(|error| self.server.explained(error))
    }

    /// Where users are kept, looked up where that isn't known.
    async fn place(&self) -> Result<Place, RedisError> {
        if let Some(place) = &*self.held_place() {
            return Ok(place.clone());
        }
        let mut connection = self.server.open(None).await?;
        let place = match is_of_a_cluster(&mut connection).await? {
            true => {
                let cluster = Cluster::of(&self.server, connection, self.timeout);
                Place::Cluster(Arc::new(cluster.await?))
            }
            false => Place::Alone(connection),
        };
        // Others may have found one meanwhile: the first stays.
        Ok(self.held_place().get_or_insert(place).clone())
    }

    /// The next call connects again. A cluster knows by itself which of its servers are gone.
    fn forget_server(&self) {
        let mut held = self.held_place();
        if matches!(*held, Some(Place::Alone(_))) {
            *held = None;
        }
    }

    fn held_place(&self) -> MutexGuard<'_, Option<Place>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts up the mark, of each master where it is a cluster: what one of them has lost is lost.
    async fn marked(&self, known: Mark) -> Result<Mark, RedisError> {
        let now = u64::try_from(Timestamp::now().as_microsecond()).unwrap_or_default();
        let made = now.max(known.made + 1);
        let cluster = match self.place().await? {
            Place::Alone(mut connection) => return counted(&mut connection, 0, known, made).await,
            Place::Cluster(cluster) => cluster,
        };
        cluster.look_again(&self.server).await;
        let mut marks = Vec::new();
        for (node, slot) in cluster.masters()? {
            let mut connection = cluster.connection(&self.server, &node).await?;
            let mark = counted(&mut connection, slot, known, made).await?;
            marks.push((connection, slot, mark));
        }
        let newest = marks.iter().map(|(.., mark)| mark.made).max();
        let newest = newest.unwrap_or_default();
        let mut count = u64::MAX;
        for (mut connection, slot, mark) in marks {
            // They all go by the newest, or the next look would miss it at the others.
            let mark = match mark.made < newest {
                true => {
                    let known = Mark {
                        made: newest,
                        count: 0,
                    };
                    counted(&mut connection, slot, known, newest).await?
                }
                false => mark,
            };
            count = count.min(mark.count);
        }
        Ok(Mark {
            made: newest,
            count,
        })
    }

    /// Writes where no user is.
    async fn try_to_write(&self) -> Result<(), RedisError> {
        let cluster = match self.place().await? {
            Place::Alone(mut connection) => return written(&mut connection, 0).await,
            Place::Cluster(cluster) => cluster,
        };
        cluster.look_again(&self.server).await;
        for (node, slot) in cluster.masters()? {
            let writing = async {
                let mut connection = cluster.connection(&self.server, &node).await?;
                written(&mut connection, slot).await
            };
            if let Err(error) = writing.await {
                cluster.forget(&node);
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Entry {
    /// How many bytes it takes in a call.
    fn size(&self) -> usize {
        let [document, tombstone] = &self.keys;
        document.len() + tombstone.len() + self.version.len() + self.body.len()
    }
}

/// Calls a script, which is loaded where it is missing.
async fn evaluate(
    script: &Script,
    connection: &mut MultiplexedConnection,
    call: &Cmd,
) -> Result<Value, RedisError> {
    match call.query_async(connection).await {
        Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
            let _: String = script.load_async(connection).await?;
            call.query_async(connection).await
        }
        answered => answered,
    }
}

/// Does what a delivery takes, in one slot.
async fn written(connection: &mut MultiplexedConnection, slot: u16) -> Result<(), RedisError> {
    let script = Script::new(include_str!("probe.lua"));
    // The server may know it from before, and a script that it doesn't know has to be loaded.
    let _: String = script.load_async(connection).await?;
    let mut call = script.key(key::probe(slot));
    call.arg(PROBE_SECONDS).invoke_async(connection).await
}

/// Counts up the mark in one slot; a new one is of `made`.
async fn counted(
    connection: &mut MultiplexedConnection,
    slot: u16,
    known: Mark,
    made: u64,
) -> Result<Mark, RedisError> {
    let script = Script::new(include_str!("mark.lua"));
    let mut call = script.key(key::mark(slot));
    call.arg(known.made).arg(known.count).arg(made);
    let mark: String = call.invoke_async(connection).await?;
    let unreadable = || RedisError::from((ErrorKind::Parse, "the mark can't be read"));
    mark.parse().map_err(|()| unreadable())
}

/// What an answer of the script says of each of its users.
fn settle(entries: &[&Entry], answer: Answer, outcomes: &mut [Option<Outcome>]) {
    match answer {
        Ok(Value::Array(answers)) if answers.len() == entries.len() => {
            for (entry, answer) in entries.iter().zip(answers) {
                outcomes[entry.index] = Some(classify(answer));
            }
        }
        Ok(_) => {}
        Err(error) => {
            for entry in entries {
                outcomes[entry.index] = Some(failed(&error));
            }
        }
    }
}

/// The version and the document of a user who is to be there.
fn upsert(delivery: &Delivery, ids: Ids) -> Result<(String, Vec<u8>), RedisError> {
    let body = document::written(delivery, ids).map_err(|_| unwritable())?;
    Ok((delivery.version.to_string(), body))
}

/// The same of one who is to be disabled. A user who isn't there is remembered like one who was deleted, so that nothing
/// older comes.
fn disable(delivery: &Delivery, held: Option<Vec<u8>>) -> (String, Vec<u8>) {
    let (held, body) = match held {
        // What is no document isn't a user either: it makes room as it would for an upsert.
        Some(held) => document::changed(&held, delivery).unwrap_or_default(),
        None => (0, Vec::new()),
    };
    (format!("{}:{held}", delivery.version), body)
}

#[async_trait]
impl Target for RedisTarget {
    async fn deliver(&self, batch: &[Delivery]) -> Vec<Outcome> {
        match self.within_timeout(self.write(batch)).await {
            Ok(outcomes) => {
                // The script may say so of each user, where the server was made a replica.
                if outcomes
                    .iter()
                    .any(|outcome| matches!(outcome, Outcome::Fault(_) | Outcome::Down(_)))
                {
                    self.forget_server();
                }
                outcomes
            }
            Err(error) => vec![failed(&error); batch.len()],
        }
    }

    fn forgets_versions(&self) -> bool {
        true
    }

    async fn forget_version(&self, user_id: &UserId, version: u64) -> Result<(), Failure> {
        let forgetting = async {
            let script = Script::new(include_str!("forget.lua"));
            match self.place().await? {
                Place::Alone(mut connection) => {
                    let mut call = script.key(key::document(user_id));
                    call.key(key::tombstone(user_id)).arg(version);
                    call.invoke_async(&mut connection).await
                }
                Place::Cluster(cluster) => {
                    let call = |_| {
                        let mut call = redis::cmd("EVALSHA");
                        call.arg(script.get_hash()).arg(2);
                        call.arg(key::document(user_id))
                            .arg(key::tombstone(user_id));
                        call.arg(version);
                        call
                    };
                    let slot = [key::slot(user_id)];
                    let answers = cluster.call(&self.server, &slot, call, Some(&script)).await;
                    answers.into_iter().try_for_each(|answer| answer.map(drop))
                }
            }
        };
        let forgotten = self.within_timeout(forgetting).await;
        forgotten.map_err(|error: RedisError| Failure::new(describe(&error)))
    }

    async fn mark(&self, known: Mark) -> Result<Mark, Failure> {
        let marked = self.within_timeout(self.marked(known)).await;
        marked.map_err(|error: RedisError| Failure::new(describe(&error)))
    }

    async fn probe(&self) -> Result<(), Failure> {
        let tried = self.within_timeout(self.try_to_write()).await;
        tried.map_err(|error: RedisError| Failure::new(describe(&error)))
    }

    async fn probe_reading(&self) -> Result<(), Failure> {
        holdings::try_to_read(self).await
    }

    fn verifies(&self) -> bool {
        self.verify
    }

    async fn compare(&self, batch: &[Delivery]) -> Option<Vec<Standing>> {
        Some(match self.within_timeout(self.standings(batch)).await {
            Ok(standings) => standings,
            Err(error) => Standing::unknown(&failed(&error), batch.len()),
        })
    }

    async fn holdings(&self) -> Result<Box<dyn Holdings + '_>, Unchecked> {
        holdings::refuse_replica(self).await?;
        Ok(Box::new(Scanned(RedisHoldings { target: self })))
    }

    fn limits(&self) -> Limits {
        self.limits
    }
}

/// Whether the document is what was told.
fn compare(document: Option<&[u8]>, delivery: &Delivery, ids: Ids) -> Standing {
    let id = delivery.user_id.to_string();
    let document = document.filter(|held| !key::is_former_tombstone(&id, held));
    match (document.map(json::value), delivery.action) {
        (None, Action::Delete | Action::Disable) => Standing::Same,
        (None, Action::Upsert) => Standing::Missing,
        (Some(Ok(document)), action) => {
            let standing = shown::compare(&document, delivery, &shown::DOCUMENT);
            let older = standing == Standing::Behind;
            let is_told = (older || standing == Standing::Same) && action == Action::Upsert;
            // It is ours alone and written as a whole: what else is in it was put there by somebody.
            match is_told && !document::is_written(document, delivery, ids) {
                true => Standing::Different("a member it was not told of".into()).aged(older),
                // Whoever isn't there has no document. One that says that its user is deleted is somebody's work.
                false if standing == Standing::Missing => {
                    Standing::Different("it says that the user is deleted".into())
                }
                false => standing,
            }
        }
        (Some(Err(_)), _) => compare_other(),
    }
}

fn compare_other() -> Standing {
    Standing::Different("what is there is no document".into())
}
