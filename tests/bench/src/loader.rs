//! Puts HTTP load on the gateway: with `wrk` where it is installed, because it leaves most of the machine to
//! the server, else with a small loader of our own in another process.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::rig::Rig;

/// What the script of `wrk` and our own loader write before their figures.
const RESULT: &str = "RESULT ";
/// How much longer than its load a loader may take.
const GRACE: Duration = Duration::from_secs(20);

/// Post bodies over keep-alive connections for a while.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    #[arg(long)]
    url: String,
    /// One body per line; taken in turn.
    #[arg(long)]
    bodies: PathBuf,
    #[arg(long)]
    connections: usize,
    #[arg(long)]
    seconds: u64,
}

/// What a loader got done.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Loaded {
    /// Answers.
    pub requests: u64,
    /// Answers with 400 or above, and calls without one.
    pub errors: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// Posts the lines of the file `bodies` to `url` in turn, for as long as `time`.
///
/// # Errors
/// When the loader fails, or a call isn't answered with success.
pub(crate) async fn load(
    rig: &Rig,
    url: &str,
    bodies: &Path,
    connections: usize,
    time: Duration,
) -> Result<Loaded> {
    let script = rig.dir().join("wrk.lua");
    std::fs::write(&script, SCRIPT).with_context(|| format!("writing {}", script.display()))?;
    let (connections, seconds) = (connections.to_string(), time.as_secs().to_string());
    let mut wrk = Command::new("wrk");
    wrk.args([
        "-t1",
        "-c",
        &connections,
        "-d",
        &seconds,
        "--timeout",
        "15s",
    ])
    .arg("-s")
    .arg(&script)
    .arg(url)
    .arg("--")
    .arg(bodies);
    let text = match output(&mut wrk, time).await? {
        Some(text) => text,
        None => {
            let mut own = Command::new(std::env::current_exe().context("finding this program")?);
            own.args(["load", "--url", url, "--connections", &connections])
                .args(["--seconds", &seconds, "--bodies"])
                .arg(bodies);
            let text = output(&mut own, time).await?;
            text.context("this program is gone")?
        }
    };
    let result = text.lines().find_map(|line| line.strip_prefix(RESULT));
    let result = result.with_context(|| format!("the loader says {text:?}"))?;
    let loaded: Loaded = serde_json::from_str(result).context("the loader's figures")?;
    ensure!(
        loaded.errors == 0 && loaded.requests > 0,
        "{} calls were answered, {} failed",
        loaded.requests,
        loaded.errors
    );
    Ok(loaded)
}

/// What a loader writes; `None` when there is no such program.
async fn output(command: &mut Command, time: Duration) -> Result<Option<String>> {
    let run = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(time + GRACE, run).await {
        Ok(Ok(output)) => Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned())),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Ok(Err(error)) => Err(error).context("running the loader"),
        Err(_) => bail!("the loader doesn't end"),
    }
}

/// Our own loader: one task per connection, each waiting for its answer.
pub(crate) async fn run(args: LoadArgs) -> Result<()> {
    let text = std::fs::read_to_string(&args.bodies)
        .with_context(|| format!("reading {}", args.bodies.display()))?;
    let bodies: Arc<[Bytes]> = text.lines().map(|line| line.to_owned().into()).collect();
    ensure!(!bodies.is_empty(), "there is nothing to post");
    let client = usersync_stack::http::client();
    let began = Instant::now();
    let end = began + Duration::from_secs(args.seconds);
    let mut connections = JoinSet::new();
    for number in 0..args.connections {
        let (client, bodies, url) = (client.clone(), Arc::clone(&bodies), args.url.clone());
        connections.spawn(async move {
            let (mut requests, mut errors) = (0, 0);
            for body in bodies.iter().cycle().skip(number) {
                let request = client.post(&url).header("content-type", "application/json");
                match request.body(body.clone()).send().await {
                    Ok(answer) if answer.status().is_success() => {
                        let read = answer.bytes().await;
                        errors += u64::from(read.is_err());
                    }
                    _ => errors += 1,
                }
                requests += 1;
                if Instant::now() >= end {
                    break;
                }
            }
            (requests, errors)
        });
    }
    let done = connections.join_all().await;
    let loaded = Loaded {
        requests: done.iter().map(|(requests, _)| requests).sum(),
        errors: done.iter().map(|(_, errors)| errors).sum(),
        seconds: began.elapsed().as_secs_f64(),
    };
    println!("{RESULT}{}", serde_json::to_string(&loaded)?);
    Ok(())
}

/// Requests are made before the load starts, so that `wrk` costs as little as it can.
const SCRIPT: &str = r#"
local requests, at = {}, 0

function init(args)
  local headers = { ["content-type"] = "application/json" }
  for body in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format("POST", nil, headers, body)
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary)
  local e = summary.errors
  io.write(string.format('RESULT {"requests":%d,"errors":%d,"seconds":%.6f}\n', summary.requests,
    e.connect + e.read + e.write + e.status + e.timeout, summary.duration / 1e6))
end
"#;
