//! Looks every few seconds whether what checks need is there, for this scheduler's health.

use std::time::Duration;

use futures_util::future::{join, join_all};
use usersync_core::{
    admin::Health,
    streams,
    subjects::{TARGETS_STREAM, USER_STATE},
};
use usersync_source::{Database, SourceConfig, SourceError, SourceName};

use crate::scheduler::Scheduler;

/// How often a source is asked.
const EVERY: Duration = Duration::from_secs(5);

/// Looks for ever. The queue of checks says itself how it stands.
pub(crate) async fn run(scheduler: &Scheduler) {
    let health = &scheduler.health;
    let streams =
        streams::watch_streams(&scheduler.jetstream, &[USER_STATE, TARGETS_STREAM], health);
    let sources = scheduler.sources.iter();
    let sources = join_all(sources.map(|(name, config)| source(name, config, health)));
    join(streams, sources).await;
}

/// Says how one main database stands.
async fn source(name: &SourceName, config: &SourceConfig, health: &Health) {
    let part = format!("source {name}");
    health.down(&part, "connecting");
    let mut said = false;
    loop {
        let Err(error) = look(config, &part, health, &mut said).await;
        if !said {
            tracing::warn!(source = %name, %error, "the source can't be used; its checks fail meanwhile");
            said = true;
        }
        health.down(&part, error.to_string());
        tokio::time::sleep(EVERY).await;
    }
}

/// Asks by one connection until that fails.
async fn look(
    config: &SourceConfig,
    part: &str,
    health: &Health,
    said: &mut bool,
) -> Result<std::convert::Infallible, SourceError> {
    let mut database = Database::connect(config).await?;
    loop {
        database.readable().await?;
        health.up(part);
        *said = false;
        tokio::time::sleep(EVERY).await;
    }
}
