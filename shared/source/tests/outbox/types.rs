//! Every type that a server has: what its values are in JSON, the same whether users are read one by one (relay, check) or
//! page by page (load, check), and whatever settings the server has by default. Or why there is none.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, PgConnection};
use usersync_core::event::{Envelope, Event, EventType};
use usersync_source::{Database, Server, UserRow};

use crate::place::Place;

/// A type, a value in SQL, and the same in JSON.
type Carried<'a> = (&'a str, &'a str, Value);
/// A type, a value in SQL, and what is said of it.
type Refused<'a> = (&'a str, &'a str, &'a str);

const CALENDAR: &str = "a day that the calendar doesn't have";
const YEARS: &str = "outside of the years 0 to 9999";

struct Types<'a> {
    carried: Vec<Carried<'a>>,
    refused: Vec<Refused<'a>>,
    /// Types that can't be mapped at all.
    unmapped: Vec<&'a str>,
    /// What a session is told before values are written.
    writing: &'a str,
    /// Settings that a server, a database or a role may have by default.
    hostile: &'a str,
}

fn of_mysql(place: &Place) -> Types<'_> {
    let mut carried = vec![
        ("TINYINT", "-128", json!(-128)),
        ("BIGINT UNSIGNED", "18446744073709551615", json!(u64::MAX)),
        ("INT(7) UNSIGNED ZEROFILL", "42", json!(42)),
        ("BOOLEAN", "TRUE", json!(true)),
        ("TINYINT(1)", "0", json!(false)),
        ("TINYINT(1)", "5", json!(5)),
        ("BIT(1)", "b'1'", json!(true)),
        ("BIT(1)", "b'0'", json!(false)),
        ("BIT(8)", "b'11'", json!(3)),
        ("BIT(64)", "18446744073709551615", json!(u64::MAX)),
        ("FLOAT", "16777216", json!(16_777_216.0)),
        ("FLOAT", "123456.789", json!(123_456.79)),
        ("FLOAT", "0.1", json!(0.1)),
        ("FLOAT(9,2) ZEROFILL", "1.5", json!(1.5)),
        ("DOUBLE", "1.7976931348623157e308", json!(f64::MAX)),
        ("DOUBLE", "0.1", json!(0.1)),
        (
            "DECIMAL(65,30)",
            "-12345678901234567890123456789012345.123456789012345678901234567890",
            json!("-12345678901234567890123456789012345.123456789012345678901234567890"),
        ),
        ("DECIMAL(10,3) ZEROFILL", "1.5", json!("1.500")),
        ("YEAR", "2026", json!(2026)),
        ("YEAR", "0", json!(0)),
        ("DATE", "'9999-12-31'", json!("9999-12-31")),
        ("DATE", "'2024-02-29'", json!("2024-02-29")),
        (
            "DATETIME",
            "'9999-12-31 23:59:59'",
            json!("9999-12-31T23:59:59Z"),
        ),
        (
            "DATETIME(6)",
            "'2026-01-31 12:00:00.000001'",
            json!("2026-01-31T12:00:00.000001Z"),
        ),
        (
            "DATETIME(3)",
            "'2026-01-31 12:00:00.5'",
            json!("2026-01-31T12:00:00.500000Z"),
        ),
        (
            "TIMESTAMP NULL",
            "'2026-01-31 12:00:00'",
            json!("2026-01-31T12:00:00Z"),
        ),
        ("TIME", "'-838:59:59'", json!("-838:59:59")),
        ("TIME(2)", "'24:00:00.5'", json!("24:00:00.50")),
        (
            "VARCHAR(20) CHARACTER SET latin1",
            "'Zoë  '",
            json!("Zoë  "),
        ),
        ("CHAR(9)", "'ann  '", json!("ann")),
        (
            "VARCHAR(9) CHARACTER SET utf8mb3 COLLATE utf8mb3_bin",
            "'é'",
            json!("é"),
        ),
        (
            "TEXT CHARACTER SET utf8mb4",
            r#"'🦀\\"\'
'"#,
            json!("🦀\\\"'\n"),
        ),
        ("VARCHAR(9) CHARACTER SET utf16", "'Zoë'", json!("Zoë")),
        ("SET('a','b','c d')", "'b,a,c d'", json!("a,b,c d")),
        ("SET('a')", "''", json!("")),
        ("ENUM('','a,b','é')", "'a,b'", json!("a,b")),
        ("ENUM('x','y')", "2", json!("y")),
        (
            "JSON",
            r#"'{"n": 18446744073709551615, "d": 0.1, "t": "\\ud83e\\udd80"}'"#,
            json!({"n": u64::MAX, "d": 0.1, "t": "🦀"}),
        ),
        ("JSON", "'null'", Value::Null),
    ];
    if !place.is_mysql() {
        carried.extend([
            (
                "UUID",
                "'0188F2C0-0000-7000-8000-0000000000AB'",
                json!("0188f2c0-0000-7000-8000-0000000000ab"),
            ),
            ("INET6", "'2001:DB8::1'", json!("2001:db8::1")),
            ("INET4", "'10.1.2.3'", json!("10.1.2.3")),
        ]);
    }
    let mut refused = vec![
        ("DATE", "'0000-00-00'", CALENDAR),
        ("DATE", "'2026-00-00'", CALENDAR),
        ("DATE", "'2026-02-31'", CALENDAR),
        ("DATETIME(3)", "'0000-00-00 00:00:00'", CALENDAR),
        ("TIMESTAMP NULL", "'0000-00-00 00:00:00'", CALENDAR),
    ];
    if !place.is_mysql() {
        // Kept as it was written; MySQL makes a double of it.
        refused.extend([
            ("JSON", r#"'{"n": 18446744073709551616}'"#, "an integer"),
            (
                "JSON",
                r#"'[0.12345678901234567890]'"#,
                "more digits than a double",
            ),
        ]);
    }
    let mut unmapped = vec!["BLOB", "VARBINARY(9)", "BINARY(16)", "POINT"];
    if place.is_mysql() {
        unmapped.push("VECTOR(3)");
    }
    Types {
        carried,
        refused,
        unmapped,
        writing: "SET SESSION sql_mode = 'ALLOW_INVALID_DATES', time_zone = '+00:00'",
        hostile: "SET GLOBAL sql_mode = 'ANSI_QUOTES,PAD_CHAR_TO_FULL_LENGTH,NO_BACKSLASH_ESCAPES'; \
                  SET GLOBAL time_zone = '+09:00'; SET GLOBAL sql_select_limit = 2; SET GLOBAL lc_time_names = 'de_DE'; SET GLOBAL sql_quote_show_create = 0",
    }
}

fn of_postgres() -> Types<'static> {
    let carried = vec![
        ("SMALLINT", "-32768", json!(-32768)),
        ("BIGINT", "9223372036854775807", json!(i64::MAX)),
        (
            "NUMERIC",
            "123456789012345678901234567890.123456789012345678901234567890",
            json!("123456789012345678901234567890.123456789012345678901234567890"),
        ),
        ("NUMERIC", "'NaN'", json!("NaN")),
        ("NUMERIC(10,2)", "1.5", json!("1.50")),
        ("REAL", "0.1", json!(0.1)),
        ("DOUBLE PRECISION", "0.1", json!(0.1)),
        ("DOUBLE PRECISION", "'-Infinity'", json!("-Infinity")),
        ("DOUBLE PRECISION", "'NaN'", json!("NaN")),
        ("BOOLEAN", "true", json!(true)),
        ("TEXT", r#"E'🦀\\"\n'"#, json!("🦀\\\"\n")),
        ("CHAR(9)", "'ann'", json!("ann")),
        ("VARCHAR(9)", "'ann  '", json!("ann  ")),
        ("DATE", "'2024-02-29'", json!("2024-02-29")),
        ("DATE", "'9999-12-31'", json!("9999-12-31")),
        ("DATE", "'infinity'", json!("infinity")),
        (
            "TIMESTAMPTZ",
            "'9999-12-31 23:59:59+00'",
            json!("9999-12-31T23:59:59.000000Z"),
        ),
        (
            "TIMESTAMPTZ",
            "'2026-01-31 12:00:00.000001+05:30'",
            json!("2026-01-31T06:30:00.000001Z"),
        ),
        ("TIMESTAMPTZ", "'-infinity'", json!("-infinity")),
        (
            "TIMESTAMP(0)",
            "'2026-01-31 12:00:00'",
            json!("2026-01-31T12:00:00.000000Z"),
        ),
        ("TIME", "'24:00:00'", json!("24:00:00")),
        ("TIMETZ", "'12:00:00.5+05:30'", json!("12:00:00.5+05:30")),
        (
            "INTERVAL",
            "'1 year 2 mons -3 days 04:05:06.7'",
            json!("1 year 2 mons -3 days +04:05:06.7"),
        ),
        (
            "UUID",
            "'0188F2C0-0000-7000-8000-0000000000AB'",
            json!("0188f2c0-0000-7000-8000-0000000000ab"),
        ),
        ("INET", "'10.1.2.3/8'", json!("10.1.2.3/8")),
        (
            "MACADDR8",
            "'08:00:2b:01:02:03:04:05'",
            json!("08:00:2b:01:02:03:04:05"),
        ),
        ("BIT(3)", "B'101'", json!("101")),
        ("VARBIT", "B'1'", json!("1")),
        (
            "JSON",
            r#"'{"a": 1.50, "b": [null]}'"#,
            json!({"a": 1.5, "b": [null]}),
        ),
        (
            "JSONB",
            r#"'{"n": 18446744073709551615, "e": 1e300}'"#,
            json!({"n": u64::MAX, "e": 1e300}),
        ),
        ("INT[]", "'{1,NULL,3}'", json!([1, null, 3])),
        ("TEXT[]", r#"'{a,"b \"c"}'"#, json!(["a", "b \"c"])),
        (
            "NUMERIC[]",
            "'{1.50,123456789012345678901234567890.5,NaN}'",
            json!(["1.50", "123456789012345678901234567890.5", "NaN"]),
        ),
        (
            "DATE[]",
            "'{2024-02-29,infinity}'",
            json!(["2024-02-29", "infinity"]),
        ),
        ("mood", "'so so'", json!("so so")),
        ("mood[]", "'{\"so so\",ok}'", json!(["so so", "ok"])),
        ("small", "7", json!(7)),
        ("smaller", "7", json!(7)),
        ("moods", "'{ok}'", json!(["ok"])),
    ];
    let refused = vec![
        ("DATE", "'0044-03-15 BC'", CALENDAR),
        ("DATE", "'10000-01-01'", CALENDAR),
        ("TIMESTAMPTZ", "'0044-03-15 12:00 BC'", YEARS),
        ("TIMESTAMP", "'294276-12-31 23:59:59.5'", YEARS),
        ("JSON", r#"'{"t": "\ud800"}'"#, "can't be read"),
        ("JSON", "'[1e400]'", "can't be read"),
        ("JSONB", "'[18446744073709551616]'", "an integer"),
        (
            "JSONB",
            "'{\"n\": 0.12345678901234567890}'",
            "more digits than a double",
        ),
    ];
    Types {
        carried,
        refused,
        unmapped: vec![
            "BYTEA",
            "MONEY",
            "POINT",
            "TSVECTOR",
            "INT4RANGE",
            "XML",
            "pair",
            "BYTEA[]",
            "pair[]",
        ],
        writing: "CREATE TYPE mood AS ENUM ('so so', 'ok'); CREATE DOMAIN small AS int CHECK (VALUE < 10); \
                  CREATE DOMAIN smaller AS small; CREATE DOMAIN moods AS mood[]; CREATE TYPE pair AS (a int, b text)",
        hostile: "ALTER ROLE postgres SET DateStyle = 'German'; ALTER ROLE postgres SET IntervalStyle = 'iso_8601'; \
                  ALTER ROLE postgres SET TimeZone = 'Asia/Tokyo'; ALTER ROLE postgres SET extra_float_digits = -15; \
                  ALTER ROLE postgres SET bytea_output = 'escape'",
    }
}

/// The rows by their ids, read in both ways.
async fn read(database: &mut Database, most: usize) -> Result<Vec<UserRow>> {
    let layout = database.layout(false).await?;
    let ids: Vec<String> = (1..=most).map(|id| id.to_string()).collect();
    let (mut alone, mut after) = (database.users(&layout, &ids).await?, None);
    alone.sort_by_key(|row| row.id.parse::<usize>().unwrap_or_default());
    let mut paged: Vec<UserRow> = Vec::new();
    loop {
        let page = database.page(&layout, after.as_deref(), 7).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.id.clone());
        paged.extend(page);
    }
    ensure!(
        alone.len() == most && paged.len() == most,
        "{} and {} rows of {most}",
        alone.len(),
        paged.len()
    );
    for (one, two) in alone.iter().zip(&paged) {
        ensure!(
            one.id == two.id && one.document == two.document,
            "{one:?} {two:?}"
        );
    }
    Ok(paged)
}

async fn are_carried(place: &Place, types: Types<'_>) -> Result<()> {
    let mut client = place.client().await?;
    client.run(types.writing).await?;
    let kinds = types.carried.iter().map(|(kind, ..)| *kind);
    let kinds: Vec<&str> = kinds.chain(types.refused.iter().map(|of| of.0)).collect();
    let columns: Vec<String> = (0..kinds.len()).map(|at| format!("c{at}")).collect();
    let table: Vec<String> = columns
        .iter()
        .zip(&kinds)
        .map(|(name, kind)| format!("{name} {kind}"))
        .collect();
    client
        .run(&format!(
            "CREATE TABLE people (uid BIGINT PRIMARY KEY, {})",
            table.join(", ")
        ))
        .await?;
    let values = types.carried.iter().map(|(_, value, _)| *value);
    let good = types.carried.len();
    client
        .run(&format!(
            "INSERT INTO people (uid, {}) VALUES (1, {})",
            columns[..good].join(", "),
            values.collect::<Vec<_>>().join(", ")
        ))
        .await?;
    for (at, (_, value, _)) in types.refused.iter().enumerate() {
        let column = &columns[good + at];
        client
            .run(&format!(
                "INSERT INTO people (uid, {column}) VALUES ({}, {value})",
                at + 2
            ))
            .await?;
    }
    // No more than a mapping holds.
    for part in columns.chunks(40) {
        let members: Vec<String> = part.iter().map(|name| format!("data.{name}")).collect();
        let mapped: Vec<(&str, &str)> = part
            .iter()
            .zip(&members)
            .map(|(name, member)| (name.as_str(), member.as_str()))
            .collect();
        let config = place.config("people", "uid", &mapped)?;
        for hostile in [false, true] {
            if hostile {
                client.run(types.hostile).await?;
            }
            let mut database = Database::connect(&config).await?;
            let rows = read(&mut database, types.refused.len() + 1).await?;
            says_what_it_should(&types, &columns, part, &rows)
                .with_context(|| format!("with hostile settings: {hostile}"))?;
            database.close().await;
        }
    }
    cannot_be_mapped(place, &types.unmapped).await
}

fn says_what_it_should(
    types: &Types<'_>,
    columns: &[String],
    part: &[String],
    rows: &[UserRow],
) -> Result<()> {
    let good = types.carried.len();
    let document = rows[0].document.clone().map_err(anyhow::Error::msg)?;
    // As load and check make an event of it, and as the relay does.
    let envelope = || Envelope {
        kind: Some(EventType::Created),
        id: Some("1".to_owned()),
        timestamp: Some(jiff::Timestamp::UNIX_EPOCH),
    };
    let loaded = Event::of_row(&document, envelope())?;
    let relayed = Event::from_value(serde_json::from_slice(&document)?, envelope())?;
    ensure!(loaded == relayed, "{loaded:?} {relayed:?}");
    let document: Value = serde_json::from_slice(&document)?;
    for (at, name) in columns
        .iter()
        .enumerate()
        .filter(|(_, name)| part.contains(name))
    {
        match types.carried.get(at) {
            Some((kind, value, expected)) => {
                let found = &document["data"][name];
                ensure!(
                    found == expected,
                    "{kind} {value} is {found}, not {expected}"
                );
            }
            None => {
                let (kind, value, expected) = types.refused[at - good];
                let said = rows[at - good + 1].document.as_ref().err();
                let said = said.with_context(|| format!("{kind} {value} is carried"))?;
                ensure!(
                    said.contains(expected) && said.contains(&format!("`{name}` (")),
                    "{kind} {value}: {said}"
                );
            }
        }
    }
    Ok(())
}

/// What has no form in JSON is refused where it is named, and told of where all columns are taken.
async fn cannot_be_mapped(place: &Place, kinds: &[&str]) -> Result<()> {
    let mut client = place.client().await?;
    for kind in kinds {
        client
            .run(&format!(
                "CREATE TABLE odd (uid BIGINT PRIMARY KEY, username VARCHAR(9), odd {kind}, api_token VARCHAR(9))"
            ))
            .await?;
        let named = place.config("odd", "uid", &[("odd", "data.odd")])?;
        let refused = Database::connect(&named).await?.layout(false).await;
        let said = refused.err().with_context(|| format!("{kind} is mapped"))?;
        ensure!(
            said.to_string().contains("column `odd` of `odd`")
                && said.to_string().contains("which JSON can't hold"),
            "{kind}: {said}"
        );
        let all = place.config("odd", "uid", &[])?;
        let (_, plan) = Database::connect(&all).await?.plan(true).await?;
        let said = plan.remarks.join("; ");
        ensure!(
            said.contains("column `odd` is left out") && said.contains("`api_token` is left out"),
            "{kind}: {said}"
        );
        client.run("DROP TABLE odd").await?;
    }
    // A column that would be taken by its name isn't left out without a word either.
    client
        .run(&format!(
            "CREATE TABLE odd (uid BIGINT PRIMARY KEY, username VARCHAR(9), email {})",
            kinds[0]
        ))
        .await?;
    let config = place.config("odd", "uid", &[])?;
    let refused = Database::connect(&config).await?.layout(false).await;
    let said = refused.err().context("it is taken")?.to_string();
    ensure!(
        said.contains("`email` of `odd`") && said.contains("email="),
        "{said}"
    );
    Ok(())
}

#[tokio::test]
async fn values_of_mysql_are_carried_or_named() -> Result<()> {
    if usersync_stack::MySqlServer::is_left_out()? {
        return Ok(());
    }
    let place = Place::mysql().await?;
    are_carried(&place, of_mysql(&place)).await
}

#[tokio::test]
async fn values_of_mariadb_are_carried_or_named() -> Result<()> {
    let place = Place::mariadb().await?;
    are_carried(&place, of_mysql(&place)).await
}

#[tokio::test]
async fn values_of_postgres_are_carried_or_named() -> Result<()> {
    are_carried(&Place::postgres().await?, of_postgres()).await
}

#[tokio::test]
async fn values_of_the_newest_postgres_are_carried_or_named() -> Result<()> {
    if usersync_stack::PostgresServer::newest_is_left_out()? {
        return Ok(());
    }
    are_carried(&Place::newest_postgres().await?, of_postgres()).await
}

/// SQLite takes any bytes anywhere.
#[tokio::test]
async fn ids_that_are_no_text_hold_nobody_up_in_sqlite() -> Result<()> {
    let place = Place::sqlite()?;
    let mut client = place.client().await?;
    client
        .run("CREATE TABLE people (uid TEXT PRIMARY KEY, login TEXT)")
        .await?;
    let config = place.config("people", "uid", &[("login", "username")])?;
    let mut database = Database::connect(&config).await?;
    database.install(false).await?;
    client
        .run(
            "INSERT INTO people VALUES ('a', 'x'), (x'8f01c0de', 'x'), (x'ff00', 'x'), (CAST(x'ff' AS TEXT), 'x'), (CAST(x'61ff' AS TEXT), 'x'), ('z', 'x'); \
             INSERT INTO user_outbox (user_id, event, payload) VALUES ('b', CAST(x'ff' AS TEXT), '{}'); \
             DELETE FROM people WHERE uid = x'ff00'",
        )
        .await?;
    let layout = database.layout(false).await?;
    let notes = database.unpublished(10).await?;
    let known: Vec<_> = notes
        .iter()
        .filter(|note| note.payload.is_none() && layout.can_hold(&note.user))
        .map(|note| note.user.as_str())
        .collect();
    ensure!(notes.len() == 8 && known == ["a", "z"], "{notes:?}");
    let ids: Vec<i64> = notes.iter().map(|note| note.id).collect();
    database.mark_published(&ids).await?;
    let gone = database
        .gone_within(std::time::Duration::from_secs(60), 0)
        .await?;
    ensure!(gone.len() == 1, "{gone:?}");
    // However small the pages are, everybody is read, and there is an end.
    for most in [1, 2, 100] {
        let (mut read, mut after) = (Vec::new(), None);
        for _ in 0..20 {
            let page = database.page(&layout, after.as_deref(), most).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id.clone());
            read.extend(page.into_iter().map(|row| row.id));
        }
        let texts: Vec<_> = read.iter().filter(|id| id.is_ascii()).collect();
        ensure!(texts == ["a", "z"] && read.len() == 5, "{most}: {read:?}");
    }
    Ok(())
}

/// A database of SQL_ASCII takes any bytes, also those that are no text.
#[tokio::test]
async fn bytes_that_are_no_text_fail_their_row_alone() -> Result<()> {
    let place = Place::postgres().await?;
    place
        .client()
        .await?
        .run("CREATE DATABASE raw ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
        .await?;
    let mut config = place.config("people", "uid", &[("login", "username")])?;
    config.url.set_path("/raw");
    let (server, _) = place.postgres_server()?;
    let url = server.url_with_password();
    let url = format!("{}raw", url.trim_end_matches("postgres"));
    let mut client = PgConnection::connect(&url).await?;
    client
        .execute("CREATE TABLE people (uid TEXT PRIMARY KEY, login TEXT)")
        .await?;
    let mut database = Database::connect(&config).await?;
    database.install(false).await?;
    client
        .execute(r"INSERT INTO people VALUES ('a', E'\xff'), (E'b\xfe', 'x'), ('c', 'z')")
        .await?;
    let notes = database.unpublished(10).await?;
    ensure!(notes.len() == 3, "{notes:?}");
    let layout = database.layout(false).await?;
    let known: Vec<bool> = notes
        .iter()
        .map(|note| layout.can_hold(&note.user))
        .collect();
    ensure!(known == [true, false, true], "{notes:?}");
    let ids = ["a", "c"].map(str::to_owned);
    for rows in [
        database.users(&layout, &ids).await?,
        database.page(&layout, None, 10).await?,
    ] {
        let said: Vec<_> = rows
            .iter()
            .filter_map(|row| row.document.as_ref().err())
            .collect();
        ensure!(
            said.len() == rows.len() - 1
                && said[0].contains("`login` (text) holds bytes that are no text"),
            "{rows:?}"
        );
    }
    Ok(())
}

/// A value that is read as what it isn't any more is garbage, or an error that blames the row.
#[tokio::test]
async fn a_column_of_another_type_is_never_read_as_it_was() -> Result<()> {
    let mut places = vec![Place::mariadb().await?, Place::postgres().await?];
    if !usersync_stack::MySqlServer::is_left_out()? {
        places.push(Place::mysql().await?);
    }
    for place in places {
        let mut client = place.client().await?;
        client
            .run("CREATE TABLE people (id bigint PRIMARY KEY, phone varchar(40)); INSERT INTO people VALUES (1, '825373492')")
            .await?;
        let config = place.config("people", "id", &[("phone", "data.phone")])?;
        let mut database = Database::connect(&config).await?;
        let layout = database.layout(false).await?;
        let ids = ["1".to_owned()];
        client
            .run("ALTER TABLE people ADD COLUMN other int")
            .await?;
        ensure!(database.users(&layout, &ids).await?.len() == 1);

        let change = match place.server() {
            Server::Postgres => "ALTER TABLE people ALTER phone TYPE int USING phone::int",
            _ => "ALTER TABLE people MODIFY phone int",
        };
        client.run(change).await?;
        for read in [
            database.users(&layout, &ids).await,
            database.page(&layout, None, 10).await,
        ] {
            let said = read.err().context("it is read as a text")?.to_string();
            ensure!(
                said.contains("`phone`") && said.contains("any more"),
                "{said}"
            );
        }
        let layout = database.layout(false).await?;
        let read = database.users(&layout, &ids).await?;
        let document = read[0].document.clone().map_err(anyhow::Error::msg)?;
        let document: Value = serde_json::from_slice(&document)?;
        ensure!(document["data"]["phone"] == 825_373_492, "{document}");
        // More room is no other type; in MariaDB a text becomes JSON by a check alone.
        if place.server() != Server::Postgres {
            client
                .run("ALTER TABLE people ADD COLUMN note longtext, ADD COLUMN short varchar(5)")
                .await?;
            let mapped = [("note", "data.note"), ("short", "data.short")];
            let config = place.config("people", "id", &mapped)?;
            let mut database = Database::connect(&config).await?;
            let layout = database.layout(false).await?;
            client
                .run("ALTER TABLE people MODIFY short varchar(50)")
                .await?;
            ensure!(database.users(&layout, &ids).await?.len() == 1);
            client.run("ALTER TABLE people MODIFY note JSON").await?;
            let read = database.users(&layout, &ids).await;
            ensure!(read.is_err(), "{read:?}");
        }
        client.run("ALTER TABLE people DROP COLUMN phone").await?;
        let read = database.users(&layout, &ids).await;
        ensure!(read.is_err(), "{read:?}");
    }
    Ok(())
}
