//! docs/SUPPORT.md beside the suites that it speaks of: each line of its table names a suite, and each suite is a line.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};

use crate::tools;

const PAGE: &str = "docs/SUPPORT.md";

/// Looks whether the page names exactly `runs`, each a server and its role, as what the suite of `package` runs.
///
/// # Errors
/// What only one of them has.
pub fn page_names(package: &str, runs: &[(&str, &str)]) -> Result<()> {
    let path = tools::repository().join(PAGE);
    let text = std::fs::read_to_string(&path);
    let text = text.with_context(|| format!("reading {}", path.display()))?;
    let named = named(&text, package);
    let run: BTreeSet<_> = runs
        .iter()
        .map(|(server, role)| ((*server).to_owned(), (*role).to_owned()))
        .collect();
    let only_named: Vec<_> = named.difference(&run).collect();
    let only_run: Vec<_> = run.difference(&named).collect();
    ensure!(
        only_named.is_empty() && only_run.is_empty(),
        "{PAGE} and {package} differ: no suite runs {only_named:?}, and the page doesn't name {only_run:?}"
    );
    Ok(())
}

/// The servers and roles in lines like `| server | version | role | suite | …`, of one suite.
fn named(page: &str, package: &str) -> BTreeSet<(String, String)> {
    let cells = |line: &str| {
        let line = line.strip_prefix('|')?;
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [server, _, role, suite, ..] = cells.as_slice() else {
            return None;
        };
        let is_of = suite.trim_matches('`') == package;
        is_of.then(|| ((*server).to_owned(), (*role).to_owned()))
    };
    page.lines().filter_map(cells).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_other_suites_and_other_tables_do_not_count() {
        let page = "| server | version | role | suite |\n|---|---|---|---|\n| A | 1 | target | `x` |\n\
                    | A | 1 | main database | `y` |\n| not run | why |\n";
        let expected = [("A".to_owned(), "target".to_owned())];
        assert_eq!(named(page, "x"), expected.into());
        assert!(named(page, "z").is_empty());
    }
}
