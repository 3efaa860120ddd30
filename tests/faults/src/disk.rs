//! A disk of its own for NATS' store, small enough to be filled.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use usersync_stack::Directory;

/// Room for every load.
const SIZE: &str = "size=2g";

/// A mounted tmpfs; unmounted on drop.
pub(crate) struct Disk(PathBuf);

impl Disk {
    /// Whether this machine lets us mount one.
    ///
    /// # Errors
    /// When it doesn't, with the reason.
    pub(crate) fn is_possible() -> Result<()> {
        let directory = Directory::temporary()?;
        Self::mount(&directory.path().join("mounted")).map(drop)
    }

    /// Mounts one at `folder`, which it makes.
    ///
    /// # Errors
    /// When we may not.
    pub(crate) fn mount(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let mut mounting = Command::new("mount");
        mounting
            .args(["-t", "tmpfs", "-o", SIZE, "usersync-faults"])
            .arg(folder)
            .stderr(Stdio::null());
        let status = mounting.status().context("running mount")?;
        ensure!(status.success(), "mount: {status}");
        Ok(Self(folder.to_owned()))
    }

    /// Leaves no room, until what this answers is removed.
    pub(crate) fn fill(&self) -> Result<PathBuf> {
        let path = self.0.join("filled");
        let mut file = File::create(&path)?;
        let piece = vec![0; 1 << 16];
        while file.write_all(&piece).is_ok() {}
        Ok(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
