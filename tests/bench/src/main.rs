//! `usersync-bench`: runs ours and the limit in turns against real servers, and shows both.
//!
//! `benchmarks` holds one file each; `rig` starts servers and processes, `preload` fills streams, `drain` and
//! `usage` measure, `limits` holds the bare loops, `checker` the comparisons, `sink` is the endpoint both sides deliver to, `report`
//! turns figures into rows. Bare loops and endpoint are this program again, in a hidden role, so that what a
//! process uses is measured the same way on both sides.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program: figures on standard output, progress on standard error"
)]

mod benchmarks;
mod checker;
mod databases;
mod drain;
mod limits;
mod loader;
mod main_db;
mod options;
mod preload;
mod quiet;
mod report;
mod rig;
mod sink;
mod states;
mod upserts;
mod usage;
mod users;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum as _};

use benchmarks::Benchmark;
use options::Options;

/// Measure usersync beside the limit of the same parts, on this machine
///
/// Everything runs on loopback, on free ports, in temporary directories. The limit is a bare loop over the same
/// client libraries; ours and the limit take turns, so ratios hold where figures per second depend on the machine.
#[derive(Debug, Parser)]
#[command(
    bin_name = "cargo xtask bench --",
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What this program is when it is started by itself.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
enum Role {
    /// The endpoint that is delivered to.
    #[command(hide = true)]
    Sink(sink::SinkArgs),
    /// A bare loop.
    #[command(hide = true)]
    Limit(limits::LimitArgs),
    /// One comparison of two copies.
    #[command(hide = true)]
    Check(checker::CheckArgs),
    /// A client that puts HTTP load on the gateway.
    #[command(hide = true)]
    Load(loader::LoadArgs),
    /// A caller of the gateway who asks for more than it may.
    #[command(hide = true)]
    Shout(benchmarks::ShoutArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let mut runtime = match cli.role {
        Some(Role::Sink(_)) => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.enable_all().build().context("starting tokio")?;
    runtime.block_on(async {
        match cli.role {
            Some(Role::Sink(args)) => sink::serve(args).await,
            Some(Role::Limit(args)) => limits::run(args).await,
            Some(Role::Check(args)) => checker::run(args).await,
            Some(Role::Load(args)) => loader::run(args).await,
            Some(Role::Shout(args)) => benchmarks::shout(args).await,
            None => measure(&cli.options).await,
        }
    })
}

async fn measure(options: &Options) -> Result<()> {
    if cfg!(debug_assertions) {
        eprintln!(
            "warning: a debug build; use cargo xtask bench, or cargo run --release -p usersync-bench"
        );
    }
    let chosen =
        |benchmark: &Benchmark| options.only.is_empty() || options.only.contains(benchmark);
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for benchmark in Benchmark::value_variants().iter().filter(|one| chosen(one)) {
        match benchmark.run(options).await {
            Ok(measured) => rows.extend(measured),
            Err(error) => {
                // The others are still worth having.
                eprintln!("{}: {error:#}", benchmark.name());
                failed.push(benchmark.name());
            }
        }
    }
    let colour = std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    print!("\n{}", report::table(&rows, colour));
    println!(
        "Medians of {} turns; a ratio is the median of the turns' own ratios, ours ÷ limit.",
        2 * options.runs()
    );
    if let Some(path) = &options.json {
        report::write_json(&rows, path)?;
    }
    anyhow::ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}
