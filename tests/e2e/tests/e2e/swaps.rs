//! Emails that change hands, all the way: nobody ends up with another's, nobody is given up who can be helped.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use usersync_core::subjects::USER_DEAD;
use usersync_stack::{Stack, eventually};

use crate::{
    database_targets::Database,
    support::{Bus, Recorder, SOON, answer, only},
};

const PAIRS: u64 = 20;
/// Between two events of one round.
const BETWEEN: Duration = Duration::from_secs(2);

/// A table whose emails are unique, and `workers` that fill it.
async fn start(workers: usize) -> Result<(Database, Stack, Bus)> {
    let database = Database::start().await?;
    database.init("init", &[]).await?;
    sqlx::raw_sql("ALTER TABLE users ADD UNIQUE (email)")
        .execute(&database.client().await?)
        .await?;
    let stack = only(database.entry.clone());
    let stack = stack.workers("crm", workers).start().await?;
    let bus = Bus::connect(&stack).await?;
    Ok((database, stack, bus))
}

/// The event that gives `user` the email of `of`.
fn email(kind: &'static str, user: u64, of: u64) -> (&'static str, serde_json::Value) {
    let event = json!({"user_id": user, "username": format!("name-{user}"), "email": format!("{of}@example.com")});
    (kind, event)
}

fn own() -> impl Iterator<Item = (&'static str, serde_json::Value)> {
    (1..=2 * PAIRS).map(|user| email("user.created", user, user))
}

fn other(user: u64) -> u64 {
    if user.is_multiple_of(2) {
        user - 1
    } else {
        user + 1
    }
}

fn swapped() -> impl Iterator<Item = (&'static str, serde_json::Value)> {
    (1..=2 * PAIRS).map(|user| email("user.updated", user, other(user)))
}

/// How many have the email that `swapped` gives them.
async fn moved(database: &Database) -> Result<i64> {
    let right = "COUNT(*) FILTER (WHERE email = CASE WHEN id::int % 2 = 0 THEN id::int - 1 ELSE id::int + 1 END \
                 || '@example.com')";
    database.number(right).await
}

/// Everybody has what is theirs, and nobody a letter.
async fn until_moved(database: &Database, bus: &Bus) -> Result<()> {
    eventually(SOON, async || {
        let moved = moved(database).await?;
        ensure!(moved == 2 * PAIRS as i64, "{moved} of {} moved", 2 * PAIRS);
        Ok(())
    })
    .await?;
    eventually(SOON, async || {
        for user in 1..=2 * PAIRS {
            let letter = bus.dead_letter("crm", user).await?;
            ensure!(
                letter.is_none_or(|letter| letter.header("Usersync-Class").is_empty()),
                "user {user} has a letter"
            );
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn pairs_that_swap_while_the_target_is_away_end_up_with_each_others_email() -> Result<()> {
    let (mut database, _stack, bus) = start(1).await?;
    bus.publish_all(own()).await?;
    bus.until_settled("crm").await?;
    database.server.kill9().await;
    bus.publish_all(swapped()).await?;
    bus.until_taken_in().await?;
    database.server.restart().await?;
    until_moved(&database, &bus).await
}

/// Who came before another's change may have a letter until that one has made room.
async fn nobody_is_given_up(bus: &Bus) -> Result<()> {
    eventually(SOON, async || {
        let letters = bus.count(USER_DEAD).await?;
        ensure!(letters == 0, "{letters} users were given up");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn pairs_that_swap_while_two_workers_serve_the_target_do_too() -> Result<()> {
    let (database, _stack, bus) = start(2).await?;
    bus.publish_all(own()).await?;
    bus.until_settled("crm").await?;
    bus.publish_all(swapped()).await?;
    until_moved(&database, &bus).await?;
    // And a round of them all, one after the other.
    for user in 1..=2 * PAIRS {
        let next = user % (2 * PAIRS) + 1;
        let (kind, event) = email("user.updated", user, next);
        bus.publish(kind, event).await?;
    }
    eventually(SOON, async || {
        let right = "COUNT(*) FILTER (WHERE email = (id::int % 40 + 1) || '@example.com')";
        let moved = database.number(right).await?;
        ensure!(moved == 2 * PAIRS as i64, "{moved} moved");
        Ok(())
    })
    .await?;
    bus.until_settled("crm").await?;
    nobody_is_given_up(&bus).await
}

#[tokio::test]
async fn who_cannot_be_helped_is_told_and_is_delivered_as_soon_as_there_is_room() -> Result<()> {
    let (database, _stack, bus) = start(2).await?;
    bus.publish_all(own()).await?;
    bus.until_settled("crm").await?;
    // Many at once, which must not look like an outage.
    for user in 101..=160 {
        let (kind, event) = email("user.created", user, 1);
        bus.publish(kind, event).await?;
    }
    eventually(SOON, async || {
        let count = bus.count(USER_DEAD).await?;
        ensure!(count == 60, "{count} letters");
        Ok(())
    })
    .await?;
    let letter = bus.dead_letter("crm", 130).await?.context("no letter")?;
    let reason = letter.header("Usersync-Reason");
    ensure!(
        reason.contains("user 1 ") && reason.contains("newest state has it too"),
        "{reason}"
    );
    ensure!(letter.header("Usersync-Class") == "permanent");
    ensure!(letter.header("Usersync-Waits-For") == "1");
    let breakers = bus.jetstream().get_key_value("user_breakers").await?;
    ensure!(
        breakers.status().await?.values() == 0,
        "the breaker is open"
    );
    // Everybody else goes on.
    let (kind, event) = email("user.created", 99, 99);
    bus.publish(kind, event).await?;
    eventually(SOON, async || {
        let there = database.number("COUNT(*) FILTER (WHERE id = '99')").await?;
        ensure!(there == 1, "user 99 isn't there");
        Ok(())
    })
    .await?;
    // Whoever has it gives it up, and one of those who wait gets it.
    let (kind, event) = email("user.updated", 1, 1_001);
    bus.publish(kind, event).await?;
    eventually(SOON, async || {
        let one = "COUNT(*) FILTER (WHERE id::int > 100 AND email = '1@example.com')";
        ensure!(database.number(one).await? == 1, "nobody has got it");
        let mut letters = 0;
        for user in 101..=160_u64 {
            let letter = bus.dead_letter("crm", user).await?;
            letters +=
                u64::from(letter.is_some_and(|letter| !letter.header("Usersync-Class").is_empty()));
        }
        ensure!(letters == 59, "{letters} letters");
        Ok(())
    })
    .await
}

/// A value goes round in events that come one after the other: in between two users have it.
#[tokio::test]
async fn who_has_what_another_is_about_to_give_up_gets_no_letter() -> Result<()> {
    let (database, _stack, bus) = start(2).await?;
    bus.publish_all(own()).await?;
    bus.until_settled("crm").await?;
    for (user, of) in [(1, 2), (2, 3), (3, 1)] {
        let (kind, event) = email("user.updated", user, of);
        bus.publish(kind, event).await?;
        tokio::time::sleep(BETWEEN).await;
    }
    eventually(SOON, async || {
        let round = "COUNT(*) FILTER (WHERE (id, email) IN \
                     (('1', '2@example.com'), ('2', '3@example.com'), ('3', '1@example.com')))";
        let moved = database.number(round).await?;
        ensure!(moved == 3, "{moved} of 3 moved");
        Ok(())
    })
    .await?;
    let dead = bus.jetstream().get_stream(USER_DEAD).await?;
    assert_eq!(
        dead.cached_info().state.last_sequence,
        0,
        "somebody had a letter"
    );
    Ok(())
}

#[tokio::test]
async fn a_repair_puts_right_what_was_swapped_behind_our_back() -> Result<()> {
    let (database, _stack, bus) = start(1).await?;
    bus.publish_all(own()).await?;
    bus.until_settled("crm").await?;
    let swap = "UPDATE users SET email = 'x' WHERE id = '1'; UPDATE users SET email = '1@example.com' WHERE id = '2'; \
                UPDATE users SET email = '2@example.com' WHERE id = '1'";
    sqlx::raw_sql(swap)
        .execute(&database.client().await?)
        .await?;
    bus.repair("crm", 1).await?;
    eventually(SOON, async || {
        let right = "COUNT(*) FILTER (WHERE email = id || '@example.com')";
        let right = database.number(right).await?;
        ensure!(right == 2 * PAIRS as i64, "{right} are right");
        Ok(())
    })
    .await?;
    nobody_is_given_up(&bus).await?;
    Ok(())
}

/// A service that holds each email for one user only, and answers 409 to everybody else.
async fn service(emails: Emails) -> Result<Recorder> {
    Recorder::start(move |call| {
        let mut emails = emails.lock().unwrap_or_else(PoisonError::into_inner);
        let user = call.body["user_id"].to_string();
        let email = call.body["email"].as_str().map(str::to_owned);
        let taken = emails
            .iter()
            .any(|(other, held)| *other != user && email.is_some() && *held == email);
        if !taken {
            emails.insert(user, email);
        }
        async move { answer(if taken { 409 } else { 204 }) }
    })
    .await
}

type Emails = Arc<Mutex<BTreeMap<String, Option<String>>>>;

async fn swapped_at_a_service(more: &str) -> Result<(Stack, Bus, Emails, Recorder)> {
    let emails = Emails::default();
    let recorder = service(emails.clone()).await?;
    let stack = only(format!(
        "[crm]\nurl = \"{}\"\nretry = {{ max_deliver = 5, base = \"200ms\", factor = 1.0, cap = \"200ms\" }}\n{more}",
        recorder.url()
    ));
    let stack = stack.workers("crm", 2).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish_all(own()).await?;
    bus.until_settled("crm").await?;
    bus.publish_all(swapped()).await?;
    Ok((stack, bus, emails, recorder))
}

#[tokio::test]
async fn pairs_swap_at_a_service_that_says_what_is_unique() -> Result<()> {
    let (_stack, bus, emails, _recorder) = swapped_at_a_service("unique = [\"email\"]\n").await?;
    eventually(SOON, async || {
        let emails = emails.lock().unwrap_or_else(PoisonError::into_inner);
        let right = (1..=2 * PAIRS).filter(|user| {
            let expected = format!("{}@example.com", other(*user));
            emails.get(&user.to_string()).cloned().flatten() == Some(expected)
        });
        let right = right.count();
        ensure!(right == 2 * PAIRS as usize, "{right} have swapped");
        Ok(())
    })
    .await?;
    bus.until_settled("crm").await?;
    nobody_is_given_up(&bus).await?;
    Ok(())
}

#[tokio::test]
async fn users_who_wait_for_each_other_at_a_service_hold_up_nobody_else() -> Result<()> {
    let (_stack, bus, emails, _recorder) = swapped_at_a_service("").await?;
    // They are refused for a while, forty of them; others aren't.
    let (kind, event) = email("user.created", 99, 99);
    bus.publish(kind, event).await?;
    eventually(SOON, async || {
        let emails = emails.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(emails.contains_key("99"), "user 99 isn't there");
        Ok(())
    })
    .await?;
    bus.until_settled("crm").await?;
    ensure!(bus.count(USER_DEAD).await? == 2 * PAIRS);
    let breakers = bus.jetstream().get_key_value("user_breakers").await?;
    ensure!(
        breakers.status().await?.values() == 0,
        "the breaker is open"
    );
    let letter = bus.dead_letter("crm", 7).await?.context("no letter")?;
    let reason = letter.header("Usersync-Reason");
    ensure!(
        letter.header("Usersync-Class") == "transient" && reason.contains("409"),
        "{reason}"
    );
    Ok(())
}

#[tokio::test]
async fn emails_that_are_handed_over_at_a_service_are_taken_with_a_later_attempt() -> Result<()> {
    let emails = Emails::default();
    let recorder = service(emails.clone()).await?;
    let stack = only(format!("[crm]\nurl = \"{}\"\n", recorder.url()))
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish_all(own()).await?;
    bus.until_settled("crm").await?;
    // Whoever takes an email comes before who gives it up.
    let line = (1..=30).map(|user| email("user.updated", user, user + 1));
    bus.publish_all(line.chain([email("user.updated", 31, 1_000)]))
        .await?;
    bus.until_settled("crm").await?;
    nobody_is_given_up(&bus).await?;
    let emails = emails.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(
        emails["1"].as_deref() == Some("2@example.com"),
        "{emails:?}"
    );
    Ok(())
}
