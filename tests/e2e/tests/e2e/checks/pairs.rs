//! Random types and values, from event to column and back: what the worker has written is alike, and what is one step
//! away from it isn't.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use usersync_core::check::{Class, Stage};
use usersync_stack::types::{self, ColumnType};

use super::check;
use crate::{
    outbox::Main,
    support::{Bus, only},
};

/// Users, each with one value.
const USERS: u64 = 200;

#[tokio::test]
async fn two_hundred_pairs_in_mariadb_are_alike_until_they_are_not() -> Result<()> {
    let mut all = types::of_mysql();
    all.extend(types::of_mariadb());
    pairs(Main::mariadb().await?, &all).await
}

#[tokio::test]
async fn two_hundred_pairs_in_postgres_are_alike_until_they_are_not() -> Result<()> {
    let main = Main::postgres().await?;
    main.run(types::PREPARE_POSTGRES).await?;
    pairs(main, &types::of_postgres()).await
}

async fn pairs(main: Main, all: &[ColumnType]) -> Result<()> {
    let columns = all.iter().enumerate().map(|(at, column)| {
        let kind = column.sql.trim_end_matches(" NULL");
        format!("c{at} {kind} NULL, ")
    });
    main.run(&format!(
        "CREATE TABLE typed (id bigint PRIMARY KEY, {}sync_deleted boolean NOT NULL DEFAULT false, \
         sync_version bigint NOT NULL DEFAULT 0)",
        columns.collect::<String>()
    ))
    .await?;
    let mapped = (0..all.len()).map(|at| format!("c{at} = \"data.v{at}\""));
    let mapped = mapped.collect::<Vec<_>>().join(", ");
    let stack = only(format!(
        "[typed]\n{}\ncheck = {{ every = \"0s\" }}\ntable = {{ name = \"typed\", columns = {{ {mapped} }} }}\n",
        main.access()
    ));
    let stack = stack.schedulers(1).start().await?;
    let bus = Bus::connect(&stack).await?;
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut events = Vec::new();
    let mut steps = Vec::new();
    for user in 1..=USERS {
        let at = random.usize(..all.len());
        let value: Value = (all[at].told)(&mut |below| random.u64(..below));
        let data = json!({ format!("v{at}"): value });
        events.push(("user.created", json!({"user_id": user, "data": data})));
        let step = stepped(all[at].step, at);
        steps.push(format!("UPDATE typed SET c{at} = {step} WHERE id = {user}"));
    }
    bus.publish_all(events.clone()).await?;
    bus.until_settled("typed").await?;
    let alike = check(&bus, "typed", json!({"dry_run": true})).await?;
    let told = |user: u64| &events[user as usize - 1].1;
    let found = alike.found.values().flat_map(|found| &found.sample);
    let found: Vec<_> = found
        .filter_map(|user| Some(told(user.to_string().parse().ok()?)))
        .collect();
    ensure!(
        alike.is_alike() && alike.users == USERS,
        "seed {seed}: {alike:?} {found:?}"
    );
    for step in &steps {
        main.run(step).await.with_context(|| step.clone())?;
    }
    let report = check(&bus, "typed", json!({"dry_run": true, "approved": true})).await?;
    let different = report.found.get(&Class::Different);
    ensure!(
        report.stage == Stage::Done && different.is_some_and(|found| found.users == USERS),
        "seed {seed}: {report:?}"
    );
    stack.stop().await
}

/// A step of the column `c`, as one of the column `c<at>`.
fn stepped(step: &str, at: usize) -> String {
    let (mut text, mut in_word) = (String::new(), false);
    let letters: Vec<char> = step.chars().collect();
    for (place, letter) in letters.iter().enumerate() {
        let is_word = |letter: &char| letter.is_ascii_alphanumeric() || *letter == '_';
        let ends = letters.get(place + 1).is_none_or(|next| !is_word(next));
        let quoted = letters[..place].iter().filter(|one| **one == '\'').count() % 2 == 1;
        text.push(*letter);
        if *letter == 'c' && !in_word && ends && !quoted {
            text += &at.to_string();
        }
        in_word = is_word(letter);
    }
    text
}
