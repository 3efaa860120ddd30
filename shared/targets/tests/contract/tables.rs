//! How mappings are checked against real tables, and how tables are made.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use usersync_stack::eventually;
use usersync_targets::{ConfigError, Outcome, Standing, Target};

use crate::{
    checks::differing,
    clauses::{is_delivered, one},
    deliveries::{data, deleted, partial, user, whole},
    mysql::MySql,
    peer::{Peer, config, connect},
    postgres::Postgres,
};

const SOON: Duration = Duration::from_secs(30);
const SYNC: &str =
    "sync_deleted boolean NOT NULL DEFAULT false, sync_version bigint NOT NULL DEFAULT 0";

/// A target whose only columns beside ours are these.
fn mapped(peer: &dyn Peer, place: &str, columns: Value) -> Result<Box<dyn Target>> {
    connect(
        peer,
        place,
        json!({"verify": true, "table": {"name": place, "columns": columns}}),
    )
}

/// What a probe and a delivery say of a table that doesn't fit.
async fn misfit(target: &dyn Target) -> Result<String> {
    let found = target
        .probe()
        .await
        .err()
        .context("the probe finds nothing wrong")?;
    match one(target, user("1", 5, "ann")).await {
        Outcome::Fault(failure) => ensure!(failure == found, "{failure:?} isn't {found:?}"),
        other => anyhow::bail!("{other:?}"),
    }
    Ok(found.to_string())
}

#[tokio::test]
async fn a_mysql_table_that_does_not_fit_is_named_with_column_and_types() -> Result<()> {
    let peer = MySql::start().await?;
    let missing = misfit(&*connect(&peer, "nowhere", json!({}))?).await?;
    ensure!(
        missing.contains("no table `nowhere`") && missing.contains("--init-target"),
        "{missing}"
    );
    let id = "id varchar(64) COLLATE ascii_bin PRIMARY KEY";
    let rows = [
        (
            format!("id varchar(64) COLLATE utf8mb4_general_ci PRIMARY KEY, email text, {SYNC}"),
            "`id` is varchar(64)",
        ),
        (
            format!("id varchar(64) COLLATE ascii_bin, email text, {SYNC}"),
            "`id` has no unique key",
        ),
        (
            format!("id double PRIMARY KEY, email text, {SYNC}"),
            "`id` is double",
        ),
        (format!("{id}, {SYNC}"), "`email` is missing"),
        (
            format!("{id}, email int, {SYNC}"),
            "`email` is int(11); expected a text, for it holds `email`",
        ),
        (
            format!("{id}, email text NOT NULL, {SYNC}"),
            "`email` is text NOT NULL",
        ),
        (format!("{id}, email blob, {SYNC}"), "`email` is blob"),
        (
            format!("{id}, email text AS ('x'), {SYNC}"),
            "`email` is computed",
        ),
        (
            format!("{id}, email text, more int NOT NULL, {SYNC}"),
            "`more` is int(11) NOT NULL without a default",
        ),
        (
            format!("{id}, email text, sync_deleted boolean"),
            "`sync_version` is missing; expected bigint",
        ),
        (
            format!("{id}, email text, sync_deleted boolean, sync_version int"),
            "`sync_version` is int(11)",
        ),
        (
            format!("{id}, email text, sync_deleted text, sync_version bigint"),
            "`sync_deleted` is text",
        ),
    ];
    for (number, (columns, expected)) in rows.iter().enumerate() {
        let place = format!("wrong_{number}");
        peer.run(&format!("CREATE TABLE {place} ({columns})"))
            .await?;
        let found = misfit(&*mapped(&peer, &place, json!({"email": "email"}))?).await?;
        ensure!(found.contains(expected), "{columns}: {found}");
    }
    Ok(())
}

#[tokio::test]
async fn a_postgres_table_that_does_not_fit_is_named_with_column_and_types() -> Result<()> {
    let peer = Postgres::start().await?;
    let missing = misfit(&*connect(&peer, "nowhere", json!({}))?).await?;
    ensure!(
        missing.contains("no table `nowhere`") && missing.contains("--init-target"),
        "{missing}"
    );
    let rows = [
        (
            format!("id text, email text, {SYNC}"),
            "`id` has no unique key",
        ),
        (
            format!("id text, email text, {SYNC}, UNIQUE (id, email)"),
            "`id` has no unique key",
        ),
        (
            format!("id text, email text, {SYNC}, UNIQUE (id) DEFERRABLE"),
            "`id` has no unique key",
        ),
        (
            format!("id char(64) PRIMARY KEY, email text, {SYNC}"),
            "`id` is character",
        ),
        (
            format!("id text PRIMARY KEY, email integer, {SYNC}"),
            "`email` is integer; expected a text, for it holds `email`",
        ),
        (
            format!("id text PRIMARY KEY, email bytea, {SYNC}"),
            "`email` is bytea",
        ),
        (
            format!("id text PRIMARY KEY, email text NOT NULL, {SYNC}"),
            "`email` is text NOT NULL",
        ),
        (
            format!("id text PRIMARY KEY, email text, more int NOT NULL, {SYNC}"),
            "`more` is integer NOT NULL without a default",
        ),
        (
            format!("id text PRIMARY KEY, email text GENERATED ALWAYS AS ('x') STORED, {SYNC}"),
            "`email` is computed",
        ),
        (
            "id text PRIMARY KEY, email text, sync_deleted boolean, sync_version integer"
                .to_owned(),
            "`sync_version` is integer; expected bigint",
        ),
        (
            "id text PRIMARY KEY, email text, sync_deleted text, sync_version bigint".to_owned(),
            "`sync_deleted` is text; expected boolean",
        ),
    ];
    for (number, (columns, expected)) in rows.iter().enumerate() {
        let place = format!("wrong_{number}");
        peer.run(&format!("CREATE TABLE {place} ({columns})"))
            .await?;
        let found = misfit(&*mapped(&peer, &place, json!({"email": "email"}))?).await?;
        ensure!(found.contains(expected), "{columns}: {found}");
    }
    Ok(())
}

#[tokio::test]
async fn a_table_is_looked_at_again_after_it_was_changed() -> Result<()> {
    let mut peer = Postgres::start().await?;
    let target = connect(&peer, "later", json!({}))?;
    misfit(&*target).await?;
    connect(&peer, "later", json!({}))?.init().await?;
    eventually(SOON, async || {
        is_delivered(&one(&*target, user("1", 5, "ann")).await)
    })
    .await?;
    // It goes while it is in use, and comes back.
    peer.run("DROP TABLE later").await?;
    let outcome = one(&*target, user("1", 6, "ann")).await;
    ensure!(matches!(outcome, Outcome::Fault(_)), "{outcome:?}");
    connect(&peer, "later", json!({}))?.init().await?;
    eventually(SOON, async || {
        is_delivered(&one(&*target, user("1", 6, "ann")).await)
    })
    .await?;
    ensure!(peer.held("later", "1").await? == Some(whole("1", "ann")));
    Ok(())
}

/// Values that suit columns of many types, and the column each of the others doesn't suit.
fn typed() -> (Value, Value, Vec<(Value, &'static str)>) {
    let columns = json!({
        "age": "data.age", "height": "data.height", "active": "data.active", "tags": "data.tags",
        "born": "data.born", "seen": "data.seen", "token": "data.token", "role": "data.role", "note": "data.note",
    });
    let fits = json!({
        "age": 42, "height": 1.75, "active": true, "tags": ["a", {"b": 1}], "born": "1990-02-28",
        "seen": "2026-01-31T12:00:00.25+01:00", "token": "0198c0de-0000-7000-8000-000000000000",
        "role": "admin", "note": {"any": "thing"},
    });
    let wrong = [
        ("age", json!("old")),
        ("age", json!(1e18)),
        ("age", json!(9_000_000_000_u64)),
        ("height", json!("tall")),
        ("active", json!("perhaps")),
        ("born", json!("1990-02-31")),
        ("seen", json!("noon")),
        ("token", json!("no uuid")),
        ("role", json!("emperor")),
    ];
    let wrong = wrong.into_iter().map(|(name, value)| {
        let mut all = fits.clone();
        all[name] = value;
        (all, name)
    });
    let wrong = wrong.collect();
    (columns, fits, wrong)
}

/// Everyone whose values fit is held and verified; the others are refused one by one.
async fn types_are_converted(peer: &dyn Peer, place: &str) -> Result<()> {
    let (columns, fits, wrong) = typed();
    let target = mapped(peer, place, columns)?;
    let mut batch = vec![data(user("0", 5, "ann"), fits.clone())];
    for (number, (values, _)) in wrong.iter().enumerate() {
        batch.push(data(
            user(&format!("wrong{number}"), 5, "ann"),
            values.clone(),
        ));
    }
    batch.push(data(user("z", 5, "ann"), fits));
    batch.push(data(user("zz", 5, "ann"), json!({})));
    let outcomes = target.deliver(&batch).await;
    for (delivery, outcome) in batch.iter().zip(&outcomes) {
        let number: Option<usize> = delivery
            .user_id
            .to_string()
            .strip_prefix("wrong")
            .and_then(|number| number.parse().ok());
        match (number, outcome) {
            (None, outcome) => {
                is_delivered(outcome).with_context(|| format!("user {}", delivery.user_id))?
            }
            (Some(number), Outcome::Permanent(failure)) => {
                let (values, name) = &wrong[number];
                let reason = failure.to_string();
                let value = values[name].to_string();
                ensure!(
                    !reason.contains(value.trim_matches('"')),
                    "{name}: {reason} tells the value"
                );
            }
            (Some(number), outcome) => anyhow::bail!("{}: {outcome:?}", wrong[number].1),
        }
    }
    let held = [
        batch[0].clone(),
        batch[batch.len() - 2].clone(),
        batch[batch.len() - 1].clone(),
    ];
    for outcome in target.verify(&held).await.context("it doesn't verify")? {
        is_delivered(&outcome)?;
    }
    Ok(())
}

#[tokio::test]
async fn mysql_columns_of_many_types_take_what_suits_them() -> Result<()> {
    for peer in MySql::all().await? {
        let uuid = peer.uuid("token");
        peer.run(&format!(
            "CREATE TABLE typed (id varchar(64) COLLATE ascii_bin PRIMARY KEY, age int, height decimal(6, 2), \
             active boolean, tags json, born date, seen datetime(3), {uuid}, role enum('admin', 'user'), note text, {SYNC})"
        ))
        .await?;
        types_are_converted(&peer, "typed").await?;
    }
    Ok(())
}

#[tokio::test]
async fn postgres_columns_of_many_types_take_what_suits_them() -> Result<()> {
    for peer in Postgres::all().await? {
        peer.run(&format!(
            "CREATE TYPE role AS ENUM ('admin', 'user'); \
             CREATE SCHEMA app; CREATE TABLE app.typed (id varchar(64) PRIMARY KEY, age int, height numeric(6, 2), \
             active boolean, tags jsonb, born date, seen timestamptz, token uuid, role role, note json, {SYNC})"
        ))
        .await?;
        types_are_converted(&peer, "app.typed").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_vector_and_other_columns_nobody_mapped_are_left_alone() -> Result<()> {
    let peer = Postgres::start().await?;
    peer.run(&format!(
        "CREATE EXTENSION vector; CREATE TABLE vectors (id text PRIMARY KEY, email text, embedding vector(3), \
         note text DEFAULT 'mine', {SYNC})"
    ))
    .await?;
    let target = mapped(&peer, "vectors", json!({"email": "email"}))?;
    is_delivered(&one(&*target, user("1", 5, "ann")).await)?;
    peer.run("UPDATE vectors SET embedding = '[1,2,3]', note = 'kept'")
        .await?;
    is_delivered(&one(&*target, user("1", 6, "ann")).await)?;
    let client = peer.client().await?;
    let held: (String, String, i64) =
        sqlx::query_as("SELECT embedding::text, note, sync_version FROM vectors")
            .fetch_one(&client)
            .await?;
    ensure!(
        held == ("[1,2,3]".to_owned(), "kept".to_owned(), 6),
        "{held:?}"
    );
    // Mapped, it is refused with its type.
    let target = mapped(
        &peer,
        "vectors",
        json!({"email": "email", "embedding": "data.embedding"}),
    )?;
    let found = misfit(&*target).await?;
    ensure!(found.contains("`embedding` is vector"), "{found}");
    Ok(())
}

#[tokio::test]
async fn what_is_missing_is_made_once_and_what_is_there_stays() -> Result<()> {
    let mut mysql = MySql::start().await?;
    let mut postgres = Postgres::start().await?;
    let theirs = "(id varchar(64) COLLATE \"C\" PRIMARY KEY, username text, email text, status text, data json)";
    postgres
        .run(&format!("CREATE TABLE theirs {theirs}"))
        .await?;
    mysql
        .run(&format!(
            "CREATE TABLE theirs {}",
            theirs.replace("\"C\"", "ascii_bin")
        ))
        .await?;
    let before = "INSERT INTO theirs (id, username) VALUES ('1', 'before')";
    mysql.run(before).await?;
    postgres.run(before).await?;
    for peer in [&mysql as &dyn Peer, &postgres] {
        let target = connect(peer, "ours", json!({}))?;
        let statements = target.ddl().await?;
        ensure!(
            statements.len() == 1 && statements[0].starts_with("CREATE TABLE IF NOT EXISTS"),
            "{statements:?}"
        );
        target.init().await?;
        ensure!(target.ddl().await?.is_empty());
        target.init().await?;
        target.probe().await?;

        let target = connect(peer, "theirs", json!({}))?;
        ensure!(target.probe().await.is_err());
        let statements = target.ddl().await?;
        let columns = ["sync_deleted", "sync_version"];
        let added = |column: &&str| {
            statements
                .iter()
                .any(|one| one.contains("ADD COLUMN") && one.contains(*column))
        };
        ensure!(
            statements.len() == 2 && columns.iter().all(added),
            "{statements:?}"
        );
        target.init().await?;
        target.probe().await?;
    }
    // Whoever was there before has no version yet, and is taken over.
    for peer in [&mut mysql as &mut dyn Peer, &mut postgres] {
        let target = connect(peer, "theirs", json!({}))?;
        is_delivered(&one(&*target, user("1", 5, "ann")).await)?;
        ensure!(peer.held("theirs", "1").await? == Some(whole("1", "ann")));
    }
    Ok(())
}

#[tokio::test]
async fn integer_ids_take_only_numbers_that_fit() -> Result<()> {
    let (mysql, postgres) = (MySql::start().await?, Postgres::start().await?);
    let table = format!("CREATE TABLE numbers (id bigint PRIMARY KEY, email text, {SYNC})");
    mysql.run(&table).await?;
    postgres.run(&table).await?;
    for peer in [&mysql as &dyn Peer, &postgres] {
        let target = mapped(peer, "numbers", json!({"email": "email"}))?;
        // These two differ, but not as floating-point numbers.
        let batch = [
            "9007199254740993",
            "9007199254740992",
            "aB",
            "042",
            "9223372036854775808",
        ];
        let batch = batch.map(|id| user(id, 5, "ann"));
        let outcomes = target.deliver(&batch).await;
        is_delivered(&outcomes[0])?;
        is_delivered(&outcomes[1])?;
        for outcome in &outcomes[2..] {
            ensure!(matches!(outcome, Outcome::Permanent(_)), "{outcome:?}");
        }
        let older = one(&*target, user("9007199254740992", 4, "ann")).await;
        ensure!(older == Outcome::AlreadyNewer, "{older:?}");
        for outcome in target
            .verify(&batch[..2])
            .await
            .context("it doesn't verify")?
        {
            is_delivered(&outcome)?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_integer_column_refuses_only_who_is_beyond_it() -> Result<()> {
    let (mysql, postgres) = (MySql::start().await?, Postgres::start().await?);
    let most = u64::MAX;
    let rows: [(&dyn Peer, &str, u64); 8] = [
        (&mysql, "tinyint", 127),
        (&mysql, "smallint unsigned", 65_535),
        (&mysql, "mediumint", 8_388_607),
        (&mysql, "int unsigned", 4_294_967_295),
        (&mysql, "bigint unsigned", most),
        (&mysql, "bigint(20) unsigned zerofill", most),
        (&postgres, "smallint", 32_767),
        (&postgres, "integer", 2_147_483_647),
    ];
    for (number, (peer, kind, most)) in rows.into_iter().enumerate() {
        let place = format!("up_to_{number}");
        let table = format!("CREATE TABLE {place} (id {kind} PRIMARY KEY, email text, {SYNC})");
        match kind {
            "smallint" | "integer" => postgres.run(&table).await?,
            _ => mysql.run(&table).await?,
        }
        let target = mapped(peer, &place, json!({"email": "email"}))?;
        let largest = most.to_string();
        let mut batch = vec![user("7", 5, "ann"), user(&largest, 5, "ben")];
        let fitting = batch.len();
        batch.extend(
            most.checked_add(1)
                .map(|more| user(&more.to_string(), 5, "cat")),
        );
        batch.push(user("18446744073709551616", 5, "dan"));
        batch.push(user("007", 5, "eve"));
        let outcomes = target.deliver(&batch).await;
        for outcome in &outcomes[..fitting] {
            is_delivered(outcome).with_context(|| format!("{kind}: {outcomes:?}"))?;
        }
        for outcome in &outcomes[fitting..] {
            let Outcome::Permanent(failure) = outcome else {
                anyhow::bail!("{kind}: {outcome:?}");
            };
            let most = format!("none from 0 to {most}");
            ensure!(failure.reason.contains(&most), "{failure:?}");
        }
        let standings = target.compare(&batch).await.context("it isn't read")?;
        ensure!(
            standings[..fitting] == [Standing::Same, Standing::Same],
            "{kind}: {standings:?}"
        );
        let differing = differing(&*target, &batch[..fitting]).await?;
        ensure!(differing.is_empty(), "{kind}: {differing:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_uuid_column_takes_the_spelling_that_the_server_shows_and_no_other() -> Result<()> {
    let (mysql, postgres) = (MySql::start().await?, Postgres::start().await?);
    let table = format!("CREATE TABLE uuids (id uuid PRIMARY KEY, email text, {SYNC})");
    mysql.run(&table).await?;
    postgres.run(&table).await?;
    let id = "0198c0de-6b7c-7d00-8000-00000000abcd";
    let others = [
        id.to_ascii_uppercase(),
        id.replace('-', ""),
        format!("{{{id}}}"),
        "0198c0de6b7c-7d00-8000-00000000-abcd".to_owned(),
        "42".to_owned(),
    ];
    for peer in [&mysql as &dyn Peer, &postgres] {
        let target = mapped(peer, "uuids", json!({"email": "email"}))?;
        let mut batch = vec![user(id, 5, "ann")];
        batch.extend(others.iter().map(|id| user(id, 9, "mallory")));
        let outcomes = target.deliver(&batch).await;
        is_delivered(&outcomes[0])?;
        for outcome in &outcomes[1..] {
            let Outcome::Permanent(failure) = outcome else {
                anyhow::bail!("{outcome:?}");
            };
            ensure!(failure.reason.contains("holds UUIDs"), "{failure:?}");
        }
        // Nor does a deletion of the other spelling touch this one.
        let gone = one(&*target, deleted(&others[0], 9)).await;
        ensure!(matches!(gone, Outcome::Permanent(_)), "{gone:?}");
        let standings = target.compare(&batch[..1]).await.context("it isn't read")?;
        ensure!(standings == [Standing::Same], "{standings:?}");
        let older = one(&*target, user(id, 4, "ann")).await;
        ensure!(older == Outcome::AlreadyNewer, "{older:?}");
        let differing = differing(&*target, &batch).await?;
        ensure!(differing.is_empty(), "{differing:?}");
    }
    Ok(())
}

#[tokio::test]
async fn sixteen_octets_hold_uuids_where_the_entry_says_so() -> Result<()> {
    let peers = MySql::all().await?;
    let id = |last: u32| format!("0198c0de-6b7c-7d00-8000-{last:012x}");
    let columns = json!({"email": "email"});
    for peer in &peers {
        peer.run(&format!(
            "CREATE TABLE octets (id binary(16) PRIMARY KEY, email varchar(100) UNIQUE, {SYNC})"
        ))
        .await?;
        let table = json!({"name": "octets", "columns": columns});
        let found = misfit(&*connect(peer, "octets", json!({"table": table}))?).await?;
        ensure!(found.contains("table.binary_uuid = true"), "{found}");

        let table = json!({"name": "octets", "columns": columns, "binary_uuid": true});
        let target = connect(peer, "octets", json!({"verify": true, "table": table}))?;
        let mut batch: Vec<_> = (1..=100).map(|last| user(&id(last), 5, "ann")).collect();
        batch.push(user(&id(1).to_ascii_uppercase(), 5, "ann"));
        batch.push(user("42", 5, "ann"));
        let outcomes = target.deliver(&batch).await;
        for outcome in &outcomes[..100] {
            is_delivered(outcome)?;
        }
        for outcome in &outcomes[100..] {
            ensure!(matches!(outcome, Outcome::Permanent(_)), "{outcome:?}");
        }
        let held = "SELECT 1 / (COUNT(*) = 1) FROM octets WHERE id = UNHEX('0198c0de6b7c7d008000000000000064') AND email LIKE '0198c0de-%'";
        peer.run(&format!(
            "SET sql_mode = 'ERROR_FOR_DIVISION_BY_ZERO,STRICT_ALL_TABLES'; {held}"
        ))
        .await?;
        let standings = target
            .compare(&batch[..100])
            .await
            .context("it isn't read")?;
        ensure!(
            standings.iter().all(|standing| *standing == Standing::Same),
            "{standings:?}"
        );
        let found = differing(&*target, &batch[..100]).await?;
        ensure!(found.is_empty(), "{found:?}");

        is_delivered(&one(&*target, deleted(&id(1), 6)).await)?;
        let older = one(&*target, user(&id(1), 5, "ann")).await;
        ensure!(older == Outcome::AlreadyNewer, "{older:?}");
        target.forget_version(&id(1).parse()?, 6).await?;
        target.forget_version(&"42".parse()?, 6).await?;
        is_delivered(&one(&*target, user(&id(1), 5, "ann")).await)?;
        peer.run("UPDATE octets SET email = 'mallory' WHERE id = UNHEX('0198c0de6b7c7d008000000000000007')").await?;
        let found = differing(&*target, &batch[..100]).await?;
        ensure!(found.len() == 1 && *found[0].id == *id(7), "{found:?}");
    }
    peers[0]
        .run(&format!(
            "CREATE TABLE wrong (id varchar(64) COLLATE ascii_bin PRIMARY KEY, email text, {SYNC})"
        ))
        .await?;
    let table = json!({"name": "wrong", "columns": columns, "binary_uuid": true});
    let found = misfit(&*connect(&peers[0], "wrong", json!({"table": table}))?).await?;
    ensure!(
        found.contains("`id` is varchar(64); expected binary(16)"),
        "{found}"
    );
    let elsewhere = json!({"url": "postgres://h/d", "table": table});
    ensure!(
        config(elsewhere, json!({})).is_err(),
        "PostgreSQL has no BINARY(16)"
    );
    Ok(())
}

#[tokio::test]
async fn a_column_that_must_be_filled_refuses_only_who_has_nothing_for_it() -> Result<()> {
    let (mysql, postgres) = (MySql::start().await?, Postgres::start().await?);
    mysql.run(&format!("CREATE TABLE filled (id varchar(64) COLLATE ascii_bin PRIMARY KEY, email text NOT NULL, {SYNC})")).await?;
    postgres
        .run(&format!(
            "CREATE TABLE filled (id text PRIMARY KEY, email text NOT NULL, {SYNC})"
        ))
        .await?;
    for peer in [&mysql as &dyn Peer, &postgres] {
        let table = json!({"name": "filled", "columns": {"email": "email"}});
        let target = connect(
            peer,
            "filled",
            json!({"on_delete": "ignore", "table": table}),
        )?;
        let mut nobody = user("2", 5, "ben");
        nobody.members.email = usersync_core::event::Change::Clear;
        let outcomes = target
            .deliver(&[user("1", 5, "ann"), nobody, user("3", 5, "cat")])
            .await;
        is_delivered(&outcomes[0])?;
        is_delivered(&outcomes[2])?;
        match &outcomes[1] {
            Outcome::Permanent(failure) => ensure!(
                failure.code.is_some() && failure.reason.contains("`email`"),
                "{failure:?}"
            ),
            other => anyhow::bail!("{other:?}"),
        }
    }
    Ok(())
}

#[test]
fn a_password_in_a_url_is_refused_and_not_repeated() -> Result<()> {
    for url in [
        "mysql://ann:hunter2@host/users",
        "postgres://ann:hunter2@host/users",
        "postgres://ann@host/users?password=hunter2",
        "neo4j://ann:hunter2@host/users",
        "bolt+s://ann:hunter2@host/users",
    ] {
        let config = config(json!({"url": url}), json!({}))?;
        let error = usersync_targets::connect(&config, &usersync_stack::egress())
            .err()
            .context("it is taken")?;
        let text = error.to_string();
        ensure!(
            matches!(error, ConfigError::Url(_)) && text.contains("secret"),
            "{text}"
        );
        ensure!(!text.contains("hunter2"), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn what_a_partial_user_has_no_parent_of_is_known_not_to_be_there() -> Result<()> {
    let (mysql, postgres) = (MySql::start().await?, Postgres::start().await?);
    let columns = json!({"unit": "data.crm.unit", "city": "data.city"});
    for peer in [&mysql as &dyn Peer, &postgres] {
        let target = connect(
            peer,
            "users",
            json!({"table": {"name": "users", "columns": columns}}),
        )?;
        target.init().await?;
        let told = |version, value| data(partial("1", version, "ann"), value);
        let known = told(5, json!({"crm": {"unit": "north"}, "city": "Ulm"}));
        is_delivered(&one(&*target, known.clone()).await)?;
        let none = told(6, json!({"crm": null}));
        is_delivered(&one(&*target, none.clone()).await)?;
        let standing = target.compare(&[none]).await.context("it compares")?;
        ensure!(standing == [Standing::Same], "{standing:?}");
        // The unit is gone, and the city, of which nothing was said, is not.
        let before = told(6, json!({"crm": {"unit": "north"}}));
        let standing = target.compare(&[before]).await.context("it compares")?;
        ensure!(standing != [Standing::Same], "{standing:?}");
        let city = told(6, json!({"city": "Ulm"}));
        let standing = target.compare(&[city]).await.context("it compares")?;
        ensure!(standing == [Standing::Same], "{standing:?}");
    }
    Ok(())
}
