//! Live progress from the metrics of the gateway and the workers: events in, deliveries and latency per target.

use std::convert::Infallible;
use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::Result;
use tokio::time::{MissedTickBehavior, interval, timeout};
use usersync_stack::{Metrics, Stack};

use super::traffic::Traffic;
use crate::terminal;

const LIVE: Duration = Duration::from_millis(200);
const PLAIN: Duration = Duration::from_secs(2);
const SCRAPE: Duration = Duration::from_secs(1);

/// Shows progress while `work` goes on: a block that is redrawn on a terminal, else a line now and then.
pub(super) async fn during<T>(
    stack: &Stack,
    traffic: &Traffic,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut block = Block::default();
    // Side by side: a scrape that takes long must not hold up the work.
    tokio::select! {
        done = work => done,
        never = show(stack, traffic, &mut block) => match never {},
    }
}

async fn show(stack: &Stack, traffic: &Traffic, block: &mut Block) -> Infallible {
    let live = terminal::stdout().is_live();
    let mut ticks = interval(if live { LIVE } else { PLAIN });
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut last = String::new();
    loop {
        ticks.tick().await;
        let lines = lines(stack, traffic).await;
        if live {
            block.draw(&lines);
        } else {
            let words = lines
                .iter()
                .flat_map(|line| line.split_whitespace().chain(["|"]));
            let line = words.collect::<Vec<_>>().join(" ");
            // Nothing new is worth no line.
            if line != last {
                println!("{}", line.trim_end_matches(" |"));
            }
            last = line;
        }
    }
}

/// Prints the figures for good.
pub(super) async fn print_once(stack: &Stack, traffic: &Traffic) {
    println!("{}", lines(stack, traffic).await.join("\n"));
}

async fn lines(stack: &Stack, traffic: &Traffic) -> Vec<String> {
    let taken = match scrape(stack.gateway_metrics()).await {
        Some(metrics) => metrics.sum("usersync_intake_events_total", &[]).to_string(),
        None => "?".to_owned(),
    };
    let sent = traffic.sent().events;
    // What the main database changes in a row between two looks of the relay is one event.
    let mut lines = vec![format!(
        "  {:<14}{sent:>6} made, merged as {taken} events",
        "changes"
    )];
    for target in stack.workers.keys() {
        lines.push(match scrape(stack.worker_metrics(target)).await {
            Some(metrics) => line(target, &metrics),
            None => format!("  {target:<14}     ? (a worker does not answer)"),
        });
    }
    lines
}

fn line(target: &str, metrics: &Metrics) -> String {
    let labels = [("target", target), ("outcome", "delivered")];
    let delivered = metrics.sum("usersync_deliveries_total", &labels);
    let latency = |q| match metrics.quantile("usersync_sync_latency_seconds", &labels[..1], q) {
        Some(seconds) => format!("{:.1} ms", seconds * 1000.0),
        None => "-".to_owned(),
    };
    let (p50, p99) = (latency(0.5), latency(0.99));
    format!("  {target:<14}{delivered:>6} delivered, latency p50 {p50}, p99 {p99}")
}

async fn scrape(metrics: impl Future<Output = Result<Metrics>>) -> Option<Metrics> {
    timeout(SCRAPE, metrics).await.ok()?.ok()
}

/// Lines that are written over by the next ones, and removed in the end.
#[derive(Debug, Default)]
struct Block {
    height: usize,
}

impl Block {
    fn draw(&mut self, lines: &[String]) {
        if self.height > 0 {
            print!("\x1b[{}A\x1b[J", self.height);
        }
        for line in lines {
            println!("{line}");
        }
        let _ = io::stdout().flush();
        self.height = lines.len();
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.draw(&[]);
    }
}
