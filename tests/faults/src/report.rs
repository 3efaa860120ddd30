//! What each fault came to: a line as it ends, a JSON object with all.

use std::collections::BTreeSet;

use serde::Serialize;

/// One fault.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) number: u32,
    pub(crate) name: &'static str,
    pub(crate) users: u64,
    /// Events that were acknowledged.
    pub(crate) acknowledged: u64,
    /// Changes of the main database that were committed.
    pub(crate) commits: u64,
    /// Of the events, what USER_EVENTS doesn't have.
    pub(crate) lost: u64,
    /// Copies that differ at the end.
    pub(crate) wrong: u64,
    /// Changes to an older state, where the target has a guard.
    pub(crate) regressed: u64,
    /// The same without a guard, put right later.
    pub(crate) unguarded: u64,
    /// The same version with another content.
    pub(crate) changed: u64,
    /// Seconds until all copies were right, from when everything was whole again.
    pub(crate) recovery: f64,
    /// Kinds of alerts of which one has to be raised.
    pub(crate) expected: &'static [&'static str],
    /// Kinds that were, or still are.
    pub(crate) alerts: BTreeSet<String>,
}

impl Row {
    fn is_well(&self) -> bool {
        let told = self.expected.is_empty()
            || self.expected.iter().any(|kind| self.alerts.contains(*kind));
        self.lost + self.wrong + self.regressed + self.changed == 0 && told
    }
}

/// All of them.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    seed: u64,
    rows: Vec<Row>,
    /// Copies of users of all rounds that differ at the end.
    wrong_at_the_end: usize,
    #[serde(skip)]
    json: bool,
}

impl Report {
    pub(crate) fn new(seed: u64, json: bool) -> Self {
        let report = Self {
            seed,
            rows: Vec::new(),
            wrong_at_the_end: 0,
            json,
        };
        report.say(&format!(
            "{:>3} {:<26} {:>5} {:>7} {:>7} {:>5} {:>5} {:>9} {:>9} {:>7} {:>10}  {}",
            "",
            "fault",
            "users",
            "acked",
            "commits",
            "lost",
            "wrong",
            "regressed",
            "unguarded",
            "changed",
            "recovery s",
            "alerts (expected)"
        ));
        report
    }

    /// The table goes to where people look.
    fn say(&self, line: &str) {
        match self.json {
            true => eprintln!("{line}"),
            false => println!("{line}"),
        }
    }

    pub(crate) fn add(&mut self, row: Row) {
        let expected = match row.expected {
            [] => String::new(),
            expected => format!(" ({})", expected.join(" or ")),
        };
        let alerts: Vec<_> = row.alerts.iter().map(String::as_str).collect();
        let mark = if row.is_well() { "" } else { "  WRONG" };
        self.say(&format!(
            "{:>3} {:<26} {:>5} {:>7} {:>7} {:>5} {:>5} {:>9} {:>9} {:>7} {:>10.1}  {}{expected}{mark}",
            row.number,
            row.name,
            row.users,
            row.acknowledged,
            row.commits,
            row.lost,
            row.wrong,
            row.regressed,
            row.unguarded,
            row.changed,
            row.recovery,
            alerts.join(","),
        ));
        self.rows.push(row);
    }

    /// Everybody was looked at once more.
    pub(crate) fn everybody(&mut self, wrong: usize) {
        self.wrong_at_the_end += wrong;
        self.say(&format!(
            "all users of all rounds, at the end: {wrong} copies wrong"
        ));
    }

    pub(crate) fn is_well(&self) -> bool {
        self.wrong_at_the_end == 0 && self.rows.iter().all(Row::is_well)
    }

    /// The last line: what all came to.
    pub(crate) fn end(&self) {
        let sum = |of: fn(&Row) -> u64| self.rows.iter().map(of).sum::<u64>();
        let bad = self.rows.iter().filter(|row| !row.is_well()).count();
        self.say(&format!(
            "seed {}: {} faults, {} events acknowledged, {} lost, {} copies wrong, {} regressed; {}",
            self.seed,
            self.rows.len(),
            sum(|row| row.acknowledged),
            sum(|row| row.lost),
            sum(|row| row.wrong),
            sum(|row| row.regressed),
            if self.is_well() { "all well".to_owned() } else { format!("{bad} not well") },
        ));
        if self.json
            && let Ok(text) = serde_json::to_string(self)
        {
            println!("{text}");
        }
    }
}
