//! Colours and live lines where there is a terminal; plain lines where there is none.

use std::env;
use std::io::{self, IsTerminal as _, Write as _};

/// How to write to one of the two streams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    colour: bool,
    live: bool,
}

/// The style for standard output.
pub(crate) fn stdout() -> Style {
    Style::new(io::stdout().is_terminal())
}

/// The style for standard error.
pub(crate) fn stderr() -> Style {
    Style::new(io::stderr().is_terminal())
}

impl Style {
    /// <https://no-color.org>: any value but the empty one switches colours off.
    fn new(terminal: bool) -> Self {
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            colour: terminal && !refused && !dumb,
            live: terminal && !dumb,
        }
    }

    /// Whether a line can be written over.
    pub(crate) fn is_live(self) -> bool {
        self.live
    }

    pub(crate) fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(crate) fn red(self, text: &str) -> String {
        self.paint("31", text)
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// A line on standard error that is written over while something goes on, and removed at the end.
#[derive(Debug)]
pub(crate) struct LiveLine {
    live: bool,
}

impl LiveLine {
    /// Says `what` goes on: for good where there is no terminal, else until the next update.
    pub(crate) fn start(what: &str) -> Self {
        let line = Self {
            live: stderr().is_live(),
        };
        if line.live {
            line.update(what);
        } else {
            eprintln!("{what}");
        }
        line
    }

    /// Shows `text` instead, on a terminal.
    pub(crate) fn update(&self, text: &str) {
        if self.live {
            let short: String = text.chars().take(100).collect();
            eprint!("\r\x1b[2K{short}");
            let _ = io::stderr().flush();
        }
    }
}

impl Drop for LiveLine {
    fn drop(&mut self) {
        if self.live {
            eprint!("\r\x1b[2K");
            let _ = io::stderr().flush();
        }
    }
}
