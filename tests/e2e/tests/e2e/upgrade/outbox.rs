//! An outbox that v0.1.0 made, its triggers included: today's gateways publish what waits in it, before and after it is
//! made anew.

use std::fs;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use usersync_stack::Stack;

use super::recorded;
use crate::{
    outbox::{Main, Server},
    support::Bus,
};

/// The members of a user that the main database has.
async fn members(bus: &Bus, user: u64) -> Result<Value> {
    let state = bus.state(user).await?;
    let data = &state["data"];
    Ok(json!([
        state["username"],
        state["email"],
        data["status"],
        data["other"],
        state["deleted"]
    ]))
}

async fn goes_on(main: Main) -> Result<()> {
    let (file, people) = match &main.server {
        Server::MariaDb(..) => ("outbox.mysql.sql", "people"),
        Server::Postgres(..) => ("outbox.postgres.sql", "people"),
    };
    main.run(&format!("DROP TABLE {people}")).await?;
    main.run(
        "CREATE TABLE users (id BIGINT PRIMARY KEY, username VARCHAR(64), email VARCHAR(64), status VARCHAR(64))",
    )
    .await?;
    let script = fs::read_to_string(recorded(file))?;
    let script = script
        .replace("DELIMITER //", "")
        .replace("DELIMITER ;", "")
        .replace(" //\n", ";\n");
    main.run(&script).await?;
    let settings = format!("[sources.main]\n{}\n", main.access());
    fs::write(main.settings(), settings)?;

    let write = async |from: u64| {
        for user in from..from + 5 {
            let row = format!(
                "INSERT INTO users VALUES ({user}, 'u{user}', '{user}@example.com', 'new')"
            );
            main.run(&row).await?;
        }
        main.run(&format!(
            "UPDATE users SET status = 'old' WHERE id = {from}"
        ))
        .await?;
        main.run(&format!(
            "UPDATE users SET email = NULL WHERE id = {from} + 1"
        ))
        .await?;
        main.run(&format!("DELETE FROM users WHERE id = {from} + 2"))
            .await
    };
    // What another service said, which the main database knows nothing of.
    let before = json!({"user_id": 1, "username": "x", "data": {"other": 1}});
    write(1).await?;
    let stack: Stack = main.stack(1).await?;
    let bus = Bus::connect(&stack).await?;
    main.until_published().await?;
    bus.publish("user.updated", json!({"user_id": 1, "data": {"other": 1}}))
        .await?;
    write(11).await?;
    stack.gateways[0].kill9().await;
    write(21).await?;
    main.scheduler("install", None, &["outbox", "install"])
        .await?;
    write(31).await?;
    let mut stack = stack;
    stack.gateways[0].restart().await?;
    main.run("UPDATE users SET username = 'renamed' WHERE id IN (1, 14)")
        .await?;
    main.until_published().await?;
    bus.until_taken_in().await?;
    for from in [1, 11, 21, 31] {
        let other = if from == 1 {
            before["data"]["other"].clone()
        } else {
            Value::Null
        };
        let name = if from == 1 {
            "renamed"
        } else {
            &format!("u{from}")
        };
        let email = |user: u64| format!("{user}@example.com");
        ensure!(
            members(&bus, from).await? == json!([name, email(from), "old", other, false]),
            "{from}: {}",
            bus.state(from).await?
        );
        let next = members(&bus, from + 1).await?;
        ensure!(
            next == json!([format!("u{}", from + 1), null, "new", null, false]),
            "{next}"
        );
        ensure!(
            bus.state(from + 2).await?["deleted"] == true,
            "{} lives",
            from + 2
        );
    }
    ensure!(
        bus.state(14).await?["username"] == "renamed",
        "14 has its old name"
    );
    stack.stop().await
}

#[tokio::test]
async fn an_outbox_that_v0_1_0_made_is_published_and_made_anew_in_mariadb() -> Result<()> {
    goes_on(Main::mariadb().await?).await
}

#[tokio::test]
async fn an_outbox_that_v0_1_0_made_is_published_and_made_anew_in_postgres() -> Result<()> {
    goes_on(Main::postgres().await?).await
}
