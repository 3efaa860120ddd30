//! docs/CLI.md: every command in it does what it says, from top to bottom.

use std::{io::Write as _, path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use usersync_core::subjects::BREAKERS_BUCKET;
use usersync_stack::{Stack, eventually, tools};

use crate::support::{Bus, SOON};

const DOC: &str = include_str!("../../../../../docs/CLI.md");
/// Of a letter that no delivery clears, so that there is one whenever it is looked for.
const FAR_FUTURE: u64 = 9_000_000_000_000_000;
/// For commands that run until they are stopped.
const A_MOMENT: Duration = Duration::from_secs(2);

/// What the page takes for granted: a dead letter of user 42, a refused event, an open breaker.
async fn stack() -> Result<Stack> {
    let stack = Stack::builder()
        .examples(false)
        .schedulers(1)
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    let letter = json!({
        "target": "redis-cache", "user_id": 42, "version": FAR_FUTURE, "attempts": 9,
        "class": "transient", "reason": "ran out of deliveries",
    });
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Usersync-Class", "transient");
    headers.insert("Usersync-Reason", "ran out of deliveries");
    headers.insert("Usersync-Version", FAR_FUTURE.to_string());
    let sent = bus.jetstream().publish_with_headers(
        "user.dead.redis-cache.42",
        headers,
        letter.to_string().into(),
    );
    sent.await?.await?;
    bus.publish("user.created", json!({"user_id": "not one"}))
        .await?;
    bus.until_taken_in().await?;
    let open = r#"{"state":"open","since":"2026-01-01T00:00:00Z","reason":"no connection"}"#;
    bus.kv_put(BREAKERS_BUCKET, "redis-cache.w1", open).await?;
    Ok(stack)
}

#[tokio::test]
async fn every_command_of_the_page_does_what_it_says() -> Result<()> {
    let stack = stack().await?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/cli.py");
    let mut python = tools::python();
    python.arg(script).arg(stack.nats.url_as("operator")?);
    python
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = python.spawn().context("python3 can't be run")?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    stdin.write_all(DOC.as_bytes())?;
    drop(stdin);
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await??;
    let problem = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{problem}");
    let answers: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    ensure!(answers.len() > 60, "only {} commands", answers.len());

    // The answer to the first command that contains `part`.
    let answer = |part: &str| {
        let mut found = answers.iter();
        let found = found.find(|answer| {
            answer["line"]
                .as_str()
                .is_some_and(|line| line.contains(part))
        });
        found.map_or_else(
            || panic!("no command with {part}"),
            |found| &found["answer"],
        )
    };
    let services = answer("micro ls").to_string();
    assert!(
        services.contains("\"usersync\"") && services.contains("\"usersync-worker\""),
        "{services}"
    );
    let endpoints = answer("micro info usersync")[0]["endpoints"]
        .as_array()
        .map(Vec::len);
    assert_eq!(endpoints, Some(34));
    for part in ["users.show", "last-for user.state.42"] {
        let data = &answer(part)["data"];
        assert_eq!(data, &json!({"phone": "555", "city": "Ulm"}), "{part}");
    }
    let task = &answer("users.targets")["targets"][0];
    assert_eq!(
        (&task["target"], &task["status"]),
        (&json!("redis-cache"), &json!("dead"))
    );
    let expectations = [
        ("usersync.status", "/targets/0/breaker", json!("open")),
        ("targets.list", "/targets/0/name", json!("redis-cache")),
        ("targets.schema", "/required", json!(["url"])),
        ("/audit\"},\"dry_run\":true", "/dry_run", json!(true)),
        (
            "targets.put '{\"name\":\"audit\",\"entry\":{\"url\":\"http://localhost:9/audit\"}}'",
            "/created",
            json!(true),
        ),
        ("kv get user_targets audit", "/concurrency", json!(4)),
        ("kv history user_targets audit", "", json!(2)),
        ("targets.show", "/enabled", json!(false)),
        ("targets.test", "/reachable", json!(true)),
        ("targets.pause", "/entry/note", json!("being moved")),
        ("targets.resume", "/entry/enabled", json!(true)),
        (
            "targets.preview '{\"name\":\"redis-cache\",\"user_id\":42}'",
            "/members/username",
            json!("ann"),
        ),
        (
            "\"exclude\":[\"username\"]",
            "/members/username",
            Value::Null,
        ),
        (
            "users.erase '{\"user_id\":41,\"dry_run\"",
            "/erasure/events",
            json!(1),
        ),
        (
            "users.erase '{\"user_id\":41}'",
            "/erasure/events",
            json!(1),
        ),
        ("consumer info USER_STATE", "/name", json!("redis-cache")),
        ("consumer pause", "/paused", json!(true)),
        ("consumer resume", "/paused", json!(false)),
        (
            "dead.list '{\"target\"",
            "/dead_letters/0/user_id",
            json!(42),
        ),
        (
            "\"reason\":\"ran out\"",
            "/dead_letters/0/class",
            json!("transient"),
        ),
        ("dead.show", "/attempts", json!(9)),
        ("last-for user.dead", "/version", json!(FAR_FUTURE)),
        (
            "dead.replay '{\"target\":\"redis-cache\",\"dry_run\":true}'",
            "/matched",
            json!(1),
        ),
        (
            "dead.replay '{\"target\":\"redis-cache\",\"user_id\":42}'",
            "/published",
            json!(1),
        ),
        ("dead.replay '{\"class\"", "/job/state", json!("done")),
        ("dead.replay '{\"all\":true}'", "/published", json!(1)),
        (
            "dead.discard '{\"all\":true,\"dry_run\":true}'",
            "/matched",
            json!(1),
        ),
        ("dead.discard '{\"target\"", "/matched", json!(1)),
        ("refused.show", "/pointer", json!("/user_id")),
        ("refused.discard '{\"seq\"", "/matched", json!(1)),
        ("\"user_ids\"", "/published", json!(2)),
        (
            "repair.start '{\"target\":\"redis-cache\",\"all\":true,\"dry_run\":true}'",
            "/matched",
            json!(2),
        ),
        ("repair.status", "/state", json!("done")),
        ("kv get user_jobs", "/state", json!("done")),
        ("repair.cancel", "/state", json!("done")),
        (
            "usersync.check '{\"target\":\"redis-cache\",\"dry_run\"",
            "/target",
            json!("redis-cache"),
        ),
        ("check.show", "/against", json!("states")),
        // Of which target is open: the check of the gateway may have ended, too, and comes first then.
        ("check.list", "/checks/0/against", json!("states")),
        ("last-for user.check.result", "/found", json!({})),
        ("check.pause", "/paused", json!(true)),
        ("check.resume", "/paused", json!(false)),
        ("breakers.list '{}'", "/breakers/0/worker", json!("w1")),
        (
            "breakers.reset '{\"target\":\"redis-cache\"}'",
            "/matched",
            json!(1),
        ),
        ("\"worker\":", "/matched", json!(1)),
        (
            "nats sub 'user.result.>'",
            "",
            json!("user.result.redis-cache"),
        ),
        (
            "\"consumers\":\"delete\"",
            "/consumers_deleted",
            json!(true),
        ),
    ];
    for (part, pointer, expected) in expectations {
        let found = answer(part);
        let member = found.pointer(pointer).unwrap_or(&Value::Null);
        assert_eq!(member, &expected, "{part}: {found}");
    }
    Ok(())
}

/// The page's commands as they are.
#[tokio::test]
async fn the_cli_itself_understands_every_command() -> Result<()> {
    let cli = tools::nats_cli();
    if tools::is_left_out("nats", &cli)? {
        return Ok(());
    }
    let path = tools::path_with(&cli?);
    let stack = stack().await?;
    let mut known = vec![("WORKER", "w1".to_owned()), ("SEQ", "1".to_owned())];
    let blocks = DOC.split("```sh\n").skip(1);
    let blocks = blocks.filter_map(|block| block.split("```").next());
    for line in blocks.flat_map(str::lines) {
        let mut command = line.to_owned();
        for (name, value) in &known {
            command = command.replace(name, value);
        }
        let endless = line.starts_with("nats sub") || line.contains(" watch ");
        let mut shell = tokio::process::Command::new("sh");
        shell.args(["-c", &format!("exec {command}")]);
        shell
            .env("NATS_URL", stack.nats.url_as("operator")?)
            .env("PATH", &path)
            .kill_on_drop(true);
        let ended =
            tokio::time::timeout(if endless { A_MOMENT } else { SOON }, shell.output()).await;
        match ended {
            Err(_) => ensure!(endless, "{line} does not end"),
            Ok(output) => {
                let output = output?;
                let told = String::from_utf8_lossy(&output.stdout);
                let problem = String::from_utf8_lossy(&output.stderr);
                ensure!(output.status.success(), "{line}: {told}{problem}");
                if let Some((_, job)) = told.split_once("\"job\":{\"id\":\"") {
                    let job = job.split('"').next().unwrap_or_default();
                    known.retain(|(name, _)| *name != "JOB");
                    known.push(("JOB", job.to_owned()));
                }
            }
        }
        if line.starts_with("nats pub user.created") {
            // Typed by hand, the next command comes later.
            let bus = Bus::connect(&stack).await?;
            eventually(SOON, async || bus.until_taken_in().await).await?;
        }
    }
    Ok(())
}
