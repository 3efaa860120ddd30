//! Reads the text format of Prometheus as what it says of each metric.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};

/// A metric as a binary exposes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Family {
    pub(crate) help: String,
    pub(crate) kind: String,
    /// The values of each label; of a histogram without `le`.
    pub(crate) labels: BTreeMap<String, BTreeSet<String>>,
}

/// Every metric of a scrape, by name.
///
/// # Errors
/// With the first line that isn't understood.
pub(crate) fn read(text: &str) -> Result<BTreeMap<String, Family>> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').context("a HELP without text")?;
            families.entry(name.to_owned()).or_default().help = help.to_owned();
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').context("a TYPE without type")?;
            families.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else {
            let (sample, _) = line.rsplit_once(' ').context("a sample without value")?;
            let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|suffix| name.strip_suffix(suffix))
                .find(|name| {
                    families
                        .get(*name)
                        .is_some_and(|known| known.kind == "histogram")
                });
            let family = families
                .entry(family.unwrap_or(name).to_owned())
                .or_default();
            for label in labels.trim_end_matches('}').split_terminator(',') {
                let (key, value) = label.split_once('=').context("a label without value")?;
                if key != "le" {
                    let values = family.labels.entry(key.to_owned()).or_default();
                    values.insert(value.trim_matches('"').to_owned());
                }
            }
        }
    }
    Ok(families)
}
