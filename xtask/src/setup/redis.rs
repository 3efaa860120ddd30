//! Redis without a system service: Debian's redis-tools holds the server program under another name.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};
use usersync_stack::tools;

use super::link;
use crate::run;

/// On Debian and Ubuntu, redis-server, redis-check-rdb and redis-check-aof are one program that looks at the
/// name it is called by. redis-tools has the latter two; the package redis-server adds a link and a system
/// service, which a development machine doesn't need.
const SAME_PROGRAM: &str = "/usr/bin/redis-check-rdb";

const APT: [&str; 5] = [
    "apt-get",
    "install",
    "--yes",
    "--no-install-recommends",
    "redis-tools",
];

/// Makes `.tools/bin/redis-server` out of redis-tools, which is installed when missing.
pub(super) fn install() -> Result<()> {
    if !Path::new(SAME_PROGRAM).exists() {
        install_package()?;
    }
    let server = link(Path::new(SAME_PROGRAM), "redis-server")?;
    let version = tools::version_of(&server);
    let (major, minor) = tools::REDIS_MINIMUM;
    match version {
        Ok(version) if version >= tools::REDIS_MINIMUM => Ok(()),
        Ok((old, older)) => bail!(
            "the distribution's Redis is {old}.{older}, and {major}.{minor} or newer is needed"
        ),
        Err(error) => {
            bail!("{SAME_PROGRAM} is not the Redis server under another name here ({error:#})")
        }
    }
}

/// What the user can run when it didn't work.
pub(super) fn by_hand() -> String {
    if cfg!(target_os = "macos") {
        return "by hand: brew install redis".to_owned();
    }
    format!(
        "by hand: sudo {}\n  then run this again; or, without apt: put redis-server 7 or newer on PATH, from your package manager \
         or https://redis.io/downloads",
        APT.join(" ")
    )
}

fn install_package() -> Result<()> {
    if !succeeds("apt-get", &["--version"]) {
        bail!("there is no apt-get on this machine");
    }
    let root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    if !root && !succeeds("sudo", &["-n", "true"]) {
        bail!("apt needs root, and sudo is missing or asks for a password");
    }
    let apt = |args: &[&str]| {
        let mut command = if root {
            Command::new(args[0])
        } else {
            let mut command = Command::new("sudo");
            command.args(["-n", "DEBIAN_FRONTEND=noninteractive", args[0]]);
            command
        };
        command
            .args(&args[1..])
            .env("DEBIAN_FRONTEND", "noninteractive");
        run::quiet(&mut command)
    };
    // Package lists that are missing or stale are the usual reason for a first failure.
    apt(&APT).or_else(|_| {
        apt(&["apt-get", "update"])?;
        apt(&APT)
    })
}

fn succeeds(program: &str, args: &[&str]) -> bool {
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
