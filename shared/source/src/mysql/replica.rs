//! Whether a MySQL or MariaDB server is a copy of another one.

use sqlx::{Executor, MySqlConnection, Row, mysql::MySqlRow};

use crate::SourceError;

/// What servers call the same; each knows some of these, and takes them from users with a right of their own only.
const STATUSES: [&str; 3] = [
    "SHOW ALL SLAVES STATUS",
    "SHOW REPLICA STATUS",
    "SHOW SLAVE STATUS",
];
const RUNNING: [&str; 4] = [
    "Replica_IO_Running",
    "Replica_SQL_Running",
    "Slave_IO_Running",
    "Slave_SQL_Running",
];

/// Why nobody may write to the server, if so: users with rights of their own still can, and it is a copy all the same.
pub(super) async fn read_only(
    connection: &mut MySqlConnection,
) -> Result<Option<&'static str>, SourceError> {
    let read_only = "SELECT CAST(@@global.read_only OR @@global.innodb_read_only AS SIGNED)";
    let read_only = sqlx::query_scalar(read_only);
    let read_only: i64 = read_only
        .fetch_one(&mut *connection)
        .await
        .map_err(|error| SourceError::of("asking whether it may be written to", &error))?;
    Ok((read_only != 0).then_some("it is read_only, as a replica is"))
}

/// Why the server is a replica, if so. Who isn't let know goes by [`read_only`] alone.
pub(super) async fn follows(connection: &mut MySqlConnection) -> Option<&'static str> {
    for status in STATUSES {
        if let Ok(sources) = connection.fetch_all(status).await {
            let replicates = sources.iter().any(is_running);
            return replicates.then_some(
                "it replicates from another one (if it is written to all the same, as one of two primaries, set `follows = true`)",
            );
        }
    }
    None
}

fn is_running(row: &MySqlRow) -> bool {
    let running = |name: &&str| {
        let said: Result<Option<String>, _> = row.try_get(*name);
        said.is_ok_and(|said| said.is_some_and(|said| said != "No"))
    };
    RUNNING.iter().any(running)
}
