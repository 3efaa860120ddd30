//! The scheduler: what keeps the main database, the states and the targets the same.
//!
//! `outbox` puts an outbox beside a table of users, `load` brings every user of a main database into
//! USER_STATE. Each is one subcommand, and ends when it is done. `states` reads what is there.
//!
//! Without one a `scheduler` checks all the time: `schedules` keeps a NATS message schedule per target and for the states;
//! `queue` takes what is due or asked for, under a `claim`; a `check` walks over both sides and looks again at whom they
//! hold differently; `reports` tells; `watch` says what is missing. It writes to no target: repairs are states, or deliveries, which are the workers'.

mod check;
mod claim;
mod command;
mod load;
mod outbox;
mod queue;
mod reports;
mod scheduler;
mod schedules;
mod settings;
mod states;
mod watch;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use usersync_core::nats;
use usersync_source::Database;

pub use settings::{Flags, Settings, Work};

/// Does what the settings say, until it is done or `shutdown`.
///
/// # Errors
/// When it can't be done; says what to do.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> anyhow::Result<()> {
    match settings.work {
        None => scheduler::run(&settings.common, settings.sources, shutdown).await,
        Some(Work::Check(check)) => {
            check
                .run(&settings.common, settings.sources, shutdown)
                .await
        }
        Some(Work::Outbox(work)) => outbox::run(work).await,
        Some(Work::Load(work)) => load::run(&settings.common.nats, work, shutdown).await,
    }
}

/// Tries the connections to NATS and to every source, and says which targets would be checked when.
///
/// # Errors
/// With everything that can't be used.
pub async fn check(settings: &Settings) -> anyhow::Result<()> {
    let mut failed = Vec::new();
    match nats::check(&settings.common.nats, "usersync-scheduler").await {
        Ok(jetstream) => {
            tracing::info!("NATS with JetStream answers");
            if let Err(error) = scheduler::announce(&jetstream, &settings.sources).await {
                failed.push(format!("{error:#}"));
            }
        }
        Err(error) => failed.push(format!("{error:#}")),
    }
    for (name, config) in &settings.sources {
        let look = async { Database::connect(config).await?.readable().await };
        match look.await.with_context(|| format!("source {name}")) {
            Ok(layout) => {
                tracing::info!(source = %name, table = %layout.table, "the source answers")
            }
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    anyhow::ensure!(
        failed.is_empty(),
        "{} of the connections failed:\n  {}",
        failed.len(),
        failed.join("\n  ")
    );
    Ok(())
}
