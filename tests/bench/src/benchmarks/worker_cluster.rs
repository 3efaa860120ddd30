//! A real worker empties a full USER_STATE into a Redis Cluster of three masters, beside one server that stands alone.

use anyhow::{Result, ensure};
use serde_json::json;
use usersync_stack::{RedisCluster, RedisServer, free_port};

use super::Contest;
use crate::options::Options;
use crate::report::{Aim, Row};
use crate::rig::Rig;
use crate::states::States;

/// What a call for each slot may cost the worker, where one server gets one for each batch.
const CPU: f64 = 1.25;

pub(super) async fn run(options: &Options, name: &str) -> Result<Vec<Row>> {
    let rig = Rig::start().await?;
    let nothing_on_disk = ["--appendonly", "no"];
    let alone = RedisServer::start_with(rig.dir(), free_port()?, &nothing_on_disk).await?;
    let cluster = RedisCluster::start(rig.dir(), &nothing_on_disk).await?;
    let users = options.events();
    let (url, urls) = (alone.url(), cluster.url());
    let one = States::of(&rig, users, &url, json!({})).await?;
    let three = one.for_another("cluster", &urls, json!({})).await?;
    let run = async |states: &States<'_>, servers: &[RedisServer]| {
        let drained = states.worker().await?;
        let mut held = 0;
        for server in servers {
            held += emptied(server).await?;
        }
        ensure!(held == users, "{held} of {users} users are held");
        Ok(drained)
    };
    let ours = async || run(&three, cluster.masters()).await;
    let contest = Contest::hold(options, name, "one server", ours, async || {
        run(&one, std::slice::from_ref(&alone)).await
    });
    let [rate, cpu, _] = contest.await?.rows(name, "deliveries/s");
    Ok(vec![rate, cpu.aim(Aim::RatioAtMost(CPU))])
}

/// Empties a server, and says how many users it held.
async fn emptied(server: &RedisServer) -> Result<u64> {
    let client = redis::Client::open(server.url())?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let held = redis::cmd("DBSIZE").query_async(&mut connection).await?;
    redis::cmd("FLUSHALL").exec_async(&mut connection).await?;
    Ok(held)
}
