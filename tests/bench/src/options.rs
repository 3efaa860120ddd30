//! What a run of the benchmarks is told.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::benchmarks::Benchmark;

const QUICK_EVENTS: u64 = 10_000;

/// Flags of the benchmark program.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Only this benchmark; may be given several times
    #[arg(long, value_name = "NAME", value_enum)]
    pub only: Vec<Benchmark>,
    /// Runs, in each of which ours and the limit take two turns; medians are shown [default: 3, with --quick 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: Option<u32>,
    /// Events or states of a run [default: 50000, with --quick 10000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(5_000..=5_000_000))]
    events: Option<u64>,
    /// A short look: one run of fewer events and shorter loads. Too short for figures to rely on
    #[arg(long)]
    quick: bool,
    /// intake-cold, load and check-states with 1,000,000 users instead of 200,000
    #[arg(long)]
    full: bool,
    /// The newest MySQL and PostgreSQL instead of the system's MariaDB and PostgreSQL
    #[arg(long)]
    pub newest: bool,
    /// Also write the rows to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// How long to wait before each measurement for the machine to become quiet, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    patience: u64,
}

impl Options {
    /// Runs, in each of which ours and the limit take two turns.
    pub(crate) fn runs(&self) -> u32 {
        self.runs.unwrap_or(if self.quick { 1 } else { 3 })
    }

    /// Events or states of a run.
    pub(crate) fn events(&self) -> u64 {
        let usual = if self.quick { QUICK_EVENTS } else { 50_000 };
        self.events.unwrap_or(usual)
    }

    /// Users of `intake-cold`, `load-…` and `check-states`.
    pub(crate) fn cold_users(&self) -> u64 {
        match (self.full, self.quick) {
            (true, _) => 1_000_000,
            (false, true) => QUICK_EVENTS,
            (false, false) => 200_000,
        }
    }

    /// Users of the copies that are compared.
    pub(crate) fn checked_users(&self) -> u64 {
        if self.quick { 100_000 } else { 1_000_000 }
    }

    /// How long a load that is bounded by time goes on, twice in each run.
    pub(crate) fn load(&self) -> Duration {
        Duration::from_secs(if self.quick { 1 } else { 4 })
    }

    /// How long events are published one by one for latencies, twice in each run.
    pub(crate) fn trickle(&self) -> Duration {
        Duration::from_secs(if self.quick { 2 } else { 5 })
    }

    /// How long to wait for a quiet machine.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(self.patience)
    }
}
