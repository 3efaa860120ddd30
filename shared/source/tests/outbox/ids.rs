//! Ids that a careless comparison takes for one are two users.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use usersync_source::Database;

use crate::place::Place;

const IDS: [&str; 6] = [
    "aB",
    "Ab",
    "auth0|6F",
    "auth0|6f",
    "jane@example.com",
    "042",
];

async fn are_told_apart(place: &Place) -> Result<()> {
    for ids in [
        [
            "VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin",
            "TEXT",
            "TEXT",
        ],
        [
            "CHAR(40) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
            "CHAR(40)",
            "CHAR(40)",
        ],
    ] {
        are_told_apart_as(place, place.pick(ids)).await?;
    }
    Ok(())
}

async fn are_told_apart_as(place: &Place, id: &str) -> Result<()> {
    let mut client = place.client().await?;
    client
        .run(&format!(
            "CREATE TABLE people (uid {id} PRIMARY KEY, username VARCHAR(50))"
        ))
        .await?;
    let config = place.config("people", "uid", &[])?;
    let mut database = Database::connect(&config).await?;
    database.install(false).await?;
    for id in IDS {
        client
            .run(&format!("INSERT INTO people VALUES ('{id}', '{id}')"))
            .await?;
    }
    let all: BTreeSet<String> = IDS.map(str::to_owned).into();
    let asked: Vec<String> = all.iter().cloned().collect();
    let layout = database.layout(false).await?;
    let waiting = database.waiting(&layout, &asked).await?;
    let waiting: BTreeSet<String> = waiting.into_iter().collect();
    ensure!(waiting == all, "{waiting:?}");
    let one = database.waiting(&layout, &["AB".to_owned()]).await?;
    ensure!(one.is_empty(), "{one:?}");
    let rows = database.users(&layout, &asked).await?;
    let rows: BTreeSet<String> = rows.into_iter().map(|row| row.id).collect();
    ensure!(rows == all, "{id}: {rows:?}");
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = database.page(&layout, after.as_deref(), 2).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.id.clone());
        seen.extend(page.into_iter().map(|row| row.id));
        ensure!(seen.len() <= IDS.len(), "{id}: {seen:?}");
    }
    ensure!(seen.len() == IDS.len(), "{id}: {seen:?}");
    place.clean(&config).await
}

#[tokio::test]
async fn ids_of_mariadb_are_told_apart() -> Result<()> {
    are_told_apart(&Place::mariadb().await?).await
}

#[tokio::test]
async fn ids_of_postgres_are_told_apart() -> Result<()> {
    are_told_apart(&Place::postgres().await?).await
}

#[tokio::test]
async fn ids_of_sqlite_are_told_apart() -> Result<()> {
    are_told_apart(&Place::sqlite()?).await
}

#[tokio::test]
async fn whoever_no_id_of_this_type_can_be_is_not_found_and_stops_nobody() -> Result<()> {
    let place = Place::postgres().await?;
    let mut client = place.client().await?;
    for (kind, value, shown) in [
        ("bigint", "42", "42"),
        (
            "uuid",
            "0198C0DE-0000-7000-8000-000000000000",
            "0198c0de-0000-7000-8000-000000000000",
        ),
    ] {
        client
            .run(&format!(
                "CREATE TABLE people (uid {kind} PRIMARY KEY, username text); INSERT INTO people VALUES ('{value}', 'x')"
            ))
            .await?;
        let config = place.config("people", "uid", &[])?;
        let mut database = Database::connect(&config).await?;
        let layout = database.layout(false).await?;
        let asked = [
            "auth0|6f",
            "042",
            "+42",
            "ANN",
            "10.1.2.3",
            "0198C0DE-0000-7000-8000-000000000000",
            shown,
        ];
        let asked = asked.iter().filter(|id| layout.can_hold(id));
        let asked: Vec<String> = asked.map(|id| (*id).to_owned()).collect();
        let rows = database.users(&layout, &asked).await?;
        let rows: Vec<_> = rows.into_iter().map(|row| row.id).collect();
        ensure!(rows == [shown], "{kind}: {rows:?}");
        let others: Vec<String> = asked.into_iter().filter(|id| id != shown).collect();
        let rows = database.users(&layout, &others).await?;
        ensure!(rows.is_empty(), "{kind}: {} rows", rows.len());
        client.run("DROP TABLE people").await?;
    }
    Ok(())
}
