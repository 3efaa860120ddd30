//! Odd values are the same to relay, load and check: carried as they are, or their row fails alone.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use usersync_stack::eventually;

use super::{Main, Server};
use crate::support::{Bus, SOON};

/// Columns beside those of every test: the type, a value in SQL, and the same in JSON.
type Column = (&'static str, &'static str, Value);

fn columns(main: &Main) -> Vec<Column> {
    match main.server {
        Server::MariaDb(..) => vec![
            ("FLOAT", "0.1", json!(0.1)),
            ("FLOAT", "16777216", json!(16_777_216.0)),
            ("BIT(1)", "1", json!(true)),
            ("YEAR", "2026", json!(2026)),
            ("SET('a','b')", "'b,a'", json!("a,b")),
            (
                "DATETIME",
                "'9999-12-31 23:59:59'",
                json!("9999-12-31T23:59:59Z"),
            ),
            ("TIME", "'-838:59:59'", json!("-838:59:59")),
            ("INET6", "'2001:DB8::1'", json!("2001:db8::1")),
            ("DATE", "'2024-02-29'", json!("2024-02-29")),
        ],
        Server::Postgres(..) => vec![
            ("REAL", "0.1", json!(0.1)),
            ("NUMERIC", "'NaN'", json!("NaN")),
            ("DOUBLE PRECISION", "'NaN'", json!("NaN")),
            ("REAL", "'-Infinity'", json!("-Infinity")),
            ("TIMESTAMPTZ", "'infinity'", json!("infinity")),
            (
                "TIMESTAMPTZ",
                "'9999-12-31 23:59:59Z'",
                json!("9999-12-31T23:59:59.000000Z"),
            ),
            ("INTERVAL", "'1 day 02:00'", json!("1 day 02:00:00")),
            ("NUMERIC[]", "'{1.50,NULL}'", json!(["1.50", null])),
            ("BIT(3)", "B'101'", json!("101")),
            (
                "JSONB",
                r#"'{"n": 9007199254740993}'"#,
                json!({"n": 9_007_199_254_740_993_u64}),
            ),
            ("DATE", "'2024-02-29'", json!("2024-02-29")),
        ],
    }
}

/// The report among what was said.
fn report(said: &str) -> Result<Value> {
    let report = said.find("{\n").map_or("", |at| &said[at..]);
    Ok(serde_json::from_str(report)?)
}

async fn are_the_same_to_all(main: Main) -> Result<()> {
    let columns = columns(&main);
    let mut settings = std::fs::read_to_string(main.settings())?;
    let (mut values, mut expected) = (String::new(), serde_json::Map::new());
    for (at, (kind, value, json)) in columns.iter().enumerate() {
        main.run(&format!("ALTER TABLE people ADD COLUMN c{at} {kind}"))
            .await?;
        writeln!(settings, "c{at} = \"data.c{at}\"")?;
        write!(values, ", {value}")?;
        expected.insert(format!("c{at}"), json.clone());
    }
    std::fs::write(main.settings(), settings)?;
    main.install().await?;
    let stack = main.stack(1).await?;
    main.run(&format!(
        "INSERT INTO people VALUES (1, 'ann', NULL, 'new', 'Ulm', 1{values})"
    ))
    .await?;
    // The last column is a day that the calendar, or JSON, doesn't have.
    let (mode, day) = match main.server {
        Server::MariaDb(..) => ("SET SESSION sql_mode = '';", "0000-00-00"),
        Server::Postgres(..) => ("", "0044-03-15 BC"),
    };
    main.run(&format!(
        "{mode} INSERT INTO people (uid, username, c{}) VALUES (2, 'bob', '{day}'); \
         INSERT INTO people (uid, username) VALUES (3, 'eve')",
        columns.len() - 1
    ))
    .await?;
    main.until_published().await?;
    let bus = Bus::connect(&stack).await?;
    let state = bus.state_after_intake(1).await?;
    for (name, value) in expected {
        ensure!(
            state["data"][&name] == value,
            "{name}: {} for {value}",
            state["data"][&name]
        );
    }
    eventually(SOON, async || {
        ensure!(bus.state(3).await?["username"] == "eve");
        Ok(())
    })
    .await?;
    let status = main
        .scheduler("status", None, &["outbox", "status", "--json"])
        .await?;
    let loaded = ["load", "--json", "--dry-run"];
    let loaded = main.scheduler("load", Some(&stack.nats), &loaded).await?;
    let loaded = report(&loaded)?;
    let counts = ["users", "created", "changed", "equal", "unusable"];
    let counts = counts.map(|key| loaded[key].as_u64().unwrap_or(u64::MAX));
    ensure!(counts == [3, 0, 0, 2, 1], "{loaded}");
    let checked = [
        "check",
        "--target",
        "gateway",
        "--once",
        "--json",
        "--dry-run",
    ];
    let checked = main.scheduler("check", Some(&stack.nats), &checked).await?;
    let checked = report(&checked)?;
    let found = checked["found"].as_object().context("no report")?;
    ensure!(found.is_empty() && checked["unusable"] == 1, "{checked}");
    let column = format!("its column `c{}` (date) holds a day", columns.len() - 1);
    for said in [status, loaded.to_string(), checked.to_string()] {
        ensure!(said.contains(&column) && !said.contains(day), "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn odd_values_of_mariadb_are_the_same_to_all() -> Result<()> {
    are_the_same_to_all(Main::mariadb().await?).await
}

#[tokio::test]
async fn odd_values_of_postgres_are_the_same_to_all() -> Result<()> {
    are_the_same_to_all(Main::postgres().await?).await
}
