//! Where Redis remembers deleted users, and what stands where they were remembered before.

use anyhow::{Context as _, Result, ensure};
use redis::AsyncTypedCommands as _;
use serde_json::json;
use usersync_stack::{Directory, RedisServer, free_port};
use usersync_targets::{Outcome, Standing, Target};

use crate::{
    checks::differing,
    clauses::{is_delivered, one},
    deliveries::{deleted, user},
    peer::{Peer as _, connect},
    redis::Redis,
};

const FORMER: &str = "user:42:deleted";

async fn target(peer: &Redis) -> Result<Box<dyn Target>> {
    connect(peer, "tombstones", json!({}))
}

/// A tombstone as it was kept before.
async fn buried_before(peer: &Redis, version: &str) -> Result<()> {
    let mut client = peer.client().await?;
    Ok(client.set_ex(FORMER, version, 1_000).await?)
}

#[tokio::test]
async fn both_keys_of_a_user_are_in_one_slot() -> Result<()> {
    let peer = Redis::start().await?;
    let target = target(&peer).await?;
    let dir = Directory::temporary()?;
    let args = ["--cluster-enabled", "yes", "--save", ""];
    let cluster = RedisServer::start_with(dir.path(), free_port()?, &args).await?;
    let mut cluster = redis::Client::open(cluster.url())?
        .get_multiplexed_async_connection()
        .await?;
    let mut random = fastrand::Rng::with_seed(42);
    let mut ids: Vec<String> = ["{}", "}", "{", "}{", "{a}b", "a{}b", "42:deleted", ":"]
        .map(str::to_owned)
        .into();
    while ids.len() < 300 {
        let length = random.usize(1..=12);
        let symbols = (0..length).map(|_| match random.bool() {
            true => *random.choice(&['{', '}', ':']).unwrap_or(&'{'),
            false => random.char('!'..='~'),
        });
        ids.push(symbols.collect());
    }
    let mut client = peer.client().await?;
    for id in ids {
        client.flushall().await?;
        is_delivered(&one(&*target, deleted(&id, 5)).await)?;
        let keys = client.keys("*").await?;
        let [tombstone] = keys.as_slice() else {
            anyhow::bail!("{id}: {keys:?}")
        };
        let mut slots = Vec::new();
        for key in [tombstone, &format!("user:{id}")] {
            let asked = redis::cmd("CLUSTER").arg("KEYSLOT").arg(key).to_owned();
            slots.push(asked.query_async::<u16>(&mut cluster).await?);
        }
        ensure!(slots[0] == slots[1], "{id}: {tombstone} is in {slots:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_document_is_no_tombstone_whatever_its_user_is_called() -> Result<()> {
    let mut peer = Redis::start().await?;
    let target = target(&peer).await?;
    is_delivered(&one(&*target, user("42:deleted", 9, "ann")).await)?;
    is_delivered(&one(&*target, user("42", 5, "ben")).await)?;
    is_delivered(&one(&*target, deleted("42", 6)).await)?;
    let held = peer.held("", "42:deleted").await?.context("it has gone")?;
    ensure!(held.username.as_deref() == Some("ann"), "{held:?}");
    let older = one(&*target, user("42", 5, "ben")).await;
    ensure!(older == Outcome::AlreadyNewer, "{older:?}");
    is_delivered(&one(&*target, deleted("42:deleted", 10)).await)?;
    ensure!(peer.held("", "42:deleted").await?.is_none());
    let counted = differing(&*target, &[]).await?;
    ensure!(counted.is_empty(), "{counted:?}");
    Ok(())
}

#[tokio::test]
async fn tombstones_of_before_are_read_until_they_expire() -> Result<()> {
    let peer = Redis::start().await?;
    let (target, mut client) = (target(&peer).await?, peer.client().await?);
    buried_before(&peer, "900").await?;
    let counted = differing(&*target, &[]).await?;
    ensure!(counted.is_empty(), "{counted:?}");
    let nobody = target.compare(&[deleted("42:deleted", 5)]).await;
    ensure!(nobody == Some(vec![Standing::Same]), "{nobody:?}");
    let older = one(&*target, user("42", 800, "ann")).await;
    ensure!(older == Outcome::AlreadyNewer, "{older:?}");
    is_delivered(&one(&*target, user("42", 1_000, "ann")).await)?;
    ensure!(client.get(FORMER).await?.is_none(), "it stays");
    Ok(())
}

#[tokio::test]
async fn a_tombstone_of_before_makes_room_for_who_is_called_like_it() -> Result<()> {
    let mut peer = Redis::start().await?;
    let target = target(&peer).await?;
    for newcomer in [user("42:deleted", 5, "ann"), deleted("42:deleted", 6)] {
        peer.prepare("").await?;
        buried_before(&peer, "900").await?;
        is_delivered(&one(&*target, newcomer).await)?;
        let older = one(&*target, user("42", 800, "ben")).await;
        ensure!(older == Outcome::AlreadyNewer, "{older:?}");
        is_delivered(&one(&*target, user("42", 1_000, "ben")).await)?;
    }
    Ok(())
}
