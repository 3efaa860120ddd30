//! Receivers that are away, refuse, or are told by a gateway that dies.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use usersync_core::subjects::{NOTIFY_EMAIL, NOTIFY_WEBHOOK, USER_ALERT};
use usersync_stack::{SmtpServer, eventually};

use super::{
    OPS, OTHER, SECRET, Settings, alerts, raise, told, until_mailed, until_settled, until_told,
    verified,
};
use crate::support::{Bus, Call, Gate, LATER, Recorder, SOON, answer, only};

fn log(stack: &usersync_stack::Stack) -> Result<String> {
    std::fs::read_to_string(stack.gateway().process().log()).context("reading a log")
}

#[tokio::test]
async fn a_receiver_that_is_away_is_told_later_and_holds_up_nobody_else() -> Result<()> {
    let mut receiver = Recorder::start(async |_| answer(200)).await?;
    let settings = Settings::new()?;
    let server = SmtpServer::start(settings.dir.path(), "none").await?;
    let settings = settings
        .webhook(&receiver, "")?
        .email(&server, "none", OPS)?;
    let stack = settings.with(only(""))?.start().await?;
    let bus = Bus::connect(&stack).await?;
    receiver.stop().await;
    raise(&bus, 1).await?;
    until_mailed(&server, 1).await?;
    // Meanwhile others are raised, which the mail tells of.
    eventually(SOON, async || {
        let metrics = stack.gateway_metrics().await?;
        let failed = [("channel", "webhook"), ("result", "failed")];
        ensure!(
            metrics.sum("usersync_notices_total", &failed) >= 2.0,
            "not tried twice"
        );
        Ok(())
    })
    .await?;
    raise(&bus, 2).await?;
    until_mailed(&server, 2).await?;
    ensure!(receiver.calls().is_empty());
    receiver.listen().await?;
    until_told(&receiver, 2, LATER).await?;
    for durable in [NOTIFY_WEBHOOK, NOTIFY_EMAIL] {
        until_settled(&bus, durable).await?;
    }
    ensure!(
        told(&receiver).values().all(|count| *count == 1),
        "{:?}",
        told(&receiver)
    );
    let log = log(&stack)?;
    ensure!(
        log.contains("people can't be told of alerts; trying again"),
        "{log}"
    );
    Ok(())
}

#[tokio::test]
async fn a_gateway_that_is_killed_loses_none_and_the_repeat_has_its_id() -> Result<()> {
    let gate = Gate::closed();
    let held = gate.clone();
    let mut receiver = Recorder::start(move |_| {
        let gate = held.clone();
        async move {
            gate.pass().await;
            answer(200)
        }
    })
    .await?;
    let settings = Settings::new()?.webhook(&receiver, "timeout = \"20s\"")?;
    let mut stack = settings.with(only(""))?.start().await?;
    let bus = Bus::connect(&stack).await?;
    for n in 1..=5 {
        raise(&bus, n).await?;
    }
    until_told(&receiver, 5, SOON).await?;
    stack.gateways[0].kill9().await;
    gate.open();
    receiver.stop().await;
    // The next gateway holds what is new beside what comes again.
    stack.gateways[0].restart().await?;
    raise(&bus, 6).await?;
    eventually(LATER, async || {
        let stream = bus.jetstream().get_stream(USER_ALERT).await?;
        let info = stream.consumer_info(NOTIFY_WEBHOOK).await?;
        let (again, all) = (info.num_redelivered, info.num_ack_pending);
        ensure!(again == 5 && all == 6, "{again} of {all} again");
        Ok(())
    })
    .await?;
    raise(&bus, 7).await?;
    receiver.listen().await?;
    until_told(&receiver, 7, LATER).await?;
    until_settled(&bus, NOTIFY_WEBHOOK).await?;
    let calls = receiver.calls();
    let ids = |n: u64| {
        let id = json!(format!("drift:gateway:{n}"));
        let about = |call: &&Call| alerts(call).iter().any(|alert| alert["id"] == id);
        let calls = calls.iter().filter(about);
        let ids = calls.map(|call| call.header("webhook-id").to_owned());
        ids.collect::<Vec<_>>()
    };
    // Nobody knows what became of the five: they were told again, and that it is the same can be seen.
    let repeated = ids(1);
    ensure!(
        repeated.len() == 2 && repeated[0] == repeated[1],
        "{repeated:?}"
    );
    for n in 2..=5 {
        assert_eq!(ids(n), repeated);
    }
    for n in [6, 7] {
        let new = ids(n);
        ensure!(new.len() == 1 && new[0] != repeated[0], "{n}: {new:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_wrong_password_says_so_and_the_right_one_holds_at_once() -> Result<()> {
    let settings = Settings::new()?;
    let server = SmtpServer::start(settings.dir.path(), "starttls").await?;
    let settings = settings.email(&server, "starttls", OPS)?;
    std::fs::write(settings.file("password"), "hunter2")?;
    let stack = settings.with(only(""))?.start().await?;
    let bus = Bus::connect(&stack).await?;
    raise(&bus, 1).await?;
    eventually(SOON, async || {
        let log = log(&stack)?;
        ensure!(
            log.contains("doesn't let us in: 535; see notify.email.username and password"),
            "{log}"
        );
        Ok(())
    })
    .await?;
    ensure!(server.mails()?.is_empty());
    std::fs::write(settings.file("password"), SmtpServer::PASSWORD)?;
    until_mailed(&server, 1).await?;
    let log = log(&stack)?;
    for secret in ["hunter2", SmtpServer::PASSWORD] {
        ensure!(!log.contains(secret), "{log}");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_refused_for_good_is_logged_and_others_go_on() -> Result<()> {
    let receiver = Recorder::start(async |call| {
        let refused = alerts(&call)
            .iter()
            .any(|alert| alert["id"] == "drift:gateway:1");
        answer(if refused { 422 } else { 200 })
    })
    .await?;
    let settings = Settings::new()?;
    let server = SmtpServer::start(settings.dir.path(), "none").await?;
    let to = "to = \"refused@example.com\"";
    let settings = settings
        .webhook(&receiver, "")?
        .email(&server, "none", to)?;
    let stack = settings.with(only(""))?.start().await?;
    let bus = Bus::connect(&stack).await?;
    for n in [1, 2] {
        raise(&bus, n).await?;
        until_told(&receiver, usize::try_from(n)?, SOON).await?;
        for durable in [NOTIFY_WEBHOOK, NOTIFY_EMAIL] {
            until_settled(&bus, durable).await?;
        }
    }
    let log = log(&stack)?;
    for reason in ["the target answered 422", "answered 550"] {
        ensure!(log.contains(reason), "{log}");
    }
    for payload in ["drift 1", "refused@example.com", "nobody here"] {
        ensure!(!log.contains(payload), "{log}");
    }
    let metrics = stack.gateway_metrics().await?;
    let count = |channel, result| {
        metrics.sum(
            "usersync_notices_total",
            &[("channel", channel), ("result", result)],
        )
    };
    assert_eq!(
        (count("webhook", "refused"), count("webhook", "sent")),
        (1.0, 1.0)
    );
    assert_eq!(
        (count("email", "refused"), count("email", "sent")),
        (2.0, 0.0)
    );
    Ok(())
}

#[tokio::test]
async fn a_key_that_was_replaced_is_used_from_the_next_call() -> Result<()> {
    let receiver = Recorder::start(async |_| answer(200)).await?;
    let settings = Settings::new()?.webhook(&receiver, "")?;
    let stack = settings.with(only(""))?.start().await?;
    let bus = Bus::connect(&stack).await?;
    raise(&bus, 1).await?;
    until_told(&receiver, 1, SOON).await?;
    std::fs::write(settings.file("secret"), OTHER)?;
    raise(&bus, 2).await?;
    until_told(&receiver, 2, SOON).await?;
    let calls = receiver.calls();
    ensure!(verified(&calls[0], &[SECRET, OTHER])? == [true, false]);
    ensure!(verified(&calls[1], &[SECRET, OTHER])? == [false, true]);
    Ok(())
}
