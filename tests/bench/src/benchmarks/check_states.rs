//! The states against the table they came from, and against a target that holds the same: the scheduler as users run
//! it. The limit: reading every state, and making nothing of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use usersync_core::{streams, subjects};

use super::Contest;
use crate::checker::COLUMNS;
use crate::main_db::MainDb;
use crate::options::Options;
use crate::report::{Aim, Row};
use crate::rig::Rig;
use crate::upserts::Server;
use crate::usage;

/// The target's name, and its table's.
const COPY: &str = "copy";
const LOOK: Duration = Duration::from_millis(20);
/// Users who are to be checked in one: 1,000,000 in 8 s.
const A_SECOND: f64 = 125_000.0;
const FILLING: Duration = Duration::from_secs(300);

/// One check of everybody.
#[derive(Clone, Copy)]
struct Checked {
    seconds: f64,
    rss_mb: f64,
}

impl std::fmt::Display for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} s, {:.0} MB", self.seconds, self.rss_mb)
    }
}

pub(super) async fn run(options: &Options, name: &str) -> Result<Vec<Row>> {
    let rig = Rig::start().await?;
    let users = options.cold_users();
    eprintln!("{name}: {users} users into a table, the states and a target");
    let main = MainDb::start(&rig, options.newest, Server::Postgres, users).await?;
    let load = main.scheduler(&rig, "load", &["load", "--json", "--log", "warn"])?;
    let loaded = load.wait_exit(FILLING).await?;
    ensure!(loaded.success(), "{loaded}: {}", load.log_tail());
    main.run(&format!(
        "CREATE TABLE {COPY} AS SELECT *, false AS sync_deleted, 0::bigint AS sync_version FROM users; \
         ALTER TABLE {COPY} ADD PRIMARY KEY (id)"
    ))
    .await?;
    main.run(&format!("VACUUM ANALYZE {COPY}")).await?;
    let columns = COLUMNS.map(|(column, path)| (column.to_owned(), json!(path)));
    let columns: serde_json::Map<_, _> = columns.into_iter().collect();
    let entry = json!({
        "secret": main.secret_of_a_target()?,
        "timeout": "60s",
        "table": { "name": COPY, "columns": columns },
        "check": { "load": 1.0 },
    });
    let target = rig.target(COPY, main.bare_url(), &entry).await?;
    rig.fresh_consumer(subjects::USER_STATE, streams::state_consumer(&target))
        .await?;

    let mut rows = Vec::new();
    for (side, checked) in [("main", "gateway"), ("target", COPY)] {
        let name = format!("{name}-{side}");
        let ours = async || check(&rig, &main, checked, users).await;
        let bare = async || scan(&rig, users).await;
        let contest = Contest::hold(options, &name, "states read", ours, bare).await?;
        let row = contest.row(&name, "s", |ours| ours.seconds, |bare| bare.seconds);
        let rss: Vec<f64> = contest.ours.iter().map(|ours| ours.rss_mb).collect();
        rows.extend([
            row.aim(Aim::AtMost(users as f64 / A_SECOND)),
            Row::of(format!("{name}-rss"), "MB", &rss).aim(Aim::AtMost(128.0)),
        ]);
    }
    Ok(rows)
}

/// One check that has to find nobody, in a scheduler of its own.
async fn check(rig: &Rig, main: &MainDb, checked: &str, users: u64) -> Result<Checked> {
    let log = rig.dir().join("check.log");
    let _ = std::fs::remove_file(&log);
    let args = [
        "check", "--target", checked, "--once", "--json", "--log", "warn",
    ];
    let process = main.scheduler(rig, "check", &args)?;
    let mut rss_mb: f64 = 0.0;
    let status = loop {
        // Gone between two looks: what was seen last counts.
        rss_mb = rss_mb.max(usage::peak_rss_mb(process.pid()).unwrap_or(0.0));
        tokio::select! {
            status = process.ended() => break status.context("the scheduler's end")?,
            () = tokio::time::sleep(LOOK) => {}
        }
    };
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    ensure!(status.success(), "{status}: {said}");
    let report = said.find('{').map(|at| &said[at..]).unwrap_or_default();
    let report: Value = serde_json::from_str(report).with_context(|| said.clone())?;
    ensure!(
        report["stage"] == "done" && report["users"] == users && report["found"] == json!({}),
        "{report}"
    );
    let seconds = report["seconds"].as_f64().context("no time")?;
    Ok(Checked { seconds, rss_mb })
}

/// A bare loop that reads every state.
async fn scan(rig: &Rig, users: u64) -> Result<Checked> {
    let log = rig.dir().join("scan.log");
    let _ = std::fs::remove_file(&log);
    let users = users.to_string();
    let nats = rig.nats_url();
    let stream = subjects::USER_STATE;
    let args = [
        "limit",
        "--nats",
        &nats,
        "scan",
        "--stream",
        stream,
        "--messages",
        &users,
    ];
    let process = rig.role("scan", args)?;
    let status = process.wait_exit(FILLING).await?;
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    ensure!(status.success(), "{status}: {said}");
    let scanned: crate::limits::Published = serde_json::from_str(said.trim())?;
    Ok(Checked {
        seconds: scanned.seconds,
        rss_mb: 0.0,
    })
}
