//! A terminal that one screen is shown on, again and again, in the place of what was there before.

use std::io::{self, IsTerminal as _, Stdout, Write as _};

use anstream::{AutoStream, ColorChoice};

use super::table::Room;

/// To the other screen of the terminal; without cursor, and without lines that go on in the next.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
/// The opposite.
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
/// To the top; terminals that can show what follows only when it has ended (mode 2026).
const BEGIN: &str = "\x1b[?2026h\x1b[H";
/// Clears what is left of the screen.
const END: &str = "\x1b[J\x1b[?2026l";

/// The terminal, as it was again when this is dropped.
pub(super) struct Terminal(Stdout);

impl Terminal {
    /// Takes the terminal that standard output is.
    ///
    /// # Errors
    /// When it can't be written to.
    pub(super) fn enter() -> io::Result<Self> {
        let mut terminal = Self(io::stdout());
        terminal.write(ENTER)?;
        Ok(terminal)
    }

    /// Shows lines in the place of those before. Nothing is cleared that is written again, so that nothing flickers.
    ///
    /// # Errors
    /// When it can't be written to.
    pub(super) fn show(&mut self, lines: &str) -> io::Result<()> {
        let lines: Vec<_> = lines.lines().collect();
        self.write(&format!("{BEGIN}{}\x1b[K{END}", lines.join("\x1b[K\r\n")))
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        self.0.write_all(text.as_bytes())?;
        self.0.flush()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _ = self.write(LEAVE);
    }
}

/// Whether standard output is a terminal.
pub(super) fn is_there() -> bool {
    io::stdout().is_terminal()
}

/// How large it is now, and whether it shows colours: not where it is none, nor as `NO_COLOR` and `TERM` say.
pub(super) fn room() -> Room {
    let size = is_there().then(terminal_size::terminal_size).flatten();
    let choice = AutoStream::choice(&io::stdout());
    Room {
        // A line that is full leaves the cursor where clearing the rest of it would clear its end.
        width: size.map(|(width, _)| usize::from(width.0).saturating_sub(1)),
        height: size.map(|(_, height)| usize::from(height.0)),
        colours: choice != ColorChoice::Never,
    }
}
