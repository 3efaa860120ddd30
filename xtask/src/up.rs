//! `cargo xtask up`: a whole usersync on this machine, for people and scripts.

use std::fs::File;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use usersync_stack::{Profile, Service, Stack, StackBuilder, tools};

use crate::terminal::LiveLine;
use crate::{run, setup, terminal};

const EXAMPLES: &str = "\
Examples:
  cargo xtask up                              until Ctrl-C; the data goes with it
  cargo xtask up --dir data                   keeps the data and continues with it next time
  cargo xtask up --workers unified-auth=3     three workers share one target
  cargo xtask up --targets mine.toml          merged over the shipped targets
  cargo xtask up --json                       every endpoint and process id, once all is ready";

/// Start everything and keep it running until Ctrl-C or SIGTERM
///
/// Starts NATS, Redis, the gateway, one worker per target and the three example services, each a process of
/// its own, on the usual ports where those are free and on others where not. It never uses a server that
/// already runs. A process that ends by itself is an error: it is reported and everything stops.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Up {
    /// Print one line of JSON with every endpoint and process id once all is ready
    #[arg(long)]
    json: bool,

    /// How many workers a target has (0 for none); may be given several times
    ///
    /// One for each enabled target of the catalogue unless said otherwise.
    #[arg(long, value_name = "NAME=N")]
    workers: Vec<Replicas>,

    /// How many gateways
    #[arg(long, value_name = "N", default_value_t = 1)]
    gateways: usize,

    /// A catalogue file of your own (TOML, YAML or JSON), merged over the shipped targets
    #[arg(long, value_name = "FILE")]
    targets: Option<PathBuf>,

    /// Keep data, logs and secrets here, and continue with what is there
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    #[command(flatten)]
    build: Build,
}

/// Which binaries to run.
#[derive(Args)]
pub(crate) struct Build {
    /// Build and run with optimisations
    #[arg(long)]
    release: bool,

    /// Run the binaries that are there, without building
    #[arg(long)]
    no_build: bool,
}

impl Build {
    pub(crate) fn profile(&self) -> Profile {
        if self.release {
            Profile::Release
        } else {
            Profile::Debug
        }
    }

    /// Installs and builds everything a stack needs.
    pub(crate) fn prepare(&self) -> Result<()> {
        setup::ensure(setup::STACK)?;
        if self.no_build {
            return Ok(());
        }
        run::build_binaries(self.profile(), &[])
    }
}

/// `NAME=N`
#[derive(Clone, Debug, PartialEq, Eq)]
struct Replicas {
    target: String,
    count: usize,
}

impl FromStr for Replicas {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("expected NAME=N, for example unified-auth=2, not {text:?}");
        let (target, count) = text.split_once('=').ok_or_else(expected)?;
        Ok(Self {
            target: target.to_owned(),
            count: count.parse().map_err(|_| expected())?,
        })
    }
}

impl Up {
    #[tokio::main]
    pub(crate) async fn run(self) -> Result<()> {
        self.build.prepare()?;
        let mut builder = stack(&self.build).gateways(self.gateways);
        // As slow as in production, so that what people measure is what they get.
        builder = builder.password_memory_kib(None);
        for replicas in &self.workers {
            builder = builder.workers(&replicas.target, replicas.count);
        }
        if let Some(file) = &self.targets {
            builder = builder.targets_file(file);
        }
        if let Some(dir) = &self.dir {
            builder = builder.dir(dir);
        }

        let mut stop = Stop::new()?;
        let Some(stack) = start(builder, &mut stop).await? else {
            return Ok(());
        };
        if self.json {
            println!("{}", stack.describe());
        } else {
            show(&stack);
        }
        until_stopped(stack, stop).await
    }
}

/// The wish to stop: Ctrl-C or SIGTERM.
pub(crate) struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Stop {
    /// From here on the signals no longer end this process by themselves.
    pub(crate) fn new() -> Result<Self> {
        let signal = |kind| signal(kind).context("listening for signals");
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Ends when somebody wants to stop.
    pub(crate) async fn wanted(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// A stack for people, on the usual ports.
pub(crate) fn stack(build: &Build) -> StackBuilder {
    Stack::builder()
        .profile(build.profile())
        .nats_conf(&tools::nats_conf())
        .standard_ports()
        .schedulers(1)
}

/// Starts the stack; `None` when somebody wants to stop meanwhile.
pub(crate) async fn start(builder: StackBuilder, stop: &mut Stop) -> Result<Option<Stack>> {
    // Two that start at the same time would find the same ports free.
    let lock = tools::tools_dir().join("start.lock");
    std::fs::create_dir_all(tools::tools_dir()).context("creating .tools")?;
    let lock = File::create(&lock).with_context(|| format!("creating {}", lock.display()))?;
    lock.lock().context("waiting for another start to finish")?;
    let _line = LiveLine::start(
        "starting NATS, Redis, the gateway, the workers, the scheduler and the examples",
    );
    tokio::select! {
        stack = builder.start() => stack.map(Some),
        () = stop.wanted() => Ok(None),
    }
}

/// Waits for the wish to stop, or for a process that ends by itself, which is an error; stops everything.
pub(crate) async fn until_stopped(mut stack: Stack, mut stop: Stop) -> Result<()> {
    let failure = tokio::select! {
        failure = stack.ended() => Some(failure),
        () = stop.wanted() => None,
    };
    if failure.is_some() {
        let dir = stack.keep_dir().display();
        eprintln!("data and logs stay in {dir}");
    }
    stop_all(stack, stop, failure).await
}

/// Stops everything; the error tells `failure` if there was one, else what did not stop cleanly.
pub(crate) async fn stop_all(stack: Stack, mut stop: Stop, failure: Option<String>) -> Result<()> {
    let line = LiveLine::start("stopping");
    let stopped = tokio::select! {
        stopped = stack.stop() => stopped,
        // Asked twice: dropping the stack kills what is left.
        () = stop.wanted() => Err(anyhow::anyhow!("stopped the hard way, as asked twice")),
    };
    drop(line);
    match failure {
        Some(failure) => bail!("{failure}\nso everything was stopped"),
        None => stopped.context("not everything stopped cleanly"),
    }
}

/// Shows what runs where.
fn show(stack: &Stack) {
    let style = terminal::stdout();
    println!("{}", style.bold("usersync is up"));
    let row = |name: &str, url: &str, pid: i32| {
        println!(
            "  {name:<28} {url:<28} {}",
            style.dim(&format!("pid {pid}"))
        );
    };
    let service = |kind: &str, service: &Service| {
        row(
            &format!("{kind}{}", service.name()),
            service.url(),
            service.pid(),
        );
    };
    row("nats-server", &stack.nats.url(), stack.nats.process().pid());
    row(
        "redis-server",
        &stack.redis.url(),
        stack.redis.process().pid(),
    );
    stack
        .gateways
        .iter()
        .for_each(|gateway| service("", gateway));
    stack
        .workers
        .values()
        .flatten()
        .for_each(|worker| service("", worker));
    stack
        .schedulers
        .iter()
        .for_each(|scheduler| service("", scheduler));
    stack
        .examples
        .values()
        .for_each(|example| service("example ", example));
    let (nats, password) = (stack.nats.url(), stack.nats.password_file("operator"));
    let password = password.display();
    println!(
        "  {:<28} export NATS_URL={nats} NATS_USER=operator NATS_PASSWORD=\"$(cat {password})\"",
        "for the nats CLI"
    );
    println!(
        "  {:<28} export USERSYNC_NATS__URL={nats} USERSYNC_NATS__USER=operator USERSYNC_NATS__PASSWORD=file:{password}",
        "for our own commands"
    );
    println!(
        "  {:<28} USERSYNC_EGRESS__SECRETS={} lets them read the targets' secrets",
        "for a worker of your own",
        stack.granted()
    );
    println!("  {:<28} {}", "data and logs", stack.dir().display());
    println!("  {:<28} {}", "targets", stack.catalogue().display());
    println!("Ctrl-C stops it.");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_are_a_name_and_a_number() {
        let replicas = Replicas {
            target: "unified-auth".to_owned(),
            count: 3,
        };
        assert_eq!("unified-auth=3".parse(), Ok(replicas));
        for text in ["unified-auth", "unified-auth=", "unified-auth=many", "=-1"] {
            let error = text.parse::<Replicas>().unwrap_err();
            assert!(error.contains("NAME=N"), "{error}");
        }
    }
}
