//! What a process uses, read from `/proc`.

use std::collections::HashMap;

use anyhow::{Context, Result};

/// Clock ticks per second in `/proc`: `USER_HZ`, which is 100 on every architecture we run on (proc(5)).
const TICKS: f64 = 100.0;

/// CPU seconds, user and system, that a process has used since it was started.
///
/// # Errors
/// When the process is gone.
pub(crate) fn cpu_seconds(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    Stat::parse(&text)
        .map(|stat| stat.own as f64 / TICKS)
        .with_context(|| format!("{path} says {text:?}"))
}

/// The largest resident set of a process so far, in MB of 1,000,000 bytes.
///
/// # Errors
/// When the process is gone.
pub(crate) fn peak_rss_mb(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok())
        .map(|kib| kib * 1024.0 / 1e6)
        .with_context(|| format!("{path} tells no VmHWM"))
}

/// Clock ticks that this process, those it started, theirs in turn, and those of them that have ended have used.
pub(crate) fn family_ticks() -> Option<u64> {
    let own = std::process::id();
    let mut all = HashMap::new();
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // One that ends meanwhile is then among those waited for.
        if let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) {
            all.insert(pid, Stat::parse(&stat)?);
        }
    }
    // A server may be several processes: PostgreSQL has one for each connection.
    let is_ours = |pid: u32| {
        let ancestors = std::iter::successors(Some(pid), |pid| Some(all.get(pid)?.parent));
        // Parents never make a circle; while they are read, they may seem to.
        ancestors.take(16).any(|pid| pid == own)
    };
    let ours = all.iter().filter(|(pid, _)| is_ours(**pid));
    Some(ours.map(|(_, stat)| stat.own + stat.waited_for).sum())
}

/// What `/proc/<pid>/stat` tells, in clock ticks.
#[derive(Debug, PartialEq)]
struct Stat {
    parent: u32,
    /// `utime` and `stime`.
    own: u64,
    /// `cutime` and `cstime`: of children that have ended and were waited for.
    waited_for: u64,
}

impl Stat {
    /// Fields 4 and 14 to 17 of proc(5); the name in field 2 may hold anything, so count from behind it.
    fn parse(text: &str) -> Option<Self> {
        let (_, fields) = text.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            own: number(14)? + number(15)?,
            waited_for: number(16)? + number(17)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_brackets_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 90 0 0 0 123 45 6 7 20 0 3 0 99 1 2";
        let expected = Stat {
            parent: 1,
            own: 168,
            waited_for: 13,
        };
        assert_eq!(Stat::parse(stat), Some(expected));
    }

    #[test]
    fn this_process_has_used_something() {
        let own = std::process::id().cast_signed();
        assert!(cpu_seconds(own).unwrap() >= 0.0);
        assert!(peak_rss_mb(own).unwrap() > 0.1);
        assert!(family_ticks().is_some());
    }
}
