//! Keeps others out of a measurement: one benchmark at a time, begun while the machine is quiet, and done again
//! when something else took a share of it meanwhile.

use std::env;
use std::fs::{self, File};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::options::Options;
use crate::usage;

/// The share of all cores that others may use while something is measured.
const TOLERABLE: f64 = 0.1;
const LOOK: Duration = Duration::from_millis(400);
/// How often something disturbed is measured before the best of it is taken.
const TRIES: u32 = 4;

/// Runs `measurement` while nothing else keeps the machine busy.
///
/// Waits for that for as long as the options say. A disturbed measurement is done again, a few times at most;
/// then the least disturbed one counts, and that is said.
///
/// # Errors
/// Those of the measurement.
pub(crate) async fn undisturbed<T>(
    options: &Options,
    name: &str,
    mut measurement: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let _alone = alone().await?;
    let mut best: Option<(f64, T)> = None;
    for _ in 0..TRIES {
        wait_for_quiet(options.patience()).await;
        let before = Ticks::now();
        let figures = measurement().await?;
        let Some(others) = before.zip(Ticks::now()).map(|(a, b)| b.others_since(&a)) else {
            return Ok(figures);
        };
        if others <= TOLERABLE {
            return Ok(figures);
        }
        if best.as_ref().is_none_or(|(least, _)| others < *least) {
            best = Some((others, figures));
        }
    }
    let (others, figures) = best.context("nothing was tried")?;
    eprintln!(
        "{name}: something else took {:.0} % of the machine during this measurement:",
        others * 100.0
    );
    Ok(figures)
}

/// As long as it lives, no other benchmark on this machine measures or fills streams.
pub(crate) struct Alone {
    _lock: File,
}

/// Waits until no other benchmark has the machine.
///
/// # Errors
/// When the file that is locked can't be opened.
pub(crate) async fn alone() -> Result<Alone> {
    let path = env::temp_dir().join("usersync-bench.lock");
    let lock = tokio::task::spawn_blocking(move || -> Result<File> {
        let file = File::options().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("opening {}", path.display()))?;
        file.lock()
            .with_context(|| format!("locking {}", path.display()))?;
        Ok(file)
    });
    let lock = lock.await.context("waiting for other benchmarks")??;
    Ok(Alone { _lock: lock })
}

/// Waits until others leave the machine alone, for at most `patience`.
async fn wait_for_quiet(patience: Duration) {
    let end = Instant::now() + patience;
    while let Some(before) = Ticks::now() {
        tokio::time::sleep(LOOK).await;
        let quiet = Ticks::now().is_none_or(|now| now.others_since(&before) <= TOLERABLE);
        if quiet || Instant::now() >= end {
            return;
        }
    }
}

/// Time since the system started, in clock ticks of all cores together.
#[derive(Debug, PartialEq)]
struct Ticks {
    all: u64,
    /// In use by processes, or taken away by the hypervisor.
    busy: u64,
    /// In use by this process and those it started.
    own: u64,
}

impl Ticks {
    /// `None` where the system doesn't tell.
    fn now() -> Option<Self> {
        let (all, busy) = machine(&fs::read_to_string("/proc/stat").ok()?)?;
        let own = usage::family_ticks()?;
        Some(Self { all, busy, own })
    }

    /// The share of the machine that others used since `before`.
    fn others_since(&self, before: &Self) -> f64 {
        let busy = self.busy.saturating_sub(before.busy);
        let own = self.own.saturating_sub(before.own);
        let all = self.all.saturating_sub(before.all).max(1);
        busy.saturating_sub(own) as f64 / all as f64
    }
}

/// All and busy ticks of the first line: user, nice, system, idle, iowait, irq, softirq, steal, and guest times,
/// which are in user and nice already (proc(5)). Interrupts are nobody's: most of them are ours, from loopback.
fn machine(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line
        .split_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    let &[user, nice, system, _, _, _, _, steal, ..] = fields.as_slice() else {
        return None;
    };
    Some((fields.iter().take(8).sum(), user + nice + system + steal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_and_interrupts_are_not_busy_and_guests_count_once() {
        let stat = "cpu  10 1 5 100 20 2 4 3 7 0\ncpu0 1 1 1 1\n";
        assert_eq!(machine(stat), Some((145, 19)));
        assert_eq!(machine("intr 1"), None);
    }

    #[test]
    fn others_are_what_is_busy_and_not_ours() {
        let ticks = |all, busy, own| Ticks { all, busy, own };
        let before = ticks(1_000, 500, 100);
        assert_eq!(ticks(1_200, 620, 200).others_since(&before), 0.1);
        assert_eq!(ticks(1_200, 600, 210).others_since(&before), 0.0);
    }
}
