//! docs/METRICS.md and what the binaries expose say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use usersync_core::subjects::GATEWAY_TARGET;
use usersync_stack::{Service, Stack, eventually, http, tools};

use super::{
    SOMEBODY, USERNAME, Whole,
    exposition::{self, Family},
};
use crate::support::{Api, Bus, Recorder, SOON, answer, only};

const DOC: &str = include_str!("../../../../../docs/METRICS.md");

/// A row of a table: what stands between the bars.
fn rows(section: &str) -> Vec<Vec<String>> {
    let section = DOC
        .split("\n## ")
        .find(|text| text.starts_with(section))
        .expect("a section of that name");
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        row.trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().to_owned())
            .collect()
    })
    .collect()
}

fn ticked(cell: &str) -> BTreeSet<String> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// What the page says of a binary's metrics: type, text and labels.
fn documented(section: &str) -> BTreeMap<String, (String, String, BTreeSet<String>)> {
    rows(section)
        .into_iter()
        .map(|row| {
            let name = row[0].trim_matches('`').to_owned();
            (name, (row[1].clone(), row[3].clone(), ticked(&row[2])))
        })
        .collect()
}

async fn scrape(service: &Service) -> Result<String> {
    http::get_text(&http::client(), &format!("{}/metrics", service.url())).await
}

/// Those of usersync, in the shape of [`documented`].
fn exposed(
    families: &BTreeMap<String, Family>,
) -> BTreeMap<String, (String, String, BTreeSet<String>)> {
    families
        .iter()
        .filter(|(name, _)| name.starts_with("usersync_"))
        .map(|(name, family)| {
            let labels = family.labels.keys().cloned().collect();
            (
                name.clone(),
                (family.kind.clone(), family.help.clone(), labels),
            )
        })
        .collect()
}

/// A binary of each kind, by the section of the page that is about it.
fn services(stack: &Stack) -> [(&'static str, &Service); 4] {
    [
        ("Gateway", stack.gateway()),
        ("Worker", &stack.workers["unified-auth"][0]),
        ("Scheduler", &stack.schedulers[0]),
        ("Receiver", stack.example("unified-auth")),
    ]
}

#[tokio::test]
async fn every_metric_is_documented_and_every_documented_one_is_exposed() -> Result<()> {
    let whole = Whole::start(|stack| stack).await?;
    let process: BTreeSet<String> = ticked(
        DOC.split("\n## Every process")
            .nth(1)
            .and_then(|text| text.split("\n## ").next())
            .context("no such section")?,
    );
    ensure!(process.contains("process_resident_memory_bytes"));
    for (section, service) in services(&whole.stack) {
        eventually(SOON, async || {
            let families = exposition::read(&scrape(service).await?)?;
            let (exposed, documented) = (exposed(&families), documented(section));
            for name in exposed.keys().chain(documented.keys()) {
                let (is, said) = (exposed.get(name), documented.get(name));
                ensure!(
                    is == said,
                    "{section}: {name} is {is:?}, and documented as {said:?}"
                );
            }
            for name in &process {
                ensure!(families.contains_key(name), "{section} has no {name}");
            }
            Ok(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn names_follow_the_conventions_and_labels_are_bounded() -> Result<()> {
    let whole = Whole::start(|stack| stack).await?;
    let mut allowed: BTreeMap<String, BTreeSet<String>> = rows("Values of labels")
        .into_iter()
        .map(|row| (row[0].trim_matches('`').to_owned(), ticked(&row[1])))
        .collect();
    let targets = [
        "unified-auth",
        "user-service",
        "redis-cache",
        GATEWAY_TARGET,
    ];
    let targets = usersync_core::catalogue::load(None)
        .unwrap_or_default()
        .into_keys()
        .map(|name| name.to_string())
        .chain(targets.map(str::to_owned));
    allowed.insert("target".to_owned(), targets.collect());
    allowed.insert("source".to_owned(), BTreeSet::from(["main".to_owned()]));
    allowed.insert("caller".to_owned(), BTreeSet::from(["anyone".to_owned()]));
    for (section, service) in services(&whole.stack) {
        let text = scrape(service).await?;
        for secret in [SOMEBODY.to_string().as_str(), USERNAME] {
            assert!(!text.contains(secret), "{section} exposes {secret}");
        }
        for (name, family) in exposition::read(&text)? {
            if !name.starts_with("usersync_") {
                continue;
            }
            assert_eq!(family.kind == "counter", name.ends_with("_total"), "{name}");
            assert!(
                family.kind != "histogram" || name.ends_with("_seconds"),
                "{name}"
            );
            for (label, values) in &family.labels {
                let bounded = match label.as_str() {
                    "status" => values.iter().all(|value| value.parse::<u16>().is_ok()),
                    "route" => values.iter().all(|route| !route.contains("/users/1")),
                    label => values.is_subset(&allowed[label]),
                };
                assert!(bounded, "{section}: {name} {label} {values:?}");
            }
        }
        lint(&text)?;
    }
    Ok(())
}

/// What Prometheus' own linter says of a scrape, ours only.
fn lint(text: &str) -> Result<()> {
    let mut promtool = std::process::Command::new(tools::promtool()?);
    let promtool = promtool.args(["check", "metrics"]);
    let mut child = promtool
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    stdin.write_all(text.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let ours: Vec<_> = said
        .lines()
        .filter(|line| line.starts_with("usersync_") || line.starts_with("error"))
        .collect();
    ensure!(ours.is_empty(), "{said}");
    Ok(())
}

#[tokio::test]
async fn queues_failures_and_limits_are_seen_per_target() -> Result<()> {
    let failing = Recorder::start(async |_| answer(503)).await?;
    let slow = Recorder::start(async |_| answer(200)).await?;
    let retry = "retry = { base = \"10m\", cap = \"20m\" }\nbreaker = { faults = 1000, least = 1000, permanent = 1000, window = \"10m\" }";
    let catalogue = failing.target("audit", retry) + &slow.target("crm", "rate_limit = 20");
    let mut stack = only(catalogue).start().await?;
    let bus = Bus::connect(&stack).await?;
    let users = (1..=10).map(|id| ("user.created", json!({"user_id": id, "username": "ann"})));
    bus.publish_all(users).await?;
    bus.until_settled("crm").await?;
    let crm = stack.worker_metrics("crm").await?;
    assert!(crm.sum("usersync_rate_limited_total", &[]) > 0.0);
    assert_eq!(crm.sum("usersync_sync_latency_seconds_count", &[]), 10.0);
    eventually(SOON, async || {
        let audit = stack.worker_metrics("audit").await?;
        let retried = audit.sum("usersync_deliveries_total", &[("outcome", "retried")]);
        ensure!(retried == 10.0, "{retried} retried");
        let gateway = stack.gateway_metrics().await?;
        let live = |metric: &str| gateway.sum(metric, &[("target", "audit"), ("queue", "live")]);
        ensure!(live("usersync_queue_ack_pending") == 10.0, "not all wait");
        ensure!(live("usersync_queue_oldest_age_seconds") > 0.0, "no age");
        ensure!(gateway.sum("usersync_users", &[]) == 10.0, "not all users");
        let crm = [("target", "crm")];
        for gauge in ["pending", "ack_pending", "oldest_age_seconds"] {
            let value = gateway.sum(&format!("usersync_queue_{gauge}"), &crm);
            ensure!(value == 0.0, "crm: {gauge} is {value}");
        }
        Ok(())
    })
    .await?;

    // A target that is filled with what was there says nothing of how late changes are.
    let api = Api::of(&stack).await?;
    let entry = json!({"url": slow.url()});
    let put = api
        .put("/v1/targets/late", &[("if-none-match", "*")], entry)
        .await?;
    ensure!(put.status == 201, "{put:?}");
    stack.add_worker("late").await?;
    bus.until_settled("late").await?;
    let late = stack.worker_metrics("late").await?;
    let delivered = [("outcome", "delivered")];
    assert_eq!(late.sum("usersync_deliveries_total", &delivered), 10.0);
    assert_eq!(late.sum("usersync_sync_latency_seconds_count", &[]), 0.0);
    bus.publish("user.updated", json!({"user_id": 1, "data": {"n": 2}}))
        .await?;
    bus.until_settled("late").await?;
    let late = stack.worker_metrics("late").await?;
    assert_eq!(late.sum("usersync_sync_latency_seconds_count", &[]), 1.0);
    Ok(())
}
