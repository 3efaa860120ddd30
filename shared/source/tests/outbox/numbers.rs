//! Numbers of the main database come out as the same doubles and integers, from columns and from JSON.

use anyhow::{Context as _, Result, ensure};
use usersync_core::event::{Change, Envelope, Event, EventType};
use usersync_source::{Database, Server};
use usersync_stack::MySqlServer;

use crate::place::Place;

fn doubles() -> Vec<f64> {
    let special = [
        0.1,
        1e15,
        1e17,
        1e22,
        1e23,
        -1e30,
        1e300,
        5e-324,
        f64::MAX,
        1.0 / 3.0,
        -1.2345678901234567e-10,
        -2.2250738585072014e-308,
    ];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        // Xorshift: any bits will do.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let any = (0..300).map(|place| match place % 2 {
        0 => f64::from_bits(next()),
        _ => (next() >> 11) as f64 / 1e12,
    });
    let any: Vec<f64> = any.filter(|double| double.is_finite()).collect();
    special.into_iter().chain(any).collect()
}

async fn come_out_as_they_are(place: &Place) -> Result<()> {
    let (double, json) = match place.server() {
        Server::MySql => ("DOUBLE", "JSON"),
        Server::Postgres => ("DOUBLE PRECISION", "JSONB"),
        Server::Sqlite => ("REAL", "JSON"),
    };
    let mut client = place.client().await?;
    client
        .run(&format!(
            "CREATE TABLE people (uid BIGINT PRIMARY KEY, score {double}, extra {json})"
        ))
        .await?;
    let doubles = doubles();
    for (uid, double) in doubles.iter().enumerate() {
        let insert = format!(
            "INSERT INTO people VALUES ({uid}, {double:e}, '{{\"d\": [{double:e}], \"i\": [9007199254740993, -9223372036854775808, 18446744073709551615]}}')"
        );
        client.run(&insert).await?;
    }
    let columns = [("score", "data.score"), ("extra", "data.extra")];
    let config = place.config("people", "uid", &columns)?;
    let mut database = Database::connect(&config).await?;
    let layout = database.layout(false).await?;
    let rows = database.page(&layout, None, 1_000).await?;
    ensure!(rows.len() == doubles.len(), "{} rows", rows.len());
    for row in rows {
        let envelope = Envelope {
            kind: Some(EventType::Created),
            id: Some("1".to_owned()),
            timestamp: Some(jiff::Timestamp::UNIX_EPOCH),
        };
        let document = row.document.map_err(anyhow::Error::msg)?;
        let event = Event::of_row(&document, envelope)
            .with_context(|| String::from_utf8_lossy(&document).into_owned())?;
        let Change::Set(data) = event.data else {
            anyhow::bail!("no data");
        };
        let told = doubles[row.id.parse::<usize>()?];
        // SQLite's own arithmetic of digits is exact to the last bit for usual numbers only.
        let exact = place.server() != Server::Sqlite || (1e-6..1e15).contains(&told.abs());
        let column = exact.then_some(&data["score"]);
        for held in column.into_iter().chain([&data["extra"]["d"][0]]) {
            let held = held.as_f64().map(f64::to_bits);
            ensure!(held == Some(told.to_bits()), "{told:e} is {data}");
        }
        let integers = data["extra"]["i"].to_string();
        ensure!(
            integers == "[9007199254740993,-9223372036854775808,18446744073709551615]",
            "{integers}"
        );
    }
    if place.is_mysql() {
        // Its JSON has a double for what follows.
        return Ok(());
    }
    client.run("DELETE FROM people WHERE uid > 0").await?;
    client
        .run("UPDATE people SET extra = '{\"a\": {\"b\": 18446744073709551616}}'")
        .await?;
    let rows = database.page(&layout, None, 10).await?;
    // The servers that tell the column say its name at once.
    match &rows[0].document {
        Err(said) => ensure!(said.contains("`extra`") && said.contains("/a/b"), "{said}"),
        Ok(document) => {
            let refused = Event::of_row(document, Envelope::default()).err();
            let pointer = refused.map(|refused| refused.pointer.into_owned());
            let document = String::from_utf8_lossy(document);
            ensure!(
                pointer.as_deref() == Some("/data/extra/a/b"),
                "{pointer:?} of {document}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn numbers_of_mariadb_come_out_as_they_are() -> Result<()> {
    come_out_as_they_are(&Place::mariadb().await?).await
}

#[tokio::test]
async fn numbers_of_mysql_come_out_as_they_are() -> Result<()> {
    if MySqlServer::is_left_out()? {
        return Ok(());
    }
    come_out_as_they_are(&Place::mysql().await?).await
}

#[tokio::test]
async fn numbers_of_postgres_come_out_as_they_are() -> Result<()> {
    come_out_as_they_are(&Place::postgres().await?).await
}

#[tokio::test]
async fn numbers_of_sqlite_come_out_as_they_are() -> Result<()> {
    come_out_as_they_are(&Place::sqlite()?).await
}
