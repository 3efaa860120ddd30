//! `usersync-faults`: breaks real servers and our own processes under load, one fault after the other, and has an
//! independent checker judge what is left.
//!
//! `world` runs everything, `load` writes and knows what was acknowledged, `list` breaks, `receiver` and `proxy` misbehave,
//! `merge` is the published contract written a second time, `checker` compares, `report` shows. Only `usersync-stack`, which
//! starts processes, is shared with other tests.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program: figures on standard output, progress on standard error"
)]

mod checker;
mod fault;
mod list;
mod load;
mod merge;
mod proxy;
mod receiver;
mod report;
mod world;

use std::{collections::BTreeSet, io::IsTerminal as _, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use tokio::time::Instant;

use self::{
    checker::{Checker, Wrong},
    fault::Fault,
    load::{Doors, Load},
    receiver::Manners,
    report::{Report, Row},
    world::World,
};

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
    let mut faults = chosen(&cli.only)?;
    eprintln!("seed {seed}; starting the servers");
    let mut world = World::start().await?;
    let mut report = Report::new(seed, cli.json);
    let mut checker = Checker::default();
    let end = cli
        .minutes
        .map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
    let (mut round, mut poisoned) = (0, BTreeSet::new());
    loop {
        dice.shuffle(&mut faults);
        for fault in &faults {
            if end.is_some_and(|end| Instant::now() > end) {
                break;
            }
            let row = one(
                &mut world,
                &mut checker,
                fault,
                round,
                cli.events,
                &mut dice,
            )
            .await;
            poisoned.extend(fault.poisoned.map(|at| first_of(round) + at));
            round += 1;
            let row = match row {
                Ok(row) => row,
                Err(error) => {
                    world.stack.keep_dir();
                    return Err(error).context(format!(
                        "{}; kept: {}",
                        fault.name,
                        world.dir().display()
                    ));
                }
            };
            report.add(row);
        }
        if end.is_none_or(|end| Instant::now() > end) {
            break;
        }
    }
    // Nothing of what came later has changed anybody before, and no call lands late.
    tokio::time::sleep(LATE).await;
    let wrong = checker
        .settle(&world, &(1..first_of(round)), &poisoned, RECOVERY)
        .await?;
    tell(&world, &wrong);
    report.everybody(wrong.len());
    let well = report.is_well();
    if !well || cli.keep {
        let dir = world.stack.keep_dir();
        eprintln!("logs and data: {}", dir.display());
    }
    report.end();
    Ok(well)
}

fn chosen(names: &[String]) -> Result<Vec<Fault>> {
    let all = Fault::all();
    if let Some(unknown) = names
        .iter()
        .find(|name| !all.iter().any(|fault| fault.name == **name))
    {
        let known: Vec<_> = all.iter().map(|fault| fault.name).collect();
        bail!(
            "--only {unknown}: there is no such fault; there are: {}",
            known.join(", ")
        );
    }
    let wanted = |fault: &Fault| names.is_empty() || names.iter().any(|name| name == fault.name);
    Ok(all.into_iter().filter(wanted).collect())
}

/// Does one fault while a load is on, waits until all copies are right again, and says how it went.
async fn one(
    world: &mut World,
    checker: &mut Checker,
    fault: &Fault,
    round: u64,
    events: u64,
    dice: &mut fastrand::Rng,
) -> Result<Row> {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{} …\r", fault.name);
    }
    // Users of its own, so that what is wrong can be told apart.
    let first = first_of(round);
    let users = first..first + 200;
    let poisoned = fault.poisoned.map(|at| first + at);
    let but: BTreeSet<u64> = poisoned.into_iter().collect();
    for receiver in [&world.guarded, &world.plain] {
        receiver.behaves(poisoned.map_or(Manners::Good, Manners::Refuses));
    }
    let told = checker::last_alert(world).await?;
    let load = Load {
        users: users.clone(),
        events: if fault.burst { 10 * events } else { events },
        rate: if fault.burst { 4_000 } else { 400 },
        repeated: fault.repeated,
        seed: dice.u64(..),
    };
    let doors = Doors {
        jetstream: world.jetstream.clone(),
        gateway: world.stack.gateways[0].url().to_owned(),
    };
    let writing = tokio::spawn(load.write(doors));
    (fault.inject)(world, dice).await.context("doing it")?;
    let whole = Instant::now();
    let acknowledged = writing.await??;
    let wrong = checker.settle(world, &users, &but, RECOVERY).await?;
    let recovery = whole.elapsed();
    for receiver in [&world.guarded, &world.plain] {
        receiver.behaves(Manners::Good);
    }
    let end = Instant::now() + ALERT;
    let alerts = loop {
        let alerts = checker::alerts(world, told).await?;
        let raised = fault.alerts.iter().any(|kind| alerts.contains(*kind));
        if raised || fault.alerts.is_empty() || Instant::now() > end {
            break alerts;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    // Without a guard a target may go back for a moment after a call without an answer; it must come forward again, which
    // is what `wrong` says.
    let (regressed, changed) = world.guarded.wrongs(users.clone());
    let (back, _) = world.plain.wrongs(users.clone());
    tell(world, &wrong);
    Ok(Row {
        number: fault.number,
        name: fault.name,
        users: users.end - users.start,
        acknowledged: acknowledged.len() as u64,
        lost: checker.lost(&acknowledged),
        wrong: wrong.len() as u64,
        regressed: regressed + checker::regressed_rows(world, &users).await?,
        unguarded: back,
        changed,
        recovery: recovery.as_secs_f64(),
        expected: fault.alerts,
        alerts,
    })
}

/// The first user of a round: each has users of its own.
const fn first_of(round: u64) -> u64 {
    1 + round * 1_000
}

/// Shows the first few who are wrong, with what happened to them.
fn tell(world: &World, wrong: &[Wrong]) {
    for wrong in wrong.iter().take(5) {
        eprintln!("  {wrong}");
        eprintln!("    guarded saw {}", world.guarded.history(wrong.user));
        eprintln!("    plain saw {}", world.plain.history(wrong.user));
    }
}
