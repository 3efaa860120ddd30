//! What publishers send: repeated, out of order, too fast, and what is no event at all.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use serde_json::json;
use usersync_stack::eventually;

use crate::{
    examples::Example,
    fault::{Fault, a_while},
    forger::{self, Signed},
    world::{SECRETS, SOON, World},
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
    Fault::new(93, "signatures-forged", |world, dice| {
        Box::pin(forged(world, dice))
    }),
];

/// Who may publish by signing.
const CALLER: &str = "crm";

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

/// Somebody who may not sends deliveries to services with the receiver kit, and events to a gateway with a signed
/// door, before and after a secret was replaced. A call that was caught and is sent again changes nothing.
async fn forged(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    let [first, second] = SECRETS;
    world.examples = Example::start(world).await?;
    let door = Door::open(world).await?;
    forge_deliveries(world, first, &[]).await?;
    forge_events(world, &door, first, &[]).await?;
    a_while(dice).await;
    let mut examples = std::mem::take(&mut world.examples);
    for example in &mut examples {
        example.signed_with(world, 1).await?;
        example.forget_the_first().await?;
    }
    world.examples = examples;
    door.takes(second).await?;
    forge_deliveries(world, second, &[first]).await?;
    forge_events(world, &door, second, &[first]).await?;
    door.close(world);
    Ok(())
}

async fn forge_deliveries(world: &World, secret: &str, replaced: &[&str]) -> Result<()> {
    for example in &world.examples {
        let user = example.somebody(&(world.first..world.first + 500)).await?;
        let delivery = |version: u64| {
            let delivery = json!({
                "task_id": format!("{}:{user}:{version}", example.name), "event_type": "user.updated",
                "user_id": user, "username": "forged", "email": "forged@example.com",
                "data": {"n": 0}, "deleted": false, "version": version,
            });
            delivery.to_string()
        };
        let newest = delivery(1 << 52);
        forger::refused(&example.url(), &newest, secret, replaced).await?;
        // As if caught long ago, when it was the newest, and still fresh.
        let old = delivery(1);
        let caught = Signed::new(secret, 60, &old)?;
        let status = caught.call(Method::POST, &example.url(), &old).await?;
        ensure!(status == 200, "an old delivery: {status}");
    }
    Ok(())
}

async fn forge_events(
    world: &mut World,
    door: &Door,
    secret: &str,
    replaced: &[&str],
) -> Result<()> {
    let id = format!("forged-{}-{}", world.first, replaced.len());
    world.forged.push(id.clone());
    // Of nobody whom the load changes.
    let user = world.first + 400;
    let forged = json!({"id": id, "type": "user.created", "user_id": user, "username": "forged"});
    forger::refused(&door.url, &forged.to_string(), secret, replaced).await?;
    let good = json!({"type": "user.created", "user_id": user, "username": "signed"}).to_string();
    let signed = Signed::new(secret, 60, &good)?;
    for _ in 0..2 {
        let status = signed.call(Method::POST, &door.url, &good).await?;
        ensure!(status == 202, "a good event: {status}");
    }
    // A caught signature opens no other door.
    let erase = door
        .url
        .replace("/v1/events", &format!("/v1/users/{user}/data"));
    let status = signed.call(Method::DELETE, &erase, &good).await?;
    ensure!(status == 401, "an erasure, signed: {status}");
    Ok(())
}

/// One more gateway, which asks callers for signatures.
struct Door {
    /// Where they publish.
    url: String,
    /// The file with their secret.
    secret: PathBuf,
}

impl Door {
    async fn open(world: &mut World) -> Result<Self> {
        let dir = world.stack.dir();
        let (secret, keys) = (dir.join("caller"), dir.join("keys.toml"));
        fs::write(&secret, SECRETS[0])?;
        let entry = format!(
            "[http.keys.{CALLER}]\nsecrets = [\"file:{}\"]\nscopes = [\"publish\", \"erase\"]\n",
            secret.display()
        );
        fs::write(&keys, entry)?;
        world.stack.add_gateway().await?;
        let gateway = world.stack.gateways.last_mut().context("a gateway")?;
        gateway.otherwise(|launch| Ok(launch.env("USERSYNC_HTTP__KEYS_FILE", keys)))?;
        gateway.restart().await?;
        let url = format!("{}/v1/events?caller={CALLER}", gateway.url());
        Ok(Self { url, secret })
    }

    /// From now on it takes that secret alone.
    async fn takes(&self, secret: &str) -> Result<()> {
        fs::write(&self.secret, secret)?;
        eventually(SOON, async || {
            // Nobody's event: it is refused for what it says, once it is let in.
            let status = Signed::new(secret, 0, "{}")?
                .call(Method::POST, &self.url, "{}")
                .await?;
            ensure!(status == 422, "{status}");
            Ok(())
        })
        .await
    }

    fn close(self, world: &mut World) {
        world.stack.gateways.truncate(1);
    }
}
