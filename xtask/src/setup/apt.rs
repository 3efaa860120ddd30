//! Servers from apt without a system service: packages that hold the program alone.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};
use usersync_stack::tools;

use super::link;
use crate::run;

/// A server's program out of a package that starts nothing.
pub(super) struct Server {
    /// The name it is called by.
    name: &'static str,
    package: &'static str,
    /// Where the package puts it.
    program: &'static str,
    minimum: (u32, u32),
    homebrew: &'static str,
    home: &'static str,
}

/// On Debian and Ubuntu, redis-server, redis-check-rdb and redis-check-aof are one program that looks at the
/// name it is called by. redis-tools has the latter two; the package redis-server adds a link and a system
/// service, which a development machine doesn't need.
pub(super) const REDIS: Server = Server {
    name: "redis-server",
    package: "redis-tools",
    program: "/usr/bin/redis-check-rdb",
    minimum: tools::REDIS_MINIMUM,
    homebrew: "redis",
    home: "https://redis.io/downloads",
};

/// mariadb-server adds clients, settings and a system service to this package.
pub(super) const MARIADB: Server = Server {
    name: "mariadbd",
    package: "mariadb-server-core",
    program: "/usr/sbin/mariadbd",
    minimum: tools::MARIADB_MINIMUM,
    homebrew: "mariadb",
    home: "https://mariadb.org/download",
};

impl Server {
    /// Makes `.tools/bin/NAME` out of the package, which is installed when missing.
    pub(super) fn install(&self) -> Result<()> {
        if !Path::new(self.program).exists() {
            self.install_package()?;
        }
        let server = link(Path::new(self.program), self.name)?;
        let (name, (major, minor)) = (self.name, self.minimum);
        match tools::version_of(&server) {
            Ok(version) if version >= self.minimum => Ok(()),
            Ok((old, older)) => bail!(
                "the distribution's {name} is {old}.{older}, and {major}.{minor} or newer is needed"
            ),
            Err(error) => bail!("{} is not {name} here ({error:#})", self.program),
        }
    }

    /// Where it comes from, for the progress line.
    pub(super) fn source(&self) -> String {
        format!("{} from apt", self.package)
    }

    /// What the user can run when it didn't work.
    pub(super) fn by_hand(&self) -> String {
        if cfg!(target_os = "macos") {
            return format!("by hand: brew install {}", self.homebrew);
        }
        let (name, (major, minor), home) = (self.name, self.minimum, self.home);
        format!(
            "by hand: sudo {}\n  then run this again; or, without apt: put {name} {major}.{minor} or newer on PATH, \
             from your package manager or {home}",
            self.apt().join(" ")
        )
    }

    fn apt(&self) -> [&str; 5] {
        [
            "apt-get",
            "install",
            "--yes",
            "--no-install-recommends",
            self.package,
        ]
    }

    fn install_package(&self) -> Result<()> {
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
        apt(&self.apt()).or_else(|_| {
            apt(&["apt-get", "update"])?;
            apt(&self.apt())
        })
    }
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
