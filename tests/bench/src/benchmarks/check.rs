//! Two copies of the users are compared. The limit: the same row hashes summed up on both sides at once, which finds
//! nobody; beside it reading every row of both, and for Redis reading every document.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::join_all;
use serde_json::json;
use sqlx::{AssertSqlSafe, MySqlPool, PgPool};
use usersync_core::{
    event::{Change, EventType},
    fields::Members,
};
use usersync_stack::{Directory, RedisServer};
use usersync_targets::{Action, Delivery, Outcome};

use crate::checker::{self, Checked, How, RESULT, SECRET};
use crate::databases::{self, MySqlLike, PASSWORD};
use crate::options::Options;
use crate::quiet::undisturbed;
use crate::report::{Aim, Row};

/// Both sides into files, and diff(1).
const DUMP: &str = "dump and diff";
/// The same rows compared as they come: less than what anybody runs, and no files.
const MERGE: &str = "rows merged";

/// One comparison in a process of its own.
async fn check(how: How, main: &str, target: &str) -> Result<Checked> {
    let own = std::env::current_exe().context("finding this program")?;
    let how = clap::ValueEnum::to_possible_value(&how).context("a way to compare")?;
    let run = tokio::process::Command::new(own)
        .args([
            "check",
            "--how",
            how.get_name(),
            "--main",
            main,
            "--target",
            target,
        ])
        .env(SECRET, PASSWORD)
        .kill_on_drop(true)
        .output();
    let output = run.await.context("running a checker")?;
    ensure!(
        output.status.success(),
        "a checker failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix(RESULT));
    Ok(serde_json::from_str(
        line.context("a checker said nothing")?,
    )?)
}

pub(super) async fn tables(options: &Options, name: &str) -> Result<Vec<Row>> {
    let users = options.checked_users();
    let dir = Directory::temporary()?;
    let mariadb = MySqlLike::start(options.newest, dir.path()).await?;
    let postgres = databases::postgres(options.newest, dir.path()).await?;
    let main = MySqlPool::connect(&mariadb.url_with_password()).await?;
    let target = PgPool::connect(&postgres.url_with_password()).await?;
    eprintln!("{name}: {users} users into both databases");
    fill(&main, &target, users).await?;
    let (main, url) = (mariadb.url(), postgres.url());

    let mut rows = Vec::new();
    for (differences, against, bytes) in [(0, 1.25, 1.0), (100, 1.4, 1.0), (10_000, 2.0, 9.7)] {
        let differences = differences.min(users / 100);
        differ(&target, users, differences).await?;
        let (mut ours, mut limits) = (Vec::new(), Vec::new());
        let (mut dumps, mut merges) = (Vec::new(), Vec::new());
        // Not counted: servers are slower at their first.
        check(How::Total, &main, &url).await?;
        for run in 1..=options.runs() {
            let turns = async || {
                let first = (
                    check(How::Walk, &main, &url).await?,
                    check(How::Total, &main, &url).await?,
                );
                let then = check(How::Total, &main, &url).await?;
                let second = (check(How::Walk, &main, &url).await?, then);
                Ok([first, second])
            };
            for (our, limit) in undisturbed(options, name, turns).await? {
                ensure!(
                    our.differences == differences,
                    "{} of {differences} were found",
                    our.differences
                );
                eprintln!(
                    "{name} {differences} run {run}: ours {:.2} s, {:.2} MB, {:.0} MB of memory; limit {:.2} s",
                    our.seconds,
                    mb(our.bytes),
                    our.rss_mb,
                    limit.seconds
                );
                ours.push(our);
                limits.push(limit.seconds);
            }
            for (how, what, all) in [
                (How::Dump, DUMP, &mut dumps),
                (How::Merge, MERGE, &mut merges),
            ] {
                let peer =
                    undisturbed(options, name, async || check(how, &main, &url).await).await?;
                eprintln!(
                    "{name} {differences} run {run}: {what} {:.2} s, {:.2} MB",
                    peer.seconds,
                    mb(peer.bytes)
                );
                ensure!(
                    peer.differences == differences,
                    "{what} found {}",
                    peer.differences
                );
                all.extend([peer, peer]);
            }
        }
        let of = |of: fn(&Checked) -> f64, all: &[Checked]| all.iter().map(of).collect::<Vec<_>>();
        let seconds = of(|one| one.seconds, &ours);
        let dumped = of(|one| one.seconds, &dumps);
        let merged = of(|one| one.seconds, &merges);
        let name = format!("{name}-{differences}");
        rows.extend([
            Row::of(&name, "s", &seconds)
                .against("sums alone", &seconds, &limits)
                .aim(Aim::RatioAtMost(against)),
            Row::of(format!("{name}-dump"), "s", &seconds)
                .against(DUMP, &seconds, &dumped)
                .aim(Aim::RatioAtMost(1.5)),
            Row::of(format!("{name}-merge"), "s", &seconds).against(MERGE, &seconds, &merged),
            Row::of(
                format!("{name}-read"),
                "MB",
                &of(|one| mb(one.bytes), &ours),
            )
            .against(
                DUMP,
                &of(|one| mb(one.bytes), &ours),
                &of(|one| mb(one.bytes), &dumps),
            )
            .aim(Aim::AtMost(bytes)),
            Row::of(format!("{name}-rss"), "MB", &of(|one| one.rss_mb, &ours))
                .aim(Aim::AtMost(128.0)),
        ]);
    }
    Ok(rows)
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// The same users in both.
async fn fill(main: &MySqlPool, target: &PgPool, users: u64) -> Result<()> {
    // As a server for so many users would have; the tests' own is small.
    let memory = "SET GLOBAL innodb_buffer_pool_size = 536870912";
    sqlx::raw_sql(memory).execute(main).await?;
    let columns =
        "username varchar(320), email varchar(320), phone varchar(64), status varchar(64)";
    let mysql = format!(
        "CREATE TABLE users (id bigint PRIMARY KEY, {columns}, updated_at datetime(6)) \
         CHARACTER SET utf8mb4; \
         INSERT INTO users WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < 999), \
         seqs (seq) AS (SELECT 1000 * a.n + b.n + 1 FROM numbers a, numbers b) SELECT seq, CONCAT('user', seq), CONCAT('user', seq, '@example.com'), \
         CONCAT('+49', LPAD(seq * 7919 % 1000000007, 9, '0')), IF(seq % 7 = 0, 'disabled', 'active'), \
         '2026-01-01' + INTERVAL seq * 37 SECOND + INTERVAL (seq * 7919 % 1000000) MICROSECOND FROM seqs WHERE seq <= {users}; \
         ANALYZE TABLE users"
    );
    let postgres = format!(
        "CREATE TABLE users (id bigint PRIMARY KEY, {columns}, updated_at timestamptz, \
         sync_deleted boolean NOT NULL DEFAULT false, sync_version bigint NOT NULL DEFAULT 0); \
         INSERT INTO users SELECT seq, concat('user', seq), concat('user', seq, '@example.com'), \
         concat('+49', lpad((seq * 7919 % 1000000007)::text, 9, '0')), \
         CASE WHEN seq % 7 = 0 THEN 'disabled' ELSE 'active' END, \
         '2026-01-01+00'::timestamptz + seq * 37 * interval '1 second' + (seq * 7919 % 1000000) * interval '1 microsecond' \
         FROM generate_series(1::bigint, {users}::bigint) AS seq"
    );
    sqlx::raw_sql(AssertSqlSafe(mysql)).execute(main).await?;
    sqlx::raw_sql(AssertSqlSafe(postgres))
        .execute(target)
        .await?;
    sqlx::raw_sql("VACUUM ANALYZE users")
        .execute(target)
        .await?;
    Ok(())
}

/// Makes `differences` of the target's users other than they are, anywhere, and the others as they were.
async fn differ(target: &PgPool, users: u64, differences: u64) -> Result<()> {
    let restore = "UPDATE users SET phone = rtrim(phone, 'x') WHERE phone LIKE '%x'";
    sqlx::raw_sql(restore).execute(target).await?;
    // The same ones in every run.
    let mut random = fastrand::Rng::with_seed(differences);
    let mut chosen = BTreeSet::new();
    while (chosen.len() as u64) < differences {
        chosen.insert(random.i64(1..=users.cast_signed()));
    }
    let chosen: Vec<i64> = chosen.into_iter().collect();
    let change = sqlx::query("UPDATE users SET phone = phone || 'x' WHERE id = ANY ($1)");
    change.bind(chosen).execute(target).await?;
    sqlx::raw_sql("VACUUM ANALYZE users")
        .execute(target)
        .await?;
    Ok(())
}

pub(super) async fn redis(options: &Options, name: &str) -> Result<Vec<Row>> {
    let users = options.checked_users();
    let dir = Directory::temporary()?;
    let server = RedisServer::start(dir.path()).await?;
    eprintln!("{name}: {users} users into Redis");
    preload(&server.url(), users).await?;
    let url = server.url();
    let (mut ours, mut limits, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    check(How::RedisBare, "", &url).await?;
    for run in 1..=options.runs() {
        let turns = async || {
            let first = (
                check(How::Redis, "", &url).await?,
                check(How::RedisBare, "", &url).await?,
            );
            let then = check(How::RedisBare, "", &url).await?;
            Ok([first, (check(How::Redis, "", &url).await?, then)])
        };
        for (our, limit) in undisturbed(options, name, turns).await? {
            ensure!(
                our.differences == users && limit.differences == users,
                "somebody was left out"
            );
            eprintln!(
                "{name} run {run}: ours {:.2} s, limit {:.2} s",
                our.seconds, limit.seconds
            );
            ours.push(our.seconds);
            limits.push(limit.seconds);
            memory.push(our.rss_mb);
        }
    }
    Ok(vec![
        Row::of(name, "s", &ours)
            .against("SCAN+MGET", &ours, &limits)
            .aim(Aim::RatioAtMost(1.3)),
        Row::of(format!("{name}-rss"), "MB", &memory).aim(Aim::AtMost(128.0)),
    ])
}

/// Users as a worker delivers them.
async fn preload(url: &str, users: u64) -> Result<()> {
    let target = checker::target(url, None)?;
    let batch = target.limits().batch as u64;
    let mut next = 1;
    while next <= users {
        let batches = (0..4).map(|_| {
            let end = (next + batch).min(users + 1);
            let ids = std::mem::replace(&mut next, end)..end;
            ids.map(delivery).collect::<Vec<_>>()
        });
        let batches: Vec<_> = batches.collect();
        let outcomes = join_all(batches.iter().map(|batch| target.deliver(batch))).await;
        let failed = |outcome: &Outcome| !matches!(outcome, Outcome::Delivered { .. });
        if let Some(outcome) = outcomes.into_iter().flatten().find(failed) {
            bail!("filling Redis: {outcome:?}");
        }
    }
    Ok(())
}

fn delivery(id: u64) -> Delivery {
    let status = if id.is_multiple_of(7) {
        "disabled"
    } else {
        "active"
    };
    Delivery {
        task_id: String::new(),
        user_id: id.into(),
        version: 1_700_000_000_000_000 + id,
        action: Action::Upsert,
        partial: false,
        event_type: EventType::Updated,
        timestamp: jiff::Timestamp::UNIX_EPOCH,
        source: Some("basic-server".to_owned()),
        members: Members {
            username: Change::Set(format!("user{id}")),
            email: Change::Set(format!("user{id}@example.com")),
            status: Change::Set(status.to_owned()),
            data: Change::Set(
                json!({"phone": format!("+49{:09}", id * 7919 % 1_000_000_007), "status": status}),
            ),
        },
        trace: None,
    }
}
