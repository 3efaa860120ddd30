//! The consistency check: every difference is found and repaired, and nothing that isn't one is reported.

mod accepted;
mod kinds;
mod one_by_one;
mod pairs;
mod partial;
mod queue;
mod races;
mod refused;
mod replicas;
mod resumed;
mod several;
mod stalled;
mod states;
mod tls;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use usersync_core::check::{Class, Report, Stage};
use usersync_stack::eventually;

use crate::support::{Bus, LATER};

/// An event that makes a user with a few members.
fn created(user: u64) -> (&'static str, Value) {
    let event = json!({
        "user_id": user, "username": format!("name-{user}"), "email": format!("{user}@example.com"),
        "data": {"n": 1, "status": "active"},
    });
    ("user.created", event)
}

/// Asks for a check and waits for its report.
pub(crate) async fn check(bus: &Bus, target: &str, request: Value) -> Result<Report> {
    // What is found of some, or by a dry run, doesn't take the place of what was found of all.
    let of_some = ["user_id", "from", "to"]
        .iter()
        .any(|key| request.get(key).is_some());
    let reported = if of_some {
        format!("{target}~some")
    } else if request["dry_run"] == true {
        format!("{target}~dry")
    } else {
        target.to_owned()
    };
    let before = report(bus, &reported).await?.map(|report| report.started);
    let subject = format!("user.check.{target}");
    let body = request.to_string().into();
    bus.jetstream().publish(subject, body).await?.await?;
    ended(bus, &reported, before).await
}

/// The report of the next check of `target` that has ended, after the one that began at `before`.
async fn ended(bus: &Bus, target: &str, before: Option<jiff::Timestamp>) -> Result<Report> {
    let mut found = None;
    eventually(LATER, async || {
        let report = report(bus, target).await?.context("no report yet")?;
        ensure!(
            before.is_none_or(|before| report.started > before),
            "no report since"
        );
        ensure!(report.stage != Stage::Running, "still running");
        found = Some(report);
        Ok(())
    })
    .await?;
    found.context("no report")
}

/// The newest report of `target`.
async fn report(bus: &Bus, target: &str) -> Result<Option<Report>> {
    let stream = bus.jetstream().get_stream_no_info("USER_CHECK").await?;
    let subject = format!("user.check.result.{target}");
    match stream.get_last_raw_message_by_subject(&subject).await {
        Ok(message) => Ok(Some(serde_json::from_slice(&message.payload)?)),
        Err(_) => Ok(None),
    }
}

/// How many users of each class a report has: missing, stale, different, orphan.
pub(crate) fn counts(report: &Report) -> [u64; 4] {
    Class::ALL.map(|class| report.found.get(&class).map_or(0, |found| found.users))
}
