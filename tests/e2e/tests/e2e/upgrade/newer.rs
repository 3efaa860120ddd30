//! What a newer version has written waits for the upgrade of the programs that can't read it, and is told.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use usersync_stack::eventually;

use crate::{
    readiness::Asked,
    support::{Api, Bus, LATER, Recorder, answer, only},
};

/// Longer than the target's attempts take.
const SPENT: Duration = Duration::from_secs(14);

#[tokio::test]
async fn a_state_of_a_newer_format_costs_no_attempt_and_waits() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let retry = "retry = { max_deliver = 2, base = \"1s\", factor = 1.0, cap = \"1s\" }";
    let stack = only(recorder.target("t", retry)).start().await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    let began = jiff::Timestamp::now();
    let state = |format: u64| -> Value {
        json!({
            "format": format, "user_id": 7, "username": "new", "deleted": false, "partial": false,
            "version": 1_796_092_836_902_264_u64, "event_seq": 0,
            "event": {"id": "e", "type": "user.created", "timestamp": "2026-12-01T00:00:00Z", "stored_us": 1},
        })
    };
    bus.put_state(&state(3)).await?;
    let event = json!({"user_id": 7, "id": "e-7", "email": "7@example.com"});
    bus.publish("user.updated", event).await?;

    let (worker, gateway) = (&stack.workers["t"][0], &stack.gateways[0]);
    let (worker, gateway) = (Asked::of(worker), Asked::of(gateway));
    let reason = "format 3, but this program reads up to 2: upgrade it";
    worker
        .until_wrong(200, "states for t", reason, began)
        .await?;
    gateway.until_wrong(200, "states", reason, began).await?;
    let task = api.task(7, "t").await;
    ensure!(task.is_err(), "{task:?}");

    // Others go on meanwhile.
    tokio::time::sleep(SPENT).await;
    bus.publish("user.created", json!({"user_id": 8})).await?;
    eventually(LATER, async || {
        ensure!(recorder.calls_for(8).len() == 1, "8 waits too");
        Ok(())
    })
    .await?;
    ensure!(recorder.calls_for(7).is_empty(), "it was delivered");
    let letters = api.get("/v1/dead-letters?target=t").await?;
    ensure!(letters["dead_letters"] == json!([]), "{letters}");

    // What an upgraded program would read.
    bus.put_state(&state(2)).await?;
    eventually(LATER, async || {
        let calls = recorder.calls_for(7);
        let told = calls.last().map(|call| call.body["email"].clone());
        ensure!(told == Some(json!("7@example.com")), "{told:?}");
        Ok(())
    })
    .await?;
    bus.until_settled("t").await?;
    stack.stop().await
}
