//! Our own processes: killed, stopped, asked to end.

use std::time::Duration;

use anyhow::Result;
use futures_util::future::join_all;
use usersync_stack::{Launch, Signal};

use crate::{
    fault::{Fault, a_while},
    world::{SOON, TARGETS, World},
};

pub(crate) const FAULTS: &[Fault] = &[
    Fault::new(1, "gateway-killed", |world, dice| {
        Box::pin(gateway(world, dice))
    }),
    Fault::new(2, "workers-killed", |world, dice| {
        Box::pin(workers(world, dice))
    }),
    Fault::new(3, "scheduler-killed", |world, dice| {
        Box::pin(scheduler(world, dice))
    }),
    Fault::new(4, "all-killed", |world, dice| Box::pin(all(world, dice))),
    Fault::new(5, "workers-frozen", |world, dice| {
        Box::pin(frozen(world, dice))
    }),
    Fault::new(6, "gateway-frozen", |world, dice| {
        Box::pin(gateway_frozen(world, dice))
    }),
    Fault::new(7, "rolling-restart", |world, dice| {
        Box::pin(rolling(world, dice))
    }),
    Fault::new(8, "clocks-ahead", |world, dice| {
        Box::pin(clocks(world, dice, "+1h"))
    }),
    Fault::new(9, "clocks-behind", |world, dice| {
        Box::pin(clocks(world, dice, "-1h"))
    }),
    Fault::new(10, "64-open-files", |world, dice| {
        Box::pin(open_files(world, dice))
    }),
];

async fn gateway(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(dice.u64(100..800))).await;
        world.stack.gateways[0].kill9().await;
        world.stack.gateways[0].restart().await?;
    }
    Ok(())
}

async fn workers(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    for target in TARGETS {
        tokio::time::sleep(Duration::from_millis(dice.u64(50..300))).await;
        let one = dice.usize(..2);
        world.workers(target)[one].kill9().await;
    }
    a_while(dice).await;
    for target in TARGETS {
        for worker in world.workers(target) {
            if !worker.process().is_running() {
                worker.restart().await?;
            }
        }
    }
    Ok(())
}

/// While it checks everything.
async fn scheduler(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    for target in TARGETS {
        let asked = world
            .jetstream
            .publish(format!("user.check.{target}"), "".into());
        asked.await?.await?;
    }
    tokio::time::sleep(Duration::from_millis(dice.u64(50..1_000))).await;
    world.stack.schedulers[0].kill9().await;
    world.stack.schedulers[0].restart().await
}

async fn all(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    tokio::time::sleep(Duration::from_millis(dice.u64(200..1_500))).await;
    let stack = &world.stack;
    let services = stack.gateways.iter().chain(&stack.schedulers);
    let services = services.chain(stack.workers.values().flatten());
    join_all(services.map(|service| service.kill9())).await;
    stack.nats.kill9().await;
    stack.redis.kill9().await;
    world.stack.nats.restart().await?;
    world.stack.redis.restart().await?;
    world.stack.gateways[0].restart().await?;
    world.stack.schedulers[0].restart().await?;
    for worker in world.stack.workers.values_mut().flatten() {
        worker.restart().await?;
    }
    Ok(())
}

/// Long enough to be taken for dead, and then they go on.
async fn frozen(world: &mut World, _dice: &mut fastrand::Rng) -> Result<()> {
    for target in TARGETS {
        world.workers(target)[0].signal(Signal::SIGSTOP)?;
    }
    tokio::time::sleep(Duration::from_secs(12)).await;
    for target in TARGETS {
        world.workers(target)[0].signal(Signal::SIGCONT)?;
    }
    Ok(())
}

async fn gateway_frozen(world: &mut World, _dice: &mut fastrand::Rng) -> Result<()> {
    world.stack.gateways[0].signal(Signal::SIGSTOP)?;
    tokio::time::sleep(Duration::from_secs(6)).await;
    world.stack.gateways[0].signal(Signal::SIGCONT)
}

/// Those of all that is ours; nats-server has the right one.
async fn clocks(world: &mut World, dice: &mut fastrand::Rng, offset: &str) -> Result<()> {
    for offset in [offset, "+0"] {
        otherwise(world, |launch| launch.clock(offset)).await?;
        a_while(dice).await;
    }
    Ok(())
}

async fn open_files(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    for most in [Some(64), None] {
        otherwise(world, |launch| Ok(launch.open_files(most))).await?;
        a_while(dice).await;
    }
    Ok(())
}

/// Kills all, and starts them otherwise.
async fn otherwise(world: &mut World, change: impl Fn(Launch) -> Result<Launch>) -> Result<()> {
    for service in world.services() {
        service.kill9().await;
    }
    for service in world.services() {
        service.otherwise(&change)?;
        service.restart().await?;
    }
    Ok(())
}

async fn rolling(world: &mut World, _dice: &mut fastrand::Rng) -> Result<()> {
    world.stack.gateways[0].stop(SOON).await?;
    world.stack.gateways[0].restart().await?;
    for target in TARGETS {
        for worker in world.workers(target) {
            worker.stop(SOON).await?;
            worker.restart().await?;
        }
    }
    Ok(())
}
