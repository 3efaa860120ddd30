//! A nats.conf from before people were told of alerts.

use std::fs;

use anyhow::{Result, ensure};
use jiff::Timestamp;
use serde_json::json;
use usersync_core::subjects::NOTIFY_WEBHOOK;
use usersync_stack::eventually;

use super::{Settings, raise, told, until_settled, until_told};
use crate::{
    permissions::edit,
    readiness::{Asked, wrong},
    support::{Bus, LATER, Recorder, SOON, answer, only},
};

/// What the gateway's user may do since.
const LINES: &str = r#"      "$JS.ACK.USER_ALERT.gateway-notify-webhook.>", "$JS.ACK.*.*.USER_ALERT.gateway-notify-webhook.>"
      "$JS.ACK.USER_ALERT.gateway-notify-email.>", "$JS.ACK.*.*.USER_ALERT.gateway-notify-email.>"
"#;

#[tokio::test]
async fn where_alerts_can_not_be_acknowledged_that_is_said_and_all_else_goes_on() -> Result<()> {
    let audit = Recorder::start(async |_| answer(200)).await?;
    let receiver = Recorder::start(async |_| answer(200)).await?;
    let settings = Settings::new()?.webhook(&receiver, "")?;
    let stack = only(audit.target("audit", "")).gateways(0);
    let mut stack = settings.with(stack.workers("audit", 0))?.start().await?;
    let now = fs::read_to_string(stack.nats.conf())?;
    edit(&stack.nats, LINES, "")?;
    stack.nats.reload()?;
    stack.add_gateway().await?;
    stack.add_worker("audit").await?;
    let gateway = Asked::of(stack.gateway());
    let bus = Bus::connect(&stack).await?;

    let began = Timestamp::now();
    raise(&bus, 1).await?;
    until_told(&receiver, 1, SOON).await?;
    let said = gateway
        .until_wrong(
            503,
            "permissions",
            "Permissions Violation for Publish to \"$JS.ACK.",
            began,
        )
        .await?;
    ensure!(wrong(&said) == ["permissions"], "{said}");
    let reason = said["parts"]["permissions"].as_str().unwrap_or_default();
    for part in [
        "USER_ALERT.gateway-notify-webhook.",
        "nats.conf",
        "docs/SECURITY.md",
    ] {
        ensure!(reason.contains(part), "{reason:?} doesn't name {part}");
    }
    let log = fs::read_to_string(stack.gateway().process().log())?;
    ensure!(
        log.contains("NATS refused something") && log.contains(NOTIFY_WEBHOOK),
        "{log}"
    );

    // Users go their way; the alert comes again, and can be known by the id of its message.
    let user = json!({"user_id": 7, "username": "ann"});
    bus.publish("user.created", user).await?;
    bus.until_settled("audit").await?;
    assert_eq!(audit.holds(7)["username"], "ann");
    eventually(LATER, async || {
        let times = told(&receiver);
        let times = times.values().copied().max().unwrap_or_default();
        ensure!(times == 2, "told {times} times");
        Ok(())
    })
    .await?;
    let ids: Vec<_> = receiver
        .calls()
        .iter()
        .map(|call| call.header("webhook-id").to_owned())
        .collect();
    ensure!(ids.len() == 2 && ids[0] == ids[1], "{ids:?}");

    // With the lines it is told once more at most, for that could not be known; and nobody is started again.
    fs::write(stack.nats.conf(), now)?;
    stack.nats.reload()?;
    until_settled(&bus, NOTIFY_WEBHOOK).await?;
    gateway.until_well().await?;
    raise(&bus, 2).await?;
    until_told(&receiver, 2, SOON).await?;
    until_settled(&bus, NOTIFY_WEBHOOK).await?;
    let times = told(&receiver);
    ensure!(
        times["drift:gateway:1 raised"] <= 3 && times["drift:gateway:2 raised"] == 1,
        "{times:?}"
    );
    Ok(())
}
