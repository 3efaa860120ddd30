//! Secrets of a stack: random, made once per directory, for their owner's eyes only.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};

/// Makes a secret of 24 random bytes, written as `text` says, unless the file is there from an earlier run.
pub(crate) fn ensure(path: &Path, text: impl FnOnce(&[u8]) -> String) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let mut random = [0; 24];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut random))
        .context("reading /dev/urandom")?;
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("creating {}", path.display()))?;
    writeln!(file, "{}", text(&random)).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets/one");
        ensure(&path, |random| format!("{random:?}")).unwrap();
        let secret = fs::read_to_string(&path).unwrap();
        ensure(&path, |_| String::new()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), secret);
    }
}
