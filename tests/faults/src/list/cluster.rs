//! A cluster of three NATS servers: its leader is lost, most of it is lost, one is cut off, one comes back with a store that
//! something has damaged.

use std::{
    fs,
    io::{Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, ensure};
use usersync_stack::Signal;

use crate::{
    fault::{Fault, a_while},
    proxy::Line,
    world::World,
};

const SERVERS: usize = 3;

pub(crate) const FAULTS: &[Fault] = &[
    Fault::new(30, "leader-killed", |world, dice| {
        Box::pin(leader_killed(world, dice))
    })
    .of_cluster(),
    Fault::new(31, "leader-frozen", |world, dice| {
        Box::pin(leader_frozen(world, dice))
    })
    .of_cluster(),
    Fault::new(32, "servers-replaced", |world, dice| {
        Box::pin(replaced(world, dice))
    })
    .of_cluster(),
    Fault::new(33, "quorum-lost", |world, dice| {
        Box::pin(quorum_lost(world, dice))
    })
    .of_cluster(),
    Fault::new(34, "server-cut-off", |world, dice| {
        Box::pin(cut_off(world, dice))
    })
    .of_cluster(),
    Fault::new(35, "store-damaged", |world, dice| {
        Box::pin(damaged(world, dice))
    })
    .of_cluster(),
];

/// That of the events, then that of the states.
async fn leader_killed(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    for stream in ["USER_EVENTS", "USER_STATE"] {
        let leader = world.leader(stream).await?;
        world.nats(leader).kill9().await;
        a_while(dice).await;
        world.nats(leader).restart().await?;
        a_while(dice).await;
    }
    Ok(())
}

async fn leader_frozen(world: &mut World, _dice: &mut fastrand::Rng) -> Result<()> {
    let leader = world.leader("USER_STATE").await?;
    world.nats(leader).process().signal(Signal::SIGSTOP)?;
    tokio::time::sleep(Duration::from_secs(30)).await;
    world.nats(leader).process().signal(Signal::SIGCONT)
}

/// One after the other, by SIGTERM.
async fn replaced(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    for server in 0..SERVERS {
        world.nats(server).stop(Duration::from_secs(30)).await?;
        world.nats(server).restart().await?;
        a_while(dice).await;
    }
    Ok(())
}

/// Nothing can be stored for as long as two of three are dead.
async fn quorum_lost(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    let left = dice.usize(..SERVERS);
    for server in (0..SERVERS).filter(|server| *server != left) {
        world.nats(server).kill9().await;
    }
    tokio::time::sleep(Duration::from_secs(8)).await;
    for server in (0..SERVERS).filter(|server| *server != left) {
        world.nats(server).restart().await?;
    }
    Ok(())
}

/// Clients reach it, and no other server does; where the clients are, and where the states are led.
async fn cut_off(world: &mut World, _dice: &mut fastrand::Rng) -> Result<()> {
    for server in [0, world.leader("USER_STATE").await?] {
        let cut = |from: &usize, to: &usize| *from == server || *to == server;
        let cut_off: Vec<_> = world
            .routes
            .iter()
            .filter(|(from, to, _)| cut(from, to))
            .map(|(_, _, line)| line.clone())
            .collect();
        for line in &cut_off {
            line.is(Line::BlackHole);
        }
        tokio::time::sleep(Duration::from_secs(12)).await;
        for line in &cut_off {
            line.is(Line::Good);
            line.reset();
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    Ok(())
}

/// A server dies; bytes of each of its files of messages are others when it starts, and one file has lost its end.
async fn damaged(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    a_while(dice).await;
    world.nats(2).kill9().await;
    let store = world.stack.dir().join("peer-2").join("nats");
    let mut files = Vec::new();
    blocks(&store, &mut files)?;
    ensure!(!files.is_empty(), "no messages in {}", store.display());
    for (number, path) in files.iter().enumerate() {
        let size = fs::metadata(path)?.len();
        let mut file = fs::OpenOptions::new().write(true).open(path)?;
        match number {
            0 => file.set_len(size / 2)?,
            _ if size > 16 => {
                file.seek(SeekFrom::Start(dice.u64(..size - 8)))?;
                file.write_all(&dice.u64(..).to_be_bytes())?;
            }
            _ => {}
        }
    }
    world.nats(2).restart().await
}

/// The files with the messages of streams, in a folder and those within.
fn blocks(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            blocks(&path, found)?;
        } else if path.extension().is_some_and(|kind| kind == "blk") {
            found.push(path);
        }
    }
    found.sort();
    Ok(())
}
