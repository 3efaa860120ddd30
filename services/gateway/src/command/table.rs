//! The screen of `usersync-gateway status`: a line per target, as wide and as high as there is room for.

use anstyle::{AnsiColor, Style};
use jiff::Timestamp;

use crate::control::status::{Condition, Relayed, SourceStatus, Status, TargetStatus};

/// The columns, each with when it goes where there isn't room for all: the highest first, those with 0 never.
const COLUMNS: [(&str, u8); 11] = [
    ("target", 0),
    ("state", 0),
    ("pending", 0),
    ("oldest", 1),
    ("repairs", 5),
    ("rate/s", 4),
    ("errors", 2),
    ("last error", 6),
    ("dead", 0),
    ("workers", 3),
    ("last check", 7),
];
const STATE: usize = 1;
const DEAD: usize = 8;
/// The least of a target's name that is left when not even the columns that stay have room.
const LEAST_NAME: usize = 8;
/// Between two columns.
const GAP: usize = 2;

const HEAD: Style = Style::new().bold();
const GOOD: Style = AnsiColor::Green.on_default();
const POOR: Style = AnsiColor::Yellow.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// What there is to show it on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Room {
    /// Characters in a line, without a limit where it isn't known.
    pub width: Option<usize>,
    /// Lines.
    pub height: Option<usize>,
    /// Whether colours are seen.
    pub colours: bool,
}

impl Room {
    fn paint(self, style: Style, text: &str) -> String {
        match self.colours {
            true => format!("{style}{text}{style:#}"),
            false => text.to_owned(),
        }
    }

    /// `text` cut to the width.
    fn cut(self, text: &str) -> String {
        self.width
            .map_or_else(|| text.to_owned(), |width| cut(text, width))
    }
}

/// All of it, where nothing is known yet only what is wrong; each line ends with a newline.
pub(super) fn table(status: Option<&Status>, problem: Option<&str>, room: Room) -> String {
    let problem = problem.map_or_else(String::new, |problem| {
        room.paint(BAD, &room.cut(&format!("! {problem}")))
    });
    let Some(status) = status else {
        return problem + "\n";
    };
    let title = format!(
        "{}  {}, {} waiting, {} refused",
        status.at.strftime("%Y-%m-%d %H:%M:%SZ"),
        counted(status.users, "user"),
        counted(status.events_pending, "event"),
        status.events_refused
    );
    let all: Vec<Line> = status.targets.iter().map(|t| line(t, status.at)).collect();
    let (columns, dropped) = columns(&all, room.width);
    let remarks = remarks(status, room);
    // Title, problem, head; and what is said of sources, entries and columns that are left out.
    let taken = 3 + remarks.len() + usize::from(!dropped.is_empty());
    let fits = room.height.map(|height| height.saturating_sub(taken));
    let (lines, more) = worst(&all, fits);

    let mut text = room.cut(&title) + "\n";
    for remark in remarks {
        text += &(remark + "\n");
    }
    text += &(problem + "\n");
    let head = columns.iter().map(|(column, width)| {
        let cell = format!("{:<width$}", COLUMNS[*column].0);
        room.paint(HEAD, &cell)
    });
    text += &joined(head);
    for line in lines {
        let cells = columns.iter().map(|(column, width)| {
            let cell = cut(&line.cells[*column], *width);
            let cell = format!("{cell:<width$}");
            match line.style(*column) {
                Some(style) => room.paint(style, &cell),
                None => cell,
            }
        });
        text += &joined(cells);
    }
    if let Some(more) = more {
        text += &(room.cut(&more) + "\n");
    }
    if !dropped.is_empty() {
        let left_out = format!("no room for: {}", dropped.join(", "));
        text += &(room.cut(&left_out) + "\n");
    }
    text
}

/// A line for every source, and for every entry whose newest value can't be used.
fn remarks(status: &Status, room: Room) -> Vec<String> {
    let sources = status.sources.iter().map(|source| {
        let (style, text) = remark(source);
        room.paint(style, &room.cut(&text))
    });
    let entries = status.targets.iter().filter_map(|target| {
        let problem = target.problem.as_ref()?;
        let text = format!(
            "entry {}: its newest value can't be used: {problem}",
            target.target
        );
        Some(room.paint(BAD, &room.cut(&text)))
    });
    sources.chain(entries).collect()
}

fn remark(source: &SourceStatus) -> (Style, String) {
    let (style, state) = match source.state {
        Relayed::Stopped => {
            let why = source.problem.as_deref();
            let why = why.map_or_else(String::new, |why| format!(": {why}"));
            let stopped = "stopped: no gateway publishes it, changes there reach nobody";
            (BAD, format!("{stopped}{why}"))
        }
        Relayed::Unnoted => {
            let why = source.problem.as_deref().unwrap_or("changes aren't noted");
            (BAD, format!("unnoted: {why}"))
        }
        Relayed::Behind => (
            POOR,
            format!(
                "behind: its oldest change waits for {}",
                span(source.oldest_seconds)
            ),
        ),
        Relayed::Ok if source.failed > 0 => (POOR, "published".to_owned()),
        Relayed::Ok => (GOOD, "published".to_owned()),
    };
    let failed = match source.failed {
        0 => String::new(),
        1 => ", 1 row makes no event".to_owned(),
        rows => format!(", {rows} rows make no event"),
    };
    (style, format!("outbox {}: {state}{failed}", source.source))
}

fn joined(cells: impl Iterator<Item = String>) -> String {
    let line = cells.collect::<Vec<_>>().join(&" ".repeat(GAP));
    line.trim_end().to_owned() + "\n"
}

/// The columns there is room for with their widths, and the names of the others.
fn columns(lines: &[Line], room: Option<usize>) -> (Vec<(usize, usize)>, Vec<&'static str>) {
    let width = |column: usize| {
        let cells = lines.iter().map(|line| line.cells[column].chars().count());
        cells.fold(COLUMNS[column].0.len(), usize::max)
    };
    let mut shown: Vec<(usize, usize)> = (0..COLUMNS.len())
        .map(|column| (column, width(column)))
        .collect();
    let Some(room) = room else {
        return (shown, Vec::new());
    };
    let needed = |shown: &[(usize, usize)]| {
        let widths: usize = shown.iter().map(|(_, width)| width).sum();
        widths + GAP * shown.len().saturating_sub(1)
    };
    let mut dropped = Vec::new();
    while needed(&shown) > room
        && let Some(at) = (0..shown.len()).max_by_key(|at| COLUMNS[shown[*at].0].1)
        && COLUMNS[shown[at].0].1 > 0
    {
        dropped.push(COLUMNS[shown.remove(at).0].0);
    }
    let over = needed(&shown).saturating_sub(room);
    let name = &mut shown[0].1;
    *name = (*name).min(name.saturating_sub(over).max(LEAST_NAME));
    (shown, dropped)
}

/// The lines there is room for, the worst targets first to be chosen, and what is said of the others.
fn worst(lines: &[Line], fits: Option<usize>) -> (Vec<&Line>, Option<String>) {
    let Some(fits) = fits.filter(|fits| lines.len() > *fits) else {
        return (lines.iter().collect(), None);
    };
    let mut order: Vec<usize> = (0..lines.len()).collect();
    order.sort_by_key(|at| lines[*at].urgency);
    let left = order.split_off(fits.saturating_sub(1));
    order.sort_unstable();
    let well = left.iter().all(|at| lines[*at].urgency == Urgency::Well);
    let more = format!(
        "and {} more{}",
        left.len(),
        if well { ", all well" } else { "" }
    );
    (order.iter().map(|at| &lines[*at]).collect(), Some(more))
}

/// One target.
struct Line {
    cells: [String; 11],
    urgency: Urgency,
    /// Whether somebody was given up.
    dead: bool,
}

/// How soon somebody should look, the soonest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    Bad,
    Poor,
    Well,
}

impl Line {
    fn is_ok(&self) -> bool {
        self.cells[STATE] == "ok"
    }

    fn style(&self, column: usize) -> Option<Style> {
        match (column, self.urgency) {
            (STATE, Urgency::Bad) => Some(BAD),
            (STATE, _) if self.is_ok() => Some(GOOD),
            (STATE, _) => Some(POOR),
            (DEAD, _) => self.dead.then_some(POOR),
            _ => None,
        }
    }
}

fn line(target: &TargetStatus, now: Timestamp) -> Line {
    let dead = target.dead_letters > 0;
    let urgency = match target.state {
        Condition::Invalid
        | Condition::Gone
        | Condition::Down
        | Condition::NoWorker
        | Condition::Failing => Urgency::Bad,
        Condition::Behind | Condition::Paused | Condition::DeadLetters | Condition::Drift => {
            Urgency::Poor
        }
        Condition::Ok => Urgency::Well,
    };
    Line {
        cells: cells(target, now),
        urgency,
        dead,
    }
}

fn cells(target: &TargetStatus, now: Timestamp) -> [String; 11] {
    let ago = |at: Timestamp| format!("{} ago", span(now.duration_since(at).as_secs_f64()));
    let state = serde_json::to_value(target.state).unwrap_or_default();
    let state = state.as_str().unwrap_or_default();
    let nothing = || "-".to_owned();
    [
        target.target.to_string(),
        match target.breaker.as_str() {
            "closed" => state.to_owned(),
            breaker => format!("{state} ({breaker})"),
        },
        target.pending.to_string(),
        span(target.oldest_seconds),
        target.repairs.to_string(),
        format!("{:.1}", target.rate),
        target
            .error_rate
            .map_or_else(nothing, |rate| format!("{:.0} %", rate * 100.0)),
        target.last_error.map_or_else(nothing, |error| {
            format!("{}, {}", error.class, ago(error.at))
        }),
        target.dead_letters.to_string(),
        target.workers.to_string(),
        target.last_check.map_or_else(nothing, |check| {
            let stage = serde_json::to_value(check.stage).unwrap_or_default();
            let stage = stage.as_str().unwrap_or_default();
            let refused = match check.refused {
                0 => String::new(),
                users => format!(", {users} refused"),
            };
            format!(
                "{stage}, {} differed{refused}, {}",
                check.drifted,
                ago(check.started)
            )
        }),
    ]
}

/// `1 user`, `2 users`.
fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// The first `width` characters, the last of them an ellipsis where something is left out.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    kept + if width > 0 { "…" } else { "" }
}

/// A length of time, in its largest unit.
pub(super) fn span(seconds: f64) -> String {
    match seconds {
        s if s < 0.05 => "0s".to_owned(),
        s if s < 10.0 => format!("{s:.1}s"),
        s if s < 120.0 => format!("{s:.0}s"),
        s if s < 7_200.0 => format!("{:.0}m", s / 60.0),
        s if s < 172_800.0 => format!("{:.0}h", s / 3_600.0),
        s => format!("{:.0}d", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(targets: serde_json::Value) -> Status {
        let status = json!({
            "at": "2026-01-01T00:01:40Z", "users": 7, "events_pending": 1, "events_refused": 2,
            "targets": targets,
        });
        serde_json::from_value(status).unwrap()
    }

    fn two() -> Status {
        status(json!([
            {"target": "audit", "state": "down", "workers": 1, "pending": 3, "repairs": 0,
             "oldest_seconds": 75.0, "rate": 2.0, "error_rate": 0.5, "breaker": "open",
             "last_error": {"class": "target-fault", "at": "2026-01-01T00:01:30Z"},
             "dead_letters": 4, "last_check": null},
            {"target": "crm", "state": "no-worker", "workers": 0, "pending": 0, "repairs": 0,
             "oldest_seconds": 0.0, "rate": 0.0, "error_rate": null, "breaker": "closed",
             "last_error": null, "dead_letters": 0,
             "last_check": {"stage": "done", "started": "2026-01-01T00:00:00Z", "drifted": 1, "refused": 3}},
        ]))
    }

    fn with_sources() -> Status {
        let source = |name: &str, state: &str, oldest_seconds: f64, failed: u64| json!({"source": name, "state": state, "oldest_seconds": oldest_seconds, "failed": failed});
        let mut status = two();
        status.sources = serde_json::from_value(json!([
            source("billing", "stopped", 0.0, 0),
            source("main", "behind", 90.0, 2),
            source("shop", "ok", 0.0, 1),
            source("users", "unnoted", 0.0, 0),
        ]))
        .unwrap();
        status.sources[3].problem = Some("there is no trigger user_outbox_insert".to_owned());
        status.targets[1].problem = Some("url: expected a URL".to_owned());
        status
    }

    fn many(count: usize) -> Status {
        let one = |at: usize| {
            json!({"target": format!("target-{at:02}"), "state": if at == 33 { "down" } else { "ok" },
                "workers": 1, "pending": 0, "repairs": 0, "oldest_seconds": 0.0, "rate": 0.0,
                "error_rate": null, "breaker": "closed", "last_error": null, "dead_letters": 0,
                "last_check": null})
        };
        status((0..count).map(one).collect())
    }

    #[test]
    fn a_screen_has_a_line_per_target() {
        let screen = "\
2026-01-01 00:01:40Z  7 users, 1 event waiting, 2 refused

target  state        pending  oldest  repairs  rate/s  errors  last error             dead  workers  last check
audit   down (open)  3        75s     0        2.0     50 %    target-fault, 10s ago  4     1        -
crm     no-worker    0        0s      0        0.0     -       -                      0     0        done, 1 differed, 3 refused, 100s ago
";
        assert_eq!(table(Some(&two()), None, Room::default()), screen);
    }

    #[test]
    fn a_screen_tells_of_outboxes_and_of_entries_that_cannot_be_used() {
        let screen = table(Some(&with_sources()), None, Room::default());
        let lines: Vec<_> = screen.lines().skip(1).take(6).collect();
        let expected = [
            "outbox billing: stopped: no gateway publishes it, changes there reach nobody",
            "outbox main: behind: its oldest change waits for 90s, 2 rows make no event",
            "outbox shop: published, 1 row makes no event",
            "outbox users: unnoted: there is no trigger user_outbox_insert",
            "entry crm: its newest value can't be used: url: expected a URL",
            "",
        ];
        assert_eq!(lines, expected);
        let mut low = many(40);
        low.sources = with_sources().sources;
        let room = Room {
            height: Some(24),
            ..Room::default()
        };
        assert_eq!(table(Some(&low), None, room).lines().count(), 24);
    }

    #[test]
    fn a_narrow_screen_leaves_out_what_matters_least_and_says_so() {
        let room = Room {
            width: Some(80),
            ..Room::default()
        };
        let screen = "\
2026-01-01 00:01:40Z  7 users, 1 event waiting, 2 refused
! NATS is away
target  state        pending  oldest  repairs  rate/s  errors  dead  workers
audit   down (open)  3        75s     0        2.0     50 %    4     1
crm     no-worker    0        0s      0        0.0     -       0     0
no room for: last check, last error
";
        assert_eq!(table(Some(&two()), Some("NATS is away"), room), screen);
        for width in 1..120 {
            let room = Room {
                width: Some(width),
                ..room
            };
            let screen = table(Some(&two()), Some("NATS is away"), room);
            let widest = screen.lines().map(|line| line.chars().count()).max();
            assert!(widest <= Some(width.max(36)), "{width}: {screen}");
        }
    }

    #[test]
    fn a_low_screen_shows_the_worst_targets() {
        let room = Room {
            height: Some(24),
            ..Room::default()
        };
        let screen = table(Some(&many(40)), None, room);
        assert_eq!(screen.lines().count(), 24, "{screen}");
        assert!(screen.contains("target-33  down"), "{screen}");
        assert!(screen.ends_with("and 20 more, all well\n"), "{screen}");
        let whole = table(Some(&many(21)), None, room);
        assert_eq!(whole.lines().count(), 24, "{whole}");
        assert!(!whole.contains("more"), "{whole}");
    }

    #[test]
    fn colours_change_nothing_but_the_colours() {
        let room = Room {
            colours: true,
            ..Room::default()
        };
        let painted = table(Some(&two()), Some("away"), room);
        assert!(painted.contains("\x1b[1m\x1b[31mdown (open)"), "{painted}");
        let plain = anstream::adapter::strip_str(&painted).to_string();
        let plain: Vec<_> = plain.lines().map(str::trim_end).collect();
        let expected = table(Some(&two()), Some("away"), Room::default());
        assert_eq!(plain, expected.lines().collect::<Vec<_>>());
    }

    #[test]
    fn spans_are_short() {
        for (seconds, text) in [
            (0.0, "0s"),
            (1.24, "1.2s"),
            (119.0, "119s"),
            (120.0, "2m"),
            (7_200.0, "2h"),
            (200_000.0, "2d"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }
}
