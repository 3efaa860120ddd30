//! Events outlive an outage of NATS and go out in order.

#![allow(clippy::unwrap_used, reason = "a test fails where its set-up fails")]

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use usersync_example_support::{
    database,
    unpublished::{self, Unpublished},
};
use usersync_publisher::{Change, Publisher, Retry, UserChanges};
use usersync_stack::NatsServer;

#[tokio::test]
async fn what_was_written_while_nobody_listened_is_published_in_order_per_user() {
    let dir = tempfile::tempdir().unwrap();
    let server = NatsServer::start(dir.path()).await.unwrap();
    let pool = database::open(&dir.path().join("users.db"), &[unpublished::SCHEMA])
        .await
        .unwrap();
    let retry = Retry {
        deadline: Duration::from_millis(50),
        attempt: Duration::from_millis(40),
        ..Retry::default()
    };
    let url = server.url_as("publisher").unwrap();
    let client = usersync_stack::connect(&url);
    let publisher = Publisher::new(jetstream::new(client.await.unwrap()), "test").with_retry(retry);
    let unpublished = Unpublished::new(pool.clone(), publisher.clone());
    for step in 0..3 {
        let mut change = database::write(&pool).await.unwrap();
        for user in [1, 2] {
            let changes = UserChanges {
                data: Change::Set(json!({"step": step})),
                ..UserChanges::default()
            };
            let event = publisher.updated(&user.into(), changes);
            unpublished.add(&mut change, &event).await.unwrap();
        }
        change.commit().await.unwrap();
    }

    // There is no stream yet, so nothing is confirmed and nothing may be forgotten.
    unpublished.flush(Duration::from_secs(5)).await;
    assert_eq!(left(&pool).await, 6);

    let config = stream::Config {
        name: "E".to_owned(),
        subjects: vec!["user.*".to_owned()],
        ..Default::default()
    };
    let jetstream = jetstream::new(usersync_stack::connect(&server.test_url()).await.unwrap());
    let stream = jetstream.create_stream(config).await.unwrap();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(unpublished.clone().run(shutdown.clone()));
    tokio::time::timeout(Duration::from_secs(20), async {
        while left(&pool).await > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    shutdown.cancel();
    running.await.unwrap();

    let mut steps: [Vec<Value>; 2] = Default::default();
    for seq in 1..=6 {
        let stored = stream.get_raw_message(seq).await.unwrap();
        let event: Value = serde_json::from_slice(&stored.payload).unwrap();
        let user = event["user_id"].as_u64().unwrap() as usize;
        steps[user - 1].push(event["data"]["step"].clone());
    }
    assert_eq!(
        steps,
        [
            [json!(0), json!(1), json!(2)],
            [json!(0), json!(1), json!(2)]
        ]
    );
}

async fn left(pool: &sqlx::SqlitePool) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM unpublished")
        .fetch_one(pool)
        .await
        .unwrap()
}
