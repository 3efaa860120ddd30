//! The kit over real HTTP: who may call, what is taken, and what order does.

#![allow(clippy::unwrap_used, reason = "a test fails where its set-up fails")]

mod service;

use axum::http::StatusCode;
use serde_json::{Value, json};
use service::{Service, now, sign};
use usersync_receiver::{InvalidSenders, Options, Senders};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OLD_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

fn ann(version: u64) -> Value {
    json!({
        "task_id": format!("t:42:{version}"), "event_type": "user.updated", "user_id": 42,
        "username": "ann", "email": "ann@example.com", "data": {"version": version}, "deleted": false,
        "version": version, "timestamp": "2026-01-31T12:00:00Z", "source": "basic-server",
    })
}

fn deleted(version: u64) -> Value {
    let mut body = ann(version);
    for (name, value) in [
        ("username", Value::Null),
        ("email", Value::Null),
        ("data", Value::Null),
    ] {
        body[name] = value;
    }
    body["deleted"] = json!(true);
    body
}

#[tokio::test]
async fn a_newer_version_is_stored_and_the_answer_names_the_guard() {
    let service = Service::start(&[]).await;
    let answer = service.post(&ann(7)).await;
    assert_eq!(
        (answer.status, answer.result()),
        (StatusCode::OK, "stored".into())
    );
    assert_eq!(answer.header("x-sync-guard"), Some("version"));
    assert_eq!(service.row("42").unwrap().username.as_deref(), Some("ann"));
}

#[tokio::test]
async fn an_older_version_is_answered_already_newer_and_not_written() {
    let service = Service::start(&[]).await;
    service.post(&ann(7)).await;
    let answer = service.post(&ann(6)).await;
    assert_eq!(
        (answer.status, answer.result()),
        (StatusCode::OK, "already_newer".into())
    );
    assert_eq!(answer.header("x-sync-guard"), Some("version"));
    assert_eq!(service.row("42").unwrap().data, json!({"version": 7}));
}

#[tokio::test]
async fn an_equal_version_restores_a_tampered_row() {
    let service = Service::start(&[]).await;
    service.post(&ann(7)).await;
    service.tamper("42", |row| row.username = Some("eve".into()));
    assert_eq!(service.post(&ann(7)).await.result(), "stored");
    assert_eq!(service.row("42").unwrap().username.as_deref(), Some("ann"));
}

#[tokio::test]
async fn an_older_upsert_does_not_bring_a_deleted_user_back() {
    let service = Service::start(&[]).await;
    service.post(&ann(7)).await;
    assert_eq!(service.post(&deleted(9)).await.result(), "stored");
    assert_eq!(service.post(&ann(8)).await.result(), "already_newer");
    let row = service.row("42").unwrap();
    assert_eq!((row.deleted, row.version, row.username), (true, 9, None));
    assert_eq!(service.post(&ann(10)).await.result(), "stored");
}

#[tokio::test]
async fn members_a_target_is_not_told_stay_as_they_are() {
    let service = Service::start(&[]).await;
    service.post(&ann(7)).await;
    let told = json!({"task_id": "t:42:8", "user_id": "42", "version": 8, "email": null});
    service.post(&told).await;
    let row = service.row("42").unwrap();
    assert_eq!((row.username.as_deref(), row.email), (Some("ann"), None));
}

#[test]
fn who_takes_unsigned_deliveries_has_to_say_so() {
    let made = |senders| usersync_receiver::router(service::Rows::default(), Options::new(senders));
    let empty = made(Senders::Signed(Vec::new())).map(drop);
    assert_eq!(empty, Err(InvalidSenders::NoSecret));
    let short = made(Senders::Signed(vec!["whsec_c2hvcnQ=".into()])).map(drop);
    assert!(matches!(short, Err(InvalidSenders::Secret(_))), "{short:?}");
    assert!(made(Senders::Unsigned).is_ok());
}

#[tokio::test]
async fn a_signed_delivery_is_taken_with_any_of_the_secrets() {
    let service = Service::start(&[SECRET, OLD_SECRET]).await;
    for secret in [SECRET, OLD_SECRET] {
        let body = ann(7).to_string();
        let answer = service.send(&body, &sign(secret, now(), &body)).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    }
}

#[tokio::test]
async fn deliveries_that_are_unsigned_forged_altered_or_expired_are_refused() {
    let service = Service::start(&[SECRET]).await;
    let body = ann(7).to_string();
    let cases = [
        ("unsigned", vec![]),
        (
            "signed with a secret that was taken away",
            sign(OLD_SECRET, now(), &body),
        ),
        (
            "signed for another body",
            sign(SECRET, now(), &ann(8).to_string()),
        ),
        ("signed 301 seconds ago", sign(SECRET, now() - 301, &body)),
        ("signed far in the future", sign(SECRET, now() + 400, &body)),
    ];
    for (case, headers) in cases {
        let answer = service.send(&body, &headers).await;
        assert_eq!(
            answer.status,
            StatusCode::UNAUTHORIZED,
            "{case}: {answer:?}"
        );
        assert_eq!(
            answer.header("content-type"),
            Some("application/problem+json"),
            "{case}"
        );
        assert_eq!(answer.header("x-sync-guard"), None, "{case}");
    }
    assert!(service.row("42").is_none());
}

#[tokio::test]
async fn a_malformed_delivery_is_refused_with_a_pointer_and_without_its_values() {
    let service = Service::start(&[]).await;
    let mut wrong = ann(7);
    wrong["version"] = json!("secret");
    let answer = service.post(&wrong).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert_eq!(answer.json()["errors"][0]["pointer"], "#/version");
    assert!(!answer.body.contains("secret"), "{answer:?}");

    let answer = service.send("{\"email\":\"ann@exam", &[]).await;
    assert_eq!(
        (answer.status, answer.json()["status"].clone()),
        (StatusCode::BAD_REQUEST, json!(400))
    );
    assert!(!answer.body.contains("ann@"), "{answer:?}");
}

#[tokio::test]
async fn an_oversized_body_is_refused() {
    let service = Service::start(&[]).await;
    let mut large = ann(7);
    large["data"] = json!("x".repeat(service::MAX_BODY));
    let answer = service.post(&large).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "{answer:?}");
    assert_eq!(answer.json()["status"], 413);
}

#[tokio::test]
async fn a_store_that_is_away_or_holds_the_value_elsewhere_says_so() {
    let service = Service::start(&[]).await;
    for (username, status) in [("unavailable", 503), ("conflict", 409)] {
        let mut body = ann(7);
        body["username"] = json!(username);
        let answer = service.post(&body).await;
        assert_eq!(answer.status.as_u16(), status, "{answer:?}");
        assert_eq!(
            answer.header("content-type"),
            Some("application/problem+json")
        );
    }
}

#[tokio::test]
async fn an_array_is_answered_user_by_user() {
    let service = Service::start(&[]).await;
    service.post(&ann(7)).await;
    let user = |id: u64, username: &str| json!({"task_id": format!("t:{id}:9"), "user_id": id, "version": 9, "username": username});
    let batch = json!([
        ann(6), user(1, "bob"), user(2, "conflict"), {"task_id": "t:3:9", "user_id": 3},
        user(4, "unavailable"), "nobody", user(5, "eve"),
    ]);
    let answer = service.post(&batch).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.header("x-sync-guard"), Some("version"));
    let answer = answer.json();
    let expected = [
        json!({"task_id": "t:42:6", "status": 200, "result": "already_newer"}),
        json!({"task_id": "t:1:9", "status": 200, "result": "stored"}),
        json!({"task_id": "t:2:9", "status": 409, "error": "another user holds the same username"}),
        json!({"task_id": "t:3:9", "status": 400, "error":
               "the request breaks the contract; see errors; #/version: must be an integer from 1 to 9007199254740991"}),
        json!({"task_id": "t:4:9", "status": 503, "error": "the store is unavailable; try again"}),
        json!({"status": 400, "error": "the request breaks the contract; see errors; #: must be a JSON object"}),
        json!({"task_id": "t:5:9", "status": 200, "result": "stored"}),
    ];
    assert_eq!(answer, json!(expected));
    assert_eq!(service.row("42").unwrap().version, 7);
    assert_eq!(service.row("5").unwrap().username.as_deref(), Some("eve"));
    assert!(service.row("3").is_none());

    assert_eq!(service.post(&json!([])).await.json(), json!([]));
}

#[tokio::test]
async fn an_array_is_verified_as_a_whole() {
    let service = Service::start(&[SECRET]).await;
    let batch = json!([ann(7)]).to_string();
    let answer = service.send(&batch, &sign(SECRET, now(), &batch)).await;
    assert_eq!(answer.json()[0]["result"], "stored");
    let answer = service.send(&batch, &sign(OLD_SECRET, now(), &batch)).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn disabling_touches_only_who_is_there() {
    let service = Service::start(&[]).await;
    let disable = |version| {
        json!({"task_id": format!("t:42:{version}"), "user_id": 42, "version": version, "action": "disable",
               "partial": true, "deleted": false, "data": {"status": "disabled"}})
    };
    service.post(&disable(6)).await;
    let row = service.row("42").unwrap();
    assert_eq!((row.deleted, row.version), (true, 6));
    service.post(&ann(7)).await;
    service.post(&disable(8)).await;
    let row = service.row("42").unwrap();
    assert_eq!((row.deleted, row.version), (false, 8));
    assert_eq!(row.data["status"], "disabled");
}
