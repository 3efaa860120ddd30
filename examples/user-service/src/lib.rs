//! A target that keeps users with their profiles, and announces the changes made here.

mod routes;
mod settings;

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use usersync_core::admin::Health;
use usersync_example_support::{
    database,
    replica::{self, Replica},
    server,
    unpublished::{self, Unpublished},
};
use usersync_receiver::Options;

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
    let options = Options::new(settings.secrets.resolve()?);
    let pool = database::open(&settings.database, &[replica::SCHEMA, unpublished::SCHEMA]).await?;
    let replica = Replica::new(pool.clone());
    let sync = usersync_receiver::router(replica.clone(), options)?;
    let publisher = settings.common.publisher("user-service", &health).await?;
    let unpublished = Unpublished::new(pool.clone(), publisher);

    let tasks = TaskTracker::new();
    tasks.spawn(database::watch(
        pool.clone(),
        health.clone(),
        shutdown.clone(),
    ));
    tasks.spawn(unpublished.clone().run(shutdown.clone()));
    tasks.close();

    let app = routes::App {
        pool,
        replica,
        unpublished: unpublished.clone(),
    };
    let routes = routes::router(app).nest("/api/v1/users/sync", sync);
    server::serve(settings.listen, routes, health, metrics, shutdown.clone()).await?;
    tasks.wait().await;
    unpublished.flush(FLUSH_WITHIN).await;
    Ok(())
}
