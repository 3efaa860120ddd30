//! Personal data: where it is, that it is nowhere else, and that an erased user is nowhere.

mod canary;
mod erase;
mod search;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

/// The files under `dir` that hold one of `marks`, with the first of them that is found.
fn marked(dir: &Path, marks: &[&str]) -> Result<Vec<(PathBuf, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(marked(&path, marks)?);
        } else if path.is_file() {
            let bytes = fs::read(&path)?;
            found.extend(mark_in(&bytes, marks).map(|mark| (path, mark)));
        }
    }
    Ok(found)
}

/// The first of `marks` that `bytes` hold.
fn mark_in(bytes: &[u8], marks: &[&str]) -> Option<String> {
    let holds = |mark: &&&str| {
        bytes
            .windows(mark.len())
            .any(|part| part == mark.as_bytes())
    };
    marks.iter().find(holds).map(|mark| (*mark).to_owned())
}
