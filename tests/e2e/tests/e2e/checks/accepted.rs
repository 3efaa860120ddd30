//! What an operator accepts, tries or mistypes leaves no alert behind.

use anyhow::{Result, ensure};
use redis::AsyncTypedCommands as _;
use serde_json::json;
use usersync_core::{
    check::Stage,
    subjects::{CHECKER, USER_CHECK},
};
use usersync_stack::{Directory, Launch, Stack, eventually, tools};

use super::{check, counts, created, report};
use crate::{
    alerts,
    support::{Api, Bus, LATER, SOON},
};

/// Runs `usersync-scheduler` with `args`: whether it succeeded, and what it said.
async fn scheduler(stack: &Stack, args: &[&str]) -> Result<(bool, String)> {
    let program = tools::binary("usersync-scheduler", tools::Profile::own())?;
    let log = Directory::temporary()?;
    let log = log.path().join("log");
    let launch = Launch::new("usersync-scheduler", program, &log).args(args);
    let process = launch.nats(&stack.nats, "scheduler").spawn()?;
    let status = process.wait_exit(LATER).await?;
    Ok((status.success(), std::fs::read_to_string(log)?))
}

#[tokio::test]
async fn an_orphan_that_is_accepted_is_no_drift() -> Result<()> {
    let entry = "[redis-cache]\ncheck = { every = \"0s\", orphan = \"ignore\" }\n".to_owned();
    let stack = Stack::builder().examples(false).schedulers(1);
    let stack = stack.targets_toml(move |_| entry).start().await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    bus.publish_all((1..=5).map(created)).await?;
    bus.until_settled("redis-cache").await?;
    let client = redis::Client::open(stack.redis.url())?;
    let mut redis = client.get_multiplexed_async_connection().await?;
    let document = redis.get("user:1").await?.unwrap_or_default();
    // Nobody has heard of these.
    for key in ["user:77", "user:78"] {
        redis.set(key, &document).await?;
    }
    let found = check(&bus, "redis-cache", json!({})).await?;
    ensure!(found.accepted.users == 2, "{found:?}");
    ensure!(
        found.accepted.sample == [77, 78].map(Into::into),
        "{found:?}"
    );
    ensure!(counts(&found) == [0; 4] && found.is_clean(), "{found:?}");
    ensure!(!found.is_alike(), "{found:?}");
    let told = alerts::history(&bus, "drift", "redis-cache").await?;
    ensure!(told.is_empty(), "{told:?}");
    eventually(SOON, async || {
        let status = api.get("/v1/status").await?;
        ensure!(status["targets"][0]["state"] == "ok", "{status}");
        Ok(())
    })
    .await?;
    let (fine, said) =
        scheduler(&stack, &["check", "--target", "redis-cache", "--exit-code"]).await?;
    ensure!(
        fine && said.contains("2 differ, which is accepted"),
        "{said}"
    );
    stack.stop().await
}

#[tokio::test]
async fn a_check_for_somebody_who_waits_leaves_nothing_behind() -> Result<()> {
    let entry = "[redis-cache]\ncheck = { every = \"0s\", different = \"report\" }\n".to_owned();
    let stack = Stack::builder().examples(false).schedulers(1);
    let stack = stack.targets_toml(move |_| entry).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish_all((1..=5).map(created)).await?;
    bus.until_settled("redis-cache").await?;
    ensure!(check(&bus, "redis-cache", json!({})).await?.is_alike());
    let before = report(&bus, "redis-cache").await?;

    let client = redis::Client::open(stack.redis.url())?;
    let mut redis = client.get_multiplexed_async_connection().await?;
    let document = redis.get("user:1").await?.unwrap_or_default();
    redis
        .set("user:1", document.replace("name-1", "somebody"))
        .await?;
    let target = ["check", "--target", "redis-cache", "--exit-code"];
    for more in [
        &["--dry-run"][..],
        &["--user", "1"],
        &["--user", "1", "--once"],
    ] {
        let (fine, said) = scheduler(&stack, &[&target[..], more].concat()).await?;
        ensure!(!fine && said.contains("not all copies"), "{more:?}: {said}");
    }
    ensure!(
        report(&bus, "redis-cache").await? == before,
        "a dry run took its place"
    );
    let (fine, said) = scheduler(&stack, &[&target[..], &["--once"]].concat()).await?;
    ensure!(!fine && said.contains("not all copies"), "{said}");
    let told = alerts::history(&bus, "drift", "redis-cache").await?;
    ensure!(told.is_empty(), "{told:?}");

    // One that everybody is told of.
    let found = check(&bus, "redis-cache", json!({})).await?;
    ensure!(counts(&found) == [0, 0, 1, 0], "{found:?}");
    let told = alerts::history(&bus, "drift", "redis-cache").await?;
    ensure!(told.len() == 1, "{told:?}");
    stack.stop().await
}

#[tokio::test]
async fn a_check_of_a_target_that_is_none_is_refused() -> Result<()> {
    let stack = Stack::builder().examples(false).schedulers(1);
    let stack = stack
        .targets_toml(|_| "[redis-cache]\n".to_owned())
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    for more in [&[][..], &["--once"]] {
        let args = [&["check", "--target", "rediscache"][..], more].concat();
        let (fine, said) = scheduler(&stack, &args).await?;
        let named = said.contains("there is no target rediscache");
        ensure!(!fine && named && said.contains("targets.list"), "{said}");
    }
    bus.publish("user.check.rediscache", json!({})).await?;
    bus.publish("user.check.Redis_Cache", json!({})).await?;
    let last = check(&bus, "redis-cache", json!({})).await?;
    ensure!(last.stage == Stage::Done, "{last:?}");
    eventually(SOON, async || {
        let requests = bus.jetstream().get_stream_no_info(USER_CHECK).await?;
        let left = requests.consumer_info(CHECKER).await?;
        let left = left.num_pending + left.num_ack_pending as u64;
        ensure!(left == 0, "{left} requests wait");
        Ok(())
    })
    .await?;
    for none in ["rediscache", "Redis_Cache"] {
        ensure!(report(&bus, none).await?.is_none(), "{none}");
    }
    stack.stop().await
}
