//! deploy/prometheus: the rules are valid and tested, and tell people through real servers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use usersync_core::alert::Kind;
use usersync_stack::{Alertmanager, Directory, Prometheus, Stack, eventually, tools};

use crate::support::{Bus, Recorder, SOON, answer, only};

const ALERTS: &str = include_str!("../../../../../deploy/prometheus/rules/alerts.yml");
const RUNBOOK: &str = include_str!("../../../../../docs/RUNBOOK.md");

fn shipped(path: &str) -> PathBuf {
    tools::repository().join("deploy/prometheus").join(path)
}

fn promtool(args: &[&str], files: &[PathBuf]) -> Result<()> {
    let output = Command::new(tools::promtool()?)
        .args(args)
        .args(files)
        .output()?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&said)
    );
    Ok(())
}

/// What follows `key: ` on every line that has it.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    let lines = text.lines().map(|line| line.trim_start_matches([' ', '-']));
    lines
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
        .collect()
}

#[test]
fn promtool_takes_the_configuration_and_every_alert_is_tested() -> Result<()> {
    promtool(&["check", "config"], &[shipped("prometheus.yml")])?;
    let tests = [shipped("tests/usersync.yml"), shipped("tests/slo.yml")];
    promtool(&["test", "rules"], &tests)?;
    let texts = tests.map(|file| std::fs::read_to_string(file).unwrap_or_default());
    let tested: BTreeSet<&str> = texts
        .iter()
        .flat_map(|text| values(text, "alertname"))
        .collect();
    assert_eq!(tested, values(ALERTS, "alert").into_iter().collect());
    Ok(())
}

#[test]
fn every_alert_names_a_section_of_the_run_book_and_every_section_an_alert() {
    let linked = values(ALERTS, "runbook_url").into_iter();
    let linked = linked.map(|link| link.rsplit_once('#').map_or(link, |(_, anchor)| anchor));
    let linked = linked.map(|anchor| anchor.trim_end_matches('\'').to_owned());
    // Those that gateways raise themselves.
    let own = Kind::ALL.into_iter().map(|kind| kind.anchor().to_owned());
    let anchors: BTreeSet<String> = linked.chain(own).collect();
    let headings = RUNBOOK.lines().filter_map(|line| line.strip_prefix("## "));
    let sections = headings.map(|heading| heading.to_lowercase().replace(' ', "-"));
    assert_eq!(anchors, sections.collect());
    assert_eq!(
        values(ALERTS, "alert").len(),
        values(ALERTS, "runbook_url").len()
    );
}

/// A Prometheus with the shipped configuration, only quicker, that scrapes a stack.
pub(super) async fn prometheus(
    stack: &Stack,
    dir: &Path,
    alertmanager: Option<&Alertmanager>,
) -> Result<Prometheus> {
    let rules = dir.join("rules");
    std::fs::create_dir_all(dir.join("targets"))?;
    std::fs::create_dir_all(&rules)?;
    for file in ["recording.yml", "alerts.yml"] {
        let text = std::fs::read_to_string(shipped("rules").join(file))?;
        // An alert need not last.
        let lines = text
            .lines()
            .map(|line| match line.trim_start().starts_with("for: ") {
                true => "        for: 0s",
                false => line,
            });
        std::fs::write(rules.join(file), lines.collect::<Vec<_>>().join("\n"))?;
    }
    let receivers: Vec<_> = stack.examples.get("unified-auth").into_iter().collect();
    let targets = [
        ("gateway", stack.gateways.iter().collect()),
        ("worker", stack.workers.values().flatten().collect()),
        ("scheduler", stack.schedulers.iter().collect()),
        ("receiver", receivers),
    ];
    for (job, services) in targets {
        let addresses: Vec<_> = services
            .into_iter()
            .map(|service| service.url().replace("http://", ""))
            .collect();
        let text = format!("- targets: {}", serde_json::to_string(&addresses)?);
        std::fs::write(dir.join("targets").join(format!("{job}.yml")), text)?;
    }
    let config = std::fs::read_to_string(shipped("prometheus.yml"))?.replace("15s", "1s");
    let config = config
        .replace("# external_labels:", "external_labels:")
        .replace("#   runbook:", "  runbook:");
    let config = match alertmanager {
        Some(alertmanager) => {
            let address = alertmanager.url().replace("http://", "");
            config.replace("localhost:9093", &address)
        }
        None => config,
    };
    let file = dir.join("prometheus.yml");
    std::fs::write(&file, config)?;
    Prometheus::start(dir, &file).await
}

#[tokio::test]
async fn an_open_breaker_reaches_a_webhook_through_prometheus_and_alertmanager() -> Result<()> {
    let people = Recorder::start(async |_| answer(200)).await?;
    let mut target = Recorder::start(async |_| answer(200)).await?;
    let stack = only(target.target("audit", "")).start().await?;
    let dir = Directory::temporary()?;
    let config = std::fs::read_to_string(shipped("alertmanager.yml"))?;
    let config = config
        .replace("http://localhost:9099/alerts", &people.url())
        .replace("group_wait: 30s", "group_wait: 0s")
        .replace("group_interval: 5m", "group_interval: 1s");
    let file = dir.path().join("alertmanager.yml");
    std::fs::write(&file, config)?;
    let alertmanager = Alertmanager::start(dir.path(), &file).await?;
    let _prometheus = prometheus(&stack, dir.path(), Some(&alertmanager)).await?;

    target.stop().await;
    let bus = Bus::connect(&stack).await?;
    bus.publish(
        "user.created",
        serde_json::json!({"user_id": 1, "username": "zaphod"}),
    )
    .await?;
    let told = async |status: &str| {
        eventually(SOON, async || {
            let calls = people.calls();
            let alerts = calls.iter().flat_map(|call| call.body["alerts"].as_array());
            let alert = alerts.flatten().find(|alert| {
                alert["labels"]["alertname"] == "UsersyncBreakerOpen" && alert["status"] == status
            });
            alert
                .cloned()
                .with_context(|| format!("nobody was told: {status}"))
        })
        .await
    };
    let firing: Value = told("firing").await?;
    assert_eq!(firing["labels"]["target"], "audit");
    assert_eq!(firing["labels"]["severity"], "critical");
    let link = &firing["annotations"]["runbook_url"];
    assert_eq!(link, "https://wiki.example.com/RUNBOOK.md#breaker-open");
    target.listen().await?;
    told("resolved").await?;
    assert!(
        people
            .calls()
            .iter()
            .all(|call| !call.body.to_string().contains("zaphod"))
    );
    Ok(())
}
