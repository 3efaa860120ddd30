//! Permissions and passwords that change while users are delivered: it shows, nothing is lost, and it goes on.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use usersync_stack::eventually;

use super::edit;
use crate::support::{LATER, Load, SOON};

const GRACE: Duration = Duration::from_secs(15);

/// Takes `part` out of nats.conf while users are delivered; the worker must say `told`. Then gives it back.
async fn without(load: &Load, part: &str, told: &str) -> Result<()> {
    let nats = &load.stack.nats;
    let before = fs::read_to_string(nats.conf())?;
    edit(nats, part, "")?;
    nats.reload()?;
    load.change(2).await?;
    eventually(LATER, async || {
        let seen = load.part("permissions").await?;
        let clear = seen.as_str().unwrap_or_default();
        ensure!(
            clear.contains(told) && clear.contains("nats.conf"),
            "{seen}"
        );
        Ok(())
    })
    .await?;
    let log = load.worker().process().log_tail();
    ensure!(log.contains("NATS refused something"), "{log}");
    load.change(3).await?;
    fs::write(nats.conf(), before)?;
    nats.reload()?;
    load.has_all_of(3).await?;
    load.worker().until_ready().await?;
    assert_eq!(load.part("permissions").await?, Value::Null);
    Ok(())
}

#[tokio::test]
async fn a_worker_that_may_not_pull_any_more_says_so_and_goes_on_when_it_may() -> Result<()> {
    let load = Load::start(|stack| stack).await?;
    let pulls =
        r#""$JS.API.CONSUMER.MSG.NEXT.USER_STATE.*", "$JS.API.CONSUMER.MSG.NEXT.USER_REPAIR.*""#;
    let told =
        r#"Permissions Violation for Publish to "$JS.API.CONSUMER.MSG.NEXT.USER_STATE.audit""#;
    without(&load, pulls, told).await
}

#[tokio::test]
async fn a_worker_that_may_not_acknowledge_any_more_says_so_and_goes_on_when_it_may() -> Result<()>
{
    let load = Load::start(|stack| stack).await?;
    let acks = r#""$JS.ACK.USER_STATE.>", "$JS.ACK.*.*.USER_STATE.>","#;
    without(
        &load,
        acks,
        r#"Permissions Violation for Publish to "$JS.ACK."#,
    )
    .await
}

#[tokio::test]
async fn a_worker_that_may_not_hear_answers_any_more_says_so_and_goes_on_when_it_may() -> Result<()>
{
    let load = Load::start(|stack| stack).await?;
    without(
        &load,
        r#""_INBOX_worker.>", "#,
        "Permissions Violation for Subscription",
    )
    .await
}

#[tokio::test]
async fn a_password_is_rotated_by_two_users_and_no_event_is_lost() -> Result<()> {
    let mut load = Load::start(|stack| stack).await?;
    let nats = &load.stack.nats;
    let old =
        "    { user: worker, password: $USERSYNC_WORKER_PASSWORD, permissions: $WORKER_MAY }\n";
    let new = "    { user: worker-2, password: \"the-new-one\", permissions: $WORKER_MAY }\n";
    edit(nats, old, &format!("{old}{new}"))?;
    nats.reload()?;
    load.change(2).await?;

    let file = load.stack.dir().join("new-password");
    fs::write(&file, "the-new-one\n")?;
    let second = load.another_worker(&[
        ("USERSYNC_NATS__USER", "worker-2"),
        (
            "USERSYNC_NATS__PASSWORD",
            &format!("file:{}", file.display()),
        ),
    ])?;
    second.until_ready().await?;
    load.worker().stop(GRACE).await?;
    load.change(3).await?;
    edit(&load.stack.nats, old, "")?;
    load.stack.nats.reload()?;
    load.change(4).await?;
    load.has_all_of(4).await?;

    // The old one is nobody any more, and says so.
    let old = load.stack.workers.get_mut("audit").and_then(Vec::pop);
    let mut old = old.ok_or_else(|| anyhow::anyhow!("no worker"))?;
    ensure!(old.restart().await.is_err(), "the old password still opens");
    let log = old.process().log_tail();
    ensure!(log.contains("authorization violation"), "{log}");
    Ok(())
}

#[tokio::test]
async fn a_password_in_a_file_may_change_under_a_running_worker() -> Result<()> {
    let load = Load::start(|stack| stack).await?;
    let nats = &load.stack.nats;
    let pid = load.worker().pid();
    fs::write(nats.password_file("worker"), "the-new-one\n")?;
    edit(nats, "$USERSYNC_WORKER_PASSWORD", "\"the-new-one\"")?;
    nats.reload()?;
    load.change(2).await?;
    load.has_all_of(2).await?;
    load.worker().until_ready().await?;
    assert_eq!(load.worker().pid(), pid);
    // It is the new one that opens: the old one is cut off by the reload.
    eventually(SOON, async || {
        let log = load.worker().process().log_tail();
        ensure!(log.matches("connected to NATS").count() == 2, "{log}");
        Ok(())
    })
    .await
}
