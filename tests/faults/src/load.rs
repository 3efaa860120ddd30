//! Writers that know what was acknowledged: each user's changes are numbered, one after the other.

use std::{ops::Range, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use async_nats::jetstream::{self, message::PublishMessage};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, MySqlPool};
use tokio::time::{Instant, timeout};
use usersync_stack::http;

/// Writers at once; a user belongs to one of them.
const WRITERS: u64 = 8;
/// How long one event is tried, under the same id.
const PATIENCE: Duration = Duration::from_secs(90);
const ANSWER: Duration = Duration::from_secs(3);
/// Events for each change of the main database.
const PER_COMMIT: u64 = 10;

/// What is to be written.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) users: Range<u64>,
    /// Users whom only the main database knows.
    pub(crate) main: Range<u64>,
    pub(crate) events: u64,
    /// Events per second in all.
    pub(crate) rate: u64,
    /// Each event three times, without a `Nats-Msg-Id`, the third after the next one.
    pub(crate) repeated: bool,
    pub(crate) seed: u64,
}

/// Where it goes.
#[derive(Clone)]
pub(crate) struct Doors {
    pub(crate) jetstream: jetstream::Context,
    pub(crate) gateway: String,
    pub(crate) main: MySqlPool,
}

/// What was written, and confirmed.
pub(crate) struct Written {
    /// The ids of events.
    pub(crate) events: Vec<String>,
    /// Changes of the main database.
    pub(crate) commits: u64,
}

impl Load {
    /// Writes all of it.
    pub(crate) async fn write(self, doors: Doors) -> Result<Written> {
        let (load, doors) = (Arc::new(self), Arc::new(doors));
        let rows = {
            let (load, doors) = (Arc::clone(&load), Arc::clone(&doors));
            tokio::spawn(async move { load.rows(&doors.main).await })
        };
        let writers = (0..WRITERS).map(|writer| {
            let (load, doors) = (Arc::clone(&load), Arc::clone(&doors));
            async move { tokio::spawn(async move { load.some(writer, &doors).await }).await? }
        });
        let events = try_join_all(writers).await?.concat();
        Ok(Written {
            events,
            commits: rows.await??,
        })
    }

    /// Changes rows of the main database, as its application does, one after the other; the first user is gone in the end.
    async fn rows(&self, main: &MySqlPool) -> Result<u64> {
        let mut dice = fastrand::Rng::with_seed(self.seed);
        let commits = (self.events / PER_COMMIT).max(20);
        let pause = Duration::from_secs(1) * PER_COMMIT as u32 / self.rate.max(1) as u32;
        for n in 1..=commits {
            let user = dice.u64(self.main.clone());
            let statement = match dice.u8(..10) {
                0 => format!("DELETE FROM people WHERE uid = {user}"),
                1..4 => {
                    format!("UPDATE people SET email = '{user}-{n}@example.com' WHERE uid = {user}")
                }
                _ => format!(
                    "INSERT INTO people VALUES ({user}, 'name-{user}', NULL, {n}) ON DUPLICATE KEY UPDATE n = {n}"
                ),
            };
            commit(main, &statement).await?;
            tokio::time::sleep(pause).await;
        }
        let back = self.main.clone().skip(1).map(|user| format!("({user})"));
        let back = back.collect::<Vec<_>>().join(", ");
        // No more are gone than the brake lets go within an hour.
        commit(
            main,
            &format!("INSERT IGNORE INTO people (uid) VALUES {back}"),
        )
        .await?;
        let first = self.main.start;
        commit(main, &format!("DELETE FROM people WHERE uid = {first}")).await?;
        Ok(commits + 2)
    }

    async fn some(&self, writer: u64, doors: &Doors) -> Result<Vec<String>> {
        let mut dice = fastrand::Rng::with_seed(self.seed ^ (writer << 32));
        let users: Vec<u64> = self
            .users
            .clone()
            .skip(writer as usize)
            .step_by(WRITERS as usize)
            .collect();
        let pause = Duration::from_secs(1) * WRITERS as u32 / self.rate.max(1) as u32;
        let (mut changes, mut gone) = (vec![0_u64; users.len()], vec![false; users.len()]);
        let mut acknowledged = Vec::new();
        let mut late: Option<(&'static str, Value)> = None;
        let mut next = Instant::now();
        for _ in 0..self.events / WRITERS {
            let at = dice.usize(..users.len());
            changes[at] += 1;
            let (user, n) = (users[at], changes[at]);
            let (kind, mut event) = change(user, n, gone[at], &mut dice);
            gone[at] = kind == "user.deleted";
            let id = format!("{user}-{n}");
            event["id"] = json!(id);
            event["source"] = json!("faults");
            self.publish(kind, &event, &id, dice.u8(..4) == 0, doors)
                .await?;
            acknowledged.push(id.clone());
            if self.repeated {
                publish(doors, kind, &event, None).await?;
                if let Some((kind, event)) = late.replace((kind, event)) {
                    publish(doors, kind, &event, None).await?;
                }
            }
            next += pause;
            tokio::time::sleep_until(next).await;
        }
        Ok(acknowledged)
    }

    /// Until it is acknowledged.
    async fn publish(
        &self,
        kind: &'static str,
        event: &Value,
        id: &str,
        by_http: bool,
        doors: &Doors,
    ) -> Result<()> {
        let began = Instant::now();
        loop {
            let done = match by_http {
                true => post(doors, kind, event).await,
                false => publish(doors, kind, event, (!self.repeated).then_some(id)).await,
            };
            match done {
                Ok(()) => return Ok(()),
                Err(error) if began.elapsed() > PATIENCE => {
                    return Err(error).context("an event was never acknowledged");
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

/// Until it is committed.
async fn commit(main: &MySqlPool, statement: &str) -> Result<()> {
    let began = Instant::now();
    loop {
        let statement = sqlx::raw_sql(AssertSqlSafe(statement.to_owned()));
        match timeout(ANSWER, statement.execute(main)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) if began.elapsed() > PATIENCE => {
                return Err(error).context("a row was never changed");
            }
            Err(error) if began.elapsed() > PATIENCE => {
                return Err(error).context("a row was never changed");
            }
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// The next change of a user.
fn change(user: u64, n: u64, gone: bool, dice: &mut fastrand::Rng) -> (&'static str, Value) {
    if n == 1 || gone {
        let whole = json!({
            "user_id": user, "username": format!("name-{user}"), "email": format!("{user}@example.com"),
            "data": {"n": n, "tags": {"first": n}},
        });
        return ("user.created", whole);
    }
    match dice.u8(..20) {
        0 => ("user.deleted", json!({"user_id": user})),
        1..4 => {
            let email = format!("{user}-{n}@example.com");
            (
                "user.updated",
                json!({"user_id": user, "email": email, "data": {"n": n}}),
            )
        }
        4..6 => (
            "user.updated",
            json!({"user_id": user, "data": {"n": n, "tags": {"first": null, "last": n}}}),
        ),
        _ => ("user.updated", json!({"user_id": user, "data": {"n": n}})),
    }
}

async fn publish(doors: &Doors, kind: &'static str, event: &Value, id: Option<&str>) -> Result<()> {
    let mut message = PublishMessage::build().payload(event.to_string().into());
    if let Some(id) = id {
        message = message.message_id(format!("faults-{id}"));
    }
    let sent = doors.jetstream.send_publish(kind, message);
    timeout(ANSWER, async { sent.await?.await }).await??;
    Ok(())
}

async fn post(doors: &Doors, kind: &'static str, event: &Value) -> Result<()> {
    let mut event = event.clone();
    event["type"] = json!(kind);
    let url = format!("{}/v1/events", doors.gateway);
    let sent = http::client().post(url).timeout(ANSWER).json(&event).send();
    let status = sent.await?.status();
    anyhow::ensure!(status == 202, "{status}");
    Ok(())
}
