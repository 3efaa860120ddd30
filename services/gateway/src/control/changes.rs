//! Changes of targets: save, delete, pause, resume. They go to KV, which is the truth, each naming the
//! revision it follows.

use std::sync::Arc;

use async_nats::jetstream::{
    ErrorCode,
    stream::{ConsumerError, ConsumerErrorKind},
};
use axum::http::StatusCode;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use usersync_core::{
    catalogue,
    registry::{Entry, MAX_ENTRY, Registry, Stored, WriteError},
    streams, subjects,
    target::{TargetConfig, TargetName},
};

use super::{Control, breakers, fits, nats, no_target, targets::probe};
use crate::{problem::Problem, upkeep::seed};

/// What the note says of an entry that was disabled because its target is gone.
pub(crate) const GONE_FOR_GOOD: &str = "it answered that it is gone for good";

/// How often a write is tried when others write the same entry.
const TRIES: usize = 5;

/// What to save.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Put {
    pub name: TargetName,
    /// The entry: an object of a target's keys.
    pub entry: Value,
    /// Save only if this still is the revision; 0: only if there is no such target.
    #[serde(default)]
    pub revision: Option<u64>,
    /// Save only if the target answers.
    #[serde(default)]
    pub test: bool,
    /// Check everything and save nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What became of it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Saved {
    /// The target's name.
    pub name: String,
    /// The revision of what was saved; 0 when nothing was.
    pub revision: u64,
    /// Whether there was no such target before.
    pub created: bool,
    /// Whether nothing was saved, only checked.
    pub dry_run: bool,
    /// What this gateway can't know, for people to look at.
    pub warnings: Vec<String>,
    /// The entry, every key with its value.
    pub entry: TargetConfig,
}

/// What to delete.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Delete {
    pub name: TargetName,
    /// Delete only if this still is the revision.
    #[serde(default)]
    pub revision: Option<u64>,
    /// What becomes of the target's consumers.
    #[serde(default)]
    pub consumers: Consumers,
    /// Change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What becomes of a deleted target's consumers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Consumers {
    /// They stay and remember how far the target is, should it come back.
    #[default]
    Keep,
    /// They go, and the target's repairs with them: should it come back, it is filled with every user.
    Delete,
}

/// What was deleted.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Deleted {
    /// The target's name.
    pub name: String,
    /// Whether its consumers were deleted too.
    pub consumers_deleted: bool,
    /// Whether nothing was done.
    pub dry_run: bool,
}

/// What to pause or resume.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Switch {
    pub name: TargetName,
    /// Only if this still is the revision.
    #[serde(default)]
    pub revision: Option<u64>,
    /// Kept beside the entry, for people.
    #[serde(default)]
    pub note: Option<String>,
}

pub(crate) async fn put(control: &Control, put: Put) -> Result<Saved, Problem> {
    let Put { name, entry, .. } = put;
    let (config, mut warnings) = check(control, &name, entry.clone()).await?;
    if put.test {
        let tested = probe(control, &config).await?;
        if !tested.reachable {
            let reason = tested.reason.unwrap_or_default();
            let detail =
                format!("the connection test of {name} failed: {reason}; nothing was saved");
            return Err(Problem::unprocessable(detail));
        }
        let unreadable = tested.unreadable.into_iter();
        warnings.extend(unreadable.map(|why| format!("a check of it would fail: {why}")));
    }
    let registry = control.registry().await?;
    let mut saved = Saved {
        name: name.to_string(),
        revision: 0,
        created: false,
        dry_run: put.dry_run,
        warnings: Vec::new(),
        entry: TargetConfig::clone(&config),
    };
    let settled = |stored: Option<&Stored>| {
        let mut entry = entry.clone();
        let before = stored.and_then(|stored| stored.value.as_deref());
        catalogue::settle_ids(&mut entry, before);
        entry
    };
    let change = |stored: Option<&Stored>| {
        expect(&name, stored, put.revision)?;
        Ok(Some(text(&settled(stored))))
    };
    if put.dry_run {
        let stored = registry.stored(name.as_ref()).await?;
        change(stored.as_ref())?;
        saved.created = !is_there(stored.as_ref());
        saved.entry = read(&name, settled(stored.as_ref()))?;
    } else {
        let (before, revision) = write(registry, &name, put.revision.is_some(), change).await?;
        saved.created = !is_there(before.as_ref());
        saved.entry = read(&name, settled(before.as_ref()))?;
        saved.revision = revision;
        // Whoever follows the bucket does it too; done here, it is so when this is answered.
        if let Err(error) = streams::ensure_target_consumers(&control.jetstream, &config).await {
            warnings.push(format!("its consumers aren't made yet: {error:#}"));
        }
        tracing::info!(target = %name, revision, "target saved");
    }
    saved.warnings = warnings;
    Ok(saved)
}

pub(crate) async fn delete(control: &Control, delete: Delete) -> Result<Deleted, Problem> {
    let Delete { name, .. } = delete;
    let registry = control.registry().await?;
    let change = |stored: Option<&Stored>| {
        expect(&name, stored, delete.revision)?;
        match is_there(stored) {
            true => Ok(None),
            false => Err(no_target(&name)),
        }
    };
    let stored = registry.stored(name.as_ref()).await?;
    // Deleted before: only its consumers are left to go.
    let was_deleted = stored.is_some_and(|stored| stored.value.is_none());
    let again = was_deleted && delete.consumers == Consumers::Delete && delete.revision.is_none();
    if delete.dry_run {
        if !again {
            change(registry.stored(name.as_ref()).await?.as_ref())?;
        }
    } else if !again {
        write(registry, &name, delete.revision.is_some(), change).await?;
        tracing::info!(target = %name, "target deleted");
    }
    let consumers_deleted = delete.consumers == Consumers::Delete && !delete.dry_run;
    if consumers_deleted {
        for stream in [subjects::USER_STATE, subjects::USER_REPAIR] {
            let stream = control.stream(stream).await?;
            match stream.delete_consumer(name.as_ref()).await {
                Ok(_) => {}
                // That it isn't there is what is wanted.
                Err(error) if is_missing(&error) => {}
                Err(error) => {
                    let detail = format!(
                        "{name} is deleted, its consumers are not yet: {error}; delete it again"
                    );
                    return Err(Problem::unavailable(detail));
                }
            }
        }
        let repairs = control.stream(subjects::USER_REPAIR).await?;
        let purged = repairs.purge().filter(subjects::repairs_of(&name)).await;
        purged.map_err(nats)?;
    }
    Ok(Deleted {
        name: name.to_string(),
        consumers_deleted,
        dry_run: delete.dry_run,
    })
}

/// Whether there is no such consumer.
pub(crate) fn is_missing(error: &ConsumerError) -> bool {
    let ConsumerErrorKind::JetStream(error) = error.kind() else {
        return false;
    };
    error.error_code() == ErrorCode::CONSUMER_NOT_FOUND
}

/// `enabled = false`: the target gets nothing, and its consumer remembers how far it is.
pub(crate) async fn pause(control: &Control, switch: Switch) -> Result<Saved, Problem> {
    turn(control, switch, false).await
}

pub(crate) async fn resume(control: &Control, switch: Switch) -> Result<Saved, Problem> {
    let registry = control.registry().await?;
    let stored = registry.stored(switch.name.as_ref()).await?;
    expect(&switch.name, stored.as_ref(), switch.revision)?;
    if !is_there(stored.as_ref()) {
        return Err(no_target(&switch.name));
    }
    // What a breaker still says of the time before must not disable the target again.
    let open = breakers::all(control).await?;
    if open.iter().any(|breaker| breaker.target == switch.name) {
        let bucket = breakers::bucket(control).await?;
        let told = bucket.put(&switch.name, "reset".into()).await;
        told.map_err(nats)?;
    }
    turn(control, switch, true).await
}

async fn turn(control: &Control, switch: Switch, enabled: bool) -> Result<Saved, Problem> {
    let Switch { name, .. } = &switch;
    let registry = control.registry().await?;
    let change = |stored: Option<&Stored>| {
        expect(name, stored, switch.revision)?;
        let value = stored.and_then(|stored| stored.value.as_ref());
        let value = value.ok_or_else(|| no_target(name))?;
        let Ok(Value::Object(mut members)) = serde_json::from_slice(value) else {
            let detail = format!("the entry of {name} is no JSON object; save a good one first");
            return Err(Problem::unprocessable(detail));
        };
        members.insert("enabled".to_owned(), enabled.into());
        match &switch.note {
            Some(note) => members.insert("note".to_owned(), note.as_str().into()),
            None if enabled => members.remove("note"),
            None => None,
        };
        let entry = Value::Object(members);
        read(name, entry.clone())?;
        Ok(Some(text(&entry)))
    };
    let (_, revision) = write(registry, name, switch.revision.is_some(), change).await?;
    tracing::info!(target = %name, enabled, revision, "target switched");
    let config = control.config(name).await?;
    Ok(Saved {
        name: name.to_string(),
        revision,
        created: false,
        dry_run: false,
        warnings: Vec::new(),
        entry: TargetConfig::clone(&config),
    })
}

/// Reads an entry, and has its rule and kind look at it; with warnings.
pub(super) async fn check(
    control: &Control,
    name: &TargetName,
    entry: Value,
) -> Result<(Arc<TargetConfig>, Vec<String>), Problem> {
    let config = Arc::new(read(name, entry)?);
    let fits = fits(&config, &control.egress.secrets);
    let warnings = fits.map_err(|problem| wrong_key(&problem))?;
    Ok((config, warnings))
}

fn read(name: &TargetName, entry: Value) -> Result<TargetConfig, Problem> {
    catalogue::entry(name.as_ref(), entry).map_err(|problems| wrong_key(&problems.join("; ")))
}

/// The problem of an entry, pointing to the key its text begins with.
pub(super) fn wrong_key(problem: &str) -> Problem {
    let key = problem.split(':').next().unwrap_or_default();
    let is_key = !key.is_empty() && !key.contains(' ');
    Problem {
        pointer: is_key.then(|| format!("/{}", key.replace('.', "/")).into()),
        ..Problem::unprocessable(problem.to_owned())
    }
}

/// Writes what `change` makes of the stored value, and again when somebody else was faster; answers
/// what was there before, and the new revision.
async fn write(
    registry: &Registry,
    name: &TargetName,
    conditional: bool,
    change: impl Fn(Option<&Stored>) -> Result<Option<Bytes>, Problem>,
) -> Result<(Option<Stored>, u64), Problem> {
    for _ in 0..TRIES {
        let stored = registry.stored(name.as_ref()).await?;
        let value = change(stored.as_ref())?;
        let length = value.as_ref().map_or(0, Bytes::len);
        if length > MAX_ENTRY {
            let detail =
                format!("the entry has {length} bytes as JSON; at most {MAX_ENTRY} are taken");
            return Err(Problem::unprocessable(detail));
        }
        let file = seed::file_of(registry, name, value.as_deref()).await?;
        let expected = stored.as_ref().map_or(0, |stored| stored.revision);
        match registry
            .write(name.as_ref(), value, expected, file.as_deref())
            .await
        {
            Ok(revision) => return Ok((stored, revision)),
            Err(WriteError::Conflict) if conditional => return Err(changed(name)),
            Err(WriteError::Conflict) => {}
            Err(WriteError::Refused(error)) => {
                return Err(anyhow::Error::from_boxed(error).into());
            }
        }
    }
    Err(Problem::new(
        StatusCode::CONFLICT,
        format!("others keep changing {name}; try again"),
    ))
}

/// Refuses when the entry isn't at the expected revision: 0 means that there must be none.
fn expect(
    name: &TargetName,
    stored: Option<&Stored>,
    expected: Option<u64>,
) -> Result<(), Problem> {
    let revision = stored
        .filter(|stored| stored.value.is_some())
        .map_or(0, |stored| stored.revision);
    match expected {
        Some(expected) if expected != revision => Err(changed(name)),
        _ => Ok(()),
    }
}

fn changed(name: &TargetName) -> Problem {
    let detail = format!("{name} is not at the revision you expect; read it again");
    Problem::new(StatusCode::PRECONDITION_FAILED, detail)
}

fn is_there(stored: Option<&Stored>) -> bool {
    stored.is_some_and(|stored| stored.value.is_some())
}

fn text(entry: &Value) -> Bytes {
    entry.to_string().into()
}

/// Disables a target that says it is gone, unless it has changed since `stored`; answers whether it did.
/// What runs is what is disabled: the last good value, where the newest can't be used. What a newer program wrote stays.
pub(crate) async fn disable(
    registry: &Registry,
    name: &TargetName,
    entry: &Entry,
    stored: &Stored,
    note: &str,
) -> Result<bool, WriteError> {
    let newest = serde_json::from_slice(stored.value.as_deref().unwrap_or_default());
    if let Ok(Value::Object(members)) = &newest
        && catalogue::newer_format(members).is_some()
    {
        return Ok(false);
    }
    let value = match (&entry.problem, &entry.config) {
        (Some(_), Some(config)) => serde_json::to_value(&**config),
        _ => newest,
    };
    let Ok(Value::Object(mut members)) = value else {
        return Ok(false);
    };
    members.insert("enabled".to_owned(), false.into());
    members.insert("note".to_owned(), note.into());
    let value = text(&Value::Object(members));
    let written = registry
        .write(name.as_ref(), Some(value), stored.revision, None)
        .await;
    written.map(|_| true)
}
