//! `up` and `demo` as one runs them: what they print, how they end, and that nothing stays behind.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use usersync_stack::{Directory, Launch, Process, Signal, eventually, http};

const SOON: Duration = Duration::from_secs(60);

fn xtask(dir: &Directory, log: &str, args: &[&str]) -> Launch {
    let launch = Launch::new("xtask", env!("CARGO_BIN_EXE_xtask"), dir.path().join(log));
    let launch = launch.args(args).arg("--no-build");
    if cfg!(debug_assertions) {
        launch
    } else {
        launch.arg("--release")
    }
}

/// The line of JSON that `up --json` prints.
async fn told(up: &Process) -> Result<Value> {
    let mut told = Value::Null;
    up.until_ready(SOON, async || {
        let log = up.log_tail();
        let line = log
            .lines()
            .find(|line| line.starts_with('{'))
            .context("no line of JSON yet")?;
        told = serde_json::from_str(line)?;
        Ok(())
    })
    .await?;
    Ok(told)
}

/// The ids of everything that was started, servers and services.
fn pids(told: &Value) -> Vec<i64> {
    let workers = told["workers"].as_object().into_iter().flatten();
    let workers = workers.flat_map(|(_, workers)| workers.as_array().into_iter().flatten());
    let examples = told["examples"].as_object().into_iter().flatten();
    let gateways = told["gateway"].as_array().into_iter().flatten();
    [&told["nats"], &told["redis"]]
        .into_iter()
        .chain(gateways)
        .chain(workers)
        .chain(examples.map(|(_, example)| example))
        .filter_map(|process| process["pid"].as_i64())
        .collect()
}

/// Whether a process of that id exists and is no zombie.
fn exists(pid: &i64) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn up_tells_where_everything_is_and_stops_on_sigterm() -> Result<()> {
    let dir = Directory::temporary()?;
    let up = xtask(
        &dir,
        "up.log",
        &["up", "--json", "--workers", "user-service=2"],
    )
    .spawn()?;
    let told = told(&up).await?;
    let pids = pids(&told);
    assert_eq!(pids.len(), 10, "{told}");
    assert!(pids.iter().all(exists), "{told}");
    assert_eq!(
        told["workers"]["user-service"].as_array().map(Vec::len),
        Some(2)
    );
    for url in [
        &told["gateway"][0]["url"],
        &told["workers"]["unified-auth"][0]["url"],
        &told["examples"]["basic-server"]["url"],
    ] {
        let url = url.as_str().context("a url")?;
        http::get_text(&http::client(), &format!("{url}/readyz")).await?;
    }

    up.stop(SOON).await?;
    assert!(!pids.iter().any(exists), "{told}");
    assert!(!Path::new(told["dir"].as_str().context("dir")?).exists());
    Ok(())
}

#[tokio::test]
async fn up_fails_when_a_process_dies_and_leaves_nothing_when_it_is_killed() -> Result<()> {
    let dir = Directory::temporary()?;
    let data = dir.path().join("data");
    let data = data.to_string_lossy();
    let args = ["up", "--json", "--dir", &data];
    let up = xtask(&dir, "first.log", &args).spawn()?;
    let first = told(&up).await?;
    let gateway = first["gateway"][0]["pid"].to_string();
    let killed = std::process::Command::new("kill")
        .args(["-KILL", &gateway])
        .status()?;
    assert!(killed.success());
    let status = up.wait_exit(SOON).await?;
    assert!(!status.success());
    // The end of the gateway's own log follows, so that it may be far from the end.
    let said = std::fs::read_to_string(dir.path().join("first.log"))?;
    assert!(said.contains("gateway-1 has ended"), "{said}");
    assert!(!pids(&first).iter().any(exists));

    let up = xtask(&dir, "second.log", &args).spawn()?;
    let second = told(&up).await?;
    up.signal(Signal::SIGKILL)?;
    eventually(SOON, async || {
        ensure!(
            !pids(&second).iter().any(exists),
            "something survived: {second}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_demo_proves_that_all_targets_hold_the_same() -> Result<()> {
    let dir = Directory::temporary()?;
    let demo = xtask(&dir, "demo.log", &["demo", "--once", "--users", "20"]).spawn()?;
    let status = demo.wait_exit(Duration::from_secs(120)).await?;
    let said = demo.log_tail();
    assert!(status.success(), "{said}");
    // 20 users and one newcomer, two deleted; two more through NATS.
    assert!(
        said.contains("every target holds the same 21 users"),
        "{said}"
    );
    assert_eq!(said.matches("   equal").count(), 4, "{said}");
    Ok(())
}
