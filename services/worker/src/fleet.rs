//! Which targets this worker serves: those of the KV bucket `user_targets`, followed live.
//!
//! A berth per target runs one courier at a time: when an entry changes, the old courier is drained
//! before a new one begins, so that order per user holds.

use std::{
    collections::{BTreeMap, BTreeSet, hash_map::DefaultHasher},
    hash::{Hash as _, Hasher as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::jetstream::{self, stream::Stream};
use secrecy::ExposeSecret as _;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use usersync_core::{
    admin::Health,
    egress::Egress,
    registry::{Entries, Registry},
    secret::SecretRef,
    streams, subjects,
    target::{TargetConfig, TargetName},
};
use usersync_targets::{Rule, Target};
use usersync_traces::Traces;

use crate::{
    board::Board, courier::Courier, memory::Memory, presence::Crew, refill, route::Route, settle,
    share::Share,
};

/// How long to wait before looking for the bucket again.
const AGAIN: Duration = Duration::from_millis(250);
/// How long asking others to deliver may take.
const HANDING_OVER: Duration = Duration::from_secs(1);
/// How long to wait before trying a target again that can't be set up, for a secret that is missing say.
const SET_UP_AGAIN: Duration = Duration::from_secs(5);
/// How often the files with a target's secrets are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The routes being served, for those who ask about them.
#[derive(Clone, Default)]
pub(crate) struct Routes(Arc<Mutex<BTreeMap<TargetName, Arc<Route>>>>);

impl Routes {
    pub(crate) fn of(&self, target: &TargetName) -> Option<Arc<Route>> {
        self.lock().get(target).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<TargetName, Arc<Route>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What every berth needs.
#[derive(Clone)]
pub(crate) struct Fleet {
    /// The JetStream connection.
    pub jetstream: jetstream::Context,
    /// How every target stands.
    pub health: Health,
    /// Where breakers are shown.
    pub board: Board,
    /// Who else delivers.
    pub crew: Crew,
    /// How many calls each target may have under way.
    pub share: Share,
    /// What is being served.
    pub routes: Routes,
    /// The targets to serve; empty for every enabled one.
    pub names: BTreeSet<TargetName>,
    /// Where they may be.
    pub egress: Egress,
    /// What records spans.
    pub traces: Traces,
}

/// An entry, and its revision in the bucket.
type Served = (Arc<TargetConfig>, u64);
type Wanted = watch::Sender<Option<Served>>;

impl Fleet {
    /// Serves its targets until `shutdown`, then drains them.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        for name in &self.names {
            let waiting = format!("waiting for it in the bucket {}", subjects::TARGETS_BUCKET);
            self.health.down(name.as_ref(), waiting);
        }
        let opening = async {
            let states =
                streams::wait_for_stream(&self.jetstream, subjects::USER_STATE, &self.health).await;
            (states, self.registry().await)
        };
        let Some((states, registry)) = shutdown.run_until_cancelled(opening).await else {
            return;
        };
        let mut entries = registry.follow(shutdown.clone());
        let mut berths: BTreeMap<TargetName, Wanted> = BTreeMap::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(self.clone().watch(shutdown.clone()));
        while let Some(Ok(())) = shutdown.run_until_cancelled(entries.changed()).await {
            let Some(entries) = entries.borrow_and_update().clone() else {
                continue;
            };
            self.tell_unknown(&entries);
            let wanted = self.wanted(&entries);
            self.share.serve(wanted.len());
            for (name, served) in &wanted {
                let berth = berths.entry(name.clone()).or_insert_with(|| {
                    let (sender, receiver) = watch::channel(None);
                    let fleet = self.clone();
                    tasks.spawn(fleet.berth(
                        name.clone(),
                        states.clone(),
                        receiver,
                        shutdown.clone(),
                    ));
                    sender
                });
                if !berth.send_if_modified(|held| set(held, Some(served.clone()))) {
                    self.board.serves(name, served.1);
                }
            }
            let paused = |name: &&TargetName| !wanted.contains_key(*name);
            for name in self.names.iter().filter(paused) {
                if entries.contains_key(name.as_ref()) {
                    self.health.gone(name.as_ref());
                }
            }
            for (name, berth) in &berths {
                if !wanted.contains_key(name) {
                    berth.send_if_modified(|held| set(held, None));
                }
            }
        }
        while tasks.join_next().await.is_some() {}
    }

    /// Says when the bucket is gone until `shutdown`; the other streams are told of by those who pull from them.
    async fn watch(self, shutdown: CancellationToken) {
        let streams = [subjects::TARGETS_STREAM];
        let watching = streams::watch_streams(&self.jetstream, &streams, &self.health);
        shutdown.run_until_cancelled(watching).await;
    }

    /// Says which of the targets this worker was started for aren't there.
    fn tell_unknown(&self, entries: &Entries) {
        let known = || entries.keys().map(String::as_str).collect::<Vec<_>>();
        for name in &self.names {
            if !entries.contains_key(name.as_ref()) {
                let known = known().join(", ");
                let reason = format!(
                    "there is no such target in the bucket {}; it has: {known}",
                    subjects::TARGETS_BUCKET
                );
                tracing::warn!(target = %name, known, "no such target; waiting for it");
                self.health.down(name.as_ref(), reason);
            }
        }
    }

    /// The entries this worker is to serve now.
    fn wanted(&self, entries: &Entries) -> BTreeMap<TargetName, Served> {
        let mut wanted = BTreeMap::new();
        for (key, entry) in entries {
            let Ok(name) = key.parse::<TargetName>() else {
                continue;
            };
            if !self.names.is_empty() && !self.names.contains(&name) {
                continue;
            }
            if let Some(problem) = &entry.problem {
                tracing::warn!(target = %name, problem, revision = entry.revision, "the entry can't be used; the last good one stays");
            }
            if let Some(config) = entry.config.as_ref().filter(|config| config.enabled) {
                wanted.insert(name, (config.clone(), entry.revision));
            }
        }
        wanted
    }

    async fn registry(&self) -> Registry {
        let mut said = false;
        loop {
            match Registry::open(&self.jetstream, usersync_targets::check).await {
                Ok(registry) => {
                    self.health.gone(subjects::TARGETS_BUCKET);
                    return registry;
                }
                Err(error) if !said => {
                    self.health
                        .down(subjects::TARGETS_BUCKET, format!("{error:#}"));
                    tracing::warn!(error = format!("{error:#}"), "waiting for the targets");
                    said = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Serves one target as its entry wants it.
    async fn berth(
        self,
        name: TargetName,
        states: Stream,
        mut wanted: watch::Receiver<Option<Served>>,
        shutdown: CancellationToken,
    ) {
        let mut memory = None;
        while !shutdown.is_cancelled() {
            let served = wanted.borrow_and_update().clone();
            let Some((config, revision)) = served else {
                self.health.gone(name.as_ref());
                self.leave(&name, memory.take());
                if !changed(&mut wanted, &shutdown).await {
                    return;
                }
                continue;
            };
            self.board.serves(&name, revision);
            let files = SecretFiles::of(&config).await;
            match set_up(&config, &self.egress) {
                Ok((rule, driver)) => {
                    let (jetstream, states) = (self.jetstream.clone(), states.clone());
                    let traces = self.traces.clone();
                    let route = Route::new(config, rule, driver, jetstream, states, traces);
                    let route = Arc::new(route);
                    let stop = shutdown.child_token();
                    let known = memory
                        .take()
                        .unwrap_or_else(|| Memory::new(&self.crew, &name, route.config.timeout));
                    let served = self.serve(route.clone(), known, stop.clone());
                    let follow = async {
                        tokio::select! {
                            _ = changed(&mut wanted, &shutdown) => {}
                            () = files.changed() => {
                                tracing::info!(target = %name, "a file with one of its secrets has changed; connecting anew");
                            }
                        }
                        stop.cancel();
                    };
                    let (known, ()) = tokio::join!(served, follow);
                    if shutdown.is_cancelled() {
                        hand_over(&route, &known).await;
                    }
                    memory = Some(known);
                }
                Err(error) => {
                    tracing::error!(target = %name, error, "the target can't be set up");
                    self.health.down(name.as_ref(), error);
                    let again = changed(&mut wanted, &shutdown);
                    let _ = tokio::time::timeout(SET_UP_AGAIN, again).await;
                }
            }
        }
        self.leave(&name, memory);
    }

    /// Serves a target until `stop`; answers what is in doubt then.
    async fn serve(&self, route: Arc<Route>, memory: Memory, stop: CancellationToken) -> Memory {
        let name = &route.config.name;
        self.routes.lock().insert(name.clone(), route.clone());
        let courier = Courier::new(
            route.clone(),
            self.health.clone(),
            self.board.clone(),
            self.crew.clone(),
            self.share.clone(),
            memory,
        );
        let letters = route.letters.clone().follow(stop.clone());
        let refill = refill::watch(route.clone(), stop.clone());
        let ((memory, is_through), (), ()) = tokio::join!(courier.run(stop), letters, refill);
        self.routes.lock().remove(name);
        if !is_through {
            self.crew.gives_up(name);
        }
        memory
    }

    /// A target isn't served any more. Where something may still land others are to miss this worker.
    fn leave(&self, name: &TargetName, memory: Option<Memory>) {
        let in_doubt =
            |memory: Memory| memory.is_in_doubt() || memory.vanished.has_changed().unwrap_or(false);
        if memory.is_some_and(in_doubt) {
            self.crew.lapses(name);
        } else {
            self.crew.leaves(name);
        }
    }
}

/// Has others deliver those who are in doubt, for this worker won't.
async fn hand_over(route: &Route, memory: &Memory) {
    let users = memory.users_in_doubt();
    let asked = settle::deliver_again(route, &users);
    tokio::time::timeout(HANDING_OVER, asked).await.ok();
}

fn set_up(config: &TargetConfig, egress: &Egress) -> Result<(Rule, Box<dyn Target>), String> {
    let rule = Rule::compile(config, &egress.secrets).map_err(|error| error.to_string())?;
    let driver = usersync_targets::connect(config, egress).map_err(|error| error.to_string())?;
    Ok((rule, driver))
}

/// The files that hold a target's secrets, as they were before the secrets were read.
struct SecretFiles(Vec<SecretFile>);

struct SecretFile {
    reference: SecretRef,
    path: PathBuf,
    stamp: Option<Stamp>,
    /// Of what it holds; none where that can't be read as a secret, such as a long certificate.
    hash: Option<u64>,
}

/// What tells a file from what it was: device, number, length, and when it was written.
type Stamp = (u64, u64, u64, i64, i64);

impl SecretFiles {
    async fn of(config: &TargetConfig) -> Self {
        let mut files = Vec::new();
        for (_, reference) in config.references() {
            if let SecretRef::File(path) = &reference {
                files.push(SecretFile {
                    path: path.clone(),
                    stamp: stamp(path).await,
                    hash: hash(&reference),
                    reference,
                });
            }
        }
        Self(files)
    }

    /// Waits until one of them holds something else. One that is gone, or isn't as it was a moment ago, is being replaced.
    async fn changed(mut self) {
        let mut seen: Vec<_> = self.0.iter().map(|file| file.stamp).collect();
        loop {
            tokio::time::sleep(LOOK).await;
            for (file, seen) in self.0.iter_mut().zip(&mut seen) {
                let now = stamp(&file.path).await;
                let is_still = std::mem::replace(seen, now) == now;
                if now.is_none() || now == file.stamp || !is_still {
                    continue;
                }
                file.stamp = now;
                match hash(&file.reference) {
                    // The same again.
                    found @ Some(_) if found == file.hash => {}
                    _ => return,
                }
            }
        }
    }
}

/// Of what a reference leads to; nobody else sees it.
fn hash(reference: &SecretRef) -> Option<u64> {
    let held = reference.resolve().ok()?;
    let mut hasher = DefaultHasher::new();
    held.expose_secret().hash(&mut hasher);
    Some(hasher.finish())
}

async fn stamp(path: &Path) -> Option<Stamp> {
    let found = tokio::fs::metadata(path).await.ok()?;
    let (device, number) = (found.dev(), found.ino());
    Some((
        device,
        number,
        found.len(),
        found.mtime(),
        found.mtime_nsec(),
    ))
}

/// Waits for another entry; false at shutdown.
async fn changed(
    wanted: &mut watch::Receiver<Option<Served>>,
    shutdown: &CancellationToken,
) -> bool {
    matches!(
        shutdown.run_until_cancelled(wanted.changed()).await,
        Some(Ok(()))
    )
}

/// Answers whether another entry is to be served, and not the same at another revision.
fn set(held: &mut Option<Served>, served: Option<Served>) -> bool {
    let config = |served: &Option<Served>| served.as_ref().map(|(config, _)| config.clone());
    let differs = config(held) != config(&served);
    *held = served;
    differs
}
