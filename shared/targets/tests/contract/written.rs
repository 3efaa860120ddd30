//! What a server says that it wrote, and what it says of what it didn't.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use usersync_core::event::Change;
use usersync_targets::{Delivery, Outcome, Target};

use crate::{
    clauses::{is_delivered, one},
    deliveries::{data, deleted, disabled, email, user},
    mysql::MySql,
    peer::{Peer, connect, open},
    postgres::Postgres,
};

const SYNC: &str =
    "sync_deleted boolean NOT NULL DEFAULT false, sync_version bigint NOT NULL DEFAULT 0";

fn people(peer: &dyn Peer, place: &str) -> Result<Box<dyn Target>> {
    let columns = json!({"username": "username", "email": "email", "status": "status"});
    connect(
        peer,
        place,
        json!({"table": {"name": place, "columns": columns}, "on_delete": "disable"}),
    )
}

async fn unwritten(target: &dyn Target, delivery: Delivery, expected: &str) -> Result<()> {
    match one(target, delivery).await {
        Outcome::Permanent(failure) => {
            let reason = failure.to_string();
            ensure!(reason.contains(expected), "{reason}");
            Ok(())
        }
        other => bail!("{other:?}"),
    }
}

#[tokio::test]
async fn what_a_trigger_of_postgres_keeps_from_being_written_is_no_success() -> Result<()> {
    let peer = Postgres::start().await?;
    peer.run(&format!(
        "CREATE TABLE kept (id text PRIMARY KEY, username text, email text, status text, {SYNC}); \
         CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           IF NEW.username = 'nobody' THEN RETURN NULL; END IF; \
           IF NEW.username = 'old' THEN NEW.sync_version := 1; END IF; \
           IF NEW.username = 'loud' THEN NEW.email := upper(NEW.email); END IF; \
           RETURN NEW; END $$"
    ))
    .await?;
    let quiet = people(&peer, "kept")?;
    is_delivered(&one(&*quiet, user("1", 5, "ann")).await)?;
    peer.run(
        "CREATE TRIGGER keep BEFORE INSERT OR UPDATE ON kept FOR EACH ROW EXECUTE FUNCTION keep()",
    )
    .await?;
    let target = people(&peer, "kept")?;
    let say = "didn't write it";
    // As somebody new, as somebody who is there, and alone in a batch.
    for id in ["1", "2"] {
        unwritten(&*target, user(id, 6, "nobody"), say).await?;
        unwritten(&*target, user(id, 6, "old"), say).await?;
        unwritten(&*target, user(id, 6, "loud"), "`email` differs").await?;
        let batch = [user(id, 7, "nobody"), user("3", 7, "cleo")];
        let outcomes = target.deliver(&batch).await;
        ensure!(matches!(outcomes[0], Outcome::Permanent(_)), "{outcomes:?}");
        is_delivered(&outcomes[1])?;
        is_delivered(&one(&*target, user(id, 8, "ann")).await)?;
    }
    // Who is newer there is that, and nothing else.
    let older = one(&*target, user("1", 7, "ann")).await;
    ensure!(older == Outcome::AlreadyNewer, "{older:?}");
    // A target that looked at the table before sees the same, but for what the trigger changes.
    unwritten(&*quiet, user("1", 9, "nobody"), say).await?;
    peer.run("UPDATE kept SET sync_version = 8; CREATE OR REPLACE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql \
         AS $$ BEGIN RETURN NULL; END $$")
        .await?;
    unwritten(&*target, disabled("1", 9), say).await?;
    unwritten(&*target, deleted("1", 9), say).await
}

#[tokio::test]
async fn a_policy_for_rows_refuses_one_user_and_the_right_to_the_table_all() -> Result<()> {
    let peer = Postgres::start().await?;
    peer.run(&format!(
        "CREATE TABLE guarded (id text PRIMARY KEY, username text, email text, status text, {SYNC}); \
         CREATE ROLE app LOGIN PASSWORD 'of-a-test'; GRANT SELECT, INSERT, UPDATE ON guarded TO app; \
         ALTER TABLE guarded ENABLE ROW LEVEL SECURITY; \
         CREATE POLICY seen ON guarded FOR SELECT USING (true); \
         CREATE POLICY made ON guarded FOR INSERT WITH CHECK (username <> 'secret'); \
         CREATE POLICY kept ON guarded FOR UPDATE USING (status <> 'locked')"
    ))
    .await?;
    let mut entry = peer.entry("guarded", true);
    let url = entry["url"]
        .as_str()
        .context("a url")?
        .replace("postgres@", "app@");
    entry["url"] = json!(url);
    let columns = json!({"username": "username", "email": "email", "status": "status"});
    let target = open(
        entry,
        json!({"table": {"name": "guarded", "columns": columns}, "on_delete": "disable"}),
    )?;
    target.probe().await?;
    is_delivered(&one(&*target, user("1", 5, "ann")).await)?;
    let batch = [user("2", 5, "secret"), user("3", 5, "cleo")];
    let outcomes = target.deliver(&batch).await;
    match &outcomes[0] {
        Outcome::Permanent(failure) => ensure!(failure.to_string().contains("policy"), "{failure}"),
        other => bail!("{other:?}"),
    }
    is_delivered(&outcomes[1])?;
    peer.run("UPDATE guarded SET status = 'locked' WHERE id = '1'")
        .await?;
    ensure!(matches!(
        one(&*target, user("1", 6, "ann")).await,
        Outcome::Permanent(_)
    ));
    unwritten(&*target, disabled("1", 6), "didn't write it").await?;
    peer.run("REVOKE UPDATE ON guarded FROM app").await?;
    let refused = target
        .probe()
        .await
        .err()
        .context("the probe finds nothing")?;
    ensure!(refused.to_string().contains("UPDATE"), "{refused}");
    let outcome = one(&*target, user("3", 6, "cleo")).await;
    ensure!(matches!(outcome, Outcome::Fault(_)), "{outcome:?}");
    Ok(())
}

#[tokio::test]
async fn what_a_trigger_of_mariadb_changes_is_no_success() -> Result<()> {
    let peer = MySql::start().await?;
    peer.run(&format!(
        "CREATE TABLE kept (id varchar(64) COLLATE ascii_bin PRIMARY KEY, username varchar(99), email varchar(99), \
         status varchar(99), {SYNC})"
    ))
    .await?;
    for event in ["INSERT", "UPDATE"] {
        peer.run(&format!(
            "CREATE TRIGGER kept_{event} BEFORE {event} ON kept FOR EACH ROW SET \
             NEW.sync_version = IF(NEW.username = 'old', 1, NEW.sync_version), \
             NEW.email = IF(NEW.username = 'loud', CONCAT('x', NEW.email), NEW.email)"
        ))
        .await?;
    }
    let target = people(&peer, "kept")?;
    for id in ["1", "2"] {
        is_delivered(&one(&*target, user("1", 5, "ann")).await)?;
        unwritten(&*target, user(id, 6, "old"), "didn't write it").await?;
        unwritten(&*target, user(id, 6, "loud"), "`email` differs").await?;
        peer.run("DELETE FROM kept").await?;
    }
    Ok(())
}

/// Each value is refused, and the reason names its column and not the value.
async fn columns_are_named(target: &dyn Target, wrong: &[(&str, Value)]) -> Result<()> {
    let fits = json!({"short": "abc", "small": 1, "price": 1.5, "token": "0198c0de-0000-7000-8000-000000000000", "at": "12:00:00"});
    is_delivered(&one(target, data(user("0", 5, "ann"), fits.clone())).await)?;
    for (column, value) in wrong {
        let mut values = fits.clone();
        values[*column] = value.clone();
        let batch = [
            data(user("1", 5, "ann"), values),
            data(user("2", 5, "ben"), fits.clone()),
        ];
        let outcomes = target.deliver(&batch).await;
        let Outcome::Permanent(failure) = &outcomes[0] else {
            bail!("{column} {value}: {:?}", outcomes[0]);
        };
        let reason = failure.to_string();
        ensure!(
            reason.contains(&format!("column `{column}`")),
            "{value}: {reason}"
        );
        ensure!(
            !reason.contains(value.to_string().trim_matches('"')),
            "{reason} tells the value"
        );
        is_delivered(&outcomes[1])?;
    }
    Ok(())
}

#[tokio::test]
async fn the_column_of_a_value_that_is_refused_is_named() -> Result<()> {
    let columns = json!({
        "short": "data.short", "small": "data.small", "price": "data.price", "token": "data.token", "at": "data.at",
        "username": "username", "email": "email",
    });
    let wrong = [
        ("short", json!("far too long")),
        ("small", json!(700_001)),
        ("price", json!(123_456.75)),
        ("token", json!("no uuid at all")),
        ("at", json!("half past nine")),
    ];
    let more = json!({"table": {"name": "named", "columns": columns}});
    let postgres = Postgres::start().await?;
    postgres
        .run(&format!(
            "CREATE DOMAIN brief AS varchar(5); \
             CREATE TABLE named (id text PRIMARY KEY, username varchar(40), email text, short brief, small smallint, \
             price numeric(5, 2), token uuid, at time, {SYNC})"
        ))
        .await?;
    let target = connect(&postgres, "named", more.clone())?;
    columns_are_named(&*target, &wrong).await?;
    for (column, delivery) in [
        ("email", email(user("1", 6, "ann"), "a\0b@example.com")),
        ("username", user("1", 6, &"x".repeat(41))),
    ] {
        let Outcome::Permanent(failure) = one(&*target, delivery).await else {
            bail!("{column} is taken");
        };
        ensure!(
            failure.to_string().contains(&format!("column `{column}`")),
            "{failure}"
        );
    }
    let mysql = MySql::start().await?;
    mysql
        .run(&format!(
            "CREATE TABLE named (id varchar(64) COLLATE ascii_bin PRIMARY KEY, username varchar(40), email text, \
             short varchar(5), small smallint, price decimal(5, 2), token uuid, at time, {SYNC})"
        ))
        .await?;
    let target = connect(&mysql, "named", more)?;
    columns_are_named(&*target, &wrong).await
}

#[tokio::test]
async fn a_column_nobody_mapped_that_must_have_a_value_is_the_tables_fault() -> Result<()> {
    let postgres = Postgres::start().await?;
    postgres
        .run(&format!(
            "CREATE TABLE later (id text PRIMARY KEY, email text, {SYNC})"
        ))
        .await?;
    let mysql = MySql::start().await?;
    mysql
        .run(&format!(
            "CREATE TABLE later (id varchar(64) COLLATE ascii_bin PRIMARY KEY, email text, {SYNC})"
        ))
        .await?;
    let more = json!({"table": {"name": "later", "columns": {"email": "email"}}});
    for (target, add) in [
        (connect(&postgres, "later", more.clone())?, true),
        (connect(&mysql, "later", more)?, false),
    ] {
        is_delivered(&one(&*target, user("1", 5, "ann")).await)?;
        let column = "ALTER TABLE later ADD COLUMN tenant integer";
        match add {
            true => {
                postgres
                    .run(&format!(
                        "{column} DEFAULT 1 NOT NULL; ALTER TABLE later ALTER tenant DROP DEFAULT"
                    ))
                    .await?;
            }
            false => mysql.run(&format!("{column} NOT NULL")).await?,
        }
        for id in ["2", "3"] {
            match one(&*target, user(id, 5, "ben")).await {
                Outcome::Fault(failure) => {
                    ensure!(failure.to_string().contains("`tenant`"), "{failure}")
                }
                other => bail!("{other:?}"),
            }
        }
    }
    // One that is computed of what the user has is the user's.
    postgres
        .run(&format!(
            "CREATE TABLE computed (id text PRIMARY KEY, email text, host text GENERATED ALWAYS AS (substring(email from '@(.*)')) \
             STORED NOT NULL, {SYNC})"
        ))
        .await?;
    let more = json!({"table": {"name": "computed", "columns": {"email": "email"}}, "on_delete": "ignore"});
    let target = connect(&postgres, "computed", more)?;
    is_delivered(&one(&*target, user("1", 5, "ann")).await)?;
    let mut nobody = user("2", 5, "ben");
    nobody.members.email = Change::Set("no address".to_owned());
    let outcome = one(&*target, nobody).await;
    ensure!(matches!(outcome, Outcome::Permanent(_)), "{outcome:?}");
    Ok(())
}

#[tokio::test]
async fn a_connection_test_says_that_nothing_can_be_written() -> Result<()> {
    let mut postgres = Postgres::start().await?;
    postgres.prepare("plain").await?;
    let target = connect(&postgres, "plain", json!({}))?;
    target.probe().await?;
    postgres
        .run("ALTER SYSTEM SET default_transaction_read_only = on")
        .await?;
    postgres.run("SELECT pg_reload_conf()").await?;
    let outcome =
        usersync_stack::eventually(std::time::Duration::from_secs(10), async || {
            match one(&*target, user("1", 5, "ann")).await {
                Outcome::Down(failure) => Ok(failure),
                other => bail!("{other:?}"),
            }
        })
        .await?;
    ensure!(outcome.code.as_deref() == Some("25006"), "{outcome:?}");
    let found = target
        .probe()
        .await
        .err()
        .context("the probe finds nothing")?;
    ensure!(found.to_string().contains("read-only"), "{found}");
    Ok(())
}
