//! Users whom a target can't hold, or holds no more: the check says so, again and again, and never that they are alike.

use anyhow::{Context as _, Result, ensure};
use redis::AsyncTypedCommands as _;
use serde_json::json;
use usersync_core::check::{Class, Stage};
use usersync_stack::Stack;

use super::{check, counts, created, report};
use crate::{
    outbox::Main,
    support::{Bus, only},
};

#[tokio::test]
async fn whom_a_table_of_mariadb_cannot_hold_is_reported() -> Result<()> {
    whom_a_table_cannot_hold_is_reported(Main::mariadb().await?).await
}

#[tokio::test]
async fn whom_a_table_of_postgres_cannot_hold_is_reported() -> Result<()> {
    whom_a_table_cannot_hold_is_reported(Main::postgres().await?).await
}

async fn whom_a_table_cannot_hold_is_reported(main: Main) -> Result<()> {
    main.run("ALTER TABLE people ADD sync_version BIGINT NOT NULL DEFAULT 0, ADD sync_deleted BOOLEAN NOT NULL DEFAULT FALSE")
        .await?;
    let target = format!(
        "[people]\n{}\ncheck = {{ every = \"0s\" }}\n\
         table = {{ name = \"people\", id = \"uid\", columns = {{ username = \"username\", n = \"data.n\" }} }}\n",
        main.access()
    );
    let stack = only(target).schedulers(1).start().await?;
    let bus = Bus::connect(&stack).await?;
    for user in 1..=3 {
        let event = json!({"user_id": user, "username": "first", "data": {"n": user}});
        bus.publish("user.created", event).await?;
    }
    bus.until_settled("people").await?;
    // One keeps what it had, one was never there, and one can't be: it has no integer as its id.
    for event in [
        json!({"user_id": 3, "username": "second", "data": {"n": "many"}}),
        json!({"user_id": 4, "username": "first", "data": {"n": "many"}}),
        json!({"user_id": "auth0|5", "username": "first"}),
    ] {
        bus.publish("user.created", event).await?;
    }
    bus.until_settled("people").await?;
    for _ in 0..2 {
        let report = check(&bus, "people", json!({})).await?;
        let found = report.found.get(&Class::Different);
        let found = found.map_or((0, 0, 0), |found| {
            (found.users, found.repaired, found.unrepairable)
        });
        ensure!(report.found.len() == 1 && found == (3, 0, 3), "{report:?}");
    }
    // Who is gone is nowhere, and none of it matters any more.
    for user in [json!(3), json!(4), json!("auth0|5")] {
        bus.publish("user.deleted", json!({"user_id": user}))
            .await?;
    }
    bus.until_settled("people").await?;
    let report = check(&bus, "people", json!({})).await?;
    ensure!(report.found.is_empty(), "{report:?}");
    stack.stop().await
}

#[tokio::test]
async fn whom_the_rule_refuses_is_counted_and_a_check_of_one_stays_beside_that_of_all() -> Result<()>
{
    let target =
        "[redis-cache]\nfilter = \"user.data.plan == 'gold'\"\ncheck = { every = \"0s\" }\n";
    let stack = Stack::builder().examples(false).schedulers(1);
    let stack = stack
        .targets_toml(move |_| target.to_owned())
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    for user in 1..=20 {
        let data = match user % 5 {
            // Without a plan the filter has no answer: a dead letter.
            0 => json!({"n": user}),
            _ => json!({"plan": "gold"}),
        };
        bus.publish("user.created", json!({"user_id": user, "data": data}))
            .await?;
    }
    bus.until_settled("redis-cache").await?;
    let all = check(&bus, "redis-cache", json!({})).await?;
    let refused = &all.refused;
    ensure!(
        refused.users == 4 && refused.sample == [5, 10, 15, 20].map(Into::into),
        "{all:?}"
    );
    let because = refused.because.as_deref().unwrap_or_default();
    ensure!(because.contains("filter") && !all.is_alike(), "{all:?}");
    ensure!(all.found.is_empty() && all.stage == Stage::Done, "{all:?}");

    let one = check(&bus, "redis-cache", json!({"user_id": 10})).await?;
    ensure!(one.refused.users == 1 && one.users == 1, "{one:?}");
    let range = check(&bus, "redis-cache", json!({"from": 9, "to": 16})).await?;
    ensure!(range.refused.users == 2, "{range:?}");
    let shown = report(&bus, "redis-cache").await?;
    ensure!(shown.as_ref() == Some(&all), "{shown:?}");
    let metrics = stack.scheduler_metrics().await?;
    let sum = |name| metrics.sum(name, &[("target", "redis-cache")]);
    ensure!(sum("usersync_last_check_refused") == 4.0);
    ensure!(sum("usersync_check_refused_users_total") == 7.0);
    stack.stop().await
}

#[tokio::test]
async fn whom_redis_has_forgotten_is_told_and_what_it_was_not_told_is_drift() -> Result<()> {
    let entry = "[redis-cache]\ncheck = { every = \"0s\" }\n";
    let stack = Stack::builder().examples(false).schedulers(1);
    let stack = stack
        .targets_toml(move |_| entry.to_owned())
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish_all((1..=20).map(created)).await?;
    bus.until_settled("redis-cache").await?;
    ensure!(check(&bus, "redis-cache", json!({})).await?.is_alike());
    let client = redis::Client::open(stack.redis.url())?;
    let mut redis = client.get_multiplexed_async_connection().await?;
    let mut connection = redis.clone();
    redis.del("user:3").await?;
    let held = redis.get("user:4").await?.context("4 isn't there")?;
    redis
        .set(
            "user:4",
            held.replace("\"n\":1", "\"n\":1,\"role\":\"admin\""),
        )
        .await?;
    // Neither is gone: one says so of itself, one is no text.
    let said = redis.get("user:5").await?.context("5 isn't there")?;
    let buried = said.replacen("\"user_id\"", "\"deleted\":true,\"user_id\"", 1);
    redis.set("user:5", buried).await?;
    redis.del("user:6").await?;
    redis::cmd("RPUSH")
        .arg(&["user:6", "x"])
        .query_async::<()>(&mut connection)
        .await?;
    let report = check(&bus, "redis-cache", json!({})).await?;
    ensure!(counts(&report) == [0, 0, 3, 0], "{report:?}");
    let (expired, different) = (&report.expired, &report.found[&Class::Different]);
    let mut sample = different.sample.clone();
    sample.sort();
    ensure!(
        expired.sample == [3.into()] && sample == [4.into(), 5.into(), 6.into()],
        "{report:?}"
    );
    bus.until_settled("redis-cache").await?;
    ensure!(redis.get("user:4").await?.as_ref() == Some(&held) || different.repaired == 1);
    let left = check(&bus, "redis-cache", json!({})).await?;
    ensure!(
        counts(&left) == [0, 0, 1, 0] && left.expired.users == 1,
        "{left:?}"
    );
    ensure!(
        left.found[&Class::Different].sample == [6.into()],
        "{left:?}"
    );
    stack.stop().await
}
