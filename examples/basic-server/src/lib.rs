//! Owns the users: registration, log-in and changes. It knows nothing of NATS: triggers write every change
//! to an outbox in its database, and usersync-gateway publishes it from there.

mod accounts;
mod settings;
mod validate;

mod routes;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use usersync_core::admin::Health;
use usersync_example_support::{database, password::Passwords, server};

pub use settings::Settings;

/// What `usersync-scheduler outbox install --print` says for [`accounts::SCHEMA`]; a test holds the two together.
const OUTBOX: &str = include_str!("outbox.sql");

/// Serves until `shutdown`, then finishes the requests under way.
///
/// # Errors
/// When the service can't start: the database, the address or a setting is unusable.
pub async fn run(
    settings: Settings,
    metrics: PrometheusHandle,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let health = Health::default();
    let pool = database::open(&settings.database, &[accounts::SCHEMA, OUTBOX]).await?;
    let passwords = Passwords::new(settings.argon2_memory_kib)?;

    let tasks = TaskTracker::new();
    tasks.spawn(database::watch(
        pool.clone(),
        health.clone(),
        shutdown.clone(),
    ));
    tasks.close();

    let routes = routes::router(routes::App { pool, passwords });
    server::serve(settings.listen, routes, health, metrics, shutdown.clone()).await?;
    tasks.wait().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use usersync_source::{Database, SourceConfig};

    use super::*;

    /// `UPDATE_SHIPPED=1` writes the file anew.
    #[tokio::test]
    async fn the_outbox_is_what_the_scheduler_prints() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("users.db");
        database::open(&path, &[accounts::SCHEMA]).await.unwrap();
        let url = format!("sqlite:{}", path.display());
        let mut config = SourceConfig::at(url.parse().unwrap());
        let columns = [
            ("username", "username"),
            ("email", "email"),
            ("status", "status"),
            ("phone", "data.phone"),
            ("password_hash", "data.password_hash"),
        ];
        let columns = columns.map(|(column, member)| (column.to_owned(), member.parse().unwrap()));
        config.columns = columns.into();
        let mut database = Database::connect(&config).await.unwrap();
        let (_, plan) = database.plan(false).await.unwrap();
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/outbox.sql");
        if std::env::var_os("UPDATE_SHIPPED").is_some() {
            std::fs::write(file, &plan.script).unwrap();
        }
        assert_eq!(std::fs::read_to_string(file).unwrap(), plan.script);
    }
}
