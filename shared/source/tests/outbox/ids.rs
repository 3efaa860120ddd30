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
    let id = place.pick([
        "VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin",
        "TEXT",
        "TEXT",
    ]);
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
    let waiting: BTreeSet<String> = database.waiting(&asked).await?.into_iter().collect();
    ensure!(waiting == all, "{waiting:?}");
    let one = database.waiting(&["AB".to_owned()]).await?;
    ensure!(one.is_empty(), "{one:?}");
    let layout = database.layout(false).await?;
    let rows = database.users(&layout, &asked).await?;
    let rows: BTreeSet<String> = rows.into_iter().map(|row| row.id).collect();
    ensure!(rows == all, "{rows:?}");
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
