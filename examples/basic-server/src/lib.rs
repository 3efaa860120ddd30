//! Owns the users: registration, log-in and changes, each announced on NATS.

mod accounts;
mod settings;
mod validate;

mod routes;

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use usersync_core::admin::Health;
use usersync_example_support::{
    database,
    password::Passwords,
    server,
    unpublished::{self, Unpublished},
};

pub use settings::Settings;

/// How long events may be published after the last request was answered.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// Serves until `shutdown`, then finishes the requests under way and publishes what they changed.
///
/// # Errors
/// When the service can't start: the database, the address or a setting is unusable.
pub async fn run(
    settings: Settings,
    metrics: PrometheusHandle,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let health = Health::default();
    let pool = database::open(&settings.database, &[accounts::SCHEMA, unpublished::SCHEMA]).await?;
    let passwords = Passwords::new(settings.argon2_memory_kib)?;
    let publisher = settings.common.publisher("basic-server", &health).await?;
    let unpublished = Unpublished::new(pool.clone(), publisher);

    let tasks = TaskTracker::new();
    tasks.spawn(database::watch(
        pool.clone(),
        health.clone(),
        shutdown.clone(),
    ));
    tasks.spawn(unpublished.clone().run(shutdown.clone()));
    tasks.close();

    let routes = routes::router(routes::App {
        pool,
        passwords,
        unpublished: unpublished.clone(),
    });
    server::serve(settings.listen, routes, health, metrics, shutdown.clone()).await?;
    tasks.wait().await;
    unpublished.flush(FLUSH_WITHIN).await;
    Ok(())
}
