//! The clauses of the contract, the same for every kind.

use std::{future::Future, pin::Pin, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use usersync_core::event::Change;
use usersync_targets::{Delivery, Outcome, Target};

use crate::{
    checks, clauses,
    deliveries::{data, deleted, disabled, email, partial, user, whole},
    failures, numbers,
    peer::{Peer, connect},
};

/// Nothing takes longer, on a machine that is busy.
const AT_MOST: Duration = Duration::from_secs(90);

type Clause =
    for<'a> fn(&'a mut dyn Peer, &'a str) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

macro_rules! clauses {
    ($($module:ident :: $clause:ident),+ $(,)?) => {
        [$((stringify!($clause), (|peer, place| Box::pin($module::$clause(peer, place))) as Clause)),+]
    };
}

/// Holds every clause against `peer`, each at a place of its own; names those that are broken.
pub(crate) async fn hold(peer: &mut dyn Peer) -> Result<()> {
    let all = clauses![
        clauses::a_user_is_held,
        clauses::an_update_replaces_everything,
        clauses::an_older_version_is_refused,
        clauses::a_version_that_cannot_be_is_forgotten_where_it_is_that_one,
        clauses::an_equal_version_restores_what_was_tampered_with,
        clauses::the_same_delivery_twice_changes_nothing,
        clauses::a_deleted_user_is_gone_and_nothing_older_revives_it,
        clauses::whoever_was_deleted_before_it_came_stays_away,
        clauses::a_deleted_user_can_come_back,
        clauses::a_disabled_user_keeps_everything_but_the_status,
        clauses::a_partial_user_keeps_what_is_not_told,
        clauses::one_bad_user_stops_nobody_else,
        clauses::a_mixed_batch_is_told_apart,
        clauses::ids_that_differ_in_case_are_different_users,
        clauses::unusual_ids_are_kept,
        clauses::texts_of_any_script_and_length_are_kept,
        numbers::numbers_are_kept,
        clauses::a_batch_of_large_users_is_held,
        clauses::another_users_row_is_never_touched,
        clauses::two_users_can_swap_what_is_unique,
        clauses::batches_at_the_same_time_leave_the_newest,
        clauses::what_was_delivered_is_verified,
        checks::what_is_held_as_meant_does_not_differ,
        checks::every_class_of_difference_is_found,
        checks::a_check_of_a_server_that_is_away_fails,
        failures::wrong_credentials_are_a_fault,
        failures::a_server_that_hangs_is_given_up_in_time,
        failures::an_outage_is_a_fault_and_ends,
    ];
    let mut broken = Vec::new();
    for (number, (name, clause)) in all.into_iter().enumerate() {
        let place = format!("place_{number}");
        peer.prepare(&place)
            .await
            .with_context(|| format!("preparing {place}"))?;
        match tokio::time::timeout(AT_MOST, clause(peer, &place)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => broken.push(format!("{name}: {error:#}")),
            Err(_) => broken.push(format!("{name}: takes longer than {AT_MOST:?}")),
        }
    }
    ensure!(
        broken.is_empty(),
        "broken clauses:\n  {}",
        broken.join("\n  ")
    );
    Ok(())
}

/// Delivers one user.
pub(crate) async fn one(target: &dyn Target, delivery: Delivery) -> Outcome {
    target.deliver(&[delivery]).await.remove(0)
}

pub(crate) fn is_delivered(outcome: &Outcome) -> Result<()> {
    ensure!(matches!(outcome, Outcome::Delivered { .. }), "{outcome:?}");
    Ok(())
}

/// An older version is refused; HTTP has only success to say so.
fn is_settled(outcome: &Outcome) -> Result<()> {
    let settled = matches!(
        outcome,
        Outcome::AlreadyNewer | Outcome::Delivered { guarded: true }
    );
    ensure!(settled, "{outcome:?}");
    Ok(())
}

async fn a_user_is_held(peer: &mut dyn Peer, place: &str) -> Result<()> {
    let target = connect(peer, place, json!({}))?;
    target.probe().await?;
    let guarded = peer.can().guard;
    let outcome = one(&*target, user("1", 5, "ann")).await;
    ensure!(outcome == Outcome::Delivered { guarded }, "{outcome:?}");
    let held = peer.held(place, "1").await?;
    ensure!(held == Some(whole("1", "ann")), "{held:?}");
    Ok(())
}

async fn an_update_replaces_everything(peer: &mut dyn Peer, place: &str) -> Result<()> {
    let target = connect(peer, place, json!({}))?;
    is_delivered(&one(&*target, user("1", 5, "ann")).await)?;
    let mut newer = data(user("1", 6, "anna"), json!({"city": "x"}));
    newer.members.email = Change::Clear;
    newer.members.status = Change::Clear;
    is_delivered(&one(&*target, newer).await)?;
    let held = peer.held(place, "1").await?.context("it is gone")?;
    ensure!(held.username.as_deref() == Some("anna"), "{held:?}");
    ensure!(held.email.is_none() && held.status.is_none(), "{held:?}");
    ensure!(held.data == json!({"city": "x"}), "{held:?}");
    Ok(())
}

async fn an_older_version_is_refused(peer: &mut dyn Peer, place: &str) -> Result<()> {
    if !peer.can().guard {
        return Ok(());
    }
    let target = connect(peer, place, json!({}))?;
    is_delivered(&one(&*target, user("1", 6, "newer")).await)?;
    let outcome = one(&*target, user("1", 5, "older")).await;
    is_settled(&outcome)?;
    let held = peer.held(place, "1").await?;
    ensure!(held == Some(whole("1", "newer")), "{held:?}");
    Ok(())
}

async fn a_version_that_cannot_be_is_forgotten_where_it_is_that_one(
    peer: &mut dyn Peer,
    place: &str,
) -> Result<()> {
    const FAR: u64 = (1 << 53) - 1;
    let target = connect(peer, place, json!({}))?;
    let forget = async |id: &str, version| {
        let forgotten = target.forget_version(&id.parse()?, version).await;
        anyhow::Ok(forgotten.is_ok())
    };
    if !target.forgets_versions() {
        ensure!(!forget("1", FAR).await?, "it says that it can't");
        return Ok(());
    }
    is_delivered(&one(&*target, user("1", FAR, "mallory")).await)?;
    is_delivered(&one(&*target, deleted("2", FAR)).await)?;
    for version in [FAR - 1, 6] {
        for id in ["1", "2", "3"] {
            ensure!(forget(id, version).await?);
        }
    }
    is_settled(&one(&*target, user("1", 6, "ann")).await)?;
    let held = peer.held(place, "1").await?;
    ensure!(held == Some(whole("1", "mallory")), "{held:?}");
    for id in ["1", "2", "3"] {
        ensure!(forget(id, FAR).await?);
        is_delivered(&one(&*target, user(id, 6, "ann")).await)?;
        let held = peer.held(place, id).await?;
        ensure!(held == Some(whole(id, "ann")), "{held:?}");
        // And the guard holds again.
        is_settled(&one(&*target, user(id, 5, "older")).await)?;
        let held = peer.held(place, id).await?;
        ensure!(held == Some(whole(id, "ann")), "{held:?}");
    }
    Ok(())
}

async fn an_equal_version_restores_what_was_tampered_with(
    peer: &mut dyn Peer,
    place: &str,
) -> Result<()> {
    let target = connect(peer, place, json!({}))?;
    is_delivered(&one(&*target, user("1", 5, "ann")).await)?;
    peer.tamper(place, "1").await?;
    let held = peer.held(place, "1").await?;
    ensure!(
        held == Some(whole("1", "mallory")),
        "tampering changed nothing: {held:?}"
    );
    is_delivered(&one(&*target, user("1", 5, "ann")).await)?;
    let held = peer.held(place, "1").await?;
    ensure!(held == Some(whole("1", "ann")), "{held:?}");
    Ok(())
}

async fn the_same_delivery_twice_changes_nothing(peer: &mut dyn Peer, place: &str) -> Result<()> {
    let target = connect(peer, place, json!({}))?;
    for _ in 0..2 {
        is_delivered(&one(&*target, user("1", 5, "ann")).await)?;
        let held = peer.held(place, "1").await?;
        ensure!(held == Some(whole("1", "ann")), "{held:?}");
    }
    Ok(())
}

async fn a_deleted_user_is_gone_and_nothing_older_revives_it(
    peer: &mut dyn Peer,
    place: &str,
) -> Result<()> {
    let target = connect(peer, place, json!({}))?;
    is_delivered(&one(&*target, user("1", 5, "ann")).await)?;
    // Twice: a deletion may be redelivered too.
    for _ in 0..2 {
        is_delivered(&one(&*target, deleted("1", 7)).await)?;
        ensure!(peer.held(place, "1").await?.is_none(), "it is still there");
    }
    if peer.can().guard {
        one(&*target, user("1", 6, "older")).await;
        ensure!(
            peer.held(place, "1").await?.is_none(),
            "an older version brought it back"
        );
    }
    Ok(())
}

async fn whoever_was_deleted_before_it_came_stays_away(
    peer: &mut dyn Peer,
    place: &str,
) -> Result<()> {
    let target = connect(peer, place, json!({}))?;
    is_delivered(&one(&*target, deleted("1", 7)).await)?;
    ensure!(peer.held(place, "1").await?.is_none(), "it is there");
    if peer.can().guard {
        one(&*target, user("1", 6, "older")).await;
        ensure!(
            peer.held(place, "1").await?.is_none(),
            "an older version came in"
        );
    }
    Ok(())
}

async fn a_deleted_user_can_come_back(peer: &mut dyn Peer, place: &str) -> Result<()> {
    let target = connect(peer, place, json!({}))?;
    is_delivered(&one(&*target, user("1", 5, "ann")).await)?;
    is_delivered(&one(&*target, deleted("1", 7)).await)?;
    is_delivered(&one(&*target, user("1", 8, "anna")).await)?;
    let held = peer.held(place, "1").await?;
    ensure!(held == Some(whole("1", "anna")), "{held:?}");
    Ok(())
}

async fn a_disabled_user_keeps_everything_but_the_status(
    peer: &mut dyn Peer,
    place: &str,
) -> Result<()> {
    if !peer.can().disable {
        return Ok(());
    }
    let target = connect(peer, place, json!({"on_delete": "disable"}))?;
    is_delivered(&one(&*target, user("1", 5, "ann")).await)?;
    is_delivered(&one(&*target, disabled("1", 6)).await)?;
    let mut held = peer.held(place, "1").await?.context("it is gone")?;
    ensure!(
        held.status.take().as_deref() == Some("disabled"),
        "it isn't disabled"
    );
    ensure!(
        held.data["status"] == "disabled" || !peer.can().merge,
        "{held:?}"
    );
    held.status = Some("active".to_owned());
    held.data["status"] = json!("active");
    ensure!(held == whole("1", "ann"), "{held:?}");
    // Whoever is gone stays gone.
    is_delivered(&one(&*target, user("3", 5, "cat")).await)?;
    is_delivered(&one(&*target, deleted("3", 6)).await)?;
    is_delivered(&one(&*target, disabled("3", 8)).await)?;
    ensure!(peer.held(place, "3").await?.is_none(), "it came back");
    if peer.can().guard {
        one(&*target, user("3", 7, "older")).await;
        ensure!(
            peer.held(place, "3").await?.is_none(),
            "an older version came back"
        );
    }
    // Nobody is made who wasn't there, and an older version changes nothing.
    is_delivered(&one(&*target, disabled("2", 6)).await)?;
    ensure!(peer.held(place, "2").await?.is_none(), "it was made");
    if peer.can().guard {
        let outcome = one(&*target, user("1", 5, "ann")).await;
        is_settled(&outcome)?;
        is_delivered(&one(&*target, user("1", 8, "ann")).await)?;
        is_settled(&one(&*target, disabled("1", 7)).await)?;
        let held = peer.held(place, "1").await?;
        ensure!(held == Some(whole("1", "ann")), "{held:?}");
    }
    Ok(())
}

async fn a_partial_user_keeps_what_is_not_told(peer: &mut dyn Peer, place: &str) -> Result<()> {
    let target = connect(peer, place, json!({}))?;
    is_delivered(&one(&*target, partial("2", 5, "ben")).await)?;
    let held = peer.held(place, "2").await?.context("it isn't there")?;
    ensure!(
        held.username.as_deref() == Some("ben") && held.email.is_none(),
        "{held:?}"
    );
    if peer.can().keep {
        is_delivered(&one(&*target, user("1", 5, "ann")).await)?;
        is_delivered(&one(&*target, partial("1", 6, "anna")).await)?;
        let held = peer.held(place, "1").await?;
        ensure!(held == Some(whole("1", "anna")), "{held:?}");
    }
    if peer.can().merge {
        let told = data(
            partial("1", 7, "anna"),
            json!({"city": "x", "status": "away"}),
        );
        is_delivered(&one(&*target, told).await)?;
        let held = peer.held(place, "1").await?.context("it is gone")?;
        ensure!(
            held.data == json!({"phone": "1", "city": "x", "status": "away"}),
            "{held:?}"
        );
    }
    Ok(())
}

async fn one_bad_user_stops_nobody_else(peer: &mut dyn Peer, place: &str) -> Result<()> {
    let target = connect(peer, place, json!({}))?;
    let refused = peer.refused(place, "37").await?;
    let size = target.limits().batch.min(100);
    let ids = (1..=100).map(|id| id.to_string());
    let batch = ids.map(|id| {
        if id == "37" {
            refused.clone()
        } else {
            user(&id, 5, "ann")
        }
    });
    let batch: Vec<Delivery> = batch.collect();
    for part in batch.chunks(size) {
        for (delivery, outcome) in part.iter().zip(target.deliver(part).await) {
            let bad = delivery.user_id == refused.user_id;
            let as_expected = match outcome {
                Outcome::Permanent(_) => bad,
                Outcome::Delivered { .. } => !bad,
                _ => false,
            };
            ensure!(as_expected, "user {}: {outcome:?}", delivery.user_id);
        }
    }
    for id in ["1", "36", "38", "100"] {
        let held = peer.held(place, id).await?;
        ensure!(held == Some(whole(id, "ann")), "user {id}: {held:?}");
    }
    Ok(())
}

async fn a_mixed_batch_is_told_apart(peer: &mut dyn Peer, place: &str) -> Result<()> {
    let target = connect(peer, place, json!({}))?;
    let before = ["1", "2", "3", "4"].map(|id| user(id, 5, "ann"));
    for delivery in before {
        is_delivered(&one(&*target, delivery).await)?;
    }
    let batch = [
        user("4", 4, "older"),
        partial("3", 6, "partly"),
        deleted("2", 6),
        user("1", 6, "anna"),
        user("5", 6, "new"),
    ];
    let mut outcomes = Vec::new();
    for part in batch.chunks(target.limits().batch) {
        outcomes.extend(target.deliver(part).await);
    }
    for outcome in &outcomes[1..] {
        is_delivered(outcome)?;
    }
    if peer.can().guard && target.limits().batch > 1 {
        ensure!(outcomes[0] == Outcome::AlreadyNewer, "{:?}", outcomes[0]);
    }
    let name = |held: Option<crate::peer::Held>| held.and_then(|held| held.username);
    let names = [
        name(peer.held(place, "1").await?),
        name(peer.held(place, "2").await?),
        name(peer.held(place, "3").await?),
        name(peer.held(place, "5").await?),
    ];
    let expected =
        [Some("anna"), None, Some("partly"), Some("new")].map(|name| name.map(str::to_owned));
    ensure!(names == expected, "{names:?}");
    Ok(())
}

async fn ids_that_differ_in_case_are_different_users(
    peer: &mut dyn Peer,
    place: &str,
) -> Result<()> {
    let target = connect(peer, place, json!({}))?;
    for (id, version) in [("aB", 5), ("Ab", 4), ("AB", 3)] {
        let delivery = email(user(id, version, id), &format!("{version}@example.com"));
        is_delivered(&one(&*target, delivery).await)?;
    }
    for id in ["aB", "Ab", "AB"] {
        let held = peer
            .held(place, id)
            .await?
            .context("one has replaced another")?;
        ensure!(held.username.as_deref() == Some(id), "{held:?}");
    }
    Ok(())
}

async fn unusual_ids_are_kept(peer: &mut dyn Peer, place: &str) -> Result<()> {
    let target = connect(peer, place, json!({}))?;
    let (long, odd) = ("z".repeat(128), "|".repeat(128));
    let ids = [
        "auth0|6f1c",
        "f:3c1d:jane",
        "jane@example.com",
        "urn:uuid:0198c0de-0000-7000-8000-00000000abcd",
        "6F1C",
        "a/b?c=d&e#f%20",
        "'\"`\\;--",
        "{a}{b}",
        "}{",
        "{}",
        "*",
        ">",
        "a.b",
        "a=7Cb",
        "42:deleted",
        "+42",
        "1e3",
        &odd,
        "0",
        "042",
        "42",
        "9223372036854775808",
        "18446744073709551615",
        "-",
        "_",
        "-1",
        &long,
    ];
    for id in ids {
        let outcome = one(&*target, user(id, 5, id)).await;
        is_delivered(&outcome).with_context(|| format!("user {id}"))?;
    }
    for id in ids {
        let held = peer.held(place, id).await?;
        ensure!(held == Some(whole(id, id)), "user {id}: {held:?}");
    }
    Ok(())
}

async fn texts_of_any_script_and_length_are_kept(peer: &mut dyn Peer, place: &str) -> Result<()> {
    let target = connect(peer, place, json!({}))?;
    let names = [
        "Zoë 李小龍 🦀 \u{202e}rtl",
        "' OR 1=1; -- \\' \" ` % _ $1 ?",
        "\t line\nbreak ",
        &"🦀".repeat(320),
        "",
    ];
    for (id, name) in ('a'..).zip(names) {
        let id = id.to_string();
        let told = data(
            user(&id, 5, name),
            json!({"bio": "ß\\n\"".repeat(20_000), "n": 9_007_199_254_740_993_u64}),
        );
        is_delivered(&one(&*target, told.clone()).await).with_context(|| format!("user {id}"))?;
        let held = peer.held(place, &id).await?.context("it isn't there")?;
        ensure!(held.username.as_deref() == Some(name), "user {id}");
        ensure!(
            told.members.data == Change::Set(held.data),
            "user {id}: the data differ"
        );
    }
    Ok(())
}

async fn a_batch_of_large_users_is_held(peer: &mut dyn Peer, place: &str) -> Result<()> {
    let target = connect(peer, place, json!({"timeout": "30s"}))?;
    let large = json!({"bio": "x".repeat(100_000)});
    let batch: Vec<_> = (0..200)
        .map(|id| data(user(&id.to_string(), 5, "ann"), large.clone()))
        .collect();
    for part in batch.chunks(target.limits().batch) {
        for outcome in target.deliver(part).await {
            is_delivered(&outcome)?;
        }
    }
    let held = peer.held(place, "199").await?.context("it isn't there")?;
    ensure!(held.data == large, "the data differ");
    Ok(())
}

async fn another_users_row_is_never_touched(peer: &mut dyn Peer, place: &str) -> Result<()> {
    if !peer.can().unique_email {
        return Ok(());
    }
    let target = connect(peer, place, json!({}))?;
    is_delivered(&one(&*target, email(user("1", 5, "ann"), "same@example.com")).await)?;
    is_delivered(&one(&*target, user("2", 5, "ben")).await)?;
    let before = peer.held(place, "1").await?;
    // As somebody new, and as somebody who is there.
    for id in ["3", "2"] {
        let batch = [
            email(user(id, 9, "eve"), "same@example.com"),
            user("4", 9, "dan"),
        ];
        let outcomes = target.deliver(&batch).await;
        ensure!(
            matches!(&outcomes[0], Outcome::Conflict(conflict) if !conflict.lasting),
            "user {id}: {:?}",
            outcomes[0]
        );
        is_delivered(&outcomes[1])?;
        let held = peer.held(place, "1").await?;
        ensure!(held == before, "user {id} changed user 1: {held:?}");
    }
    ensure!(peer.held(place, "3").await?.is_none(), "user 3 is there");
    let held = peer.held(place, "2").await?;
    ensure!(held == Some(whole("2", "ben")), "{held:?}");
    // What stood in the way goes, and the newcomer gets in.
    is_delivered(&one(&*target, deleted("1", 6)).await)?;
    is_delivered(&one(&*target, email(user("3", 9, "eve"), "same@example.com")).await)
}

async fn two_users_can_swap_what_is_unique(peer: &mut dyn Peer, place: &str) -> Result<()> {
    if !peer.can().unique_email {
        return Ok(());
    }
    let target = connect(peer, place, json!({}))?;
    let pair = |version, first, second| {
        [
            email(user("1", version, "ann"), first),
            email(user("2", version, "ben"), second),
        ]
    };
    for outcome in target
        .deliver(&pair(5, "a@example.com", "b@example.com"))
        .await
    {
        is_delivered(&outcome)?;
    }
    // One gives up its email first; then it is free for the other, however often it takes.
    is_delivered(&one(&*target, email(user("1", 6, "ann"), "c@example.com")).await)?;
    for outcome in target
        .deliver(&pair(7, "b@example.com", "a@example.com"))
        .await
    {
        ensure!(
            matches!(outcome, Outcome::Delivered { .. } | Outcome::Conflict(_)),
            "{outcome:?}"
        );
    }
    for delivery in pair(7, "b@example.com", "a@example.com").into_iter().rev() {
        is_delivered(&one(&*target, delivery).await)?;
    }
    let emails = [peer.held(place, "1").await?, peer.held(place, "2").await?];
    let emails = emails.map(|held| held.and_then(|held| held.email).unwrap_or_default());
    ensure!(emails == ["b@example.com", "a@example.com"], "{emails:?}");
    Ok(())
}

async fn batches_at_the_same_time_leave_the_newest(peer: &mut dyn Peer, place: &str) -> Result<()> {
    if !peer.can().guard {
        return Ok(());
    }
    let target = connect(peer, place, json!({}))?;
    let deliver = async |version: u64| -> Result<()> {
        // Each in another order: whoever locks rows as they come would run into the others.
        let mut ids: Vec<u64> = (0..64).collect();
        ids.rotate_left((version as usize * 13) % 64);
        let batch = ids
            .into_iter()
            .map(|id| user(&id.to_string(), version, &version.to_string()));
        let batch: Vec<_> = batch.collect();
        for part in batch.chunks(target.limits().batch) {
            for outcome in target.deliver(part).await {
                // What collided is tried again by the worker.
                let fine = matches!(
                    outcome,
                    Outcome::Delivered { .. } | Outcome::AlreadyNewer | Outcome::Transient(_)
                );
                ensure!(fine, "{outcome:?}");
            }
        }
        Ok(())
    };
    for round in 0..5_u64 {
        let at = |n: u64| 10 + round * 4 + n;
        let (a, b, c, d) = tokio::join!(
            deliver(at(0)),
            deliver(at(1)),
            deliver(at(2)),
            deliver(at(3))
        );
        a.and(b).and(c).and(d)?;
    }
    deliver(29).await?;
    for id in ["0", "31", "63"] {
        let held = peer.held(place, id).await?;
        ensure!(held == Some(whole(id, "29")), "user {id}: {held:?}");
    }
    Ok(())
}

async fn what_was_delivered_is_verified(peer: &mut dyn Peer, place: &str) -> Result<()> {
    if !peer.can().verify {
        return Ok(());
    }
    let target = connect(peer, place, json!({"verify": true}))?;
    let all = [user("1", 5, "ann"), user("2", 5, "ben"), deleted("3", 5)];
    for outcome in target.deliver(&all).await {
        is_delivered(&outcome)?;
    }
    let verify = async |batch: &[Delivery]| target.verify(batch).await.context("it doesn't verify");
    for outcome in verify(&all).await? {
        is_delivered(&outcome)?;
    }
    peer.tamper(place, "2").await?;
    let verdicts = verify(&all).await?;
    is_delivered(&verdicts[0])?;
    match &verdicts[1] {
        Outcome::Transient(failure) => {
            let reason = failure.to_string();
            ensure!(
                reason.contains("username") && !reason.contains("mallory"),
                "{reason}"
            );
        }
        other => bail!("{other:?}"),
    }
    // Somebody who isn't there, and somebody who is newer.
    let verdicts = verify(&[user("4", 5, "dan"), user("1", 4, "older"), deleted("1", 6)]).await?;
    ensure!(matches!(verdicts[0], Outcome::Transient(_)), "{verdicts:?}");
    ensure!(
        matches!(
            verdicts[1],
            Outcome::Delivered { .. } | Outcome::AlreadyNewer
        ),
        "{verdicts:?}"
    );
    ensure!(matches!(verdicts[2], Outcome::Transient(_)), "{verdicts:?}");
    Ok(())
}
