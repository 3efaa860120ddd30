//! Data directories of databases: initialised once under `.tools`, copied for every server.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::tools;

/// Puts a copy of the template `name` to `to`, unless `to` is there already.
///
/// `make` fills an empty directory; it runs when nobody has made this template before.
pub(crate) fn copy(name: &str, to: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if to.exists() {
        return Ok(());
    }
    let from = template(name, make)?;
    copy_tree(&from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))
}

fn template(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let folder = tools::tools_dir().join("templates");
    let template = folder.join(name);
    if template.exists() {
        return Ok(template);
    }
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let making = tempfile::Builder::new()
        .prefix(name)
        .tempdir_in(&folder)
        .with_context(|| format!("creating a directory in {}", folder.display()))?;
    make(making.path()).with_context(|| format!("making the data directory {name}"))?;
    // Whoever comes first wins; the others' are as good, and are removed.
    let making = making.keep();
    if fs::rename(&making, &template).is_err() && template.exists() {
        let _ = fs::remove_dir_all(&making);
    }
    Ok(template)
}

fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
