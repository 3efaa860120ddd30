//! A real worker empties a full USER_STATE into Redis. The limits: a bare loop that pulls, sets and
//! acknowledges, and what `redis-benchmark` gets out of the same server.

use anyhow::{Context, Result, ensure};
use redis::aio::MultiplexedConnection;
use serde_json::json;
use tokio::process::Command;
use usersync_stack::{RedisServer, free_port, tools};

use super::{Contest, Rate};
use crate::options::Options;
use crate::report::{Aim, Row};
use crate::rig::Rig;
use crate::states::States;
use crate::users;

/// SETs of `redis-benchmark`, over a second of work.
const SETS: u64 = 500_000;

pub(super) async fn run(options: &Options, name: &str) -> Result<Vec<Row>> {
    let rig = Rig::start().await?;
    let nothing_on_disk = ["--appendonly", "no"];
    let redis = RedisServer::start_with(rig.dir(), free_port()?, &nothing_on_disk).await?;
    let client = redis::Client::open(redis.url()).context("the URL of Redis")?;
    let connection = client
        .get_multiplexed_async_connection()
        .await
        .context("connecting to Redis")?;
    let users = options.events();
    let url = redis.url();
    let states = States::of(&rig, users, &url, json!({})).await?;

    let deliver = async || {
        let drained = states.worker().await?;
        expect(&mut connection.clone(), users, "the worker").await?;
        Ok(drained)
    };
    let set = async || {
        let drained = states.bare("bare", &["set", "--redis", &url]).await?;
        expect(&mut connection.clone(), users, "the bare loop").await?;
        Ok(drained)
    };
    let contest = Contest::hold(options, name, "pull+SET+ack", deliver, set).await?;
    let [rate, cpu, rss] = contest.rows(name, "deliveries/s");
    let spawn_set = async || {
        let drained = states.bare("bare", &["spawn-set", "--redis", &url]).await?;
        expect(&mut connection.clone(), users, "the spawning loop").await?;
        Ok(Rate(drained.rate))
    };
    let (spawn_name, server_name) = (format!("{name}-spawn"), format!("{name}-server"));
    let mut rows = vec![
        rate.aim(Aim::RatioAtLeast(1.2)).aim(Aim::AtLeast(80_000.0)),
        cpu,
        rss.aim(Aim::AtMost(40.0)),
        contest
            .beside(
                options,
                &spawn_name,
                "a task per message",
                spawn_set,
                |our| our.rate,
            )
            .await?,
    ];
    if tools::find("redis-benchmark", tools::REDIS_MINIMUM).is_ok() {
        let pipeline = async || redis_benchmark(redis.port()).await;
        let row = contest.beside(
            options,
            &server_name,
            "redis-benchmark -P 16",
            pipeline,
            |our| our.rate,
        );
        rows.push(row.await?);
    }
    Ok(rows)
}

/// Makes sure that Redis holds every user, and empties it.
async fn expect(connection: &mut MultiplexedConnection, users: u64, by: &str) -> Result<()> {
    let (held, last): (u64, Option<String>) = redis::pipe()
        .cmd("DBSIZE")
        .cmd("GET")
        .arg(format!("user:{}", users - 1))
        .query_async(connection)
        .await
        .context("looking into Redis")?;
    ensure!(
        held == users,
        "{by} delivered {users} users, but Redis holds {held}"
    );
    let last = last.unwrap_or_default();
    ensure!(
        last.contains("@example.com"),
        "{by} stored {last:?} as the last user"
    );
    let emptied = redis::cmd("FLUSHALL").exec_async(connection).await;
    emptied.context("emptying Redis")
}

/// SETs per second of `redis-benchmark -P 16` with values as large as ours.
async fn redis_benchmark(port: u16) -> Result<Rate> {
    let (port, sets, size) = (port.to_string(), SETS.to_string(), users::BYTES.to_string());
    let run = Command::new("redis-benchmark")
        .args(["-h", "127.0.0.1", "-p", &port, "-t", "set", "-n", &sets])
        .args(["-P", "16", "-d", &size, "-r", "50000", "--csv"])
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(std::time::Duration::from_secs(60), run).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(error).context("running redis-benchmark"),
        Err(_) => anyhow::bail!("redis-benchmark took longer than a minute"),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let row = text.lines().find(|line| line.starts_with("\"SET\""));
    let rate = row.and_then(|row| row.split(',').nth(1)?.trim_matches('"').parse().ok());
    rate.map(Rate)
        .with_context(|| format!("redis-benchmark says {text:?}"))
}
