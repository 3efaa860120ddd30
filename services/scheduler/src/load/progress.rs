//! How far a load is: one line that changes on a terminal, a line now and then elsewhere.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

/// How often the line on a terminal changes.
const LIVE: Duration = Duration::from_millis(200);
/// How often there is a line elsewhere.
const LINES: Duration = Duration::from_secs(10);
/// Characters of the bar.
const BAR: usize = 24;

/// What is shown while a load goes on.
pub(super) struct Progress {
    source: String,
    estimate: u64,
    live: bool,
    what: &'static str,
    /// When `what` began, and how much of it was done by then.
    began: (Instant, u64),
    shown: Instant,
}

impl Progress {
    /// For roughly `estimate` users.
    pub(super) fn new(source: &str, estimate: u64) -> Self {
        Self {
            source: source.to_owned(),
            estimate,
            live: std::io::stderr().is_terminal(),
            what: "",
            began: (Instant::now(), 0),
            shown: Instant::now(),
        }
    }

    /// So many states are read.
    pub(super) fn states(&mut self, read: u64, of: u64) {
        self.show("states read", read, of);
    }

    /// So many users are read.
    pub(super) fn users(&mut self, read: u64) {
        self.show("users", read, self.estimate.max(read));
    }

    fn show(&mut self, what: &'static str, done: u64, of: u64) {
        if self.what != what {
            if !self.what.is_empty() {
                self.began = (Instant::now(), done);
            }
            self.what = what;
        }
        let every = if self.live { LIVE } else { LINES };
        if self.shown.elapsed() < every {
            return;
        }
        self.shown = Instant::now();
        let (began, before) = self.began;
        let since = done.saturating_sub(before);
        let rate = since as f64 / began.elapsed().as_secs_f64().max(0.001);
        if self.live {
            let line = format!(
                "load {} {} {what}: {done} of about {of}, {rate:.0}/s",
                self.source,
                bar(done, of)
            );
            // Nothing can be done about a terminal that is gone.
            let _ = write!(std::io::stderr(), "\r\x1b[2K{line}");
            let _ = std::io::stderr().flush();
        } else {
            tracing::info!(
                source = self.source,
                done,
                about = of,
                per_second = rate.round(),
                "loading: {what}"
            );
        }
    }

    /// Makes room for what comes after.
    pub(super) fn end(self) {
        if self.live {
            let _ = write!(std::io::stderr(), "\r\x1b[2K");
        }
    }
}

fn bar(done: u64, of: u64) -> String {
    let full = (done as f64 / of.max(1) as f64 * BAR as f64) as usize;
    let full = full.min(BAR);
    format!("[{}{}]", "#".repeat(full), " ".repeat(BAR - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_never_longer_than_itself() {
        assert_eq!(bar(1, 2), format!("[{}{}]", "#".repeat(12), " ".repeat(12)));
        assert_eq!(bar(5, 2).len(), BAR + 2);
        assert_eq!(bar(0, 0).len(), BAR + 2);
    }
}
