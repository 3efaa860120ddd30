//! Every type of column of each server, on the real server: what is written is alike in every spelling, and what is a
//! step further is not.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection, PgConnection};
use usersync_stack::{
    Directory, MariaDbServer, MySqlServer, PostgresServer,
    types::{self, ColumnType},
};
use usersync_targets::{Delivery, Outcome, Standing, Target};

use crate::{
    checks::differing,
    deliveries::{data, user},
    peer::open,
};

/// Values of each type.
const VALUES: usize = 24;

/// A connection of the test's own.
enum Client {
    MySql(MySqlConnection),
    Postgres(PgConnection),
}

impl Client {
    async fn run(&mut self, statement: &str) -> Result<()> {
        let text = sqlx::raw_sql(AssertSqlSafe(statement));
        match self {
            Self::MySql(client) => text.execute(client).await.map(drop),
            Self::Postgres(client) => text.execute(client).await.map(drop),
        }
        .with_context(|| statement.to_owned())
    }
}

#[tokio::test]
async fn every_type_of_mariadb_is_compared_as_it_is_kept() -> Result<()> {
    let dir = Directory::temporary()?;
    let server = MariaDbServer::start(dir.path()).await?;
    let client = MySqlConnection::connect(&server.url_with_password()).await?;
    let mut all = types::of_mysql();
    all.extend(types::of_mariadb());
    let secret = MariaDbServer::PASSWORD;
    every_type(Client::MySql(client), &dir, &server.url(), secret, &all).await
}

#[tokio::test]
async fn every_type_of_mysql_is_compared_as_it_is_kept() -> Result<()> {
    if MySqlServer::is_left_out()? {
        return Ok(());
    }
    let dir = Directory::temporary()?;
    let server = MySqlServer::start(dir.path()).await?;
    let client = MySqlConnection::connect(&server.url_with_password()).await?;
    let secret = MySqlServer::PASSWORD;
    let all = types::of_mysql();
    every_type(Client::MySql(client), &dir, &server.url(), secret, &all).await
}

#[tokio::test]
async fn every_type_of_postgres_is_compared_as_it_is_kept() -> Result<()> {
    let dir = Directory::temporary()?;
    let server = PostgresServer::start(dir.path()).await?;
    let mut client = Client::Postgres(PgConnection::connect(&server.url_with_password()).await?);
    client.run(types::PREPARE_POSTGRES).await?;
    let secret = PostgresServer::PASSWORD;
    every_type(client, &dir, &server.url(), secret, &types::of_postgres()).await
}

async fn every_type(
    mut client: Client,
    dir: &Directory,
    url: &str,
    secret: &str,
    all: &[ColumnType],
) -> Result<()> {
    let file = dir.path().join("secret");
    std::fs::write(&file, secret)?;
    let mut wrong = Vec::new();
    for (number, column) in all.iter().enumerate() {
        let place = format!("typed_{number}");
        let entry = json!({
            "url": url,
            "secret": format!("file:{}", file.display()),
            "table": {"name": place, "columns": {"c": "data.v"}},
        });
        let target = open(entry, json!({}))?;
        let tried = one_type(&mut client, &place, &*target, column).await;
        if let Err(error) = tried {
            wrong.push(format!("{}: {error:#}", column.sql));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

async fn one_type(
    client: &mut Client,
    place: &str,
    target: &dyn Target,
    column: &ColumnType,
) -> Result<()> {
    client
        .run(&format!(
            "CREATE TABLE {place} (id bigint PRIMARY KEY, c {} NULL, \
             sync_deleted boolean NOT NULL DEFAULT false, sync_version bigint NOT NULL DEFAULT 0)",
            column.sql.trim_end_matches(" NULL")
        ))
        .await?;
    let mut random = fastrand::Rng::with_seed(42);
    let mut dice = |below: u64| random.u64(..below);
    let told = (0..VALUES).map(|_| (column.told)(&mut dice));
    let mut all: Vec<Delivery> = told
        .enumerate()
        .map(|(id, value)| data(user(&id.to_string(), 5, "ann"), json!({"v": value})))
        .collect();
    all.push(data(user("1000", 5, "ann"), json!({})));
    for (delivery, outcome) in all.iter().zip(target.deliver(&all).await) {
        let is_written = matches!(outcome, Outcome::Delivered { .. });
        ensure!(is_written, "{:?}: {outcome:?}", delivery.members.data);
    }
    let standings = target.compare(&all).await.context("it compares")?;
    for (delivery, standing) in all.iter().zip(standings) {
        let told = &delivery.members.data;
        ensure!(standing == Standing::Same, "{told:?} is {standing:?}");
    }
    let found = differing(target, &all).await?;
    ensure!(
        found.is_empty(),
        "{} differ by digest",
        told_of(&all, &found)
    );
    client
        .run(&format!(
            "UPDATE {place} SET c = {} WHERE id < 1000",
            column.step
        ))
        .await?;
    let standings = target
        .compare(&all[..VALUES])
        .await
        .context("it compares")?;
    for (delivery, standing) in all.iter().zip(standings) {
        let told = &delivery.members.data;
        let different = Standing::Different("data.v".into());
        ensure!(
            standing == different,
            "a step from {told:?} is {standing:?}"
        );
    }
    let found = differing(target, &all).await?;
    ensure!(
        found.len() == VALUES,
        "by digest only {} differ",
        found.len()
    );
    // NULL is no value, and no value is NULL.
    client.run(&format!("UPDATE {place} SET c = NULL")).await?;
    let found = differing(target, &all).await?;
    ensure!(
        found.len() == VALUES,
        "from NULL only {} differ",
        found.len()
    );
    Ok(())
}

fn told_of(all: &[Delivery], found: &[usersync_digest::Difference]) -> String {
    let told = found.iter().filter_map(|one| {
        let delivery = all.iter().find(|told| told.user_id.to_string() == *one.id);
        Some(format!("{:?}", delivery?.members.data))
    });
    told.collect::<Vec<_>>().join(", ")
}
