//! One screen for everything: by command, over HTTP and over NATS the same.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use usersync_stack::{Stack, eventually, tools};

use crate::support::{Api, Bus, Call, Recorder, SOON, answer, only};

/// What `usersync-gateway status` prints for the operator, or another role of nats.conf that has its own inbox.
async fn shown(stack: &Stack, role: &str, args: &[&str]) -> Result<String> {
    let program = tools::binary("usersync-gateway", tools::Profile::own())?;
    let mut command = tokio::process::Command::new(program);
    command
        .args(["--nats-url", &stack.nats.url(), "status"])
        .args(args)
        .env("USERSYNC_NATS__USER", role)
        .env(
            "USERSYNC_NATS__PASSWORD",
            format!("file:{}", stack.nats.password_file(role).display()),
        );
    if role != "operator" {
        command.env("USERSYNC_NATS__INBOX_PREFIX", format!("_INBOX_{role}"));
    }
    let output = tokio::time::timeout(SOON, command.kill_on_drop(true).output()).await??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    Ok(String::from_utf8(output.stdout)?)
}

fn of<'a>(status: &'a Value, target: &str) -> Result<&'a Value> {
    let targets = status["targets"].as_array().context("no targets")?;
    let found = targets.iter().find(|one| one["target"] == target);
    found.with_context(|| format!("no {target} in {status}"))
}

#[tokio::test]
async fn the_status_tells_of_each_target_what_is_wrong_with_it() -> Result<()> {
    let fine = Recorder::start(async |_| answer(200)).await?;
    let refusing = Recorder::start(async |_| answer(422)).await?;
    let failing = Recorder::start(async |_| answer(503)).await?;
    let patient = "retry = { base = \"10m\", cap = \"20m\" }";
    let nobody = "[down]\nurl = \"http://127.0.0.1:9/\"\n[paused]\nurl = \"http://127.0.0.1:9/\"\nenabled = false\n";
    let spoilt =
        Recorder::start(async |call: Call| answer(if call.user() == "1" { 422 } else { 200 }))
            .await?;
    let catalogue = fine.target("fine", "")
        + &spoilt.target("spoilt", "")
        + &refusing.target("refusing", "")
        + &failing.target("failing", patient)
        + &fine.target("lonely", "")
        + nobody;
    let stack = only(catalogue).workers("lonely", 0).start().await?;
    let bus = Bus::connect(&stack).await?;
    for id in 1..=3 {
        let user = json!({"user_id": id, "username": "zaphod", "email": "z@example.com"});
        bus.publish("user.created", user).await?;
    }
    let api = Api::of(&stack).await?;
    let status = eventually(SOON, async || {
        let status = api.get("/v1/status").await?;
        for (target, state) in [
            ("fine", "ok"),
            ("refusing", "failing"),
            ("spoilt", "dead-letters"),
            ("failing", "failing"),
            ("lonely", "no-worker"),
            ("down", "down"),
            ("paused", "paused"),
        ] {
            let found = of(&status, target)?;
            ensure!(
                found["state"] == state,
                "{target} should be {state}: {found}"
            );
        }
        ensure!(of(&status, "refusing")?["dead_letters"] == 3, "{status}");
        let fine = of(&status, "fine")?;
        ensure!(fine["rate"].as_f64() > Some(0.0), "{fine}");
        for (target, member, is) in [
            ("fine", "pending", json!(0)),
            ("fine", "workers", json!(1)),
            ("fine", "error_rate", json!(0.0)),
            ("fine", "last_error", json!(null)),
            ("refusing", "error_rate", json!(1.0)),
            ("failing", "pending", json!(3)),
            ("failing", "breaker", json!("closed")),
            ("lonely", "pending", json!(3)),
            ("lonely", "workers", json!(0)),
        ] {
            let found = of(&status, target)?;
            ensure!(
                found[member] == is,
                "{member} of {target} should be {is}: {found}"
            );
        }
        let refusing = of(&status, "refusing")?;
        ensure!(refusing["last_error"]["class"] == "permanent", "{refusing}");
        let failing = of(&status, "failing")?;
        ensure!(failing["oldest_seconds"].as_f64() > Some(0.0), "{failing}");
        let down = of(&status, "down")?;
        ensure!(down["last_error"]["class"] == "target-fault", "{down}");
        ensure!(down["breaker"] != "closed", "{down}");
        ensure!(status["users"] == 3, "{status}");
        ensure!(status["events_pending"] == 0, "{status}");
        Ok(status)
    })
    .await?;

    // The same by every way, and nothing personal by any.
    let names = |status: &Value| -> Vec<Value> {
        let targets = status["targets"].as_array().cloned().unwrap_or_default();
        targets
            .iter()
            .map(|target| target["target"].clone())
            .collect()
    };
    let asked = api.request("usersync.status", json!({})).await;
    let asked = asked.map_err(|(code, text)| anyhow::anyhow!("{code} {text}"))?;
    let printed: Value = serde_json::from_str(&shown(&stack, "viewer", &["--json"]).await?)?;
    let screen = shown(&stack, "operator", &[]).await?;
    for other in [&asked, &printed] {
        assert_eq!(names(other), names(&status));
        assert_eq!(of(other, "refusing")?["dead_letters"], 3);
    }
    let asked_for = shown(&stack, "operator", &["--exit-code"]).await;
    let error = asked_for.err().context("all is well")?.to_string();
    for wrong in ["target spoilt", "target lonely"] {
        ensure!(error.contains(wrong) && !error.contains("fine"), "{error}");
    }
    let line = screen.lines().find(|line| line.starts_with("lonely"));
    assert!(
        line.is_some_and(|line| line.contains("no-worker")),
        "{screen}"
    );
    for text in [status.to_string(), asked.to_string(), screen] {
        assert!(!text.contains("zaphod") && !text.contains("z@"), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn the_status_for_a_role_that_may_not_ask_names_those_that_may() -> Result<()> {
    let stack = only("").start().await?;
    let refused = shown(&stack, "worker", &[]).await;
    let error = refused.err().context("a worker is answered")?.to_string();
    assert!(
        error.contains("nats.user") && error.contains("viewer"),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn the_status_without_a_gateway_says_so() -> Result<()> {
    let stack = only("").start().await?;
    stack.gateway().kill9().await;
    let error = eventually(SOON, async || {
        let shown = shown(&stack, "operator", &[]).await;
        shown.err().context("the dead gateway still answers")
    })
    .await?;
    assert!(
        error.to_string().contains("is usersync-gateway running?"),
        "{error}"
    );
    Ok(())
}
