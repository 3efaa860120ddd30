//! What a service sees while no NATS server is there.

#![allow(clippy::unwrap_used, reason = "a test fails where its set-up fails")]

use std::time::{Duration, Instant};

use usersync_publisher::{Change, PublishError, Publisher, Retry, User, UserChanges};

/// A publisher for a port nobody listens on.
async fn publisher() -> Publisher {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let retry = Retry {
        deadline: Duration::from_millis(500),
        attempt: Duration::from_millis(100),
        first_pause: Duration::from_millis(10),
        longest_pause: Duration::from_millis(20),
    };
    let publisher = Publisher::connect(&format!("nats://{free}"), "test")
        .await
        .unwrap();
    publisher.with_retry(retry)
}

fn ann() -> User {
    User {
        user_id: 42.into(),
        username: Some("ann".into()),
        email: None,
        data: None,
    }
}

#[tokio::test]
async fn publishing_gives_up_at_its_deadline_and_says_what_to_do() {
    let publisher = publisher().await;
    assert!(!publisher.is_connected());
    let started = Instant::now();
    let error = publisher.publish_created(&ann()).await.unwrap_err();
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
    assert!(error.is_transient());
    let text = error.to_string();
    assert!(
        text.contains("publish the same event again") && text.contains("timed out"),
        "{text}"
    );
    assert!(
        matches!(error, PublishError::Unconfirmed { attempts: 2.., .. }),
        "{error:?}"
    );
    assert!(!format!("{error:?} {error}").contains("ann"), "{error:?}");
}

#[tokio::test]
async fn an_event_the_gateway_would_refuse_is_not_sent() {
    let changes = UserChanges {
        username: Change::Set("x".repeat(321)),
        ..UserChanges::default()
    };
    let error = publisher()
        .await
        .publish_updated(&42.into(), changes)
        .await
        .unwrap_err();
    assert!(matches!(error, PublishError::Invalid { .. }), "{error:?}");
    assert!(!error.is_transient());
    assert!(error.to_string().contains("/username"), "{error}");
}

#[tokio::test]
async fn each_event_has_its_own_id_and_the_name_of_the_service() {
    let publisher = publisher().await;
    let (first, second) = (publisher.created(&ann()), publisher.deleted(&42.into()));
    assert_ne!(first.id, second.id);
    assert_eq!(first.source.as_deref(), Some("test"));
    assert_eq!(first.email, Change::Keep);
    let locked = publisher.status_changed(&42.into(), "locked");
    assert_eq!(
        locked.data,
        Change::Set(serde_json::json!({"status": "locked"}))
    );
}

#[tokio::test]
async fn an_address_that_is_no_url_is_refused_without_repeating_it() {
    let error = Publisher::connect("nats://user:hunter2@[::", "test")
        .await
        .unwrap_err();
    assert!(
        !format!("{error} {error:?}").contains("hunter2"),
        "{error:?}"
    );
}
