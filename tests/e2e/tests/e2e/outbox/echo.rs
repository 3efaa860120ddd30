//! A main database that is a target too: what usersync writes there is no change of its own.

use anyhow::{Result, ensure};
use serde_json::json;

use super::Main;
use crate::support::{Bus, only};

#[tokio::test]
async fn what_is_delivered_to_mariadb_does_not_come_back() -> Result<()> {
    deliveries_do_not_come_back(Main::mariadb().await?).await
}

#[tokio::test]
async fn what_is_delivered_to_postgres_does_not_come_back() -> Result<()> {
    deliveries_do_not_come_back(Main::postgres().await?).await
}

async fn deliveries_do_not_come_back(mut main: Main) -> Result<()> {
    main.run("ALTER TABLE people ADD sync_version BIGINT NOT NULL DEFAULT 0, ADD sync_deleted BOOLEAN NOT NULL DEFAULT FALSE")
        .await?;
    main.install().await?;
    let target = format!(
        "[people]\n{}\non_delete = \"disable\"\n\
         breaker = {{ probe = \"100ms\", probe_cap = \"200ms\" }}\n\
         table = {{ name = \"people\", id = \"uid\", columns = {{ username = \"username\", email = \"email\", \
         state = \"status\", city = \"data.city\", n = \"data.n\" }} }}\n",
        main.access()
    );
    let settings = main.settings();
    let stack = only(target)
        .gateway_args(["--config".as_ref(), settings.as_os_str()])
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;

    let ann = json!({"user_id": 1, "username": "ann", "data": {"city": "Ulm", "n": 1}});
    bus.publish("user.created", ann).await?;
    bus.publish("user.created", json!({"user_id": 2, "username": "bob"}))
        .await?;
    delivered(&main, &bus, "uid = 1 AND city = 'Ulm'").await?;
    delivered(&main, &bus, "uid = 2 AND username = 'bob'").await?;
    bus.publish("user.updated", json!({"user_id": 1, "data": {"n": 2}}))
        .await?;
    bus.publish("user.deleted", json!({"user_id": 2})).await?;
    delivered(&main, &bus, "uid = 1 AND n = 2").await?;
    delivered(&main, &bus, "uid = 2 AND state = 'disabled'").await?;
    ensure!(rows(&main).await? == 0);

    // On new connections too.
    main.restart().await?;
    bus.publish("user.updated", json!({"user_id": 1, "data": {"n": 3}}))
        .await?;
    delivered(&main, &bus, "uid = 1 AND n = 3").await?;
    ensure!(rows(&main).await? == 0);

    // What others write is an event, whose own delivery is none.
    main.run("UPDATE people SET city = 'Bonn' WHERE uid = 1")
        .await?;
    main.until_published().await?;
    let state = bus.state_after_intake(1).await?;
    ensure!(state["data"]["city"] == "Bonn", "{state}");
    delivered(&main, &bus, "uid = 1 AND city = 'Bonn' AND n = 3").await?;
    ensure!(rows(&main).await? == 1);
    Ok(())
}

/// Asserts that, once everything is delivered, one user is as `expected`.
async fn delivered(main: &Main, bus: &Bus, expected: &str) -> Result<()> {
    bus.until_settled("people").await?;
    let found = format!("SELECT COUNT(*) FROM people WHERE {expected}");
    ensure!(main.number(&found).await? == 1, "nobody has {expected}");
    Ok(())
}

/// How many rows the outbox has, published or not.
async fn rows(main: &Main) -> Result<i64> {
    main.number("SELECT COUNT(*) FROM user_outbox").await
}
