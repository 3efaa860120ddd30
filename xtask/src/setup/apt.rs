//! Servers from apt without a system service: packages that hold the program alone, or are only unpacked.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use usersync_stack::tools;

use super::link;
use crate::run;

/// Programs out of a package that would start a service: it is unpacked into `.tools`, and not installed.
pub(super) struct Unpacked {
    package: &'static str,
    /// Where the package has each program, and the name it is called by here.
    programs: &'static [(&'static str, &'static str)],
    /// A folder whose files the program looks for at this path of the system, and nowhere else.
    files: Option<&'static str>,
    home: &'static str,
}

pub(super) const PROMETHEUS: Unpacked = Unpacked {
    package: "prometheus",
    programs: &[
        ("usr/bin/prometheus", "prometheus"),
        ("usr/bin/promtool", "promtool"),
    ],
    files: None,
    home: "https://prometheus.io/download",
};

pub(super) const ALERTMANAGER: Unpacked = Unpacked {
    package: "prometheus-alertmanager",
    programs: &[("usr/bin/prometheus-alertmanager", "alertmanager")],
    files: Some("usr/share/prometheus/alertmanager"),
    home: "https://prometheus.io/download",
};

/// A library that gives a program another clock.
pub(super) const FAKETIME: Unpacked = Unpacked {
    package: "libfaketime",
    programs: &[(
        if cfg!(target_arch = "aarch64") {
            "usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1"
        } else {
            "usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
        },
        "libfaketime.so.1",
    )],
    files: None,
    home: "https://github.com/wolfcw/libfaketime",
};

impl Unpacked {
    /// Downloads the package and makes `.tools/bin/NAME` out of each program.
    pub(super) fn install(&self) -> Result<()> {
        let folder = tools::tools_dir().join(self.package);
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let download = || {
            let mut command = Command::new("apt-get");
            run::quiet(
                command
                    .args(["download", self.package])
                    .current_dir(&folder),
            )
        };
        // Without package lists nothing is found.
        download().or_else(|_| {
            apt(&["apt-get", "update"])?;
            download()
        })?;
        let found = fs::read_dir(&folder)?.filter_map(|entry| Some(entry.ok()?.path()));
        let mut packages =
            found.filter(|path| path.extension().is_some_and(|ending| ending == "deb"));
        let package = packages
            .next()
            .context("apt-get download left no package")?;
        let mut unpack = Command::new("dpkg-deb");
        run::quiet(unpack.arg("--extract").args([&package, &folder]))?;
        fs::remove_file(&package)?;
        if let Some(files) = self.files {
            let system = Path::new("/").join(files);
            let from = folder.join(files).join(".");
            as_root(&["mkdir", "-p", &system.to_string_lossy()])?;
            as_root(&[
                "cp",
                "-r",
                &from.to_string_lossy(),
                &system.to_string_lossy(),
            ])?;
        }
        for (path, name) in self.programs {
            link(&folder.join(path), name)?;
        }
        Ok(())
    }

    /// Where it comes from, for the progress line.
    pub(super) fn source(&self) -> String {
        format!("{} from apt, unpacked", self.package)
    }

    /// What the user can run when it didn't work.
    pub(super) fn by_hand(&self) -> String {
        let names: Vec<_> = self.programs.iter().map(|(_, name)| *name).collect();
        format!(
            "by hand: put {} on PATH, from {}",
            names.join(" and "),
            self.home
        )
    }
}

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
        // Package lists that are missing or stale are the usual reason for a first failure.
        apt(&self.apt()).or_else(|_| {
            apt(&["apt-get", "update"])?;
            apt(&self.apt())
        })
    }
}

/// Runs apt-get as root.
fn apt(args: &[&str]) -> Result<()> {
    if !succeeds("apt-get", &["--version"]) {
        bail!("there is no apt-get on this machine");
    }
    as_root(args)
}

fn as_root(args: &[&str]) -> Result<()> {
    let root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    if !root && !succeeds("sudo", &["-n", "true"]) {
        bail!("this needs root, and sudo is missing or asks for a password");
    }
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
