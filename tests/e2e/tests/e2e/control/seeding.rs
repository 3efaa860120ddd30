//! Catalogue files and KV: who leads when.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::TryStreamExt as _;
use serde_json::{Value, json};
use usersync_core::subjects::{TARGETS_BUCKET, USER_STATE};
use usersync_stack::{Launch, Service, Stack, eventually, free_port, tools};

use crate::support::{Api, Bus, SOON, only};

fn write(stack: &Stack, text: &str) -> Result<()> {
    Ok(std::fs::write(
        stack.catalogue().join("50-stack.toml"),
        text,
    )?)
}

fn entry(n: u32) -> String {
    format!("[t]\nurl = \"http://127.0.0.1:1/{n}\"\n")
}

/// The path of the entry's URL; null when there is no entry.
async fn path(bus: &Bus) -> Result<Value> {
    let entry = bus.kv_get(TARGETS_BUCKET, "t").await?;
    let url = entry.and_then(|entry| entry["url"].as_str().map(str::to_owned));
    Ok(url.map_or(Value::Null, |url| {
        url.replace("http://127.0.0.1:1", "").into()
    }))
}

async fn until_path(bus: &Bus, expected: Value) -> Result<()> {
    eventually(SOON, async || {
        let found = path(bus).await?;
        ensure!(found == expected, "{found} instead of {expected}");
        Ok(())
    })
    .await
}

async fn stack(gateways: usize) -> Result<(Stack, Bus)> {
    let stack = only(entry(1))
        .workers("t", 0)
        .gateways(gateways)
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    Ok((stack, bus))
}

/// A gateway that somebody starts with other arguments, or before its volume is mounted.
#[tokio::test]
async fn a_gateway_without_targets_of_its_own_touches_none() -> Result<()> {
    // The three that the repository has are switched off in its files.
    let (stack, bus) = stack(1).await?;
    let names = ["t", "redis-cache", "unified-auth", "user-service"];
    let held = async || {
        let mut held = Vec::new();
        for name in names {
            held.push(bus.kv_get(TARGETS_BUCKET, name).await?);
        }
        anyhow::Ok(held)
    };
    let before = held().await?;
    ensure!(before[0].is_some() && before[1].is_some(), "{before:?}");
    let empty = stack.dir().join("volume");
    std::fs::create_dir(&empty)?;
    let empty = empty.to_string_lossy().into_owned();
    for (log, args) in [("bare", vec![]), ("unmounted", vec!["--targets", &empty])] {
        let listen = format!("127.0.0.1:{}", free_port()?);
        let program = tools::binary("usersync-gateway", tools::Profile::own())?;
        let launch = Launch::new(log, program, stack.dir().join(log))
            .nats(&stack.nats, "gateway")
            .args(["--listen", &listen])
            .args(args);
        let gateway = Service::spawn(launch, format!("http://{listen}"))?;
        gateway.until_ready().await?;
        let after = held().await?;
        ensure!(after == before, "{log}: {after:?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_entry_follows_its_file_live_and_over_restarts() -> Result<()> {
    let (mut stack, bus) = stack(1).await?;
    assert_eq!(path(&bus).await?, "/1");
    write(&stack, &entry(2))?;
    until_path(&bus, json!("/2")).await?;
    stack.gateway().kill9().await;
    write(
        &stack,
        &(entry(3) + "[later]\nurl = \"http://127.0.0.1:1/x\"\n"),
    )?;
    stack.gateways[0].restart().await?;
    assert_eq!(path(&bus).await?, "/3");
    assert!(bus.has_consumer(USER_STATE, "later").await?);
    write(&stack, "")?;
    until_path(&bus, Value::Null).await?;
    assert!(
        bus.has_consumer(USER_STATE, "t").await?,
        "it remembers how far it is"
    );
    write(&stack, &entry(4))?;
    until_path(&bus, json!("/4")).await
}

#[tokio::test]
async fn what_an_operator_has_changed_stays_until_the_file_is_edited() -> Result<()> {
    let (mut stack, bus) = stack(1).await?;
    bus.kv_put(TARGETS_BUCKET, "t", r#"{"url":"http://127.0.0.1:1/mine"}"#)
        .await?;
    let list = Api::of(&stack).await?.get("/v1/targets").await?;
    assert_eq!(list["files"]["differing"], json!(["t"]));
    stack.gateway().kill9().await;
    write(&stack, &entry(2))?;
    stack.gateways[0].restart().await?;
    assert_eq!(path(&bus).await?, "/mine");
    let log = stack.gateway().process().log_tail();
    assert!(log.contains("differs from its file"), "{log}");
    let api = Api::of(&stack).await?;
    let list = api.get("/v1/targets").await?;
    assert_eq!(list["files"]["differing"], json!(["t"]));

    write(&stack, &entry(3))?;
    until_path(&bus, json!("/3")).await?;
    assert_eq!(api.target("t").await?["from_file"], true);
    let differing = async || {
        let list = api.get("/v1/targets").await?;
        ensure!(list["files"]["differing"] == json!([]), "{list}");
        Ok(())
    };
    eventually(SOON, differing).await
}

#[tokio::test]
async fn a_deleted_entry_stays_deleted_until_its_file_is_edited() -> Result<()> {
    let (mut stack, bus) = stack(1).await?;
    bus.kv_delete(TARGETS_BUCKET, "t").await?;
    stack.gateways[0].restart().await?;
    assert_eq!(path(&bus).await?, Value::Null);
    write(&stack, &entry(2))?;
    until_path(&bus, json!("/2")).await
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_is_shown() -> Result<()> {
    let (stack, bus) = stack(1).await?;
    let api = Api::of(&stack).await?;
    write(
        &stack,
        &(entry(2) + "[u]\nurl = \"http://h/\"\ntimeout = \"soon\"\n"),
    )?;
    let problem = eventually(SOON, async || {
        let list = api.get("/v1/targets").await?;
        let problem = list["files"]["problem"].as_str();
        ensure!(problem.is_some(), "{list}");
        Ok(problem.unwrap_or_default().to_owned())
    })
    .await?;
    assert!(
        problem.contains("u.timeout: expected a duration"),
        "{problem}"
    );
    assert_eq!(path(&bus).await?, "/1");
    // What only its kind knows, and its rule.
    for (wrong, told) in [
        ("method = \"SET\"", "u.method:"),
        ("filter = \"user.\"", "u.filter"),
    ] {
        write(
            &stack,
            &format!("{}[u]\nurl = \"http://h/\"\n{wrong}\n", entry(2)),
        )?;
        eventually(SOON, async || {
            let list = api.get("/v1/targets").await?;
            let problem = list["files"]["problem"].as_str().unwrap_or_default();
            ensure!(problem.contains(told), "{problem}");
            Ok(())
        })
        .await?;
    }
    assert_eq!(path(&bus).await?, "/1");
    for file in std::fs::read_dir(stack.catalogue())? {
        std::fs::remove_file(file?.path())?;
    }
    eventually(SOON, async || {
        let list = api.get("/v1/targets").await?;
        let problem = list["files"]["problem"].as_str().unwrap_or_default();
        ensure!(problem.contains("no entries at all"), "{problem}");
        Ok(())
    })
    .await?;
    assert_eq!(path(&bus).await?, "/1");
    write(&stack, &entry(3))?;
    until_path(&bus, json!("/3")).await?;
    let list = api.get("/v1/targets").await?;
    assert_eq!(list["files"]["problem"], Value::Null);
    Ok(())
}

#[tokio::test]
async fn a_file_that_is_being_written_removes_nothing() -> Result<()> {
    let (stack, bus) = stack(1).await?;
    // Valid at every moment, and the target that is there comes last; longer than between two looks.
    let mut text = String::new();
    let mut lines = tokio::time::interval(Duration::from_millis(100));
    for n in 1..=20 {
        lines.tick().await;
        text += &format!("[other-{n}]\nurl = \"http://127.0.0.1:1/x\"\n");
        write(&stack, &text)?;
    }
    write(&stack, &(entry(2) + &text))?;
    until_path(&bus, json!("/2")).await?;
    let stream = bus.jetstream().get_stream("KV_user_targets").await?;
    let subjects = stream.info_with_subjects("$KV.user_targets.t").await?;
    let counts: Vec<(String, usize)> = subjects.try_collect().await?;
    assert_eq!(
        counts,
        [("$KV.user_targets.t".to_owned(), 2)],
        "it was removed in between"
    );
    Ok(())
}

/// Waits until every gateway has read files with so many targets (and `redis-cache`), and dealt with them.
async fn until_all_have_read(stack: &Stack, targets: usize) -> Result<()> {
    for gateway in &stack.gateways {
        let api = Api::at(stack, gateway).await?;
        eventually(SOON, async || {
            let files = api.get("/v1/targets").await?["files"].clone();
            ensure!(
                files["targets"] == targets + 1 && files["waiting"] == 0,
                "{files}"
            );
            Ok(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn several_gateways_write_each_change_once_and_no_late_one_undoes_another() -> Result<()> {
    let (stack, bus) = stack(3).await?;
    let mut others = String::new();
    for n in 2..=4 {
        others += &format!("[other-{n}]\nurl = \"http://127.0.0.1:1/x\"\n");
        write(&stack, &(entry(n) + &others))?;
        until_all_have_read(&stack, n as usize).await?;
        assert_eq!(path(&bus).await?, format!("/{n}"));
    }
    // An operator speaks last: a gateway that sees the edit late doesn't undo it.
    others += "[last]\nurl = \"http://127.0.0.1:1/x\"\n";
    write(&stack, &(entry(5) + &others))?;
    until_path(&bus, json!("/5")).await?;
    bus.kv_put(TARGETS_BUCKET, "t", r#"{"url":"http://127.0.0.1:1/mine"}"#)
        .await?;
    until_all_have_read(&stack, 5).await?;
    assert_eq!(path(&bus).await?, "/mine");
    // Five from the file, one by hand, and not one more.
    let stream = bus.jetstream().get_stream("KV_user_targets").await?;
    let subjects = stream.info_with_subjects("$KV.user_targets.t").await?;
    let counts: Vec<(String, usize)> = subjects.try_collect().await?;
    assert_eq!(counts, [("$KV.user_targets.t".to_owned(), 6)]);
    Ok(())
}
