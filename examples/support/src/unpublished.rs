//! Events that are written but not yet confirmed by JetStream, kept beside the data they are about.
//!
//! An event is added in the transaction of its change and removed once it is stored in the
//! stream. So no change goes unannounced, whatever fails in between; at worst an event is
//! published twice under the same id, which counts once.
//!
//! It isn't the outbox of docs/OUTBOX.md, which is for the owner of the users: its triggers tell of every mapped
//! member of a row, and the database is what states are checked against. These services hold copies that may be
//! behind, so they tell of what they have changed and nothing else.

use std::{sync::Arc, time::Duration};

use axum::http::StatusCode;
use futures_util::{StreamExt, stream};
use sqlx::{SqliteConnection, SqlitePool};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use usersync_core::event::{Envelope, Event};
use usersync_publisher::Publisher;
use usersync_receiver::Problem;

use crate::database::unavailable;

/// The table.
pub const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS unpublished (
        seq     INTEGER PRIMARY KEY AUTOINCREMENT,
        user_id TEXT NOT NULL,
        event   TEXT NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS unpublished_by_user ON unpublished (user_id, seq);
";

/// How many users' events are under way at a time.
const AT_ONCE: usize = 256;
/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// The unpublished events of one service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Unpublished {
    pool: SqlitePool,
    publisher: Publisher,
    added: Arc<Notify>,
}

/// What one round came to.
#[derive(Debug, PartialEq, Eq)]
enum Round {
    Idle,
    Published,
    Failed,
}

impl Unpublished {
    /// Keeps events in `pool`, where [`SCHEMA`] is applied, and publishes them with `publisher`.
    pub fn new(pool: SqlitePool, publisher: Publisher) -> Self {
        Self {
            pool,
            publisher,
            added: Arc::default(),
        }
    }

    /// What makes and publishes the events.
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// Adds an event in the transaction of the change it is about.
    ///
    /// # Errors
    /// 400 when the event is one the gateway would refuse, 503 when the database fails.
    pub async fn add(&self, change: &mut SqliteConnection, event: &Event) -> Result<(), Problem> {
        let refuse = |reason: String| {
            Problem::new(
                StatusCode::BAD_REQUEST,
                format!("can't be published: {reason}"),
            )
        };
        let text = serde_json::to_string(event).map_err(|error| refuse(error.to_string()))?;
        Event::parse(text.as_bytes(), Envelope::default())
            .map_err(|error| refuse(error.to_string()))?;
        let added = sqlx::query("INSERT INTO unpublished (user_id, event) VALUES (?, ?)")
            .bind(event.user_id.to_string())
            .bind(text)
            .execute(change)
            .await;
        added.map(|_| ()).map_err(unavailable)
    }

    /// Says that a transaction with an added event is committed.
    pub fn wake(&self) {
        self.added.notify_one();
    }

    /// Publishes what there is and what comes, until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let forever = async {
            loop {
                match self.round().await {
                    Round::Idle => self.added.notified().await,
                    Round::Published => {}
                    Round::Failed => tokio::time::sleep(PAUSE).await,
                }
            }
        };
        // Cut off halfway, an event stays in the table and goes out again under the same id.
        shutdown.run_until_cancelled(forever).await;
    }

    /// Publishes what there is, for at most `within`; the rest waits for the next start.
    pub async fn flush(&self, within: Duration) {
        let rest = async { while self.round().await == Round::Published {} };
        if tokio::time::timeout(within, rest).await.is_err() {
            tracing::warn!("events stay unpublished until the next start");
        }
    }

    /// Publishes the oldest event of each of some users: one at a time per user keeps their order.
    async fn round(&self) -> Round {
        self.try_round().await.unwrap_or_else(|error| {
            tracing::error!(%error, "can't read or remove unpublished events; trying again");
            Round::Failed
        })
    }

    async fn try_round(&self) -> sqlx::Result<Round> {
        let oldest: Vec<(i64, String)> = sqlx::query_as(
            "SELECT seq, event FROM unpublished
             WHERE seq IN (SELECT min(seq) FROM unpublished GROUP BY user_id) ORDER BY seq LIMIT ?",
        )
        .bind(AT_ONCE as i64)
        .fetch_all(&self.pool)
        .await?;
        if oldest.is_empty() {
            return Ok(Round::Idle);
        }
        let tried = oldest.len();
        let publish = |(seq, text)| async move { self.publish(text).await.then_some(seq) };
        let confirmed: Vec<i64> = stream::iter(oldest)
            .map(publish)
            .buffer_unordered(AT_ONCE)
            .filter_map(async |seq| seq)
            .collect()
            .await;
        sqlx::query("DELETE FROM unpublished WHERE seq IN (SELECT value FROM json_each(?))")
            .bind(serde_json::json!(confirmed).to_string())
            .execute(&self.pool)
            .await?;
        Ok(if confirmed.len() == tried {
            Round::Published
        } else {
            Round::Failed
        })
    }

    async fn publish(&self, text: String) -> bool {
        let Ok(event) = Event::parse(text.as_bytes(), Envelope::default()) else {
            tracing::error!("an unpublished event can't be read; remove its row by hand");
            return false;
        };
        let result = self.publisher.publish(&event).await;
        let outcome = if result.is_ok() {
            "published"
        } else {
            "failed"
        };
        metrics::counter!("events_published_total", "type" => event.kind.as_str(), "result" => outcome).increment(1);
        if let Err(error) = &result {
            tracing::warn!(user.id = %event.user_id, %error, "kept an event to publish it again");
        }
        result.is_ok()
    }
}
