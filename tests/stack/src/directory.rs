//! The directory in which one stack keeps its data, logs and settings.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result};
use tempfile::TempDir;

/// A directory that is removed on drop, or one that the user named and that stays.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    temporary: Option<TempDir>,
    /// Held while the directory is in use: two NATS servers on one store would ruin it.
    _lock: Option<File>,
}

impl Directory {
    /// A new directory that is removed on drop. It stays for its logs when the test panics, or when the
    /// environment variable `STACK_KEEP` is set.
    ///
    /// # Errors
    /// When it can't be created.
    pub fn temporary() -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("usersync-")
            .tempdir()
            .context("creating a temporary directory")?;
        Ok(Self {
            path: directory.path().to_owned(),
            temporary: Some(directory),
            _lock: None,
        })
    }

    /// A directory that stays; created when missing.
    ///
    /// # Errors
    /// When it can't be created, or another stack runs in it.
    pub fn kept(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
        let path = path
            .canonicalize()
            .with_context(|| format!("resolving {}", path.display()))?;
        let lock = path.join("lock");
        let lock = File::create(&lock).with_context(|| format!("creating {}", lock.display()))?;
        lock.try_lock()
            .with_context(|| format!("{} is in use by another stack", path.display()))?;
        Ok(Self {
            path,
            temporary: None,
            _lock: Some(lock),
        })
    }

    /// Lets a temporary directory stay, for somebody to look into it.
    pub fn keep(&mut self) {
        if let Some(directory) = self.temporary.take() {
            // Its path is known already.
            let _ = directory.keep();
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Directory {
    #[expect(
        clippy::print_stderr,
        reason = "tells whoever reads a failed test where its logs are"
    )]
    fn drop(&mut self) {
        if (thread::panicking() || env::var_os("STACK_KEEP").is_some())
            && let Some(directory) = self.temporary.take()
        {
            eprintln!("logs and data are kept in {}", directory.keep().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_serves_one_stack_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Directory::kept(dir.path()).unwrap();
        let error = Directory::kept(dir.path()).unwrap_err();
        assert!(format!("{error:#}").contains("in use"), "{error:#}");
        drop(first);
        assert!(Directory::kept(dir.path()).is_ok());
    }
}
