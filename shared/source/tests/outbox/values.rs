//! What values of every type become in JSON.

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use usersync_source::{Database, Server};

use crate::place::{Place, documents, noted, shown};

pub(crate) async fn keep_their_meaning(place: &Place) -> Result<()> {
    let table = place.pick([
        "CREATE TABLE people (uid BIGINT UNSIGNED PRIMARY KEY, login VARCHAR(100) CHARACTER SET latin1, mail VARCHAR(100), nick VARCHAR(100) CHARACTER SET utf8mb4, \
           big BIGINT, money DECIMAL(30,10), score DOUBLE, active BOOLEAN, born DATE, seen TIMESTAMP(6) NULL, made DATETIME NULL, \
           extra JSON, sort ENUM('a','b'), code CHAR(36))",
        "CREATE TABLE people (uid NUMERIC(20) , login VARCHAR(100), mail TEXT, nick VARCHAR(100), \
           big BIGINT, money NUMERIC(30,10), score DOUBLE PRECISION, active BOOLEAN, born DATE, seen TIMESTAMPTZ, made TIMESTAMP(0), \
           extra JSONB, sort TEXT[], code UUID)",
        "CREATE TABLE people (uid INTEGER PRIMARY KEY, login VARCHAR(100), mail TEXT, nick TEXT COLLATE NOCASE, \
           big BIGINT, money DECIMAL(30,10), score DOUBLE, active BOOLEAN, born DATE, seen DATETIME, made TIMESTAMP, \
           extra JSON, sort, code TEXT)",
    ]);
    let mut client = place.client().await?;
    client.run(table).await?;
    if place.server() == Server::Postgres {
        client.run("ALTER TABLE people ALTER uid TYPE BIGINT; ALTER TABLE people ADD PRIMARY KEY (uid)").await?;
    }
    let columns = [
        ("login", "username"),
        ("mail", "email"),
        ("nick", "data.name.nick"),
        ("big", "data.big"),
        ("money", "data.money"),
        ("score", "data.score"),
        ("active", "data.active"),
        ("born", "data.born"),
        ("seen", "data.seen"),
        ("made", "data.made"),
        ("extra", "data.extra"),
        ("sort", "data.sort"),
        ("code", "data.code"),
    ];
    let config = place.config("people", "uid", &columns)?;
    let mut database = Database::connect(&config).await?;
    database.install(false).await?;
    // The writer's time zone doesn't matter, nor do its quotes and line ends.
    if place.server() != Server::Sqlite {
        client
            .run(place.pick([
                "SET time_zone = '+05:30'",
                "SET TIME ZONE 'Asia/Kolkata'",
                "",
            ]))
            .await?;
    }
    let insert = place.pick([
        r#"INSERT INTO people VALUES (18446744073709551615, 'Zoë', 'o''"\\n@x.de', '🦀\n', 9223372036854775807, 12345678901234567890.0123456789, 0.1, TRUE,
             '2024-02-29', '2026-01-31 17:30:00.000001', '2026-01-31 12:00:00', '{"a": [1, null, {"b": "é"}]}', 'b', 'x')"#,
        r#"INSERT INTO people VALUES (9223372036854775807, 'Zoë', 'o''"\n@x.de', E'🦀\n', 9223372036854775807, 12345678901234567890.0123456789, 0.1, TRUE,
             '2024-02-29', '2026-01-31 17:30:00.000001', '2026-01-31 12:00:00', '{"a": [1, null, {"b": "é"}]}', '{x,y}', '0188F2C0-0000-7000-8000-0000000000AB')"#,
        r#"INSERT INTO people VALUES (9223372036854775807, 'Zoë', 'o''"\n@x.de', '🦀' || char(10), 9223372036854775807, '12345678901234567890.0123456789x', 0.1, TRUE,
             '2024-02-29', '2026-01-31 12:00:00.001', 1769860800, '{"a": [1, null, {"b": "é"}]}', 'x', 7)"#,
    ]);
    client.run(insert).await?;
    client.run("INSERT INTO people (uid) VALUES (2)").await?;
    let read = documents(&mut database).await?;
    let [empty, user] = read.as_slice() else {
        bail!("{read:?}");
    };
    let id = if place.server() == Server::MySql {
        json!(u64::MAX)
    } else {
        json!(i64::MAX)
    };
    ensure!(user["user_id"] == id, "{user}");
    ensure!(
        user["username"] == "Zoë" && user["email"] == "o'\"\\n@x.de",
        "{user}"
    );
    let data = &user["data"];
    ensure!(data["name"]["nick"] == "🦀\n", "{data}");
    ensure!(
        data["big"] == json!(i64::MAX)
            && data["score"] == json!(0.1)
            && data["active"] == json!(true),
        "{data}"
    );
    ensure!(
        data["born"] == "2024-02-29" && data["extra"] == json!({"a": [1, null, {"b": "é"}]}),
        "{data}"
    );
    let expected = match place.server() {
        Server::MySql => json!([
            "12345678901234567890.0123456789",
            "2026-01-31T12:00:00.000001Z",
            "2026-01-31T12:00:00Z",
            "b",
            "x"
        ]),
        Server::Postgres => json!([
            "12345678901234567890.0123456789",
            "2026-01-31T12:00:00.000001Z",
            "2026-01-31T12:00:00.000000Z",
            ["x", "y"],
            "0188f2c0-0000-7000-8000-0000000000ab"
        ]),
        Server::Sqlite => json!([
            "12345678901234567890.0123456789x",
            "2026-01-31T12:00:00.001Z",
            "2026-01-31T12:00:00.000Z",
            "x",
            "7"
        ]),
    };
    let found: Value = ["money", "seen", "made", "sort", "code"]
        .map(|name| data[name].clone())
        .to_vec()
        .into();
    ensure!(found == expected, "{found}");
    ensure!(
        empty["username"].is_null()
            && empty["data"]
                .as_object()
                .is_some_and(|data| data.len() == 11),
        "{empty}"
    );
    let nulls = empty["data"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, value)| *name != "name" && !value.is_null());
    ensure!(nulls.count() == 0, "{empty}");
    place.clean(&config).await
}

pub(crate) async fn a_document_may_be_all_of_data(place: &Place) -> Result<()> {
    let mut client = place.client().await?;
    client
        .run("CREATE TABLE people (uid BIGINT PRIMARY KEY, status VARCHAR(10), doc JSON)")
        .await?;
    let config = place.config("people", "uid", &[("status", "status"), ("doc", "data")])?;
    let mut database = Database::connect(&config).await?;
    client
        .run(r#"INSERT INTO people VALUES (1, 'a', '{"y": {}}'), (2, 'a', NULL)"#)
        .await?;
    let read = documents(&mut database).await?;
    let expected = [
        json!({"user_id": 1, "status": "a", "data": {"y": {}}}),
        json!({"user_id": 2, "status": "a", "data": {}}),
    ];
    ensure!(read == expected, "{read:?}");
    place.clean(&config).await
}

pub(crate) async fn numbers_and_json_are_what_they_are(place: &Place) -> Result<()> {
    let mut client = place.client().await?;
    client
        .run("CREATE TABLE people (uid BIGINT PRIMARY KEY, status VARCHAR(20), score DOUBLE PRECISION, active BOOLEAN, doc JSON, more JSON)")
        .await?;
    let columns = [
        ("status", "status"),
        ("score", "data.score"),
        ("active", "data.active"),
        ("doc", "data.in.doc"),
        ("more", "data.in.more"),
    ];
    let config = place.config("people", "uid", &columns)?;
    let mut database = Database::connect(&config).await?;
    // SQLite shows floating-point numbers between 1e-6 and 1e15 exactly, and others but for the last digit.
    let large = match place.server() {
        Server::Sqlite => "1e14",
        Server::MySql | Server::Postgres => "1e300",
    };
    let second = format!(r#"1, '', {large}, TRUE, '{{ "a" : 1.50 }}', 'null'"#);
    let mut rows = vec![
        r#"-7, 'a"\b', 0.25, FALSE, '"x"', '[1 , 2]'"#,
        &second,
        r#"2, NULL, 1e-7, NULL, NULL, 'true'"#,
    ];
    if place.server() == Server::Postgres {
        rows.extend(["3, 'a', 'NaN', FALSE, NULL, NULL"]);
    }
    for row in &rows {
        client
            .run(&format!("INSERT INTO people VALUES ({row})"))
            .await?;
    }
    let read = documents(&mut database).await?;
    let of = |at: usize| {
        let data = &read[at]["data"];
        json!([
            data["score"],
            data["active"],
            data["in"]["doc"],
            data["in"]["more"]
        ])
    };
    ensure!(of(0) == json!([0.25, false, "x", [1, 2]]), "{read:?}");
    ensure!(
        of(1) == json!([large.parse::<f64>()?, true, {"a": 1.5}, null]),
        "{read:?}"
    );
    ensure!(of(2) == json!([1e-7, null, null, true]), "{read:?}");
    if place.server() == Server::Postgres {
        ensure!(of(3)[0] == "NaN", "{read:?}");
    }
    place.clean(&config).await
}

/// However large a value is, or whatever its bytes are: the others are read.
pub(crate) async fn one_that_cannot_be_read_fails_alone(place: &Place) -> Result<()> {
    let mut client = place.client().await?;
    client
        .run(&format!(
            "CREATE TABLE people (uid BIGINT PRIMARY KEY, login {}, born TIMESTAMP NULL)",
            place.pick(["LONGTEXT", "TEXT", "TEXT"])
        ))
        .await?;
    let config = place.config(
        "people",
        "uid",
        &[("login", "username"), ("born", "data.born")],
    )?;
    let mut database = Database::connect(&config).await?;
    client
        .run("INSERT INTO people (uid, login) VALUES (1, 'ann'), (2, 'bob'), (3, 'eve')")
        .await?;
    // The servers differ in what they let in: MySQL and PostgreSQL keep bytes only that are texts.
    client
        .run(place.pick([
            "UPDATE people SET login = REPEAT('x', 3000000) WHERE uid = 2",
            "UPDATE people SET login = REPEAT('x', 3000000) WHERE uid = 2",
            "UPDATE people SET login = CAST(x'41ff42' AS TEXT) WHERE uid = 2",
        ]))
        .await?;
    let layout = database.layout(false).await?;
    let ids = ["1", "2", "3"].map(str::to_owned);
    for rows in [
        database.users(&layout, &ids).await?,
        database.page(&layout, None, 10).await?,
    ] {
        ensure!(rows.len() == 3, "{} rows", rows.len());
        let good = rows.iter().filter(|row| {
            let document = row.document.as_deref().unwrap_or_default();
            serde_json::from_slice::<Value>(document).is_ok()
        });
        let expected = if place.server() == Server::Sqlite {
            2
        } else {
            3
        };
        ensure!(good.count() == expected);
    }
    place.clean(&config).await
}

pub(crate) async fn ids_of_every_sort(place: &Place) -> Result<()> {
    let kinds: &[(&str, &str)] = match place.server() {
        Server::MySql => &[
            ("INT", "7"),
            ("VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin", "'aB'"),
            ("CHAR(36)", "'0188f2c0-0000-7000-8000-0000000000ab'"),
            ("INT UNSIGNED ZEROFILL", "7"),
            ("VARCHAR(20) CHARACTER SET latin1", "'aB'"),
            ("VARCHAR(20) CHARACTER SET utf16", "'aB'"),
            // Of MariaDB alone.
            ("UUID", "'0188f2c0-0000-7000-8000-0000000000ab'"),
        ],
        Server::Postgres => &[
            ("INT", "7"),
            ("TEXT", "'aB'"),
            ("UUID", "'0188f2c0-0000-7000-8000-0000000000ab'"),
        ],
        Server::Sqlite => &[
            ("INT", "7"),
            ("TEXT", "'aB'"),
            ("UUID", "'0188f2c0-0000-7000-8000-0000000000ab'"),
        ],
    };
    let kinds = kinds
        .iter()
        .filter(|(kind, _)| !(place.is_mysql() && *kind == "UUID"));
    for (kind, id) in kinds {
        let mut client = place.client().await?;
        client
            .run(&format!(
                "CREATE TABLE people (uid {kind} PRIMARY KEY, email VARCHAR(50))"
            ))
            .await?;
        let config = place.config("people", "uid", &[])?;
        let mut database = Database::connect(&config).await?;
        database.install(false).await?;
        client
            .run(&format!("INSERT INTO people VALUES ({id}, 'a@x')"))
            .await?;
        let text = id.trim_matches('\'').to_owned();
        let expected = if text == "7" { json!(7) } else { json!(text) };
        let rows = noted(&mut database).await?;
        ensure!(shown(&rows) == [format!("I {text}")], "{kind}: {rows:?}");
        let read = documents(&mut database).await?;
        ensure!(
            read == [json!({"user_id": expected, "email": "a@x"})],
            "{kind}: {read:?}"
        );
        let layout = database.layout(false).await?;
        let found = database.users(&layout, std::slice::from_ref(&text)).await?;
        ensure!(found.len() == 1 && found[0].id == text, "{kind}: {found:?}");
        place.clean(&config).await?;
    }
    Ok(())
}
