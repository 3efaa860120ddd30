//! A service's copy of the users: what came in through the receiver kit, in one SQLite table.

use serde::Serialize;
use serde_json::Value;
use sqlx::{FromRow, SqliteConnection, SqlitePool};
use usersync_receiver::{Applied, Change, Delivery, HeldUser, StoreError, UserId, UserStore};

use crate::page::Page;

/// The table. Ids are text and compared exactly: `a` and `A` are two users.
pub const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS users (
        user_id  TEXT PRIMARY KEY COLLATE BINARY,
        username TEXT,
        email    TEXT,
        data     TEXT,
        deleted  INTEGER NOT NULL,
        version  INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS users_by_name ON users (username);
";

/// Writes a delivery unless the row is newer, in one statement.
const APPLY: &str = "
    INSERT INTO users (user_id, username, email, data, deleted, version) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
    ON CONFLICT (user_id) DO UPDATE SET
        username = CASE WHEN ?7 THEN excluded.username ELSE username END,
        email    = CASE WHEN ?8 THEN excluded.email ELSE email END,
        data     = CASE ?9 WHEN 'keep' THEN data
                           WHEN 'merge' THEN json_patch(coalesce(data, '{}'), excluded.data)
                           ELSE excluded.data END,
        deleted  = excluded.deleted,
        version  = excluded.version
    WHERE excluded.version >= version
";

/// Merges into a user who is there; leaves nothing but the version of one who isn't.
const DISABLE: &str = "
    INSERT INTO users (user_id, username, email, data, deleted, version) VALUES (?1, NULL, NULL, NULL, TRUE, ?2)
    ON CONFLICT (user_id) DO UPDATE SET
        data    = CASE WHEN deleted THEN data ELSE json_patch(coalesce(data, '{}'), ?3) END,
        version = excluded.version
    WHERE excluded.version >= version
";

/// The copy. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Replica {
    pool: SqlitePool,
}

/// One user of the copy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StoredUser {
    /// Who it is.
    pub user_id: UserId,
    /// The log-in name.
    pub username: Option<String>,
    /// The e-mail address.
    pub email: Option<String>,
    /// `data.status`, where it is a string.
    pub status: Option<String>,
    /// Everything else.
    pub data: Value,
    /// The version of the last delivery written.
    pub version: u64,
}

#[derive(FromRow)]
struct Row {
    user_id: String,
    username: Option<String>,
    email: Option<String>,
    data: Option<String>,
    version: i64,
}

impl Replica {
    /// The copy in `pool`, where [`SCHEMA`] is applied.
    pub fn new(pool: SqlitePool) -> Self {
        Self { pool }
    }

    /// One user, `None` when there is none or it is deleted.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn get(&self, user_id: &UserId) -> sqlx::Result<Option<StoredUser>> {
        let row: Option<Row> =
            sqlx::query_as("SELECT * FROM users WHERE user_id = ? AND NOT deleted")
                .bind(user_id.to_string())
                .fetch_optional(&self.pool)
                .await?;
        row.map(StoredUser::try_from).transpose()
    }

    /// A page of the users that aren't deleted, in the order of their ids as text.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list(&self, page: &Page) -> sqlx::Result<Vec<StoredUser>> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT * FROM users WHERE user_id > ? AND NOT deleted ORDER BY user_id LIMIT ?",
        )
        .bind(
            page.after
                .as_ref()
                .map(UserId::to_string)
                .unwrap_or_default(),
        )
        .bind(page.limit)
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(StoredUser::try_from).collect()
    }

    /// The users with this log-in name. Two have it for as long as only one half of a swap of
    /// names has arrived.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn with_name(&self, username: &str) -> sqlx::Result<Vec<StoredUser>> {
        let rows: Vec<Row> =
            sqlx::query_as("SELECT * FROM users WHERE username = ? AND NOT deleted LIMIT 2")
                .bind(username)
                .fetch_all(&self.pool)
                .await?;
        rows.into_iter().map(StoredUser::try_from).collect()
    }

    /// Merges `patch` into a user's data (RFC 7396) as a local change: the version stays, so that
    /// the delivery that comes back wins. `None` when there is no such user.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn merge_data(
        change: &mut SqliteConnection,
        user_id: &UserId,
        patch: &Value,
    ) -> sqlx::Result<Option<StoredUser>> {
        let row: Option<Row> = sqlx::query_as(
            "UPDATE users SET data = json_patch(coalesce(data, '{}'), ?2)
             WHERE user_id = ?1 AND NOT deleted RETURNING *",
        )
        .bind(user_id.to_string())
        .bind(patch.to_string())
        .fetch_optional(change)
        .await?;
        row.map(StoredUser::try_from).transpose()
    }

    async fn write(&self, delivery: Delivery) -> sqlx::Result<Applied> {
        if delivery.disable {
            return self.disable(delivery).await;
        }
        let Delivery {
            mut username,
            mut email,
            mut data,
            ..
        } = delivery;
        if delivery.deleted {
            (username, email, data) = (Change::Clear, Change::Clear, Change::Clear);
        }
        let data_mode = match &data {
            Change::Keep => "keep",
            Change::Set(_) if delivery.partial => "merge",
            Change::Set(_) | Change::Clear => "replace",
        };
        let (tell_username, tell_email) = (username != Change::Keep, email != Change::Keep);
        let written = sqlx::query(APPLY)
            .bind(delivery.user_id.to_string())
            .bind(value(username))
            .bind(value(email))
            .bind(value(data).map(|data| data.to_string()))
            .bind(delivery.deleted)
            .bind(delivery.version as i64)
            .bind(tell_username)
            .bind(tell_email)
            .bind(data_mode)
            .execute(&self.pool)
            .await?;
        Ok(applied(written.rows_affected()))
    }

    async fn disable(&self, delivery: Delivery) -> sqlx::Result<Applied> {
        let data = value(delivery.data).unwrap_or_else(|| serde_json::json!({}));
        let written = sqlx::query(DISABLE)
            .bind(delivery.user_id.to_string())
            .bind(delivery.version as i64)
            .bind(data.to_string())
            .execute(&self.pool)
            .await?;
        Ok(applied(written.rows_affected()))
    }
}

/// A write that changed nothing met a newer version.
fn applied(rows: u64) -> Applied {
    match rows {
        0 => Applied::AlreadyNewer,
        _ => Applied::Stored,
    }
}

impl UserStore for Replica {
    async fn apply(&self, delivery: Delivery) -> Result<Applied, StoreError> {
        self.write(delivery)
            .await
            .map_err(|error| StoreError::Unavailable(error.into()))
    }

    async fn page(
        &self,
        after: Option<&UserId>,
        most: usize,
    ) -> Result<Option<Vec<HeldUser>>, StoreError> {
        let page = Page {
            after: after.cloned(),
            limit: u32::try_from(most).unwrap_or(u32::MAX),
        };
        let users = self.list(&page).await;
        let users = users.map_err(|error| StoreError::Unavailable(error.into()))?;
        let held = |user: StoredUser| HeldUser {
            user_id: user.user_id,
            username: user.username,
            email: user.email,
            data: user.data,
        };
        Ok(Some(users.into_iter().map(held).collect()))
    }
}

fn value<T>(change: Change<T>) -> Option<T> {
    match change {
        Change::Set(value) => Some(value),
        Change::Keep | Change::Clear => None,
    }
}

impl TryFrom<Row> for StoredUser {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let decode = |error: Box<dyn std::error::Error + Send + Sync>| sqlx::Error::Decode(error);
        let data = row
            .data
            .as_deref()
            .map_or(Ok(Value::Null), serde_json::from_str);
        let data = data.map_err(|error| decode(error.into()))?;
        Ok(Self {
            user_id: row
                .user_id
                .parse()
                .map_err(|error| decode(Box::new(error) as _))?,
            username: row.username,
            email: row.email,
            status: data
                .get("status")
                .and_then(Value::as_str)
                .map(str::to_owned),
            data,
            version: row.version.unsigned_abs(),
        })
    }
}

#[cfg(test)]
mod tests;
