//! Users whom a table can't hold: the check says so, again and again, and never that they were repaired.

use anyhow::{Result, ensure};
use serde_json::json;
use usersync_core::check::Class;

use super::check;
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
