//! The table that ends the demo.

use super::compare::{Comparison, Row};
use crate::terminal::Style;

/// How many differences of a target are spelt out.
const DETAILS: usize = 5;

/// The table as text, with what differs below it.
pub(super) fn render(comparison: &Comparison, style: Style) -> String {
    let heading = line(
        "",
        ["users", "missing", "different", "extra"].map(str::to_owned),
    );
    let mut lines = vec![style.bold(&heading)];
    for row in &comparison.rows {
        let counts = [row.held, row.missing, row.different, row.extra];
        let text = line(&row.name, counts.map(|count| count.to_string()));
        lines.push(if is_equal(row) {
            style.green(&format!("{text}   equal"))
        } else {
            style.red(&format!("{text}   DIFFERS"))
        });
    }
    for row in comparison.rows.iter().filter(|row| !is_equal(row)) {
        lines.push(format!("\n{}:", row.name));
        lines.extend(
            row.details
                .iter()
                .take(DETAILS)
                .map(|detail| format!("  {detail}")),
        );
        if row.details.len() > DETAILS {
            lines.push(format!("  and {} more", row.details.len() - DETAILS));
        }
    }
    lines.join("\n")
}

fn is_equal(row: &Row) -> bool {
    row.missing + row.different + row.extra == 0
}

fn line(name: &str, columns: [String; 4]) -> String {
    let columns: Vec<String> = columns
        .iter()
        .map(|column| format!("{column:>10}"))
        .collect();
    format!("  {name:<14}{}", columns.concat())
}
