//! deploy/grafana: every query of the dashboard, asked of a real Prometheus that scrapes our binaries.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use usersync_stack::{Directory, eventually};

use super::{Whole, rules::prometheus};
use crate::support::LATER;

const DASHBOARD: &str = include_str!("../../../../../deploy/grafana/usersync.json");
const METRICS: &str = include_str!("../../../../../docs/METRICS.md");
const RECORDED: &str = include_str!("../../../../../deploy/prometheus/rules/recording.yml");

/// The title of each panel and what it asks, as Grafana would.
fn queries() -> Result<Vec<(String, String)>> {
    let dashboard: Value = serde_json::from_str(DASHBOARD)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let mut queries = Vec::new();
    for panel in panels {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = target["expr"].as_str().context("a target without expr")?;
            let text = text
                .replace("$__rate_interval", "1m")
                .replace("$target", ".*");
            queries.push((panel["title"].to_string(), text));
        }
    }
    Ok(queries)
}

/// The names of metrics in a query: words that begin as ours do.
fn names(query: &str) -> BTreeSet<&str> {
    let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    let ours = ["usersync_", "process_", "usersync:", "target:"];
    words
        .filter(|word| ours.iter().any(|begin| word.starts_with(begin)))
        .collect()
}

#[test]
fn every_name_in_rules_and_dashboard_is_a_documented_metric_or_a_recorded_one() -> Result<()> {
    let alerts = include_str!("../../../../../deploy/prometheus/rules/alerts.yml");
    let known = |name: &str| {
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix));
        METRICS.contains(&format!("`{}`", base.unwrap_or(name)))
            || METRICS.contains(&format!("`{name}`"))
            || RECORDED.contains(&format!("record: {name}\n"))
    };
    let queries = queries()?;
    let asked = queries.iter().map(|(_, query)| query.as_str());
    for text in asked.chain([alerts, RECORDED]) {
        for name in names(text) {
            assert!(known(name), "{name} is neither documented nor recorded");
        }
    }
    Ok(())
}

#[tokio::test]
async fn every_query_of_the_dashboard_gives_data() -> Result<()> {
    let whole = Whole::start(|stack| stack).await?;
    let dir = Directory::temporary()?;
    let prometheus = prometheus(&whole.stack, dir.path(), None).await?;
    let queries = queries()?;
    ensure!(queries.len() > 40, "only {} queries", queries.len());
    // Rates need two scrapes, and what they are taken from.
    for (title, query) in queries {
        eventually(LATER, async || {
            let found = prometheus.query(&query).await?;
            ensure!(!found.is_empty(), "{title}: {query} finds nothing");
            Ok(())
        })
        .await?;
    }
    Ok(())
}
