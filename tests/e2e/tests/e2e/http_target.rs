//! The contract of an HTTP target: method, headers, body and signature of each call.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use anyhow::{Result, ensure};
use async_nats::HeaderMap;
use axum::response::IntoResponse as _;
use serde_json::{Value, json};
use standardwebhooks::Webhook;
use usersync_core::subjects::TARGETS_BUCKET;
use usersync_stack::{eventually, http};

use crate::support::{Bus, Call, Recorder, SOON, answer, only};

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const OTHER_TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// Tries again at once.
const QUICK: &str = "retry = { base = \"50ms\", factor = 1.0, cap = \"50ms\" }";

/// A target that takes everything.
async fn recorder() -> Result<Recorder> {
    Recorder::start(async |_| answer(200)).await
}

/// The first call a recorder gets about `user`.
async fn first_call(recorder: &Recorder, user: u64) -> Result<Call> {
    nth_call(recorder, user, 1).await
}

async fn nth_call(recorder: &Recorder, user: u64, n: usize) -> Result<Call> {
    eventually(SOON, async || {
        let calls = recorder.calls_for(user);
        ensure!(calls.len() >= n, "{} calls about user {user}", calls.len());
        Ok(calls[n - 1].clone())
    })
    .await
}

/// The names of the members of an object.
fn members(body: &Value) -> BTreeSet<&str> {
    let members = body.as_object().into_iter().flatten();
    members.map(|(name, _)| name.as_str()).collect()
}

fn ann() -> Value {
    json!({
        "user_id": 42, "username": "ann", "email": "ann@example.com", "source": "basic-server",
        "timestamp": "2026-01-31T12:00:00Z",
        "data": {"phone": "1", "password_hash": "h", "address": {"city": "Ulm", "street": "Hafengasse"}},
    })
}

#[tokio::test]
async fn a_call_keeps_the_contract() -> Result<()> {
    let recorder = recorder().await?;
    let stack = only(recorder.target("audit", "")).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", ann()).await?;

    let call = first_call(&recorder, 42).await?;
    let version = bus.state(42).await?["version"].clone();
    let task_id = format!("audit:42:{version}");
    let expected = json!({
        "task_id": task_id, "event_type": "user.created", "user_id": 42, "username": "ann",
        "email": "ann@example.com", "data": ann()["data"], "deleted": false, "version": version,
        "timestamp": "2026-01-31T12:00:00Z", "source": "basic-server",
    });
    assert_eq!(call.body, expected);
    assert_eq!(
        (call.method.as_str(), call.path.as_str()),
        ("POST", "/users")
    );
    for (name, value) in [
        ("content-type", "application/json"),
        ("x-sync-source", "user-sync-service"),
        ("x-sync-task-id", &task_id),
        ("x-sync-version", &version.to_string()),
        ("idempotency-key", &task_id),
    ] {
        assert_eq!(call.header(name), value, "{name}");
    }
    for name in [
        "traceparent",
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
    ] {
        assert_eq!(call.header(name), "", "{name} is only there when asked for");
    }
    Ok(())
}

#[tokio::test]
async fn members_a_user_does_not_have_are_null_and_ids_keep_their_type() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(204)).await?;
    let stack = only(recorder.target("audit", "")).start().await?;
    let bus = Bus::connect(&stack).await?;
    let event = json!({"user_id": "a-B_9", "email": "b@example.com"});
    bus.publish("user.created", event).await?;

    bus.until_settled("audit").await?;
    let [call] = recorder.calls().try_into().unwrap();
    assert_eq!(call.body["user_id"], "a-B_9");
    assert_eq!(call.body["email"], "b@example.com");
    for name in ["username", "data", "source"] {
        assert_eq!(call.body.get(name), Some(&Value::Null), "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn the_trace_context_of_the_publisher_is_passed_through() -> Result<()> {
    let recorder = recorder().await?;
    let stack = only(recorder.target("audit", "")).start().await?;
    let bus = Bus::connect(&stack).await?;

    let mut headers = HeaderMap::new();
    headers.insert("traceparent", TRACE);
    bus.publish_with("user.created", headers, json!({"user_id": 1}))
        .await?;
    let response = http::client()
        .post(format!("{}/v1/events", stack.gateway().url()))
        .header("traceparent", OTHER_TRACE)
        .json(&json!({"type": "user.created", "user_id": 2}))
        .send()
        .await?;
    assert_eq!(response.status(), 202);

    assert_eq!(first_call(&recorder, 1).await?.header("traceparent"), TRACE);
    assert_eq!(
        first_call(&recorder, 2).await?.header("traceparent"),
        OTHER_TRACE
    );
    Ok(())
}

#[tokio::test]
async fn calls_are_signed_and_carry_the_configured_headers() -> Result<()> {
    let recorder = recorder().await?;
    let settings = "secret = \"env:USERSYNC_TARGET_AUDIT_SECRET\"\nmethod = \"PUT\"\n\
        headers = { x-tenant = \"acme\", authorization = \"env:USERSYNC_TARGET_AUDIT_BEARER\" }";
    let stack = only(recorder.target("audit", settings))
        .env("USERSYNC_TARGET_AUDIT_SECRET", SECRET)
        .env("USERSYNC_TARGET_AUDIT_BEARER", "Bearer t")
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", ann()).await?;

    let call = first_call(&recorder, 42).await?;
    // The crate of the specification checks all three headers, and the age.
    Webhook::new(SECRET)?.verify(&call.raw, &call.headers)?;
    assert_eq!(call.header("webhook-id"), call.header("x-sync-task-id"));
    let another = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    assert!(
        Webhook::new(another)?
            .verify(&call.raw, &call.headers)
            .is_err()
    );
    assert_eq!(call.method, "PUT");
    assert_eq!(call.header("x-tenant"), "acme");
    assert_eq!(call.header("authorization"), "Bearer t");
    let stored = bus.kv_get(TARGETS_BUCKET, "audit").await?;
    let stored = stored.unwrap_or_default();
    assert_eq!(
        stored["headers"]["authorization"],
        "env:USERSYNC_TARGET_AUDIT_BEARER"
    );
    assert_eq!(stored["headers"]["x-tenant"], "acme");
    assert_eq!(call.header("content-type"), "application/json");
    Ok(())
}

#[tokio::test]
async fn a_redelivery_is_the_same_task() -> Result<()> {
    let calls = AtomicUsize::new(0);
    let recorder = Recorder::start(move |_| {
        let first = calls.fetch_add(1, SeqCst) == 0;
        async move { answer(if first { 503 } else { 200 }) }
    })
    .await?;
    let settings = format!("secret = \"env:USERSYNC_TARGET_AUDIT_SECRET\"\n{QUICK}");
    let stack = only(recorder.target("audit", &settings))
        .env("USERSYNC_TARGET_AUDIT_SECRET", SECRET)
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", ann()).await?;

    let again = nth_call(&recorder, 42, 2).await?;
    let first = first_call(&recorder, 42).await?;
    assert_eq!(first.raw, again.raw);
    for name in [
        "x-sync-task-id",
        "idempotency-key",
        "x-sync-version",
        "webhook-id",
    ] {
        assert!(!first.header(name).is_empty());
        assert_eq!(first.header(name), again.header(name), "{name}");
    }
    Webhook::new(SECRET)?.verify(&again.raw, &again.headers)?;
    Ok(())
}

#[tokio::test]
async fn excluded_members_are_absent_and_not_null() -> Result<()> {
    let (some, rest) = (recorder().await?, recorder().await?);
    let include = "fields = { include = [\"email\", \"data.address.city\"] }";
    let exclude =
        "fields = { exclude = [\"email\", \"data.password_hash\", \"data.address.street\"] }";
    let catalogue = some.target("some", include) + &rest.target("rest", exclude);
    let stack = only(catalogue).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", ann()).await?;

    let body = first_call(&some, 42).await?.body;
    assert_eq!(body["email"], "ann@example.com");
    assert_eq!(body["data"], json!({"address": {"city": "Ulm"}}));
    assert!(!members(&body).contains("username"), "{body}");
    let body = first_call(&rest, 42).await?.body;
    assert_eq!(body["username"], "ann");
    assert_eq!(
        body["data"],
        json!({"phone": "1", "address": {"city": "Ulm"}})
    );
    assert!(!members(&body).contains("email"), "{body}");
    Ok(())
}

#[tokio::test]
async fn of_a_user_nobody_created_only_the_known_members_are_told() -> Result<()> {
    let recorder = recorder().await?;
    let stack = only(recorder.target("audit", "")).start().await?;
    let bus = Bus::connect(&stack).await?;
    let event = json!({"user_id": 7, "email": "g@example.com"});
    bus.publish("user.updated", event).await?;

    let body = first_call(&recorder, 7).await?.body;
    let told = [
        "task_id",
        "event_type",
        "user_id",
        "email",
        "deleted",
        "partial",
        "version",
        "timestamp",
        "source",
    ];
    assert_eq!(members(&body), BTreeSet::from(told));
    assert_eq!(
        (&body["partial"], &body["email"]),
        (&json!(true), &json!("g@example.com"))
    );
    Ok(())
}

#[tokio::test]
async fn of_a_deleted_user_nothing_personal_is_told() -> Result<()> {
    let recorder = recorder().await?;
    let stack = only(recorder.target("audit", "")).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", ann()).await?;
    first_call(&recorder, 42).await?;
    bus.publish("user.deleted", json!({"user_id": 42, "username": "ann"}))
        .await?;

    let call = nth_call(&recorder, 42, 2).await?;
    assert_eq!(call.method, "POST");
    assert_eq!(
        (&call.body["deleted"], &call.body["event_type"]),
        (&json!(true), &json!("user.deleted"))
    );
    let text = String::from_utf8_lossy(&call.raw);
    for personal in ["ann", "example.com", "Ulm", "phone"] {
        assert!(!text.contains(personal), "{personal} in {text}");
    }
    Ok(())
}

#[tokio::test]
async fn a_redirect_is_refused_for_good_and_never_followed() -> Result<()> {
    let elsewhere = recorder().await?;
    let location = elsewhere.url();
    let recorder = Recorder::start(move |_| {
        let location = location.clone();
        async move { (axum::http::StatusCode::FOUND, [("location", location)]).into_response() }
    })
    .await?;
    let stack = only(recorder.target("audit", QUICK)).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", ann()).await?;

    bus.until_settled("audit").await?;
    assert_eq!(recorder.arrived(), 1);
    assert_eq!(elsewhere.arrived(), 0);
    let letter = bus.dead_letter("audit", 42).await?.unwrap();
    assert_eq!(letter.header("Usersync-Class"), "permanent");
    assert_eq!(letter.header("Usersync-Status-Code"), "302");
    Ok(())
}
