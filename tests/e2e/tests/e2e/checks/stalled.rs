//! A target that stops answering in the middle of a page: the check ends, says why, and the next one is done.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use usersync_core::check::Stage;
use usersync_stack::{Directory, RedisServer, Stack, eventually};

use super::{check, counts, created, ended};
use crate::support::{Bus, SOON, Stall};

/// Twice as long as a page of Redis may take.
const BOUND: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_check_ends_when_a_target_stops_in_the_middle_of_a_page() -> Result<()> {
    let dir = Directory::temporary()?;
    let server = RedisServer::start(dir.path()).await?;
    let stall = Stall::before(server.port()).await?;
    let entry = format!(
        "[redis-cache]\nurl = \"redis://127.0.0.1:{}/0\"\ncheck = {{ every = \"0s\" }}\n",
        stall.port()
    );
    let stack = Stack::builder().examples(false).schedulers(1);
    let stack = stack.targets_toml(move |_| entry).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish_all((1..=3_000).map(created)).await?;
    bus.until_settled("redis-cache").await?;
    let whole = check(&bus, "redis-cache", json!({"dry_run": true})).await?;
    ensure!(
        whole.stage == Stage::Done && whole.users == 3_000,
        "{whole:?}"
    );

    // Far less than the documents of one page.
    stall.after(60_000);
    let began = Instant::now();
    let asked = bus
        .jetstream()
        .publish("user.check.redis-cache", "{}".into());
    asked.await?.await?;
    eventually(SOON, async || {
        ensure!(stall.is_stalled(), "it has not come to that");
        Ok(())
    })
    .await?;
    let failed = ended(&bus, "redis-cache", Some(whole.started)).await?;
    ensure!(failed.stage == Stage::Failed, "{failed:?}");
    let error = failed.error.as_deref().unwrap_or_default();
    ensure!(error.contains("Redis did not answer in time"), "{failed:?}");
    ensure!(began.elapsed() < BOUND, "it took {:?}", began.elapsed());
    ensure!(counts(&failed) == [0; 4], "nobody differs: {failed:?}");

    stall.go_on();
    let again = check(&bus, "redis-cache", json!({})).await?;
    ensure!(
        again.stage == Stage::Done && again.users == 3_000,
        "{again:?}"
    );
    ensure!(counts(&again) == [0; 4], "{again:?}");
    Ok(())
}
