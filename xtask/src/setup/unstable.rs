//! Servers newer than this machine's release has: packages of its distribution's unstable release, unpacked with the
//! libraries that they were built for.
//!
//! apt does it with directories of its own: no root is needed, nothing is installed, and the machine's own sources stay
//! as they are. The mirror is the machine's.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use usersync_stack::tools;

use crate::run;

/// What is asked for beside the newest `postgresql-N`.
const PACKAGES: [&str; 4] = [
    "mysql-server-core",
    "pgbouncer",
    "valkey-server",
    "valkey-tools",
];
/// Where the packages have the programs that are run; a folder means all of its programs.
const PROGRAMS: [&str; 4] = [
    "usr/sbin/mysqld",
    "usr/sbin/pgbouncer",
    "usr/bin/valkey-server",
    "usr/lib/postgresql/*/bin/*",
];
/// Of what the packages depend on, only libraries are needed to run the programs.
const LIBRARY: &str = "lib";
/// Large libraries of programs that aren't run.
const NEEDLESS: [&str; 3] = ["libperl", "libsystemd-shared", "libllvm"];
const TRIPLET: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-linux-gnu"
} else {
    "x86_64-linux-gnu"
};
const LOADER: &str = if cfg!(target_arch = "aarch64") {
    "ld-linux-aarch64.so.1"
} else {
    "ld-linux-x86-64.so.2"
};
/// What a program in a file of its own begins with.
const ELF: &[u8] = b"\x7fELF";

/// For the progress line.
pub(super) const SOURCE: &str =
    "unstable release of the distribution by apt, unpacked, 70 MB for four servers";
/// What the user can run when it didn't work.
pub(super) const BY_HAND: &str = "by hand: on Debian or Ubuntu, look whether `apt-get update` works and reaches a mirror that has the \
                                  unstable release (sid, devel)";

/// An unstable release at a mirror.
#[derive(Debug, PartialEq, Eq)]
struct Release {
    mirror: String,
    suite: &'static str,
    components: &'static str,
    keyring: &'static str,
}

/// Makes `.tools/unstable`.
pub(super) fn install() -> Result<()> {
    let tools = tools::tools_dir();
    fs::create_dir_all(&tools).with_context(|| format!("creating {}", tools.display()))?;
    let folder = tempfile::tempdir_in(&tools)
        .with_context(|| format!("creating a directory in {}", tools.display()))?;
    let (packages, root) = (folder.path().join("packages"), folder.path().join("root"));
    fs::create_dir_all(&packages)?;
    fs::create_dir_all(&root)?;
    let apt = Apt::new(folder.path(), &release()?)?;
    apt.download(&packages)?;
    for package in fs::read_dir(&packages)? {
        let mut unpack = Command::new("dpkg-deb");
        run::quiet(unpack.arg("--extract").args([&package?.path(), &root]))?;
    }
    for needless in ["usr/share/doc", "usr/share/locale", "usr/share/man"] {
        let _ = fs::remove_dir_all(root.join(needless));
    }
    for pattern in PROGRAMS {
        for program in matches(&root, pattern) {
            wrap(&root, &program)?;
        }
    }
    let place = tools::unstable_dir();
    let _ = fs::remove_dir_all(&place);
    fs::rename(&root, &place).with_context(|| format!("moving to {}", place.display()))
}

/// The unstable release that belongs to what this machine's own sources name.
fn release() -> Result<Release> {
    let asked = Command::new("apt-get")
        .args(["indextargets", "--format"])
        .arg("$(LABEL)|$(RELEASE)|$(REPO_URI)")
        .arg("Created-By: Packages")
        .stdin(Stdio::null())
        .output()
        .context("there is no apt-get on this machine")?;
    let sources = String::from_utf8_lossy(&asked.stdout);
    let release = sources.lines().find_map(of_source);
    release.with_context(|| {
        format!(
            "apt's sources name no archive of Debian or Ubuntu:\n{}",
            sources.trim_end()
        )
    })
}

/// Reads `LABEL|RELEASE|URI` of an archive's main suite; security fixes have a mirror of their own.
fn of_source(line: &str) -> Option<Release> {
    let mut parts = line.split('|');
    let (label, release, mirror) = (parts.next()?, parts.next()?, parts.next()?);
    let (suite, components, keyring) = match label {
        "Debian" => ("sid", "main", "debian-archive-keyring"),
        "Ubuntu" => ("devel", "main universe", "ubuntu-archive-keyring"),
        _ => return None,
    };
    (!release.contains('-')).then(|| Release {
        mirror: mirror.to_owned(),
        suite,
        components,
        keyring,
    })
}

/// An apt that knows nothing but one release, and thinks that nothing is installed.
struct Apt {
    settings: PathBuf,
}

impl Apt {
    fn new(folder: &Path, release: &Release) -> Result<Self> {
        let (state, cache) = (folder.join("state"), folder.join("cache"));
        fs::create_dir_all(state.join("lists/partial"))?;
        fs::create_dir_all(cache.join("archives/partial"))?;
        let (status, sources) = (folder.join("status"), folder.join("sources.list"));
        fs::write(&status, "")?;
        let Release {
            mirror,
            suite,
            components,
            ..
        } = release;
        let signed = release.signed_by();
        fs::write(
            &sources,
            format!("deb {signed}{mirror} {suite} {components}\n"),
        )?;
        let settings = folder.join("apt.conf");
        let places = [
            ("Dir::State", &state),
            ("Dir::State::status", &status),
            ("Dir::Cache", &cache),
            ("Dir::Etc::sourcelist", &sources),
        ];
        let places = places.map(|(name, path)| format!("{name} \"{}\";\n", path.display()));
        let rest = "Dir::Etc::sourceparts \"/dev/null\";\nDir::Etc::preferences \"/dev/null\";\n\
                    Dir::Etc::preferencesparts \"/dev/null\";\n\
                    Acquire::Languages \"none\";\nAPT::Sandbox::User \"\";\n";
        fs::write(&settings, places.concat() + rest)?;
        let apt = Self { settings };
        run::quiet(apt.command("apt-get").arg("update"))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.settings);
        command
    }

    fn lines(&self, program: &str, args: &[&str]) -> Result<Vec<String>> {
        let mut command = self.command(program);
        command.args(args).stdin(Stdio::null());
        let output = command
            .output()
            .with_context(|| format!("running {program}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "`{}` failed:\n{said}",
            run::text(&command)
        );
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Downloads the packages, and the libraries that they depend on, to `folder`.
    fn download(&self, folder: &Path) -> Result<()> {
        let known = self.lines("apt-cache", &["pkgnames", "postgresql-"])?;
        let version = |name: &String| name.strip_prefix("postgresql-")?.parse::<u32>().ok();
        let newest = known.iter().filter_map(version).max();
        let postgres = format!("postgresql-{}", newest.context("it has no PostgreSQL")?);
        let mut asked = PACKAGES.to_vec();
        asked.push(&postgres);
        let mut args = vec!["install", "--simulate", "-qq", "--no-install-recommends"];
        args.extend(&asked);
        let plan = self.lines("apt-get", &args)?;
        let names = plan.iter().filter_map(|line| line.split(' ').nth(1));
        let client = postgres.replace('-', "-client-");
        asked.push(&client);
        let is_needed = |name: &&str| {
            let needless = NEEDLESS.iter().any(|needless| name.starts_with(needless));
            asked.contains(name) || name.starts_with(LIBRARY) && !needless
        };
        let mut names: Vec<&str> = names.filter(is_needed).collect();
        names.dedup();
        let mut download = self.command("apt-get");
        download.args(["download", "-qq"]).args(names);
        run::quiet(download.current_dir(folder))
    }
}

impl Release {
    /// Who must have signed it, as apt's sources say it; apt's own keys otherwise.
    fn signed_by(&self) -> String {
        let endings = ["gpg", "pgp"].into_iter();
        let files = endings.map(|ending| format!("/usr/share/keyrings/{}.{ending}", self.keyring));
        let found = files.into_iter().find(|file| Path::new(file).is_file());
        found.map_or_else(String::new, |file| format!("[signed-by={file}] "))
    }
}

/// The files below `root` that `pattern` names, where `*` is any one name.
fn matches(root: &Path, pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    for part in pattern.split('/') {
        let below = |folder: PathBuf| match part {
            "*" => fs::read_dir(&folder)
                .into_iter()
                .flatten()
                .filter_map(|entry| Some(entry.ok()?.path()))
                .collect(),
            name => vec![folder.join(name)],
        };
        found = found.into_iter().flat_map(below).collect();
    }
    found
}

/// Puts a script in the place of a program that starts it with the loader and the libraries of its release: those of
/// this machine may be too old.
fn wrap(root: &Path, program: &Path) -> Result<()> {
    let shown = program.display();
    let bytes = fs::read(program).with_context(|| format!("the packages have no {shown}"))?;
    if !bytes.starts_with(ELF) {
        return Ok(());
    }
    let within = program.strip_prefix(root).context("a program below")?;
    let Some(name) = program.file_name().and_then(|name| name.to_str()) else {
        bail!("{shown} has no name");
    };
    let real = program.with_file_name(format!("{name}.elf"));
    // A link may lead to a program that has a script already.
    fs::write(&real, bytes)?;
    fs::set_permissions(&real, fs::Permissions::from_mode(0o755))?;
    fs::remove_file(program)?;
    let up = "../".repeat(within.components().count() - 1);
    let script = format!(
        "#!/bin/sh\nroot=\"${{0%/*}}/{up}\"\nlibraries=\"${{root}}usr/lib/{TRIPLET}\"\n\
         exec \"$libraries/{LOADER}\" --library-path \"$libraries:$libraries/mysql/private\" --argv0 \"$0\" \"$0.elf\" \"$@\"\n"
    );
    fs::write(program, script)?;
    fs::set_permissions(program, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_that_of_the_machines_own_release() {
        let debian = |mirror: &str| {
            Some(Release {
                mirror: mirror.to_owned(),
                suite: "sid",
                components: "main",
                keyring: "debian-archive-keyring",
            })
        };
        for (line, expected) in [
            (
                "Debian|bookworm|http://mirror.internal/debian/",
                debian("http://mirror.internal/debian/"),
            ),
            (
                "Debian|bookworm-updates|http://mirror.internal/debian/",
                None,
            ),
            (
                "Debian-Security|bookworm-security|http://m/debian-security/",
                None,
            ),
            ("Node Source|nodistro|https://m/node_20.x/", None),
            ("", None),
        ] {
            assert_eq!(of_source(line), expected, "{line}");
        }
        let ubuntu = of_source("Ubuntu|noble|mirror+file:/etc/apt/apt-mirrors.txt/").unwrap();
        assert_eq!(
            (ubuntu.suite, ubuntu.components),
            ("devel", "main universe")
        );
    }
}
