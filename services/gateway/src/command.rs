//! `usersync-gateway status`: asks the gateways that run, and shows their answer on one screen.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use anyhow::{Context as _, bail};
use async_nats::{Client, StatusCode};
use clap::Args;
use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use usersync_core::{common::Common, nats, subjects};

use crate::control::status::{Status, TargetStatus};

/// How long a gateway may take to answer.
const ANSWER: Duration = Duration::from_secs(15);
/// How often `--watch` looks again.
const EVERY: Duration = Duration::from_secs(2);
/// What the operator of nats.conf, and tools without a setting, get their answers under.
const INBOX: &str = "_INBOX";
/// Clears a terminal and begins at its top.
const TOP: &str = "\x1b[H\x1b[2J";

/// Shows how everything stands: a line per target, with its queue, rates, breaker, dead letters and last check.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  usersync-gateway status
  usersync-gateway --nats-url nats://nats:4222 status --watch
  usersync-gateway status --json | jq '.targets[] | select(.state != \"ok\")'")]
pub struct StatusCommand {
    /// Go on, and look again every two seconds
    #[arg(long)]
    watch: bool,
    /// Print what GET /v1/status answers, in one line
    #[arg(long)]
    json: bool,
}

impl StatusCommand {
    /// Asks, and prints the answer; with `--watch` until `stop`.
    ///
    /// # Errors
    /// When no gateway answers.
    pub(crate) async fn run(&self, common: &Common, stop: CancellationToken) -> anyhow::Result<()> {
        // As the operator, unless the settings say otherwise: a gateway may not ask gateways.
        let mut settings = common.nats.clone();
        settings
            .inbox_prefix
            .get_or_insert_with(|| INBOX.to_owned());
        let client = nats::check(&settings, "usersync-status").await?.client();
        let mut every = interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(every.tick()).await.is_some() {
            let Some(status) = stop.run_until_cancelled(ask(&client)).await else {
                break;
            };
            let mut text = match self.json {
                true => serde_json::to_string(&status?)? + "\n",
                false => table(&status?),
            };
            if self.watch && !self.json && std::io::stdout().is_terminal() {
                text.insert_str(0, TOP);
            }
            std::io::stdout().write_all(text.as_bytes())?;
            if !self.watch {
                break;
            }
        }
        Ok(())
    }
}

async fn ask(client: &Client) -> anyhow::Result<Status> {
    let subject = subjects::control("status", "");
    let asked = client.send_request(
        subject.clone(),
        async_nats::Request::new()
            .payload("{}".into())
            .timeout(Some(ANSWER)),
    );
    let answer = match timeout(ANSWER, asked).await {
        Ok(Ok(answer)) if answer.status != Some(StatusCode::NO_RESPONDERS) => answer,
        Ok(Ok(_)) | Err(_) => bail!("no gateway answers; is usersync-gateway running?"),
        Ok(Err(error)) if error.kind() == async_nats::RequestErrorKind::NoResponders => {
            bail!("no gateway answers; is usersync-gateway running?")
        }
        Ok(Err(error)) => return Err(error).with_context(|| format!("asking {subject}")),
    };
    let headers = answer.headers.unwrap_or_default();
    if let Some(problem) = headers.get("Nats-Service-Error") {
        bail!("the gateway says: {problem}");
    }
    serde_json::from_slice(&answer.payload).context("this gateway is of another version")
}

/// A screen of it.
fn table(status: &Status) -> String {
    let rows: Vec<[String; 11]> = status
        .targets
        .iter()
        .map(|target| row(target, status.at))
        .collect();
    let head = [
        "target",
        "state",
        "pending",
        "oldest",
        "repairs",
        "rate/s",
        "errors",
        "last error",
        "dead",
        "workers",
        "last check",
    ]
    .map(str::to_owned);
    let mut text = format!(
        "{}  {} users, {} events waiting, {} refused\n\n",
        status.at.strftime("%Y-%m-%d %H:%M:%SZ"),
        status.users,
        status.events_pending,
        status.events_refused
    );
    let lines: Vec<_> = std::iter::once(&head).chain(&rows).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<usize> = (0..head.len())
        .map(|column| width(column).unwrap_or(0))
        .collect();
    for line in &lines {
        let cells = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

fn row(target: &TargetStatus, now: Timestamp) -> [String; 11] {
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
            format!(
                "{stage}, {} differed, {}",
                check.drifted,
                ago(check.started)
            )
        }),
    ]
}

/// A length of time, in its largest unit.
fn span(seconds: f64) -> String {
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

    #[test]
    fn a_screen_has_a_line_per_target() {
        let status = serde_json::from_value(json!({
            "at": "2026-01-01T00:01:40Z", "users": 7, "events_pending": 1, "events_refused": 2,
            "targets": [
                {"target": "audit", "state": "down", "workers": 1, "pending": 3, "repairs": 0,
                 "oldest_seconds": 75.0, "rate": 2.0, "error_rate": 0.5, "breaker": "open",
                 "last_error": {"class": "target-fault", "at": "2026-01-01T00:01:30Z"},
                 "dead_letters": 4, "last_check": null},
                {"target": "crm", "state": "no-worker", "workers": 0, "pending": 0, "repairs": 0,
                 "oldest_seconds": 0.0, "rate": 0.0, "error_rate": null, "breaker": "closed",
                 "last_error": null, "dead_letters": 0,
                 "last_check": {"stage": "done", "started": "2026-01-01T00:00:00Z", "drifted": 1}},
            ],
        }));
        let screen = "\
2026-01-01 00:01:40Z  7 users, 1 events waiting, 2 refused

target  state        pending  oldest  repairs  rate/s  errors  last error             dead  workers  last check
audit   down (open)  3        75s     0        2.0     50 %    target-fault, 10s ago  4     1        -
crm     no-worker    0        0s      0        0.0     -       -                      0     0        done, 1 differed, 100s ago
";
        assert_eq!(table(&status.unwrap()), screen);
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
