//! The clauses about servers that can't be used.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use usersync_stack::eventually;
use usersync_targets::Outcome;

use crate::{
    clauses::{is_delivered, one},
    deliveries::{user, whole},
    peer::{Peer, connect, open},
};

const SOON: Duration = Duration::from_secs(30);

pub(crate) async fn wrong_credentials_are_a_fault(peer: &mut dyn Peer, place: &str) -> Result<()> {
    let target = open(peer.entry(place, false), json!({}))?;
    let outcome = one(&*target, user("1", 5, "ann")).await;
    ensure!(matches!(outcome, Outcome::Fault(_)), "{outcome:?}");
    ensure!(peer.held(place, "1").await?.is_none(), "it got in");
    Ok(())
}

pub(crate) async fn a_server_that_hangs_is_given_up_in_time(
    peer: &mut dyn Peer,
    place: &str,
) -> Result<()> {
    let target = connect(peer, place, json!({"timeout": "1s"}))?;
    is_delivered(&one(&*target, user("1", 5, "ann")).await)?;
    peer.pause(true).await?;
    // On a connection that is open, and on one that isn't.
    let fresh = connect(peer, place, json!({"timeout": "1s"}))?;
    let before = Instant::now();
    let outcomes = [
        one(&*target, user("1", 6, "anna")).await,
        one(&*fresh, user("2", 6, "ben")).await,
    ];
    let took = before.elapsed();
    peer.pause(false).await?;
    for outcome in outcomes {
        ensure!(
            matches!(outcome, Outcome::Transient(_) | Outcome::Fault(_)),
            "{outcome:?}"
        );
    }
    ensure!(took < Duration::from_secs(4), "it took {took:?}");
    eventually(SOON, async || {
        is_delivered(&one(&*target, user("1", 7, "anne")).await)?;
        is_delivered(&one(&*fresh, user("2", 7, "ben")).await)
    })
    .await?;
    let held = peer.held(place, "1").await?;
    ensure!(held == Some(whole("1", "anne")), "{held:?}");
    Ok(())
}

pub(crate) async fn an_outage_is_a_fault_and_ends(peer: &mut dyn Peer, place: &str) -> Result<()> {
    let target = connect(peer, place, json!({}))?;
    is_delivered(&one(&*target, user("1", 5, "ann")).await)?;
    peer.kill().await?;
    // What was under way when it went may be anything but delivered.
    one(&*target, user("1", 6, "anna")).await;
    let outcome = one(&*target, user("1", 6, "anna")).await;
    ensure!(matches!(outcome, Outcome::Fault(_)), "{outcome:?}");
    ensure!(
        target.probe().await.is_err(),
        "the probe finds nothing wrong"
    );
    peer.restart().await?;
    eventually(SOON, async || {
        target.probe().await?;
        is_delivered(&one(&*target, user("1", 6, "anna")).await)
    })
    .await?;
    let held = peer.held(place, "1").await?;
    ensure!(held == Some(whole("1", "anna")), "{held:?}");
    Ok(())
}
