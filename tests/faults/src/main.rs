//! `usersync-faults`: breaks real servers and our own processes under load, one fault after the other, and has an
//! independent checker judge what is left.
//!
//! `world` runs everything, NATS on a `disk` that can be filled or an `image` that loses its power, and for a while
//! the `examples`; `load` writes and knows what was acknowledged; `list` breaks; `receiver`, `tls`, `proxy`, `names`
//! and `forger` misbehave; `backup` is the main database's; `merge` is the published contract written a second time,
//! `checker` compares, `report` shows. Only `usersync-stack`, which starts processes, is shared with other tests.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program: figures on standard output, progress on standard error"
)]

mod backup;
mod checker;
mod disk;
mod examples;
mod fault;
mod forger;
mod image;
mod list;
mod load;
mod merge;
mod names;
mod proxy;
mod receiver;
mod report;
mod tls;
mod world;

use std::{collections::BTreeSet, io::IsTerminal as _, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use tokio::time::Instant;

use self::{
    checker::{Checker, Wrong},
    fault::{Broker, Fault},
    load::{Doors, Load},
    receiver::Manners,
    report::{Report, Row},
    world::World,
};

/// Users of a round who change by events.
const BY_EVENTS: u64 = 200;
/// Users of a round whom the load changes in the main database.
const IN_MAIN: u64 = 40;
/// How long all copies may take to be right again after a fault.
const RECOVERY: Duration = Duration::from_secs(120);
/// A time-out of a target, and how long it takes to miss a worker that was killed.
const LATE: Duration = Duration::from_secs(15);
/// How long an alert that is expected may take.
const ALERT: Duration = Duration::from_secs(20);

/// Break real servers and our own processes under load, and have an independent checker judge what is left
///
/// Every fault of tests/faults/LIST.md once, in a random order; with --minutes again and again until they are over. Needs
/// what `cargo xtask test` needs, on free ports and in a temporary directory. Fails when an acknowledged event is lost,
/// a copy stays wrong, anything goes back to an older state, or an alert is missing.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask faults --")]
struct Cli {
    /// Go on for so many minutes, with faults in a random order
    #[arg(long)]
    minutes: Option<u64>,
    /// Repeats a run: the same faults in the same order, with the same events
    #[arg(long)]
    seed: Option<u64>,
    /// Only this fault; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// All but this fault; may be given several times
    #[arg(long, value_name = "NAME")]
    but: Vec<String>,
    /// Events that each fault is done under
    #[arg(long, default_value_t = 1_000)]
    events: u64,
    /// Keep logs and data; they are kept anyway when something is wrong
    #[arg(long)]
    keep: bool,
    /// Print one JSON object at the end, and the table on standard error
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let ran = runtime
        .context("starting")
        .and_then(|runtime| runtime.block_on(run(Cli::parse())));
    match ran {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all was well.
async fn run(cli: Cli) -> Result<bool> {
    let seed = cli.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let mut dice = fastrand::Rng::with_seed(seed);
    let all = chosen(&cli.only, &cli.but)?;
    let mut report = Report::new(seed, cli.json);
    let minutes = cli.minutes.map(|minutes| 60.0 * minutes as f64);
    for broker in [Broker::Alone, Broker::Cluster] {
        let of_broker = all.iter().filter(|fault| fault.broker == broker);
        let faults: Vec<Fault> = of_broker.copied().collect();
        if faults.is_empty() {
            continue;
        }
        eprintln!("seed {seed}; starting the servers, NATS {broker}");
        let mut suite = Suite {
            world: World::start(broker).await?,
            checker: Checker::default(),
            round: 0,
            poisoned: BTreeSet::new(),
            events: cli.events,
        };
        // As long as their share of all faults.
        let share = faults.len() as f64 / all.len() as f64;
        let end = minutes.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds * share));
        let ran = suite.run(faults, end, &mut dice, &mut report).await;
        if ran.is_err() || !report.is_well() || cli.keep {
            eprintln!("logs and data: {}", suite.world.keep().display());
        }
        ran?;
    }
    report.end();
    Ok(report.is_well())
}

/// Everything that is broken, and what is known of it so far.
struct Suite {
    world: World,
    checker: Checker,
    round: u64,
    /// Whom HTTP targets have refused for good.
    poisoned: BTreeSet<u64>,
    /// Events of a round.
    events: u64,
}

impl Suite {
    /// Each of the faults once, or again and again until `end`; then everybody is looked at once more.
    async fn run(
        &mut self,
        mut faults: Vec<Fault>,
        end: Option<Instant>,
        dice: &mut fastrand::Rng,
        report: &mut Report,
    ) -> Result<()> {
        loop {
            dice.shuffle(&mut faults);
            for fault in &faults {
                if end.is_some_and(|end| Instant::now() > end) {
                    break;
                }
                let row = self.one(fault, dice).await;
                report.add(row.context(fault.name)?);
            }
            if end.is_none_or(|end| Instant::now() > end) {
                break;
            }
        }
        // Nothing of what came later has changed anybody before, and no call lands late.
        tokio::time::sleep(LATE).await;
        let users = 1..World::first_of(self.round);
        let settling = self
            .checker
            .settle(&self.world, &users, &self.poisoned, RECOVERY);
        let wrong = settling.await?;
        self.tell(&wrong);
        report.everybody(wrong.len());
        Ok(())
    }

    /// Does one fault while a load is on, waits until all copies are right again, and says how it went.
    async fn one(&mut self, fault: &Fault, dice: &mut fastrand::Rng) -> Result<Row> {
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K{} …\r", fault.name);
        }
        let first = World::first_of(self.round);
        self.round += 1;
        let world = &mut self.world;
        world.first = first;
        let users = first..World::first_of(self.round);
        let poisoned = fault.poisoned.map(|at| first + at);
        self.poisoned.extend(poisoned);
        let but: BTreeSet<u64> = poisoned.into_iter().collect();
        for receiver in [&world.guarded, &world.plain] {
            receiver.behaves(poisoned.map_or(Manners::Good, Manners::Refuses));
        }
        let told = checker::last_alert(world).await?;
        let load = Load {
            users: first..first + BY_EVENTS,
            main: first + 500..first + 500 + IN_MAIN,
            events: if fault.burst {
                10 * self.events
            } else {
                self.events
            },
            rate: if fault.burst { 4_000 } else { 400 },
            repeated: fault.repeated,
            seed: dice.u64(..),
        };
        let doors = Doors {
            jetstream: world.jetstream.clone(),
            gateway: world.stack.gateways[0].url().to_owned(),
            main: world.main_client()?,
        };
        let writing = tokio::spawn(load.write(doors));
        (fault.inject)(world, dice).await.context("doing it")?;
        let whole = Instant::now();
        let written = writing.await??;
        let wrong = self.checker.settle(world, &users, &but, RECOVERY).await?;
        let recovery = whole.elapsed();
        for receiver in [&world.guarded, &world.plain] {
            receiver.behaves(Manners::Good);
        }
        let alerts = alerts(world, fault.alerts, told).await?;
        // Without a guard a target may go back for a moment after a call without an answer; it must come forward again,
        // which is what `wrong` says.
        let (regressed, changed) = world.guarded.wrongs(users.clone());
        let (back, _) = world.plain.wrongs(users.clone());
        let rows = checker::regressed_rows(world, &users).await?;
        self.tell(&wrong);
        let forged = self.checker.taken(&self.world.forged);
        self.world.end_examples().await?;
        Ok(Row {
            number: fault.number,
            name: fault.name,
            users: BY_EVENTS + IN_MAIN,
            acknowledged: written.events.len() as u64,
            commits: written.commits,
            lost: self.checker.lost(&written.events),
            wrong: wrong.len() as u64 + forged,
            regressed: regressed + rows,
            unguarded: back,
            changed,
            recovery: recovery.as_secs_f64(),
            expected: fault.alerts,
            alerts,
        })
    }

    /// Shows the first few who are wrong, with what happened to them.
    fn tell(&self, wrong: &[Wrong]) {
        for wrong in wrong.iter().take(5) {
            eprintln!("  {wrong}");
            let (guarded, plain) = (&self.world.guarded, &self.world.plain);
            eprintln!("    guarded saw {}", guarded.history(wrong.user));
            eprintln!("    plain saw {}", plain.history(wrong.user));
        }
    }
}

/// The kinds of alerts that are raised after `told`: as soon as one of `expected` is, or after a while.
async fn alerts(world: &World, expected: &[&'static str], told: u64) -> Result<BTreeSet<String>> {
    let end = Instant::now() + ALERT;
    loop {
        let alerts = checker::alerts(world, told).await?;
        let raised = expected.iter().any(|kind| alerts.contains(*kind));
        if raised || expected.is_empty() || Instant::now() > end {
            return Ok(alerts);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn chosen(only: &[String], but: &[String]) -> Result<Vec<Fault>> {
    let all = Fault::all();
    let mut named = only.iter().chain(but);
    if let Some(unknown) = named.find(|name| !all.iter().any(|fault| fault.name == **name)) {
        let known: Vec<_> = all.iter().map(|fault| fault.name).collect();
        bail!(
            "there is no fault {unknown}; there are: {}",
            known.join(", ")
        );
    }
    let is_in = |names: &[String], fault: &Fault| names.iter().any(|name| name == fault.name);
    let wanted = |fault: &Fault| (only.is_empty() || is_in(only, fault)) && !is_in(but, fault);
    let (mut able, mut left_out) = (Vec::new(), 0);
    for fault in all.into_iter().filter(wanted) {
        match (fault.needs)() {
            Ok(()) => able.push(fault),
            Err(error) => {
                eprintln!("left out: {}, for {error:#}", fault.name);
                left_out += 1;
            }
        }
    }
    ensure!(!able.is_empty() || left_out == 0, "nothing is left to do");
    Ok(able)
}
