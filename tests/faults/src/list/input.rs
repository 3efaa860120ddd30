//! What publishers send: repeated, out of order, too fast, and what is no event at all.

use std::time::Duration;

use anyhow::{Context as _, Result};
use usersync_stack::eventually;

use crate::{
    fault::Fault,
    world::{SOON, World},
};

pub(crate) const FAULTS: &[Fault] = &[
    repeated(Fault::new(90, "triple-and-shuffled", |world, dice| {
        Box::pin(nothing(world, dice))
    })),
    burst(Fault::new(91, "burst", |world, dice| {
        Box::pin(nothing(world, dice))
    })),
    Fault::new(92, "no-events", |world, dice| {
        Box::pin(rubbish(world, dice))
    })
    .told(&["dead"]),
];

const fn repeated(mut fault: Fault) -> Fault {
    fault.repeated = true;
    fault
}

const fn burst(mut fault: Fault) -> Fault {
    fault.burst = true;
    fault
}

async fn nothing(_world: &mut World, _dice: &mut fastrand::Rng) -> Result<()> {
    Ok(())
}

/// Bad UTF-8, 10,000 levels, 60,000 members, 1e400, and so on: each is kept as refused, and holds up nobody.
async fn rubbish(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    let refused = world.jetstream.get_stream("USER_REFUSED").await?;
    let many: String = (0..60_000).map(|n| format!("\"k{n}\":1,")).collect();
    // Of nobody whom a load changes.
    let bodies: Vec<Vec<u8>> = vec![
        b"\xff\xfe\xfd".to_vec(),
        b"{\"user_id\": 999999999, \"username\": \"\xc3\x28\"}".to_vec(),
        format!(
            "{{\"user_id\": 999999999, \"data\": {}1{}}}",
            "[".repeat(10_000),
            "]".repeat(10_000)
        )
        .into_bytes(),
        format!("{{\"user_id\": 999999999, \"data\": {{{many}\"k\":1}}}}").into_bytes(),
        b"{\"user_id\": 999999999, \"data\": {\"n\": 1e400}}".to_vec(),
        b"{\"user_id\": 999999999, \"data\": {\"n\": 18446744073709551616}}".to_vec(),
        b"[]".to_vec(),
        Vec::new(),
    ];
    let mut sent = Vec::new();
    for body in bodies {
        let stored = world.jetstream.publish("user.updated", body.into());
        sent.push(stored.await?.await?.sequence);
        tokio::time::sleep(Duration::from_millis(dice.u64(10..200))).await;
    }
    eventually(SOON, async || {
        for (at, seq) in sent.iter().enumerate() {
            let kept = refused
                .direct_get_last_for_subject(format!("user.refused.{seq}"))
                .await;
            kept.with_context(|| format!("the one at {at} isn't kept"))?;
        }
        Ok(())
    })
    .await
}
