//! Rows of figures: medians over the turns, what was aimed at, and how far it was missed.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// One figure of ours beside that of the limit.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    name: String,
    unit: &'static str,
    /// What the limit is, in a word or two; empty without one.
    against: &'static str,
    ours: f64,
    limit: Option<f64>,
    ratio: Option<f64>,
    aims: Vec<Aim>,
}

/// What is aimed at.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Aim {
    /// Ours ÷ limit, at least.
    RatioAtLeast(f64),
    /// Ours ÷ limit, at most.
    RatioAtMost(f64),
    /// Ours, at least.
    AtLeast(f64),
    /// Ours, at most.
    AtMost(f64),
}

/// A row as `--json` writes it. `met` is null where nothing is aimed at.
#[derive(Debug, Serialize)]
pub(crate) struct JsonRow<'a> {
    name: &'a str,
    unit: &'a str,
    ours: f64,
    limit: Option<f64>,
    ratio: Option<f64>,
    aim: Option<String>,
    met: Option<bool>,
}

impl Row {
    /// The median of `ours`, one per turn.
    pub(crate) fn of(name: impl Into<String>, unit: &'static str, ours: &[f64]) -> Self {
        Self {
            name: name.into(),
            unit,
            against: "",
            ours: median(ours),
            limit: None,
            ratio: None,
            aims: Vec::new(),
        }
    }

    /// Beside `limits`, turn by turn: the ratio is the median of the turns' ratios.
    pub(crate) fn against(mut self, what: &'static str, ours: &[f64], limits: &[f64]) -> Self {
        let ratios: Vec<f64> = ours
            .iter()
            .zip(limits)
            .map(|(our, limit)| our / limit)
            .collect();
        self.against = what;
        self.limit = Some(median(limits));
        self.ratio = Some(median(&ratios));
        self
    }

    pub(crate) fn aim(mut self, aim: Aim) -> Self {
        self.aims.push(aim);
        self
    }

    /// Whether every aim is met; `None` without one.
    pub(crate) fn met(&self) -> Option<bool> {
        let known = !self.aims.is_empty();
        known.then(|| self.aims.iter().all(|aim| aim.distance(self).is_none()))
    }

    fn aim_text(&self) -> Option<String> {
        let texts: Vec<String> = self.aims.iter().map(Aim::text).collect();
        (!texts.is_empty()).then(|| texts.join(", "))
    }

    fn json(&self) -> JsonRow<'_> {
        JsonRow {
            name: &self.name,
            unit: self.unit,
            ours: self.ours,
            limit: self.limit,
            ratio: self.ratio,
            aim: self.aim_text(),
            met: self.met(),
        }
    }
}

impl Aim {
    fn text(&self) -> String {
        match *self {
            Self::RatioAtLeast(aim) => format!("≥ {aim} ×"),
            Self::RatioAtMost(aim) => format!("≤ {aim} ×"),
            Self::AtLeast(aim) => format!("≥ {}", number(aim)),
            Self::AtMost(aim) => format!("≤ {}", number(aim)),
        }
    }

    /// By how much it is missed, in words; `None` when it is met.
    fn distance(&self, row: &Row) -> Option<String> {
        let (found, aim, more) = match *self {
            Self::RatioAtLeast(aim) => (row.ratio?, aim, true),
            Self::RatioAtMost(aim) => (row.ratio?, aim, false),
            Self::AtLeast(aim) => (row.ours, aim, true),
            Self::AtMost(aim) => (row.ours, aim, false),
        };
        let met = if more { found >= aim } else { found <= aim };
        let percent = (found / aim - 1.0).abs() * 100.0;
        let way = if more { "below" } else { "above" };
        (!met).then(|| format!("{percent:.0} % {way} {}", self.text()))
    }
}

/// Writes all rows as a JSON array.
///
/// # Errors
/// When the file can't be written.
pub(crate) fn write_json(rows: &[Row], path: &Path) -> Result<()> {
    let rows: Vec<JsonRow<'_>> = rows.iter().map(Row::json).collect();
    let text = serde_json::to_string_pretty(&rows).context("the rows as JSON")?;
    std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
}

/// All rows as an aligned table.
pub(crate) fn table(rows: &[Row], colour: bool) -> String {
    const HEAD: [&str; 7] = ["what", "unit", "ours", "limit", "ratio", "aim", "limit is"];
    let optional = |value: Option<f64>| value.map_or_else(String::new, number);
    let mut lines: Vec<[String; 7]> = vec![HEAD.map(str::to_owned)];
    lines.extend(rows.iter().map(|row| {
        [
            row.name.clone(),
            row.unit.to_owned(),
            number(row.ours),
            optional(row.limit),
            row.ratio
                .map_or_else(String::new, |ratio| format!("{ratio:.2} ×")),
            row.aim_text().unwrap_or_default(),
            row.against.to_owned(),
        ]
    }));
    let width = |column: usize| {
        let widths = lines.iter().map(|line| line[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut text = String::new();
    for (at, line) in lines.iter().enumerate() {
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            // Figures to the right, words to the left.
            let _ = match column {
                2..=4 => write!(text, "{cell:>width$}  "),
                _ => write!(text, "{cell:<width$}  "),
            };
        }
        let verdict = match at.checked_sub(1) {
            None => String::new(),
            Some(row) => verdict(&rows[row], colour),
        };
        text.truncate(text.trim_end_matches(' ').len());
        if !verdict.is_empty() {
            let _ = write!(text, "  {verdict}");
        }
        text.push('\n');
    }
    text
}

fn verdict(row: &Row, colour: bool) -> String {
    let paint = |code: &str, text: &str| match colour {
        true => format!("\x1b[{code}m{text}\x1b[0m"),
        false => text.to_owned(),
    };
    match row.met() {
        None => String::new(),
        Some(true) => paint("32", "met"),
        Some(false) => {
            let short: Vec<_> = row
                .aims
                .iter()
                .filter_map(|aim| aim.distance(row))
                .collect();
            paint("31", &format!("short: {}", short.join(", ")))
        }
    }
}

/// The middle value; the mean of the two in the middle when their number is even; NaN of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

/// Three digits that matter: `41,200`, `38.5`, `0.0213`.
pub(crate) fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 100.0 {
        let digits = format!("{value:.0}");
        let mut text = String::new();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at) % 3 == 0 && text != "-" {
                text.push(',');
            }
            text.push(digit);
        }
        text
    } else if size >= 10.0 {
        format!("{value:.1}").trim_end_matches(".0").to_owned()
    } else if size >= 1.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.4}").trim_end_matches('0').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_medians_and_the_distance_to_each_aim_it_misses() {
        let (ours, limits) = (
            [40_000.0, 20_000.0, 30_000.0],
            [20_000.0, 20_000.0, 20_000.0],
        );
        let row = Row::of("w", "1/s", &ours)
            .against("naive", &ours, &limits)
            .aim(Aim::RatioAtLeast(1.2))
            .aim(Aim::AtLeast(40_000.0));
        assert_eq!(
            (row.ours, row.limit, row.ratio),
            (30_000.0, Some(20_000.0), Some(1.5))
        );
        assert_eq!(row.met(), Some(false));
        let table = table(std::slice::from_ref(&row), false);
        assert!(table.contains("short: 25 % below ≥ 40,000"), "{table}");
        let json = serde_json::to_value(row.json()).unwrap();
        assert_eq!(json["aim"], "≥ 1.2 ×, ≥ 40,000");
        assert_eq!(json["met"], false);
        assert_eq!(Row::of("x", "s", &[1.0]).met(), None);
    }

    #[test]
    fn numbers_keep_three_digits() {
        for (value, text) in [
            (1_234_567.0, "1,234,567"),
            (812.4, "812"),
            (40.0, "40"),
            (38.52, "38.5"),
            (1.2, "1.20"),
            (0.0213, "0.0213"),
            (0.025, "0.025"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
