//! The clauses about checks, the same for every kind: equal sides are equal, and every difference is found.

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use serde_json::json;
use usersync_core::event::Change;
use usersync_digest::{Difference, Each, Scan, Scanned, SideError, Walk};
use usersync_targets::{Delivery, Holdings, Outcome, Standing, Target};

use crate::{
    clauses::is_delivered,
    deliveries::{data, deleted, email, partial, user},
    peer::{Peer, connect},
};

/// What a target is meant to hold: the other side of a check.
pub(crate) struct Meant<'a> {
    pub(crate) holdings: &'a dyn Holdings,
    pub(crate) deliveries: &'a [Delivery],
}

#[async_trait]
impl Scan for Meant<'_> {
    async fn scan(&self, each: Each<'_>) -> Result<u64, SideError> {
        for delivery in self.deliveries {
            if let Some(hash) = self.holdings.expected(delivery) {
                each(&delivery.user_id.to_string(), hash);
            }
        }
        Ok(0)
    }
}

/// Everybody whom a walk finds, by id.
pub(crate) async fn walked(mut walk: Walk<'_>) -> Result<Vec<Difference>> {
    let mut found = Vec::new();
    while let Some(some) = walk.next().await? {
        found.extend(some);
    }
    found.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(found)
}

/// Those of whom the target doesn't hold what it is meant to.
pub(crate) async fn differing(
    target: &dyn Target,
    deliveries: &[Delivery],
) -> Result<Vec<Difference>> {
    let holdings = target.holdings().await?;
    let meant = Scanned(Meant {
        holdings: &*holdings,
        deliveries,
    });
    walked(Walk::new(&meant, holdings.side()).await?).await
}

async fn deliver(target: &dyn Target, deliveries: &[Delivery]) -> Result<()> {
    for batch in deliveries.chunks(target.limits().batch) {
        for (delivery, outcome) in batch.iter().zip(target.deliver(batch).await) {
            is_delivered(&outcome).with_context(|| format!("user {}", delivery.user_id))?;
        }
    }
    Ok(())
}

/// Users whose values are written in more than one way, by somebody.
fn odd() -> Vec<Delivery> {
    let mut nameless = email(user("4", 5, ""), "");
    nameless.members.status = Change::Clear;
    let mut bare = user("5", 5, " trailing  ");
    bare.members.email = Change::Clear;
    bare.members.data = Change::Clear;
    let nested = json!({
        "b": {"y": 1.0, "x": 1.50, "z": 1e2, "n": null, "big": 9_007_199_254_740_993_u64},
        "a": [true, {"d": "2016-12-31T23:59:60Z", "c": "2026-03-29T02:30:00+01:00"}, null],
        "status": "active",
    });
    vec![
        user("1", 5, "ann"),
        user("2", 5, "ANN"),
        user("3", 5, "Zoë 🦀 e\u{301} \u{e9} 日本"),
        nameless,
        bare,
        data(user("6", 5, "a:b 3:abc '\\\" ` \u{1}"), nested),
        user("7", 5, "Ann "),
        user("aB", 5, "x"),
        // Where case doesn't count their addresses would be one.
        email(user("Ab", 5, "x"), "other@example.com"),
        user("042", 5, "x"),
        user("42", 5, "x"),
        user("9223372036854775807", 5, "x"),
        user("18446744073709551615", 5, "x"),
        user("0198c0de-0000-7000-8000-00000000abcd", 5, "x"),
        email(
            user("0198C0DE-0000-7000-8000-00000000ABCD", 5, "x"),
            "another@example.com",
        ),
        user("auth0|6f", 5, "x"),
        user("f:3c:{jane},\"\\", 5, "x"),
        user("42:deleted", 5, "x"),
        user("9007199254740993", 5, "x"),
        partial("8", 5, "partly"),
        deleted("9", 5),
        data(user("10", 5, "x"), json!({})),
    ]
}

pub(crate) async fn what_is_held_as_meant_does_not_differ(
    peer: &mut dyn Peer,
    place: &str,
) -> Result<()> {
    let target = connect(peer, place, json!({}))?;
    let nobody = differing(&*target, &[]).await?;
    ensure!(nobody.is_empty(), "{nobody:?}");
    let all = odd();
    deliver(&*target, &all).await?;
    let differing = differing(&*target, &all).await?;
    let ids: Vec<_> = differing.iter().map(|one| &*one.id).collect();
    ensure!(ids.is_empty(), "{ids:?} differ");
    if let Some(standings) = target.compare(&all).await {
        for (delivery, standing) in all.iter().zip(standings) {
            ensure!(
                standing == Standing::Same,
                "{}: {standing:?}",
                delivery.user_id
            );
        }
    }
    Ok(())
}

pub(crate) async fn every_class_of_difference_is_found(
    peer: &mut dyn Peer,
    place: &str,
) -> Result<()> {
    let target = connect(peer, place, json!({}))?;
    let at = |number: usize| number.to_string();
    let mut meant: Vec<Delivery> = (0..600).map(|number| user(&at(number), 5, "ann")).collect();
    deliver(&*target, &meant).await?;
    // Missing, tampered with, stale, deleted here and there still, orphans: some of each, some neighbours.
    let (missing, tampered, stale, extra) = ([3, 4, 300], [7, 8, 599], [11, 12], [15, 16]);
    for number in missing {
        peer.remove(place, &at(number)).await?;
    }
    for number in tampered {
        peer.tamper(place, &at(number)).await?;
    }
    for number in stale {
        meant[number] = user(&at(number), 6, "anna");
    }
    for number in extra {
        meant[number] = deleted(&at(number), 6);
    }
    let orphans = [user("aB", 5, "x"), user("700", 5, "x")];
    deliver(&*target, &orphans).await?;

    let found = differing(&*target, &meant).await?;
    let mut expected: Vec<String> = missing
        .iter()
        .chain(&tampered)
        .chain(&stale)
        .chain(&extra)
        .map(|number| at(*number))
        .chain(["aB".to_owned(), "700".to_owned()])
        .collect();
    expected.sort();
    let ids: Vec<_> = found.iter().map(|one| one.id.to_string()).collect();
    ensure!(ids == expected, "{ids:?}");
    for one in &found {
        let number: usize = one.id.parse().unwrap_or(700);
        let is = (one.left.is_some(), one.right.is_some());
        let should = (
            number < 600 && !extra.contains(&number),
            !missing.contains(&number),
        );
        ensure!(is == should, "{one:?}");
    }

    let asked = [3, 7, 11, 15, 20].map(|number: usize| meant[number].clone());
    if let Some(standings) = target.compare(&asked).await {
        let (older, different) = (Standing::Older, Standing::Different("username".into()));
        let expected = [
            Standing::Missing,
            different,
            older.clone(),
            older,
            Standing::Same,
        ];
        ensure!(standings == expected, "{standings:?}");
        let same = Delivery {
            version: meant[20].version + 1,
            ..meant[20].clone()
        };
        let outdated = [user("20", 4, "ann"), deleted("20", 5), same];
        let standings = target.compare(&outdated).await.context("it compares")?;
        ensure!(
            standings == [Standing::Newer(5), Standing::Extra, Standing::Behind],
            "{standings:?}"
        );
    }
    // Whoever is delivered again is as meant again.
    deliver(&*target, &meant).await?;
    for orphan in ["aB", "700"] {
        deliver(&*target, &[deleted(orphan, 6)]).await?;
    }
    let found = differing(&*target, &meant).await?;
    ensure!(found.is_empty(), "{found:?}");
    Ok(())
}

pub(crate) async fn a_check_of_a_server_that_is_away_fails(
    peer: &mut dyn Peer,
    place: &str,
) -> Result<()> {
    let target = connect(peer, place, json!({"timeout": "2s"}))?;
    deliver(&*target, &[user("1", 5, "ann")]).await?;
    peer.kill().await?;
    let checked = differing(&*target, &[user("1", 5, "ann")]).await;
    let compared = target.compare(&[user("1", 5, "ann")]).await;
    peer.restart().await?;
    let error = checked.err().context("it found something")?.to_string();
    ensure!(!error.contains("ann"), "{error}");
    if let Some(standings) = compared {
        let failed = |standing: &Standing| {
            matches!(
                standing,
                Standing::Unknown(Outcome::Fault(_) | Outcome::Transient(_))
            )
        };
        ensure!(standings.iter().all(failed), "{standings:?}");
    }
    Ok(())
}
