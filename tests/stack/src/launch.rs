//! What to start: a program, its arguments and environment, and where its output goes.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use anyhow::{Context, Result};

use usersync_core::grant::Grant;

use crate::{NatsServer, Process, egress, tools};

/// `setpriv` from util-linux has the kernel kill a child whose parent dies, even by SIGKILL. Where it is
/// missing (other systems than Linux, very small containers) a killed parent leaves its children behind.
static SETPRIV: LazyLock<bool> = LazyLock::new(|| {
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
});

/// Which secrets the entries of targets may name.
const GRANTS: &str = "USERSYNC_EGRESS__SECRETS";

/// The recipe of a process; can be started again and again.
#[derive(Clone, Debug)]
pub struct Launch {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    dir: Option<PathBuf>,
    open_files: Option<u32>,
    log: PathBuf,
}

impl Launch {
    /// `program` under the name that error messages use; output is appended to `log`.
    pub fn new(
        name: impl Into<String>,
        program: impl Into<PathBuf>,
        log: impl Into<PathBuf>,
    ) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            dir: None,
            open_files: None,
            log: log.into(),
        }
    }

    /// How many files it may have open; as many as we unless said otherwise.
    #[must_use]
    pub fn open_files(mut self, most: Option<u32>) -> Self {
        self.open_files = most;
        self
    }

    /// Has its clock be off, by `+1h` for example; right with `+0`.
    ///
    /// # Errors
    /// When libfaketime isn't there.
    pub fn clock(self, offset: &str) -> Result<Self> {
        Ok(self
            .env("LD_PRELOAD", tools::faketime()?)
            .env("FAKETIME", offset)
            // What measures durations is right.
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1"))
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds several arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable, on top of what this process has.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env
            .push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Has one of our binaries connect to `server` as a role of `nats.conf`.
    #[must_use]
    pub fn nats(self, server: &NatsServer, role: &str) -> Self {
        let password_file = server.password_file(role);
        let password = format!("file:{}", password_file.display());
        let launch = self
            .env("USERSYNC_NATS__URL", server.url())
            .env("USERSYNC_NATS__USER", role)
            .env("USERSYNC_NATS__PASSWORD", password)
            .granting(&password_file);
        let Some(certificates) = server.certificates() else {
            return launch;
        };
        launch
            .env("USERSYNC_NATS__CA", certificates.ca())
            .env("USERSYNC_NATS__CERT", certificates.cert("client"))
            .env("USERSYNC_NATS__KEY", certificates.key("client"))
    }

    /// Has entries name the secrets of targets beside `password_file`, where that is kept for more than a test.
    fn granting(self, password_file: &Path) -> Self {
        if password_file.starts_with(env::temp_dir()) {
            return self;
        }
        let secrets = password_file.ancestors().nth(2);
        let targets = secrets.map(|secrets| Grant::Directory(secrets.join("targets")));
        let mut grants = egress::secrets();
        grants.splice(1.., targets);
        self.env(GRANTS, listed(&grants))
    }

    /// Runs it in another working directory.
    #[must_use]
    pub fn current_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// The name that error messages use.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that takes standard output and standard error.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Starts it. See [`Process`] for what becomes of it.
    ///
    /// # Errors
    /// When the program or the log file can't be opened.
    pub fn spawn(&self) -> Result<Process> {
        Process::spawn(self)
    }

    /// The command, in a process group of its own: Ctrl-C in the terminal reaches us alone, and we stop the
    /// processes in the right order.
    pub(crate) fn command(&self) -> Result<Command> {
        use std::os::unix::process::CommandExt as _;

        if let Some(parent) = self.log.parent() {
            std::fs::create_dir_all(parent)
                .with_context(|| format!("creating {}", parent.display()))?;
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("opening the log {}", self.log.display()))?;
        let mut words: Vec<OsString> = Vec::new();
        if *SETPRIV {
            words.extend(["setpriv", "--pdeathsig", "KILL", "--"].map(OsString::from));
        }
        if let Some(most) = self.open_files {
            words.extend(["prlimit".into(), format!("--nofile={most}").into()]);
        }
        words.push(self.program.clone().into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        // Settings in the developer's own environment must not reach a stack.
        for (key, _) in env::vars_os() {
            if key.to_string_lossy().starts_with("USERSYNC_") {
                command.env_remove(key);
            }
        }
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command
            .args(&self.args)
            .env(GRANTS, listed(&egress::secrets()))
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("sharing the log file")?)
            .stderr(log)
            .process_group(0);
        Ok(command)
    }
}

fn listed(grants: &[Grant]) -> String {
    let grants: Vec<_> = grants.iter().map(Grant::to_string).collect();
    grants.join(",")
}
