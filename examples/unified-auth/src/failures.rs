//! Wrong passwords in a row, and the lock they lead to.

use serde_json::json;
use sqlx::{SqliteConnection, SqlitePool};
use usersync_example_support::{
    database::{self, unavailable},
    replica::{Replica, StoredUser},
    unpublished::Unpublished,
};
use usersync_receiver::{Problem, UserId};

/// The table.
pub(crate) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS failures (
        user_id TEXT PRIMARY KEY COLLATE BINARY,
        count   INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
";

/// The status of an account that nobody may log in to.
pub(crate) const LOCKED: &str = "locked";
/// So many wrong passwords in a row lock an account.
const MOST: i64 = 5;

/// Forgets the wrong passwords of a user who gave the right one.
pub(crate) async fn forget(pool: &SqlitePool, user_id: &UserId) -> Result<(), Problem> {
    let mut connection = pool.acquire().await.map_err(unavailable)?;
    clear(&mut connection, user_id).await
}

/// Counts one wrong password. The last one locks the account here at once, whether NATS is there
/// or not, and announces the lock to everybody else.
pub(crate) async fn count(
    pool: &SqlitePool,
    unpublished: &Unpublished,
    user: &StoredUser,
) -> Result<(), Problem> {
    let user_id = &user.user_id;
    let mut change = database::write(pool).await?;
    let count: i64 = sqlx::query_scalar(
        "INSERT INTO failures (user_id, count) VALUES (?, 1)
         ON CONFLICT (user_id) DO UPDATE SET count = count + 1 RETURNING count",
    )
    .bind(user_id.to_string())
    .fetch_one(&mut *change)
    .await
    .map_err(unavailable)?;
    if count < MOST {
        return change.commit().await.map_err(unavailable);
    }
    // The lock is the status itself: a status that arrives later by sync takes its place.
    clear(&mut change, user_id).await?;
    let status = json!({"status": LOCKED});
    Replica::merge_data(&mut change, user_id, &status)
        .await
        .map_err(unavailable)?;
    let event = unpublished.publisher().status_changed(user_id, LOCKED);
    unpublished.add(&mut change, &event).await?;
    change.commit().await.map_err(unavailable)?;
    unpublished.wake();
    tracing::warn!(user.id = %user_id, event.id, "locked an account after {MOST} wrong passwords in a row");
    Ok(())
}

async fn clear(change: &mut SqliteConnection, user_id: &UserId) -> Result<(), Problem> {
    let cleared = sqlx::query("DELETE FROM failures WHERE user_id = ?")
        .bind(user_id.to_string())
        .execute(change)
        .await;
    cleared.map(|_| ()).map_err(unavailable)
}

#[cfg(test)]
mod tests {
    use usersync_example_support::{replica, unpublished};
    use usersync_publisher::Publisher;
    use usersync_receiver::{Applied, Change, Delivery, UserStore};

    use super::*;

    fn active(version: u64) -> Delivery {
        Delivery {
            task_id: format!("t:42:{version}"),
            event_type: None,
            user_id: 42.into(),
            username: Change::Set("ann".to_owned()),
            email: Change::Keep,
            data: Change::Set(json!({"status": "active"})),
            deleted: false,
            disable: false,
            partial: false,
            version,
            timestamp: None,
            source: None,
        }
    }

    #[tokio::test]
    async fn the_fifth_wrong_password_in_a_row_locks_until_another_status_arrives() {
        let dir = tempfile::tempdir().unwrap();
        let schemas = [replica::SCHEMA, unpublished::SCHEMA, SCHEMA];
        let pool = database::open(&dir.path().join("auth.db"), &schemas)
            .await
            .unwrap();
        let replica = Replica::new(pool.clone());
        let nowhere = Publisher::connect("nats://127.0.0.1:1", "test")
            .await
            .unwrap();
        let unpublished = Unpublished::new(pool.clone(), nowhere);
        assert_eq!(replica.apply(active(7)).await.unwrap(), Applied::Stored);
        let id = UserId::from(42);
        let user = async || replica.get(&id).await.unwrap().unwrap();
        let waiting = async || {
            sqlx::query_scalar::<_, String>("SELECT event FROM unpublished")
                .fetch_all(&pool)
                .await
        };

        for _ in 0..4 {
            count(&pool, &unpublished, &user().await).await.unwrap();
        }
        forget(&pool, &id).await.unwrap();
        for _ in 0..4 {
            count(&pool, &unpublished, &user().await).await.unwrap();
        }
        assert_eq!(user().await.status.as_deref(), Some("active"));
        assert!(waiting().await.unwrap().is_empty());

        count(&pool, &unpublished, &user().await).await.unwrap();
        assert_eq!(user().await.status.as_deref(), Some(LOCKED));
        let events = waiting().await.unwrap();
        assert_eq!(events.len(), 1);
        assert!(
            events[0].contains("user.status_changed") && events[0].contains(r#""status":"locked""#),
            "{events:?}"
        );

        replica.apply(active(8)).await.unwrap();
        assert_eq!(user().await.status.as_deref(), Some("active"));
        count(&pool, &unpublished, &user().await).await.unwrap();
        assert_eq!(user().await.status.as_deref(), Some("active"));
    }
}
