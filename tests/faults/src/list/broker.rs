//! NATS: killed, stopped, robbed of what is ours in it.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use usersync_stack::{Signal, eventually, http};

use crate::{
    disk::Disk,
    fault::{Fault, a_while},
    image::Image,
    world::{SOON, World},
};

const ANSWER: Duration = Duration::from_secs(3);

pub(crate) const FAULTS: &[Fault] = &[
    Fault::new(20, "nats-killed", |world, dice| {
        Box::pin(killed(world, dice))
    }),
    Fault::new(21, "nats-frozen", |world, dice| {
        Box::pin(frozen(world, dice))
    }),
    Fault::new(22, "consumers-deleted", |world, dice| {
        Box::pin(consumers(world, dice))
    })
    .told(&["streams"]),
    Fault::new(23, "states-deleted", |world, dice| {
        Box::pin(states(world, dice))
    })
    .told(&["streams"]),
    Fault::new(24, "side-streams-deleted", |world, dice| {
        Box::pin(side_streams(world, dice))
    })
    .told(&["streams"]),
    Fault::new(25, "payload-too-large", |world, dice| {
        Box::pin(too_large(world, dice))
    }),
    Fault::new(26, "disk-full", |world, dice| {
        Box::pin(disk_full(world, dice))
    })
    .needing(Disk::is_possible),
    Fault::new(27, "power-cut", |world, dice| {
        Box::pin(power_cut(world, dice))
    })
    .needing(Image::is_possible),
];

/// What the shipped `nats.conf` says, and what keeps everything that was acknowledged.
const SYNC: [&str; 2] = ["sync_interval: \"100ms\"", "sync_interval: \"always\""];

async fn killed(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(dice.u64(200..1_000))).await;
        world.stack.nats.kill9().await;
        world.stack.nats.restart().await?;
    }
    Ok(())
}

async fn frozen(world: &mut World, _dice: &mut fastrand::Rng) -> Result<()> {
    world.stack.nats.process().signal(Signal::SIGSTOP)?;
    tokio::time::sleep(Duration::from_secs(12)).await;
    world.stack.nats.process().signal(Signal::SIGCONT)
}

/// Those of two targets, and intake's.
async fn consumers(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    a_while(dice).await;
    for (stream, consumer) in [
        ("USER_STATE", "plain"),
        ("USER_REPAIR", "plain"),
        ("USER_STATE", "crm"),
        ("USER_EVENTS", "gateway-intake"),
    ] {
        let stream = world.jetstream.get_stream(stream).await?;
        stream.delete_consumer(consumer).await?;
    }
    Ok(())
}

/// They are made again from every event once the gateway begins anew.
async fn states(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    a_while(dice).await;
    world.jetstream.delete_stream("USER_STATE").await?;
    a_while(dice).await;
    world.stack.gateways[0].restart().await?;
    eventually(SOON, async || {
        world.jetstream.get_stream("USER_STATE").await?;
        Ok(())
    })
    .await
}

async fn side_streams(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    a_while(dice).await;
    for stream in [
        "USER_ADVISORY",
        "USER_REPAIR",
        "USER_RESULT",
        "KV_user_breakers",
        "KV_user_workers",
    ] {
        world.jetstream.delete_stream(stream).await?;
    }
    Ok(())
}

/// Nothing is acknowledged, and the gateway says that it isn't ready; whoever makes room starts nats-server again.
async fn disk_full(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    let disk = world.disk.as_ref();
    let disk = disk.context("NATS has no disk of its own")?;
    let filled = disk.fill()?;
    let gateway = format!("{}/readyz", world.stack.gateways[0].url());
    let told = eventually(SOON, async || {
        let asked = http::client().get(&gateway).timeout(ANSWER).send();
        let status = asked.await?.status();
        ensure!(status != 200, "{status}");
        Ok(())
    })
    .await;
    a_while(dice).await;
    fs::remove_file(filled)?;
    world.stack.nats.restart().await?;
    told.context("the gateway says that it is ready while nothing can be stored")
}

/// Twice, while everything is synced before it is acknowledged. Then the store is where it was, synced as
/// before.
async fn power_cut(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    let nats = &mut world.stack.nats;
    let conf = nats.conf().to_owned();
    let store = conf.with_file_name("nats");
    let shipped = fs::read_to_string(&conf)?;
    let synced = shipped.replacen(SYNC[0], SYNC[1], 1);
    ensure!(synced != shipped, "nats.conf doesn't say {}", SYNC[0]);
    nats.stop(SOON).await?;
    fs::write(&conf, synced)?;
    let mut image = Image::over(&store, &conf.with_extension("image"))?;
    nats.restart().await?;
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(dice.u64(300..1_500))).await;
        image.cut(nats.kill9()).await?;
        nats.restart().await?;
    }
    tokio::time::sleep(Duration::from_millis(dice.u64(300..1_500))).await;
    nats.stop(SOON).await?;
    fs::write(&conf, shipped)?;
    image.put_back()?;
    nats.restart().await
}

async fn too_large(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    let most = world.jetstream.client().server_info().max_payload;
    for size in [most - 1_000, most + 1] {
        let sent = world
            .jetstream
            .publish("user.updated", vec![b'x'; size].into());
        // The first is stored and refused by intake, the second by NATS.
        if let Ok(sent) = sent.await {
            sent.await.ok();
        }
        a_while(dice).await;
    }
    Ok(())
}
