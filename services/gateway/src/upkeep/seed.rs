//! How the entries of catalogue files and those of KV go together. KV is the truth; docs/adr/0009 says why.

use serde_json::Value;
use sha2::{Digest, Sha256};
use usersync_core::{
    catalogue::{self, IDS},
    registry::{Registry, Stored, WriteError},
    target::TargetName,
};

/// Stands for "not in the files" where a hash is expected.
const NOT_IN_FILES: &str = "-";

/// An entry of the files.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FileEntry {
    /// As the file has it.
    pub table: Value,
    /// Of what it means: equal for entries that say the same.
    pub hash: String,
}

/// What is to be done about one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is as it should be, or none of the files' business.
    Leave,
    /// Write the file's entry.
    Write,
    /// Delete it: the file no longer has it.
    Delete,
    /// An operator has changed it, and it stays; the file says something else.
    Differs,
}

/// Decides about one entry.
///
/// `last` is what the bucket last had from a file; `edited` whether the file's entry has changed while
/// this gateway ran, so that the file is the newer word unless another gateway has spoken it already.
pub(super) fn decide(
    file: Option<&str>,
    stored: Option<&Stored>,
    same: bool,
    last: Option<&str>,
    edited: bool,
) -> Step {
    let newer = edited && last != Some(file.unwrap_or(NOT_IN_FILES));
    match (file, stored) {
        (None, None) => Step::Leave,
        (Some(_), None) => Step::Write,
        (Some(hash), Some(stored)) => match (&stored.file, &stored.value) {
            (Some(from), _) if from == hash => Step::Leave,
            (Some(_), _) => Step::Write,
            (None, _) if newer => Step::Write,
            (None, Some(_)) if !same => Step::Differs,
            (None, _) => Step::Leave,
        },
        (None, Some(stored)) if stored.file.is_some() && stored.value.is_some() => Step::Delete,
        (None, Some(_)) => Step::Leave,
    }
}

/// Brings one entry of the files into the bucket, as often as others interfere; answers what was done.
pub(super) async fn apply(
    registry: &Registry,
    name: &str,
    file: Option<&FileEntry>,
    edited: bool,
) -> anyhow::Result<Step> {
    loop {
        let stored = registry.stored(name).await?;
        let by_operator = stored.as_ref().is_some_and(|stored| stored.file.is_none());
        let last = match by_operator && edited {
            true => last_from_file(registry, name).await?,
            false => None,
        };
        let value = stored.as_ref().and_then(|stored| stored.value.as_deref());
        if value.is_some_and(is_newer) {
            return Ok(Step::Leave);
        }
        let hash = file.map(|file| file.hash.as_str());
        let same = hash.is_some_and(|hash| stored_says(name, value, hash));
        let step = decide(hash, stored.as_ref(), same, last.as_deref(), edited);
        let (value, from) = match (step, file) {
            (Step::Write, Some(file)) => {
                let mut table = file.table.clone();
                catalogue::settle_ids(&mut table, value);
                (Some(table.to_string().into()), file.hash.as_str())
            }
            (Step::Delete, _) => (None, NOT_IN_FILES),
            _ => return Ok(step),
        };
        let expected = stored.map_or(0, |stored| stored.revision);
        match registry.write(name, value, expected, Some(from)).await {
            Ok(_) => return Ok(step),
            Err(WriteError::Conflict) => {}
            Err(WriteError::Refused(error)) => return Err(anyhow::Error::from_boxed(error)),
        }
    }
}

/// What an operator's write is to be marked with: when it says what the files said last, it comes from
/// the files again, so a target that is paused and resumed goes on to follow its file.
pub(crate) async fn file_of(
    registry: &Registry,
    name: &TargetName,
    value: Option<&[u8]>,
) -> anyhow::Result<Option<String>> {
    if value.is_none() {
        return Ok(None);
    }
    let last = last_from_file(registry, name.as_ref()).await?;
    Ok(last.filter(|last| stored_says(name.as_ref(), value, last)))
}

async fn last_from_file(registry: &Registry, name: &str) -> anyhow::Result<Option<String>> {
    let history = registry.history(name).await?;
    Ok(history.into_iter().rev().find_map(|stored| stored.file))
}

fn is_newer(value: &[u8]) -> bool {
    let members = serde_json::from_slice(value).ok();
    members.is_some_and(|members| catalogue::newer_format(&members).is_some())
}

fn stored_says(name: &str, value: Option<&[u8]>, expected: &str) -> bool {
    let entry = value.and_then(|value| serde_json::from_slice(value).ok());
    entry.is_some_and(|entry| says(name, entry, expected))
}

/// Whether an entry says what the file's entry of that hash says: all of it, or, where that is silent about `ids`, all
/// else.
pub(super) fn says(name: &str, mut entry: Value, expected: &str) -> bool {
    let is = |entry: &Value| hash(name, entry).as_deref() == Some(expected);
    is(&entry) || {
        let silent = entry
            .as_object_mut()
            .and_then(|members| members.remove(IDS));
        silent.is_some() && is(&entry)
    }
}

/// The hash of what an entry means, every default filled in but for `ids`, which follow from what is stored; `None` for a
/// bad one.
pub(super) fn hash(name: &str, table: &Value) -> Option<String> {
    let config = catalogue::entry(name, table.clone()).ok()?;
    let mut meaning = serde_json::to_value(config).ok()?;
    if let (None, Some(members)) = (table.get(IDS), meaning.as_object_mut()) {
        members.remove(IDS);
    }
    // Members are sorted in a `Value`, so the text is always the same.
    let text = meaning.to_string();
    let digest = Sha256::digest(text);
    Some(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn stored(file: Option<&str>, value: Option<&'static str>) -> Stored {
        Stored {
            revision: 1,
            value: value.map(Into::into),
            file: file.map(str::to_owned),
            time: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn files_lead_until_an_operator_speaks_and_again_when_they_are_edited() {
        let by_file = |hash| stored(Some(hash), Some("{}"));
        let by_operator = stored(None, Some("{}"));
        let removed = stored(None, None);
        let removed_by_file = stored(Some(NOT_IN_FILES), None);
        use Step::{Delete, Differs, Leave, Write};
        let rows = [
            ("new in the file", Some("a"), None, None, false, Write),
            (
                "as in the file",
                Some("a"),
                Some(by_file("a")),
                None,
                false,
                Leave,
            ),
            (
                "the file has changed",
                Some("b"),
                Some(by_file("a")),
                None,
                false,
                Write,
            ),
            (
                "gone from the file",
                None,
                Some(by_file("a")),
                None,
                false,
                Delete,
            ),
            (
                "back in the file",
                Some("a"),
                Some(removed_by_file.clone()),
                None,
                false,
                Write,
            ),
            ("stays gone", None, Some(removed_by_file), None, true, Leave),
            (
                "an operator deleted it",
                Some("a"),
                Some(removed.clone()),
                Some("a"),
                false,
                Leave,
            ),
            (
                "…and the file was edited",
                Some("b"),
                Some(removed),
                Some("a"),
                true,
                Write,
            ),
            (
                "an operator changed it",
                Some("b"),
                Some(by_operator.clone()),
                Some("a"),
                false,
                Differs,
            ),
            (
                "…and the file was edited",
                Some("b"),
                Some(by_operator.clone()),
                Some("a"),
                true,
                Write,
            ),
            (
                "…which another gateway has done",
                Some("b"),
                Some(by_operator.clone()),
                Some("b"),
                true,
                Differs,
            ),
            (
                "only an operator has it",
                None,
                Some(by_operator),
                None,
                true,
                Leave,
            ),
        ];
        for (what, file, stored, last, edited, expected) in rows {
            let step = decide(file, stored.as_ref(), false, last, edited);
            assert_eq!(step, expected, "{what}");
        }
    }

    #[test]
    fn entries_that_say_the_same_have_the_same_hash() {
        let short = hash("t", &json!({"url": "http://h/x"}));
        assert!(short.is_some());
        let long = json!({"timeout": "10s", "name": "t", "enabled": true, "url": "http://h/x"});
        assert_eq!(hash("t", &long), short);
        assert_ne!(hash("t", &json!({"url": "http://h/y"})), short);
        assert_eq!(hash("t", &json!({"url": 5})), None);
    }

    #[test]
    fn what_a_file_is_silent_about_makes_no_difference_to_it() {
        let silent = json!({"url": "http://h/x"});
        let told = |ids: &str| json!({"url": "http://h/x", "ids": ids});
        let same =
            |stored: &Value, file: &Value| says("t", stored.clone(), &hash("t", file).unwrap());
        assert!(same(&told("auto"), &silent) && same(&silent, &silent));
        assert!(same(&told("number"), &told("number")));
        assert!(!same(&told("auto"), &told("number")) && !same(&silent, &told("auto")));
        assert!(!same(&told("auto"), &json!({"url": "http://h/y"})));
    }
}
