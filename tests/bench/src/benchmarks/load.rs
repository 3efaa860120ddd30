//! `usersync-scheduler load` brings a table into an empty USER_STATE, and again when all is equal. The limit: a
//! bare loop that reads the table and publishes every row, comparing and guarding nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use usersync_core::subjects;

use super::{Contest, Rate};
use crate::main_db::MainDb;
use crate::options::Options;
use crate::report::{Aim, Row};
use crate::rig::Rig;
use crate::upserts::Server;
use crate::usage;

const BARE_STATE: &str = "BARE_STATE";
const LOOK: Duration = Duration::from_millis(20);

/// One turn of ours.
#[derive(Clone, Copy)]
struct Loaded {
    empty: f64,
    equal: f64,
    rss_mb: f64,
}

impl std::fmt::Display for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}, equal {}, {:.0} MB",
            Rate(self.empty),
            Rate(self.equal),
            self.rss_mb
        )
    }
}

pub(super) async fn run(options: &Options, name: &str, server: Server) -> Result<Vec<Row>> {
    let rig = Rig::start().await?;
    rig.twin(subjects::USER_STATE, BARE_STATE, "bare.state.*")
        .await?;
    let users = options.cold_users();
    let main = MainDb::start(&rig, options.newest, server, users).await?;
    let ours = async || {
        rig.stream(subjects::USER_STATE).await?.purge().await?;
        let (empty, rss) = load(&rig, &main, users, "created").await?;
        let (equal, more) = load(&rig, &main, users, "equal").await?;
        Ok(Loaded {
            empty,
            equal,
            rss_mb: rss.max(more),
        })
    };
    let bare = async || {
        rig.stream(BARE_STATE).await?.purge().await?;
        Ok(Rate(users as f64 / main.bare(&rig, "load").await?))
    };
    let contest = Contest::hold(options, name, "scan+publish", ours, bare).await?;
    let row = contest.row(name, "users/s", |ours| ours.empty, |bare| bare.0);
    let equal: Vec<f64> = contest.ours.iter().map(|ours| ours.equal).collect();
    let rss: Vec<f64> = contest.ours.iter().map(|ours| ours.rss_mb).collect();
    Ok(vec![
        row.aim(Aim::AtLeast(60_000.0)),
        Row::of(format!("{name}-equal"), "users/s", &equal),
        Row::of(format!("{name}-rss"), "MB", &rss).aim(Aim::AtMost(128.0)),
    ])
}

/// One load of all users, each of whom must come to `outcome`; users per second, and the largest resident set.
async fn load(rig: &Rig, main: &MainDb, users: u64, outcome: &str) -> Result<(f64, f64)> {
    let log = rig.dir().join("scheduler.log");
    let _ = std::fs::remove_file(&log);
    let process = main.scheduler(rig, "scheduler", &["load", "--json", "--log", "warn"])?;
    let mut rss: f64 = 0.0;
    let status = loop {
        // Gone between two looks: what was seen last counts.
        rss = rss.max(usage::peak_rss_mb(process.pid()).unwrap_or(0.0));
        tokio::select! {
            status = process.ended() => break status.context("the scheduler's end")?,
            () = tokio::time::sleep(LOOK) => {}
        }
    };
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    ensure!(status.success(), "{status}: {said}");
    let report: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    ensure!(report[outcome] == users, "{report}");
    let seconds = report["seconds"].as_f64().context("no time")?;
    Ok((users as f64 / seconds, rss))
}
