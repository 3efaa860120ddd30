//! Which secrets an entry may name: those that somebody granted to targets, and never one of the process.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::watch;
use usersync_core::subjects::TARGETS_BUCKET;
use usersync_stack::{Directory, eventually};

use crate::{
    readiness::Asked,
    support::{Api, Bus, Recorder, SOON, answer, only},
};

/// Everything that an entry can name a secret by.
fn entries(url: &str, reference: &str) -> [(&'static str, Value); 6] {
    let with = |more: Value| {
        let mut entry = json!({"url": url});
        let members = entry.as_object_mut().expect("an object");
        members.extend(more.as_object().expect("an object").clone());
        entry
    };
    let token_url = "http://127.0.0.1:1/token";
    [
        (
            "headers.X-Note",
            with(json!({"headers": {"X-Note": reference}})),
        ),
        ("secret", with(json!({"secret": reference}))),
        ("auth.bearer", with(json!({"auth": {"bearer": reference}}))),
        (
            "auth.basic.password",
            with(json!({"auth": {"basic": {"user": "u", "password": reference}}})),
        ),
        (
            "auth.oauth2.client_secret",
            with(json!({"auth": {"oauth2": {
                "token_url": token_url, "client_id": "c", "client_secret": reference}}})),
        ),
        (
            "fields.mask_key",
            with(json!({"fields": {"mask": {"email": "hash"}, "mask_key": reference}})),
        ),
    ]
}

#[tokio::test]
async fn a_connection_test_tells_a_target_nothing_that_it_was_not_granted() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let stack = only("").start().await?;
    let api = Api::of(&stack).await?;
    let own = format!("file:{}", stack.nats.password_file("gateway").display());
    for (reference, told) in [
        (own.as_str(), "a secret of this process"),
        ("env:PATH", "is not granted to targets"),
        ("file:/etc/passwd", "is not granted to targets"),
        ("file:/dev/zero", "is not granted to targets"),
        ("file:/nonexistent/it", "is not granted to targets"),
    ] {
        for (key, entry) in entries(&recorder.url(), reference) {
            // Whether it is there is nobody's to know.
            let dry = api.put("/v1/targets/t?dry_run=true", &[], entry.clone());
            let dry = dry.await?;
            let warning = dry.body["warnings"][0].as_str().unwrap_or_default();
            ensure!(
                dry.status == 200 && warning.starts_with(key) && warning.contains(told),
                "{reference}: {dry:?}"
            );
            if key == "fields.mask_key" {
                continue;
            }
            let tested = api.put("/v1/targets/t?test=true", &[], entry).await?;
            ensure!(
                tested.status == 422 && tested.detail().contains(told),
                "{reference}, {key}: {tested:?}"
            );
        }
    }
    // A preview hashes with the key, and who knows what was hashed could try keys.
    let entry = entries(&recorder.url(), &own)[5].1.clone();
    let asked = json!({"entry": entry, "user": {"user_id": 1, "email": "ann@example.com"}});
    let path = "/v1/targets/t/preview";
    let preview = api.call(Method::POST, path, &[], Some(asked)).await?;
    ensure!(
        preview.status == 422 && preview.detail().contains("a secret of this process"),
        "{preview:?}"
    );
    let calls = recorder.calls();
    ensure!(calls.is_empty(), "{} calls", calls.len());
    Ok(())
}

#[tokio::test]
async fn an_entry_that_names_what_it_was_not_granted_fails_alone() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let other = Recorder::start(async |_| answer(200)).await?;
    let targets = format!(
        "{}\n{}",
        recorder.target("greedy", ""),
        other.target("good", "")
    );
    let stack = only(&targets).start().await?;
    let bus = Bus::connect(&stack).await?;
    let worker = &stack.workers["greedy"][0];
    let own = format!("file:{}", stack.nats.password_file("worker").display());
    let began = Timestamp::now();
    let [(_, entry), ..] = entries(&recorder.url(), &own);
    bus.kv_put(TARGETS_BUCKET, "greedy", &entry.to_string())
        .await?;
    let asked = Asked::of(worker);
    asked
        .until_wrong(503, "greedy", "a secret of this process", began)
        .await?;
    bus.publish("user.created", json!({"user_id": 7})).await?;
    eventually(SOON, async || {
        ensure!(other.calls_for(7).len() == 1, "the other isn't told");
        Ok(())
    })
    .await?;
    ensure!(recorder.calls().is_empty(), "something was sent");

    let plain = json!({"url": recorder.url(), "allow_networks": ["loopback"]});
    bus.kv_put(TARGETS_BUCKET, "greedy", &plain.to_string())
        .await?;
    let call = eventually(SOON, async || {
        let calls = recorder.calls_for(7);
        calls.into_iter().next().context("no call yet")
    });
    let call = call.await?;
    ensure!(call.header("x-note").is_empty(), "{:?}", call.headers);
    asked.until_well().await
}

/// The target takes another token than before, then the file has it: nobody restarts anything.
#[tokio::test]
async fn a_secret_that_is_rotated_in_its_file_is_taken_while_the_breaker_is_open() -> Result<()> {
    let dir = Directory::temporary()?;
    let file = dir.path().join("token");
    fs::write(&file, "old-token")?;
    let (accepted, accepts) = watch::channel("Bearer old-token");
    let recorder = Recorder::start(move |call| {
        let known = call.header("authorization") == *accepts.borrow();
        async move { answer(if known { 200 } else { 401 }) }
    })
    .await?;
    let more = format!(
        "auth = {{ bearer = \"file:{}\" }}\nbreaker = {{ probe = \"100ms\", probe_cap = \"200ms\" }}\n",
        file.display()
    );
    let stack = only(recorder.target("t", &more)).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", json!({"user_id": 1, "username": "one"}))
        .await?;
    bus.until_settled("t").await?;

    accepted.send_replace("Bearer new-token");
    let began = Timestamp::now();
    bus.publish("user.updated", json!({"user_id": 1, "username": "two"}))
        .await?;
    let worker = Asked::of(&stack.workers["t"][0]);
    worker
        .until_wrong(200, "t", "nothing is delivered", began)
        .await?;
    // As Kubernetes replaces it.
    fs::write(dir.path().join("next"), "new-token")?;
    fs::rename(dir.path().join("next"), &file)?;
    worker.until_well().await?;
    bus.until_settled("t").await?;
    ensure!(recorder.holds(1)["username"] == "two");
    Ok(())
}
