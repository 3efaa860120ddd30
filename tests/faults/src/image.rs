//! A disk of its own for NATS' store that can lose its power: an ext4 in a file. After a cut it holds what had
//! reached the file, and nothing that was only in memory. The cache of a real disk isn't simulated.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use usersync_stack::Directory;

/// Room for every load; the file takes what is written to it.
const SIZE: u64 = 2 << 30;
/// Nothing writes to it in the background but the kernel, when it is time.
const OPTIONS: &str = "loop,noinit_itable";
/// What is written right before a cut, with and without fsync.
const WITNESS: usize = 1 << 16;

/// A mounted ext4 in a file; unmounted and removed on drop.
pub(crate) struct Image {
    file: PathBuf,
    /// Where it is mounted, and what is mounted there now.
    folder: PathBuf,
    is_mounted: bool,
}

impl Image {
    /// Whether this machine lets us mount one.
    ///
    /// # Errors
    /// When it doesn't, with the reason.
    pub(crate) fn is_possible() -> Result<()> {
        let directory = Directory::temporary()?;
        let folder = directory.path().join("mounted");
        fs::create_dir(&folder)?;
        Self::make(&directory.path().join("image"), &folder)?.sync()
    }

    /// Makes an empty one in `file` and mounts it over `folder`.
    ///
    /// # Errors
    /// When we may not.
    fn make(file: &Path, folder: &Path) -> Result<Self> {
        File::create(file)?.set_len(SIZE)?;
        ran(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(file))?;
        let mut image = Self {
            file: file.to_owned(),
            folder: folder.to_owned(),
            is_mounted: false,
        };
        image.mount()?;
        Ok(image)
    }

    /// Makes one in `file` and mounts it over `folder`, with everything that is there. Nobody may write there
    /// meanwhile.
    ///
    /// # Errors
    /// When we may not.
    pub(crate) fn over(folder: &Path, file: &Path) -> Result<Self> {
        let held = file.with_extension("held");
        copy(folder, &held)?;
        let image = Self::make(file, folder)?;
        copy(&held, folder)?;
        fs::remove_dir_all(held)?;
        image.sync()?;
        Ok(image)
    }

    /// Loses everything that the file system hadn't written. Whoever writes to it must have been killed.
    ///
    /// # Errors
    /// When what wasn't synced is still there, or what was synced isn't.
    pub(crate) async fn cut(&mut self, kill: impl Future<Output = ()>) -> Result<()> {
        let (synced, unsynced) = (self.folder.join("synced"), self.folder.join("unsynced"));
        let mut file = File::create(&synced)?;
        file.write_all(&[1; WITNESS])?;
        file.sync_all()?;
        drop(file);
        fs::write(&unsynced, [1; WITNESS])?;
        kill.await;
        // The loop device has written to the file whatever it was given, and nothing else.
        let left = self.file.with_extension("left");
        let mut copying = Command::new("cp");
        ran(copying.arg("--sparse=always").args([&self.file, &left]))?;
        self.unmount()?;
        fs::rename(left, &self.file)?;
        self.mount()?;
        let size = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
        ensure!(size(&synced) == WITNESS as u64, "a synced file was lost");
        ensure!(size(&unsynced) == 0, "a file survived that wasn't synced");
        fs::remove_file(synced)?;
        _ = fs::remove_file(unsynced);
        Ok(())
    }

    /// Leaves what it holds where it was mounted. Nobody may write there meanwhile.
    ///
    /// # Errors
    /// When it can't be read, or unmounted.
    pub(crate) fn put_back(mut self) -> Result<()> {
        let held = self.file.with_extension("held");
        copy(&self.folder, &held)?;
        self.unmount()?;
        for old in fs::read_dir(&self.folder)? {
            let old = old?.path();
            match old.is_dir() {
                true => fs::remove_dir_all(old)?,
                false => fs::remove_file(old)?,
            }
        }
        copy(&held, &self.folder)?;
        fs::remove_dir_all(held)?;
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        ran(Command::new("sync").arg("-f").arg(&self.folder))
    }

    fn mount(&mut self) -> Result<()> {
        let mut mounting = Command::new("mount");
        mounting.args(["-t", "ext4", "-o", OPTIONS]);
        ran(mounting.args([&self.file, &self.folder]))?;
        self.is_mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> Result<()> {
        ran(Command::new("umount").arg(&self.folder))?;
        self.is_mounted = false;
        Ok(())
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if self.is_mounted {
            _ = ran(Command::new("umount").arg("--lazy").arg(&self.folder));
        }
        _ = fs::remove_file(&self.file);
    }
}

/// Everything in a folder, into another one.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut copying = Command::new("cp");
    copying.args(["--archive", "--no-target-directory"]);
    ran(copying.args([from, to]))
}

fn ran(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("running {name}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {}", said.trim());
    Ok(())
}
