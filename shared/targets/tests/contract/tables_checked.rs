//! Tables whose columns have types of their own, and the main database's table beside them.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection};
use usersync_digest::{Scanned, Walk};
use usersync_stack::{MariaDbServer, PostgresServer};
use usersync_targets::{Delivery, MainDatabase, MainTable, Standing, Target, Unchecked};

use crate::{
    checks::{Meant, differing, walked},
    clauses::is_delivered,
    deliveries::{data, deleted, user},
    mysql::MySql,
    peer::{Peer, connect},
    postgres::Postgres,
};

const SYNC: &str =
    "sync_deleted boolean NOT NULL DEFAULT false, sync_version bigint NOT NULL DEFAULT 0";

/// Values whose columns keep less of them than was told, or show it otherwise.
fn told() -> [Value; 4] {
    [
        json!({"n": "007", "height": 1.755, "rough": 0.1, "on": true, "seen": "2026-03-29T02:30:00.6+01:00",
               "exact": "2016-12-31T23:59:59.999999Z", "born": "1990-02-28T23:30:00-02:00", "code": "x  ",
               "role": "Admin", "token": "0198C0DE-0000-7000-8000-00000000ABCD", "name": "Zoë  "}),
        json!({"n": -5, "height": "1.50", "rough": 1e20, "on": false, "seen": "1969-12-31 23:59:58.4",
               "exact": "1970-01-01T00:00:00+00:00", "born": "2024-02-29", "code": "", "role": "user",
               "token": "0198c0de-0000-7000-8000-00000000abcd", "name": ""}),
        json!({"n": 1, "height": 1e2, "rough": 2, "on": 1, "seen": "9999-12-30T00:00:00Z", "name": "ann "}),
        json!({}),
    ]
}

const COLUMNS: [&str; 11] = [
    "n", "height", "rough", "on", "seen", "exact", "born", "code", "role", "token", "name",
];

async fn typed(peer: &dyn Peer, place: &str, without: &[&str]) -> Result<()> {
    let columns: BTreeMap<String, String> = COLUMNS
        .iter()
        .filter(|column| !without.contains(column))
        .map(|column| (format!("c_{column}"), format!("data.{column}")))
        .collect();
    let target = connect(
        peer,
        place,
        json!({"table": {"name": place, "columns": columns}}),
    )?;
    let all: Vec<Delivery> = told()
        .into_iter()
        .enumerate()
        .map(|(number, told)| data(user(&number.to_string(), 5, "ann"), told))
        .collect();
    for outcome in target.deliver(&all).await {
        is_delivered(&outcome)?;
    }
    for standing in target.compare(&all).await.context("it compares")? {
        ensure!(standing == Standing::Same, "{standing:?}");
    }
    let found = differing(&*target, &all).await?;
    ensure!(found.is_empty(), "{} of {place} differ", found.len());
    // A value that differs a little is found.
    let mut other = all.clone();
    other[1] = data(other[1].clone(), json!({"n": -6}));
    let found = differing(&*target, &other).await?;
    ensure!(found.len() == 1 && &*found[0].id == "1", "{found:?}");
    Ok(())
}

#[tokio::test]
async fn what_columns_keep_of_values_does_not_differ() -> Result<()> {
    for (mysql, postgres) in MySql::all().await?.iter().zip(&Postgres::all().await?) {
        values_are_kept_alike(mysql, postgres).await?;
    }
    Ok(())
}

async fn values_are_kept_alike(mysql: &MySql, postgres: &Postgres) -> Result<()> {
    let uuid = mysql.uuid("c_token");
    let ids = [
        (
            "texts",
            "varchar(64) CHARACTER SET ascii COLLATE ascii_bin",
            "text",
        ),
        ("numbers", "bigint", "bigint"),
    ];
    postgres
        .run("CREATE TYPE role AS ENUM ('Admin', 'user')")
        .await?;
    for (place, mysql_id, postgres_id) in ids {
        mysql
            .run(&format!(
                "CREATE TABLE {place} (id {mysql_id} PRIMARY KEY, c_n int, c_height decimal(10, 2), c_rough double, \
                 c_on boolean, c_seen datetime, c_exact datetime(6), c_born date, c_code char(5), \
                 c_role enum('Admin', 'user'), {uuid}, c_name varchar(50) COLLATE utf8mb4_unicode_ci, {SYNC})"
            ))
            .await?;
        postgres
            .run(&format!(
                "CREATE TABLE {place} (id {postgres_id} PRIMARY KEY, c_n bigint, c_height numeric(10, 2), \
                 c_rough double precision, c_on boolean, c_seen timestamptz(0), c_exact timestamp, c_born date, \
                 c_code char(5), c_role role, c_token uuid, c_name text, {SYNC})"
            ))
            .await?;
        for peer in [mysql as &dyn Peer, postgres] {
            // Floating-point numbers are hashed here, everything else there.
            typed(peer, place, &[]).await?;
            typed(peer, place, &["rough"]).await?;
        }
    }
    Ok(())
}

const USERS: &str = "username varchar(100), email varchar(100), phone varchar(40), changed";

fn main_table(url: String, password: Option<&str>) -> Result<MainDatabase> {
    let columns = [
        ("login", "username"),
        ("email", "email"),
        ("phone", "data.phone"),
        ("changed", "data.changed"),
    ];
    let columns = columns.map(|(column, path)| (column.to_owned(), path.to_owned()));
    let main = MainTable {
        url: url.parse()?,
        password: password.map(Into::into),
        table: "people".to_owned(),
        id: "number".to_owned(),
        columns: columns.into(),
        deleted: Some("gone".to_owned()),
    };
    Ok(MainDatabase::new(main)?)
}

fn people() -> String {
    let row = |number: i64| {
        let gone = if number % 97 == 0 {
            "'2026-01-01 00:00:00'"
        } else {
            "NULL"
        };
        let phone = if number % 5 == 0 {
            "NULL".to_owned()
        } else {
            format!("'+49 {number}'")
        };
        format!(
            "({number}, 'user {number} ', 'Zoë{number}@example.com', {phone}, '2026-03-29 01:{:02}:{:02}.5', {gone})",
            number / 60 % 60,
            number % 60
        )
    };
    let rows: Vec<String> = (1..=500).map(row).collect();
    format!("INSERT INTO people VALUES {}", rows.join(", "))
}

/// What the target is delivered of them.
fn deliveries() -> Vec<Delivery> {
    let delivery = |number: i64| {
        let phone = if number % 5 == 0 {
            Value::Null
        } else {
            json!(format!("+49 {number}"))
        };
        let changed = format!(
            "2026-03-29T01:{:02}:{:02}.5Z",
            number / 60 % 60,
            number % 60
        );
        let told = json!({"phone": phone, "changed": changed});
        let mut delivery = data(
            user(&number.to_string(), 5, &format!("user {number} ")),
            told,
        );
        delivery.members.email =
            usersync_core::event::Change::Set(format!("Zoë{number}@example.com"));
        delivery
    };
    let there = (1..=500).filter(|number| number % 97 != 0);
    there.map(delivery).collect()
}

#[tokio::test]
async fn the_main_database_is_compared_with_a_table_by_sql_and_by_scan() -> Result<()> {
    let (mysql, postgres) = (MySql::start().await?, Postgres::start().await?);
    let columns = "login varchar(100), email varchar(100), phone varchar(40)";
    mysql
        .run(&format!(
            "CREATE TABLE people (number bigint unsigned PRIMARY KEY, {columns}, changed datetime(3), gone datetime)"
        ))
        .await?;
    postgres
        .run(&format!(
            "CREATE TABLE people (number int PRIMARY KEY, {columns}, changed timestamptz, gone timestamptz)"
        ))
        .await?;
    let file = mysql.dir.path().join("main.db");
    let sqlite_url = format!("sqlite://{}?mode=rwc", file.display());
    let mut sqlite = SqliteConnection::connect(&sqlite_url).await?;
    let create = "CREATE TABLE people (number INTEGER PRIMARY KEY, login, email, phone, changed TEXT, gone TEXT)";
    sqlx::raw_sql(create).execute(&mut sqlite).await?;
    let people = people();
    sqlx::raw_sql(AssertSqlSafe(people.as_str()))
        .execute(&mut sqlite)
        .await?;
    mysql.run(&people).await?;
    postgres.run(&people).await?;
    let mains = [
        main_table(mysql.server.url(), Some(MariaDbServer::PASSWORD))?,
        main_table(postgres.server.url(), Some(PostgresServer::PASSWORD))?,
        main_table(format!("sqlite://{}", file.display()), None)?,
    ];

    mysql
        .run(&format!(
            "CREATE TABLE copies (id bigint PRIMARY KEY, {USERS} datetime, {SYNC})"
        ))
        .await?;
    postgres
        .run(&format!(
            "CREATE TABLE copies (id varchar(64) PRIMARY KEY, {USERS} timestamptz(3), {SYNC})"
        ))
        .await?;
    let columns = json!({"username": "username", "email": "email", "phone": "data.phone", "changed": "data.changed"});
    let all = deliveries();
    for peer in [&mysql as &dyn Peer, &postgres] {
        let target = connect(
            peer,
            "copies",
            json!({"table": {"name": "copies", "columns": columns}}),
        )?;
        for batch in all.chunks(target.limits().batch) {
            for outcome in target.deliver(batch).await {
                is_delivered(&outcome)?;
            }
        }
        ensure!(differing(&*target, &all).await?.is_empty());
        for (round, main) in mains.iter().enumerate() {
            alike_and_not(main, &*target, &all, 10 + 10 * round as u64).await?;
        }
    }
    Ok(())
}

/// The main database is as the target, until the target isn't as the main database. Deliveries have versions from
/// `version` on.
async fn alike_and_not(
    main: &MainDatabase,
    target: &dyn Target,
    all: &[Delivery],
    version: u64,
) -> Result<()> {
    let holdings = target.holdings().await?;
    let side = main
        .side(holdings.fields().context("it has fields")?)
        .await?;
    let found = walked(Walk::new(&*side, holdings.side()).await?).await?;
    ensure!(found.is_empty(), "{found:?}");
    // What it makes is what Rust says that it is.
    let meant = Scanned(Meant {
        holdings: &*holdings,
        deliveries: all,
    });
    ensure!(walked(Walk::new(&*side, &meant).await?).await?.is_empty());

    let one = async |delivery: Delivery| {
        let outcomes = target.deliver(&[delivery]).await;
        is_delivered(&outcomes[0])
    };
    one(user("17", version, "mallory")).await?;
    one(user("1000000", version, "orphan")).await?;
    let found = walked(Walk::new(&*side, holdings.side()).await?).await?;
    let ids: Vec<_> = found.iter().map(|one| &*one.id).collect();
    ensure!(ids == ["1000000", "17"], "{ids:?}");
    ensure!(found[0].left.is_none() && found[1].left.is_some() && found[1].right.is_some());

    // As it was, for whoever comes next.
    let before = all.iter().find(|delivery| delivery.user_id == 17.into());
    let mut before = before.context("they were there")?.clone();
    before.version = version + 1;
    one(before).await?;
    one(deleted("1000000", version + 1)).await
}

#[tokio::test]
async fn a_row_that_is_marked_or_of_a_version_to_come_is_found() -> Result<()> {
    let (mysql, postgres) = (MySql::start().await?, Postgres::start().await?);
    for peer in [&mysql as &dyn Peer, &postgres] {
        let target = connect(peer, "users", json!({}))?;
        target.init().await?;
        let all: Vec<Delivery> = (1..=9)
            .map(|id: u32| user(&id.to_string(), 5, "ann"))
            .collect();
        for outcome in target.deliver(&all).await {
            is_delivered(&outcome)?;
        }
    }
    mysql
        .run("ALTER TABLE users MODIFY sync_deleted boolean NULL")
        .await?;
    postgres
        .run("ALTER TABLE users ALTER sync_deleted DROP NOT NULL")
        .await?;
    for statement in [
        // `WHERE NOT sync_deleted` finds neither of them.
        "UPDATE users SET sync_deleted = NULL WHERE id = '2'",
        "UPDATE users SET sync_deleted = true WHERE id = '3'",
        "UPDATE users SET sync_version = 9223372036854775807 WHERE id = '7'",
    ] {
        mysql.run(statement).await?;
        postgres.run(statement).await?;
    }
    for peer in [&mysql as &dyn Peer, &postgres] {
        let target = connect(peer, "users", json!({}))?;
        let all: Vec<Delivery> = (1..=9)
            .map(|id: u32| user(&id.to_string(), 5, "ann"))
            .collect();
        let mut found: Vec<String> = differing(&*target, &all)
            .await?
            .iter()
            .map(|one| one.id.to_string())
            .collect();
        found.sort_unstable();
        ensure!(found == ["2", "3", "7"], "{found:?}");
        let standings = target.compare(&all).await.context("it compares")?;
        let at = |id: usize| &standings[id - 1];
        ensure!(
            *at(1) == Standing::Same
                && *at(2) == Standing::Missing
                && *at(3) == Standing::Missing
                && matches!(at(7), Standing::Newer(_)),
            "{standings:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_main_database_that_does_not_fit_says_what_is_missing() -> Result<()> {
    let mysql = MySql::start().await?;
    let main = main_table(mysql.server.url(), Some(MariaDbServer::PASSWORD))?;
    let target = connect(&mysql, "ours", json!({}))?;
    target.init().await?;
    let holdings = target.holdings().await?;
    let fields = holdings.fields().context("it has fields")?;
    let failed = async |main: &MainDatabase| match main.side(fields).await.err() {
        Some(Unchecked::Failed(failure)) => Ok(failure.to_string()),
        other => anyhow::bail!("{other:?}"),
    };
    let reason = failed(&main).await?;
    ensure!(
        reason.contains("`people`") && reason.contains("no such table"),
        "{reason}"
    );
    mysql
        .run("CREATE TABLE people (number int PRIMARY KEY, login text, email text, phone text, changed datetime, gone int)")
        .await?;
    // All of `data` is in no column.
    let reason = failed(&main).await?;
    ensure!(reason.contains("no column holds `data`"), "{reason}");
    Ok(())
}

#[tokio::test]
async fn members_a_target_is_not_told_are_not_compared() -> Result<()> {
    let postgres = Postgres::start().await?;
    connect(&postgres, "partly", json!({}))?.init().await?;
    let told = json!({"fields": {"include": ["username", "email"]}});
    let target = connect(&postgres, "partly", told)?;
    let mut delivery = user("1", 5, "ann");
    (delivery.members.status, delivery.members.data) = Default::default();
    is_delivered(&target.deliver(std::slice::from_ref(&delivery)).await[0])?;
    postgres
        .run("UPDATE partly SET status = 'theirs', data = '{}'")
        .await?;
    let holdings = target.holdings().await?;
    let paths: Vec<_> = holdings
        .fields()
        .into_iter()
        .flatten()
        .map(|field| &*field.path)
        .collect();
    ensure!(paths == ["email", "username", ""], "{paths:?}");
    let found = differing(&*target, &[delivery]).await?;
    ensure!(found.is_empty(), "{found:?}");
    Ok(())
}

#[tokio::test]
async fn what_is_left_of_a_deleted_user_is_found() -> Result<()> {
    let (mysql, postgres) = (MySql::start().await?, Postgres::start().await?);
    let tamper = "UPDATE ours SET email = 'old@example.com' WHERE id = '1'";
    for peer in [&mysql as &dyn Peer, &postgres] {
        let target = connect(peer, "ours", json!({}))?;
        target.init().await?;
        let gone = [deleted("1", 5), deleted("2", 5)];
        for outcome in target.deliver(&gone).await {
            is_delivered(&outcome)?;
        }
        ensure!(differing(&*target, &gone).await?.is_empty());
        match peer.entry("ours", true)["url"].as_str() {
            Some(url) if url.starts_with("mysql") => mysql.run(tamper).await?,
            _ => postgres.run(tamper).await?,
        }
        let found = differing(&*target, &gone).await?;
        ensure!(found.len() == 1 && &*found[0].id == "1", "{found:?}");
        let standings = target.compare(&gone).await.context("it compares")?;
        let expected = [Standing::Different("email".into()), Standing::Same];
        ensure!(standings == expected, "{standings:?}");
        for outcome in target.deliver(&gone).await {
            is_delivered(&outcome)?;
        }
        ensure!(differing(&*target, &gone).await?.is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn a_user_in_two_tables_that_inherit_is_different() -> Result<()> {
    let postgres = Postgres::start().await?;
    let target = connect(&postgres, "ours", json!({}))?;
    target.init().await?;
    let all = [user("1", 5, "ann"), user("2", 5, "bob")];
    for outcome in target.deliver(&all).await {
        is_delivered(&outcome)?;
    }
    postgres
        .run("CREATE TABLE more () INHERITS (ours); INSERT INTO more SELECT * FROM ours WHERE id = '2'")
        .await?;
    let found = differing(&*target, &all).await?;
    ensure!(found.len() == 1 && &*found[0].id == "2", "{found:?}");
    let standings = target.compare(&all).await.context("it compares")?;
    ensure!(
        standings[0] == Standing::Same && matches!(standings[1], Standing::Different(_)),
        "{standings:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_date_of_zeros_is_another_than_none() -> Result<()> {
    let mysql = MySql::start().await?;
    mysql
        .run(&format!(
            "CREATE TABLE zeros (id bigint PRIMARY KEY, c datetime(3), {SYNC})"
        ))
        .await?;
    let columns = json!({"table": {"name": "zeros", "columns": {"c": "data.c"}}});
    let target = connect(&mysql, "zeros", columns)?;
    let all = [data(user("1", 5, "ann"), json!({}))];
    is_delivered(&target.deliver(&all).await[0])?;
    ensure!(differing(&*target, &all).await?.is_empty());
    mysql
        .run("SET sql_mode = ''; UPDATE zeros SET c = '0000-00-00'")
        .await?;
    ensure!(differing(&*target, &all).await?.len() == 1);
    let standings = target.compare(&all).await.context("it compares")?;
    ensure!(
        standings == [Standing::Different("data.c".into())],
        "{standings:?}"
    );
    Ok(())
}
