//! Questions about all users over real HTTP: who may ask, what is answered, and what it tells.

#![allow(clippy::unwrap_used, reason = "a test fails where its set-up fails")]
#[allow(dead_code, reason = "deliveries need more of it")]
mod service;

use axum::http::StatusCode;
use serde_json::{Value, json};
use service::{Answer, Service, now, sign};
use usersync_digest::{Cut, Digest, Key, Keys, document, http::Digests};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OLD_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
/// One bucket for everybody.
const ALL: Cut = Cut {
    keys: Keys::Hashes,
    shift: 32,
};

fn everybody() -> Value {
    json!({"shift": 32, "buckets": [[0, 1]], "fields": ["username", "email", "data"]})
}

/// Ann as 42, Ben as aB, and Cat, who is deleted.
async fn service(secrets: &[&str]) -> Service {
    let service = Service::checked(secrets).await;
    let users = json!([
        {"task_id": "1", "user_id": 42, "version": 1, "username": "ann", "email": null, "data": {"b": 1.0, "a": null}},
        {"task_id": "2", "user_id": "aB", "version": 1, "username": "ben", "email": "b@x", "data": null},
        {"task_id": "3", "user_id": "cat", "version": 1, "deleted": true, "username": null, "data": null},
    ]);
    let body = users.to_string();
    let headers = secrets.first().map(|secret| sign(secret, now(), &body));
    let answer = service.send(&body, &headers.unwrap_or_default()).await;
    assert_eq!(answer.status, StatusCode::OK);
    service
}

async fn ask(service: &Service, what: &str, question: &Value, secret: &str) -> Answer {
    let body = question.to_string();
    service.call(what, &body, &sign(secret, now(), &body)).await
}

fn ann() -> Value {
    json!({"username": "ann", "data": {"b": 1}})
}

fn ben() -> Value {
    json!({"username": "ben", "email": "b@x"})
}

fn hash(id: &str, user: &Value, secret: &str) -> usersync_digest::RowHash {
    let document = document(id, user.as_object().unwrap().clone());
    document.keyed(&Key::of_webhook(secret).unwrap())
}

#[tokio::test]
async fn the_digest_is_of_everybody_who_is_there_and_tells_nothing_else() {
    let service = service(&[SECRET, OLD_SECRET]).await;
    for secret in [SECRET, OLD_SECRET] {
        let answer = ask(&service, "/digest", &everybody(), secret).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        assert!(!answer.body.contains("ann") && !answer.body.contains("42,"));
        let mut expected = Digest::default();
        expected.add(hash("42", &ann(), secret));
        expected.add(hash("aB", &ben(), secret));
        let digests: Digests = serde_json::from_value(answer.json()).unwrap();
        assert_eq!(digests.read(), Some(vec![(0, expected)]));
    }
}

#[tokio::test]
async fn a_list_names_those_in_the_buckets_with_their_hashes() {
    let service = service(&[SECRET]).await;
    let answer = ask(&service, "/list", &everybody(), SECRET).await.json();
    let listed = |id: &str, user| {
        let hash = u128::from_be_bytes(hash(id, &user, SECRET).0);
        json!([id, format!("{hash:032x}")])
    };
    assert_eq!(
        answer,
        json!({"users": [listed("42", ann()), listed("aB", ben())]})
    );

    let cut = Cut { shift: 18, ..ALL };
    let bucket = cut.bucket("aB").unwrap();
    let question = json!({"shift": 18, "buckets": [[bucket, bucket + 1]], "fields": ["email"]});
    let answer = ask(&service, "/list", &question, SECRET).await.json();
    assert_eq!(
        answer,
        json!({"users": [listed("aB", json!({"email": "b@x"}))]})
    );
}

#[tokio::test]
async fn whoever_does_not_sign_learns_nothing() {
    let body = everybody().to_string();
    let service = service(&[SECRET]).await;
    for what in ["/digest", "/list"] {
        let unsigned = service.call(what, &body, &[]).await;
        assert_eq!(unsigned.status, StatusCode::UNAUTHORIZED);
        let other = ask(&service, what, &everybody(), OLD_SECRET).await;
        assert_eq!(other.status, StatusCode::UNAUTHORIZED);
        let late = service
            .call(what, &body, &sign(SECRET, now() - 3_600, &body))
            .await;
        assert_eq!(late.status, StatusCode::UNAUTHORIZED);
    }
    // Without a secret everybody could ask, and guess.
    let open = self::service(&[]).await;
    let answer = open.call("/digest", &body, &[]).await;
    assert_eq!(answer.status, StatusCode::NOT_IMPLEMENTED);
}

#[tokio::test]
async fn a_question_that_breaks_the_contract_is_refused() {
    let service = service(&[SECRET]).await;
    for question in [
        json!({}),
        json!({"shift": 33, "buckets": [], "fields": []}),
        json!({"shift": 0, "buckets": [[0, 16385]], "fields": []}),
        json!({"shift": 18, "buckets": [[5, 6], [1, 2]], "fields": []}),
        json!({"shift": 18, "buckets": [[-1, 2]], "fields": []}),
        json!({"shift": 32, "buckets": [[0, 1]], "fields": ["password"]}),
    ] {
        for what in ["/digest", "/list"] {
            let answer = ask(&service, what, &question, SECRET).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{what} {question}");
        }
    }
}

#[tokio::test]
async fn a_store_that_can_not_be_read_is_no_empty_store() {
    let body = everybody().to_string();
    let without = Service::start(&[SECRET]).await;
    let answer = ask(&without, "/digest", &everybody(), SECRET).await;
    assert_eq!(answer.status, StatusCode::NOT_IMPLEMENTED);

    let service = service(&[SECRET]).await;
    let user = json!({"task_id": "4", "user_id": "unreadable", "version": 1}).to_string();
    service.send(&user, &sign(SECRET, now(), &user)).await;
    // One after the other: the turn is given back after a failure too.
    for what in ["/digest", "/list"] {
        let answer = service.call(what, &body, &sign(SECRET, now(), &body)).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(!answer.body.contains("no disk") && answer.body.contains("try again"));
    }
}
