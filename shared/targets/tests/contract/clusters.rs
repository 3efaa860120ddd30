//! A Redis Cluster whose slots move and whose servers go, and servers that can't be written to.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use redis::AsyncTypedCommands as _;
use serde_json::json;
use usersync_stack::{Directory, RedisCluster, RedisServer, free_port};
use usersync_targets::{Action, Delivery, Outcome, Standing, Target};

use crate::{
    checks::differing,
    clauses::{is_delivered, one},
    deliveries::{deleted, disabled, user},
    peer::open,
};

/// What `CLUSTER KEYSLOT user:42` answers.
const SLOT_OF_42: u16 = 15_880;

fn target(url: &str) -> Result<Box<dyn Target>> {
    open(json!({"url": url}), json!({}))
}

async fn client(server: &RedisServer) -> Result<redis::aio::MultiplexedConnection> {
    let client = redis::Client::open(server.url())?;
    Ok(client.get_multiplexed_async_connection().await?)
}

fn some(version: u64) -> Vec<Delivery> {
    (0..100)
        .map(|id| user(&id.to_string(), version, "ann"))
        .collect()
}

async fn all_delivered(target: &dyn Target, batch: &[Delivery]) -> Result<()> {
    for (delivery, outcome) in batch.iter().zip(target.deliver(batch).await) {
        is_delivered(&outcome).with_context(|| format!("user {}", delivery.user_id))?;
    }
    Ok(())
}

#[tokio::test]
async fn any_server_of_a_cluster_leads_to_all_users() -> Result<()> {
    let dir = Directory::temporary()?;
    let cluster = RedisCluster::start(dir.path(), &[]).await?;
    for (version, master) in (5..).zip(cluster.masters()) {
        let target = target(&master.url())?;
        target.probe().await?;
        all_delivered(&*target, &some(version)).await?;
        let standings = target
            .compare(&some(version))
            .await
            .context("it compares")?;
        ensure!(
            standings.iter().all(|standing| *standing == Standing::Same),
            "{standings:?}"
        );
        ensure!(differing(&*target, &some(version)).await?.is_empty());
    }
    let mut held = 0;
    for master in cluster.masters() {
        held += client(master).await?.keys("user:*").await?.len();
    }
    ensure!(held == 100, "{held}");
    Ok(())
}

#[tokio::test]
async fn slots_that_have_moved_are_followed() -> Result<()> {
    let dir = Directory::temporary()?;
    let cluster = RedisCluster::start(dir.path(), &[]).await?;
    let target = target(&cluster.url())?;
    all_delivered(&*target, &some(5)).await?;
    cluster.move_slot(SLOT_OF_42, 2, 0).await?;
    all_delivered(&*target, &some(6)).await?;
    let older = one(&*target, user("42", 5, "older")).await;
    ensure!(older == Outcome::AlreadyNewer, "{older:?}");
    ensure!(differing(&*target, &some(6)).await?.is_empty());
    let there = client(&cluster.masters()[0]).await?.get("user:42").await?;
    ensure!(there.is_some_and(|text| text.contains("\"version\":6")));
    Ok(())
}

#[tokio::test]
async fn a_slot_that_is_moving_is_asked_for_where_it_goes_to() -> Result<()> {
    let dir = Directory::temporary()?;
    let cluster = RedisCluster::start(dir.path(), &[]).await?;
    let target = target(&cluster.url())?;
    target.probe().await?;
    cluster.begin_to_move(SLOT_OF_42, 2, 0).await?;
    // Of a user that isn't there yet both keys are the other node's, and a script with two keys waits until they are there:
    // reading goes on meanwhile, and writing fails for now and for that user alone.
    let standings = target.compare(&some(5)).await.context("it compares")?;
    ensure!(
        standings
            .iter()
            .all(|standing| *standing == Standing::Missing),
        "{standings:?}"
    );
    let outcomes = target.deliver(&some(5)).await;
    for (id, outcome) in outcomes.iter().enumerate() {
        let fine = match outcome {
            Outcome::Delivered { .. } => id != 42,
            Outcome::Transient(_) => id == 42,
            _ => false,
        };
        ensure!(fine, "user {id}: {outcome:?}");
    }
    cluster.move_slot(SLOT_OF_42, 2, 0).await?;
    all_delivered(&*target, &some(5)).await?;
    ensure!(differing(&*target, &some(5)).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn users_of_other_masters_are_written_while_one_is_away() -> Result<()> {
    let dir = Directory::temporary()?;
    let args = ["--appendonly", "yes", "--appendfsync", "no"];
    let mut cluster = RedisCluster::start(dir.path(), &args).await?;
    let target = target(&cluster.url())?;
    all_delivered(&*target, &some(5)).await?;
    cluster.masters()[1].kill9().await;
    let begun = Instant::now();
    let outcomes = target.deliver(&some(6)).await;
    ensure!(
        begun.elapsed() < Duration::from_secs(6),
        "it took {:?}",
        begun.elapsed()
    );
    let delivered = |outcome: &&Outcome| matches!(outcome, Outcome::Delivered { .. });
    let written = outcomes.iter().filter(delivered).count();
    ensure!((50..80).contains(&written), "{written} are written");
    let mut others = outcomes.iter().filter(|outcome| !delivered(outcome));
    ensure!(
        others.all(|outcome| matches!(outcome, Outcome::Fault(_) | Outcome::Transient(_))),
        "{outcomes:?}"
    );
    ensure!(
        target.probe().await.is_err(),
        "the probe finds nothing wrong"
    );
    ensure!(
        differing(&*target, &some(6)).await.is_err(),
        "a part is taken for all"
    );
    cluster.restart().await?;
    usersync_stack::eventually(Duration::from_secs(20), async || {
        target.probe().await?;
        all_delivered(&*target, &some(7)).await
    })
    .await?;
    ensure!(differing(&*target, &some(7)).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_cluster_that_has_lost_slots_is_not_taken_for_whole() -> Result<()> {
    let dir = Directory::temporary()?;
    let cluster = RedisCluster::start(dir.path(), &[]).await?;
    let target = target(&cluster.url())?;
    all_delivered(&*target, &some(5)).await?;
    for master in cluster.masters() {
        let mut lost = redis::cmd("CLUSTER");
        lost.arg("DELSLOTS").arg(SLOT_OF_42);
        lost.exec_async(&mut client(master).await?).await?;
    }
    let outcome = one(&*target, user("42", 6, "ann")).await;
    ensure!(
        !matches!(outcome, Outcome::Delivered { .. } | Outcome::Permanent(_)),
        "{outcome:?}"
    );
    is_delivered(&one(&*target, user("1", 6, "ann")).await)?;
    let fresh = open(json!({"url": cluster.url()}), json!({}))?;
    let found = fresh.probe().await.err();
    let found = found.context("the probe finds nothing wrong")?;
    ensure!(found.to_string().contains("CLUSTERDOWN"), "{found}");
    ensure!(
        differing(&*fresh, &some(6)).await.is_err(),
        "a part is taken for all"
    );
    Ok(())
}

#[tokio::test]
async fn deleted_and_disabled_users_of_many_slots_are_told_apart() -> Result<()> {
    let dir = Directory::temporary()?;
    let cluster = RedisCluster::start(dir.path(), &[]).await?;
    let target = open(
        json!({"url": cluster.url()}),
        json!({"on_delete": "disable"}),
    )?;
    let ids = [
        "{}",
        "}",
        "{",
        "}{",
        "{a}b",
        "a{}b",
        "42:deleted",
        "auth0|6f",
        "18446744073709551615",
    ];
    let all: Vec<Delivery> = ids.iter().map(|id| user(id, 5, "ann")).collect();
    all_delivered(&*target, &all).await?;
    let change = |(at, id): (usize, &&str)| match at % 2 {
        0 => deleted(id, 6),
        _ => disabled(id, 6),
    };
    let changed: Vec<Delivery> = ids.iter().enumerate().map(change).collect();
    all_delivered(&*target, &changed).await?;
    for outcome in target.deliver(&all).await {
        ensure!(outcome == Outcome::AlreadyNewer, "{outcome:?}");
    }
    for delivery in &all {
        target.forget_version(&delivery.user_id, 6).await?;
    }
    all_delivered(&*target, &all).await
}

/// What a target says that can't be written to: by the probe, and of each user, whom it loses no attempt.
async fn refusal(url: &str, more: serde_json::Value) -> Result<String> {
    let target = open(json!({"url": url}), more)?;
    let found = target
        .probe()
        .await
        .err()
        .context("the probe finds nothing wrong")?;
    for delivery in [user("1", 5, "ann"), deleted("2", 5)] {
        match one(&*target, delivery.clone()).await {
            Outcome::Fault(failure) | Outcome::Down(failure) => {
                let (found, failure) = (found.to_string(), failure.to_string());
                ensure!(!failure.contains("example.com"), "{failure}");
                ensure!(found.len() > 20 && failure.len() > 20, "{found}, {failure}");
            }
            // Who may only not delete writes others.
            Outcome::Delivered { .. } if delivery.action == Action::Upsert => {}
            other => anyhow::bail!("{url}: {other:?}"),
        }
    }
    Ok(found.to_string())
}

#[tokio::test]
async fn a_server_that_cannot_be_written_to_is_at_fault_and_says_why() -> Result<()> {
    let dir = Directory::temporary()?;
    let right = dir.path().join("right");
    std::fs::write(&right, "p")?;
    let secret = json!({"secret": format!("file:{}", right.display())});
    let server = RedisServer::start(dir.path()).await?;
    let mut admin = client(&server).await?;
    let mut with_rights = async |rights: &[&str]| -> Result<String> {
        let mut set = redis::cmd("ACL");
        set.arg(&["SETUSER", "sync", "reset", "on", ">p"])
            .arg(rights);
        set.exec_async(&mut admin).await?;
        let url = server.url().replace("://", "://sync@");
        refusal(&url, secret.clone()).await
    };
    for (rights, expected) in [
        (["~user:*", "+@read", "+@write"].as_slice(), "`script|load`"),
        (&["~user:*", "+@read", "+@scripting"], "NOPERM"),
        (
            &["~user:*", "+@read", "+@write", "-set", "+@scripting"],
            "NOPERM",
        ),
        (
            &["~user:*", "+@read", "+@write", "-del", "+@scripting"],
            "NOPERM",
        ),
        (&["~other:*", "+@read", "+@write", "+@scripting"], "~user:*"),
        (&["%R~user:*", "+@read", "+@write", "+@scripting"], "NOPERM"),
    ] {
        let said = with_rights(rights)
            .await
            .with_context(|| format!("{rights:?}"))?;
        ensure!(said.contains(expected), "{rights:?}: {said}");
    }
    let said = refusal(&format!("{}/99", server.url()), json!({})).await?;
    ensure!(said.contains("no database"), "{said}");

    let home = dir.path().join("replica");
    let primary = server.port().to_string();
    let args = ["--replicaof", "127.0.0.1", &primary];
    let replica = RedisServer::start_with(&home, free_port()?, &args).await?;
    let said = refusal(&replica.url(), json!({})).await?;
    ensure!(said.contains("replica"), "{said}");

    let home = dir.path().join("cluster");
    let cluster = RedisCluster::start(
        &home,
        &[
            "--user",
            "sync",
            "on",
            ">p",
            "~user:*",
            "+@read",
            "+@write",
            "+@scripting",
        ],
    )
    .await?;
    let said = refusal(&format!("{}/1", cluster.url()), json!({})).await?;
    ensure!(said.contains("database 0"), "{said}");
    let said = refusal(&cluster.url().replace("://", "://sync@"), secret.clone()).await?;
    ensure!(
        said.contains("`cluster|slots`") && said.contains("+cluster|slots"),
        "{said}"
    );
    Ok(())
}

#[tokio::test]
async fn a_primary_that_becomes_a_replica_costs_no_attempt_and_is_left() -> Result<()> {
    let dir = Directory::temporary()?;
    let server = RedisServer::start(dir.path()).await?;
    let target = target(&server.url())?;
    is_delivered(&one(&*target, user("1", 5, "ann")).await)?;
    let mut admin = client(&server).await?;
    let mut replicate = async |of: [&str; 2]| -> Result<()> {
        let mut command = redis::cmd("REPLICAOF");
        Ok(command.arg(&of).exec_async(&mut admin).await?)
    };
    replicate(["127.0.0.1", "1"]).await?;
    let outcome = one(&*target, user("1", 6, "anna")).await;
    ensure!(matches!(outcome, Outcome::Down(_)), "{outcome:?}");
    ensure!(
        target.probe().await.is_err(),
        "the probe finds nothing wrong"
    );
    replicate(["NO", "ONE"]).await?;
    target.probe().await?;
    is_delivered(&one(&*target, user("1", 6, "anna")).await)?;
    // What the test of a write leaves is nothing.
    let keys = client(&server).await?.keys("*").await?;
    ensure!(keys == ["user:1"], "{keys:?}");
    Ok(())
}

#[tokio::test]
async fn sentinel_is_refused_by_name() -> Result<()> {
    for url in [
        "redis+sentinel://127.0.0.1:26379/mymaster",
        "redis-sentinel://h:26379/m",
        "sentinel://h",
    ] {
        let error = target(url).err().context("it is taken")?;
        let said = format!("{error:#}");
        ensure!(
            said.contains("Sentinel") && said.contains("primary"),
            "{url}: {said}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_database_is_named_by_its_number() -> Result<()> {
    for path in ["abc", "-1", "1/2", "99999999999"] {
        let url = format!("redis://127.0.0.1:1/{path}");
        let error = target(&url).err().context("it is taken")?;
        let said = format!("{error:#}");
        ensure!(said.contains("number of a database"), "{url}: {said}");
    }
    target("redis://127.0.0.1:1/3")?;
    target("redis://127.0.0.1:1/")?;
    Ok(())
}
