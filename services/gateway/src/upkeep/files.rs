//! The catalogue files of this gateway: read at start, looked at while it runs, brought into KV.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use serde::Serialize;
use usersync_core::{
    catalogue,
    registry::{Entries, Registry},
    settings::Problems,
};

use super::seed::{self, FileEntry, Step};
use crate::control::Control;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// The files, and what was last read from them.
#[derive(Clone)]
pub(crate) struct Files {
    path: Option<PathBuf>,
    known: Arc<Mutex<Known>>,
}

struct Known {
    entries: BTreeMap<String, FileEntry>,
    /// Entries that have changed while this gateway ran, until they are in the bucket.
    edited: BTreeSet<String>,
    status: FilesStatus,
}

/// How the files stand.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub(crate) struct FilesStatus {
    /// Where they are; null where there are none.
    pub path: Option<String>,
    /// How many targets they have.
    pub targets: usize,
    /// How many edits aren't in KV yet.
    pub waiting: usize,
    /// What is wrong with them: what they said before holds meanwhile.
    pub problem: Option<String>,
    /// Targets that an operator has changed: their file says something else.
    pub differing: BTreeSet<String>,
}

/// Name, length and time of every file: whatever changes, this does.
type Signature = Vec<(PathBuf, u64, Option<SystemTime>)>;

impl Files {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// Every problem found.
    pub(crate) fn read(path: Option<PathBuf>) -> anyhow::Result<Self> {
        let entries = match &path {
            Some(path) => load(path).map_err(Problems)?,
            None => BTreeMap::new(),
        };
        let status = FilesStatus {
            path: path.as_ref().map(|path| path.display().to_string()),
            targets: entries.len(),
            ..FilesStatus::default()
        };
        let known = Known {
            entries,
            edited: BTreeSet::new(),
            status,
        };
        Ok(Self {
            path,
            known: Arc::new(Mutex::new(known)),
        })
    }

    /// How they stand beside the `entries` of the bucket.
    pub(crate) fn status(&self, entries: &Entries) -> FilesStatus {
        let known = self.known();
        let differs = |(name, file): &(&String, &FileEntry)| {
            let entry = entries.get(*name);
            let config = entry.and_then(|entry| entry.config.as_deref());
            let runs = config.and_then(|config| serde_json::to_value(config).ok());
            let same = runs.is_some_and(|runs| seed::says(name, runs, &file.hash));
            // One that an operator has deleted is no target any more.
            entry.is_some() && !same && !known.edited.contains(*name)
        };
        let differing = known.entries.iter().filter(differs);
        FilesStatus {
            waiting: known.edited.len(),
            differing: differing.map(|(name, _)| name.clone()).collect(),
            ..known.status.clone()
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what was read again; answers whether there is anything new.
    fn take(&self, read: Result<BTreeMap<String, FileEntry>, Vec<String>>) -> bool {
        let mut known = self.known();
        let entries = match read {
            Ok(entries) => entries,
            Err(problems) => {
                let problem = problems.join("; ");
                tracing::error!(
                    problem,
                    "the catalogue files are bad; what they said before holds"
                );
                known.status.problem = Some(problem);
                return false;
            }
        };
        if entries.is_empty() && !known.entries.is_empty() {
            let problem =
                "no entries at all are left; to remove the last targets, delete them by the API";
            tracing::error!(problem, "the catalogue files hold as they were before");
            known.status.problem = Some(problem.to_owned());
            return false;
        }
        known.status.problem = None;
        let names = entries.keys().chain(known.entries.keys());
        let differs = |name: &&String| entries.get(*name) != known.entries.get(*name);
        let edited: BTreeSet<String> = names.filter(differs).cloned().collect();
        let any = !edited.is_empty();
        known.edited.extend(edited);
        known.status.targets = entries.len();
        known.entries = entries;
        any
    }

    /// Brings the entries into the bucket.
    ///
    /// # Errors
    /// When NATS can't be asked; what was done stays, and the rest is done next time.
    pub(crate) async fn seed(&self, registry: &Registry) -> anyhow::Result<()> {
        let (entries, edited) = {
            let known = self.known();
            (known.entries.clone(), known.edited.clone())
        };
        // No file says that there are no targets: it may be a directory that isn't mounted.
        if entries.is_empty() {
            if let Some(path) = &self.path {
                tracing::warn!(path = %path.display(), "there are no targets in the catalogue files; those in KV stay as they are");
            }
            return Ok(());
        }
        let mut names: BTreeSet<String> = registry.entries().await?.into_keys().collect();
        names.extend(entries.keys().cloned());
        for name in names {
            let file = entries.get(&name);
            match seed::apply(registry, &name, file, edited.contains(&name)).await? {
                Step::Leave => {}
                Step::Write => tracing::info!(target = name, "target taken from its file"),
                Step::Delete => {
                    tracing::info!(target = name, "target removed: its file has it no more")
                }
                Step::Differs => {
                    tracing::warn!(
                        target = name,
                        "the target was changed in KV and differs from its file; edit the file, or delete the entry, to change that"
                    );
                }
            }
        }
        let mut known = self.known();
        known.edited.retain(|name| !edited.contains(name));
        Ok(())
    }
}

/// Looks at the files again and again, and brings what has changed into the bucket.
pub(super) async fn follow(control: &Control) {
    let files = &control.files;
    let Some(path) = files.path.clone() else {
        return;
    };
    let mut seen = look(&path).await;
    // They may have changed since they were read.
    let mut taken = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let before = std::mem::replace(&mut seen, look(&path).await);
        // A file that is still being written is taken once it stays as it is.
        if seen != before {
            continue;
        }
        if taken.as_ref() != Some(&seen) {
            taken = Some(seen.clone());
            let path = path.clone();
            let read = tokio::task::spawn_blocking(move || load(&path)).await;
            let read = read.unwrap_or_else(|_| Err(vec!["reading the files panicked".to_owned()]));
            if !files.take(read) {
                continue;
            }
        } else if files.known().edited.is_empty() {
            continue;
        }
        let seeded = async { files.seed(control.registry().await?).await };
        if let Err(error) = seeded.await {
            let error = format!("{error:#}");
            tracing::warn!(
                error,
                "can't bring the catalogue files into KV; trying again"
            );
        }
    }
}

async fn look(path: &Path) -> Signature {
    let path = path.to_owned();
    let looked = tokio::task::spawn_blocking(move || {
        let files = catalogue::files(&path).unwrap_or_default();
        let sign = |file: PathBuf| {
            let metadata = std::fs::metadata(&file).ok();
            let length = metadata.as_ref().map_or(0, std::fs::Metadata::len);
            let time = metadata.and_then(|metadata| metadata.modified().ok());
            (file, length, time)
        };
        files.into_iter().map(sign).collect()
    });
    looked.await.unwrap_or_default()
}

/// Reads the files; every problem found, each naming file, target and key.
fn load(path: &Path) -> Result<BTreeMap<String, FileEntry>, Vec<String>> {
    let catalogue = catalogue::load(Some(path))?;
    let mut problems = Vec::new();
    for config in catalogue.values().filter(|config| config.enabled) {
        if let Err(problem) = usersync_targets::check(config) {
            problems.push(format!("{}: {}.{problem}", path.display(), config.name));
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let entries = catalogue::tables(Some(path))?.into_iter();
    let entries = entries.filter_map(|(name, table)| {
        let hash = seed::hash(&name, &table)?;
        Some((name, FileEntry { table, hash }))
    });
    Ok(entries.collect())
}
