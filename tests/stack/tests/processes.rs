//! Child processes: signalled, waited for, killed on drop and with their parent, and quoted when they fail.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use usersync_stack::{Directory, Launch, Signal, eventually};

const SOON: Duration = Duration::from_secs(10);

fn shell(dir: &Directory, script: &str) -> Launch {
    Launch::new("script", "/bin/sh", dir.path().join("script.log")).args(["-c", script])
}

#[tokio::test]
async fn an_early_death_is_told_with_the_end_of_the_log() -> Result<()> {
    let dir = Directory::temporary()?;
    let process = shell(&dir, "echo first; echo 'no such port' >&2; exit 7").spawn()?;
    let error = process
        .until_ready(SOON, async || bail!("not yet"))
        .await
        .unwrap_err();
    let message = error.to_string();
    for part in [
        "script ended while starting",
        "exit status: 7",
        "first",
        "no such port",
    ] {
        assert!(message.contains(part), "{part:?} in {message}");
    }
    assert!(!process.is_running());
    assert!(
        process.signal(Signal::SIGTERM).is_err(),
        "its id may be a stranger's by now"
    );
    Ok(())
}

#[tokio::test]
async fn not_ready_in_time_is_told_with_the_last_answer() -> Result<()> {
    let dir = Directory::temporary()?;
    let process = shell(&dir, "echo loading; exec sleep 60").spawn()?;
    eventually(SOON, async || {
        ensure!(process.log_tail() == "loading", "{:?}", process.log_tail());
        Ok(())
    })
    .await?;
    let error = process
        .until_ready(Duration::from_millis(50), async || bail!("503 warming up"))
        .await
        .unwrap_err();
    let message = error.to_string();
    assert!(message.contains("503 warming up"), "{message}");
    assert!(message.contains("loading"), "{message}");
    Ok(())
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_named() -> Result<()> {
    let dir = Directory::temporary()?;
    let launch = Launch::new(
        "nothing",
        "/no/such/program",
        dir.path().join("nothing.log"),
    );
    // With setpriv in between the failure shows in the log, without it when spawning.
    let error = match launch.spawn() {
        Ok(process) => process
            .until_ready(SOON, async || bail!("not yet"))
            .await
            .unwrap_err(),
        Err(error) => error,
    };
    assert!(format!("{error:#}").contains("nothing"), "{error:#}");
    Ok(())
}

#[tokio::test]
async fn stopping_waits_for_a_clean_end() -> Result<()> {
    let dir = Directory::temporary()?;
    let script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done";
    let process = shell(&dir, script).spawn()?;
    until_it_says(&process, "up").await?;
    process.stop(SOON).await?;
    assert_eq!(process.log_tail(), "up\nbye");
    Ok(())
}

#[tokio::test]
async fn a_process_that_ignores_sigterm_is_killed_and_told() -> Result<()> {
    let dir = Directory::temporary()?;
    let process = shell(&dir, "trap '' TERM; echo up; while :; do sleep 0.01; done").spawn()?;
    until_it_says(&process, "up").await?;
    let error = process.stop(Duration::from_millis(100)).await.unwrap_err();
    assert!(error.to_string().contains("was killed"), "{error}");
    assert!(!process.is_running());
    Ok(())
}

#[tokio::test]
async fn nothing_survives_its_handle() -> Result<()> {
    let dir = Directory::temporary()?;
    let process = shell(&dir, "exec sleep 60").spawn()?;
    let pid = process.pid();
    assert!(exists(pid));
    drop(process);
    assert!(!exists(pid));
    Ok(())
}

/// Runs this very test in another process, which then is the parent, and kills it: its child has to go too.
#[tokio::test]
async fn nothing_survives_a_killed_parent() -> Result<()> {
    if let Ok(file) = std::env::var("CHILD_PID_FILE") {
        return be_the_parent(&file).await;
    }
    if Command::new("setpriv").arg("--version").output().is_err() {
        // Only util-linux can tie the two together.
        return Ok(());
    }
    let dir = Directory::temporary()?;
    let child_pid = dir.path().join("child.pid");
    let parent = Launch::new(
        "parent",
        std::env::current_exe()?,
        dir.path().join("parent.log"),
    )
    .args(["--exact", "nothing_survives_a_killed_parent", "--nocapture"])
    .env("CHILD_PID_FILE", &child_pid)
    .spawn()?;
    let pid: i32 = eventually(SOON, async || {
        Ok(std::fs::read_to_string(&child_pid)?.parse()?)
    })
    .await?;
    assert!(exists(pid));
    parent.kill9().await;
    eventually(SOON, async || {
        ensure!(!exists(pid), "{pid} still runs");
        Ok(())
    })
    .await
}

async fn be_the_parent(file: &str) -> Result<()> {
    // A directory of its own would stay when this process is killed.
    let log = format!("{file}.log");
    let process = Launch::new("sleeper", "/bin/sh", log)
        .args(["-c", "echo up; exec sleep 60"])
        .spawn()?;
    // The child asks the kernel to die with its parent after it has been started: what is killed before
    // that leaves it behind.
    until_it_says(&process, "up").await?;
    let unfinished = format!("{file}.new");
    std::fs::write(&unfinished, process.pid().to_string())?;
    std::fs::rename(unfinished, file)?;
    process.wait_exit(Duration::from_secs(60)).await?;
    Ok(())
}

async fn until_it_says(process: &usersync_stack::Process, text: &str) -> Result<()> {
    eventually(SOON, async || {
        ensure!(
            process.log_tail().contains(text),
            "{:?}",
            process.log_tail()
        );
        Ok(())
    })
    .await
}

/// Whether a process of that id exists and is no zombie.
fn exists(pid: i32) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}
