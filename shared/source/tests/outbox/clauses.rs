//! The promises, one function each.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail, ensure};
use serde_json::json;
use usersync_source::{Database, Failure, RowsUnderWay, Server, SourceConfig, SourceError};

use crate::{
    place::{Place, Told, told},
    reading, values,
};

/// Every clause, each beginning with nothing.
pub(crate) async fn hold(place: &Place) -> Result<()> {
    changes_become_events(place).await?;
    a_transaction_that_commits_late_is_not_missed(place).await?;
    reading_ahead_waits_for_whoever_commits_late(place).await?;
    a_users_rows_stand_in_the_order_of_commits(place).await?;
    what_is_applied_does_not_echo(place).await?;
    installing_again_renews_and_removing_leaves_nothing(place).await?;
    ids_never_come_again(place).await?;
    what_stands_in_the_way_is_named(place).await?;
    rows_are_marked_pruned_and_counted(place).await?;
    one_connection_at_a_time_has_the_lock(place).await?;
    values::keep_their_meaning(place).await?;
    values::a_document_tells_what_left_it(place).await?;
    values::are_read_as_the_outbox_tells_them(place).await?;
    values::ids_of_every_sort(place).await?;
    reading::pages_hold_every_user_once(place).await
}

const PEOPLE: &str = "CREATE TABLE people (uid BIGINT PRIMARY KEY, login VARCHAR(100), state VARCHAR(20), secret VARCHAR(20))";
const COLUMNS: &[(&str, &str)] = &[("login", "username"), ("state", "status")];

/// A table `people` with its outbox.
async fn people(place: &Place) -> Result<(SourceConfig, Database)> {
    place.client().await?.run(PEOPLE).await?;
    let config = place.config("people", "uid", COLUMNS)?;
    let mut database = Database::connect(&config).await?;
    database.install(false).await?;
    Ok((config, database))
}

/// Why something was refused.
fn refusal<T>(result: Result<T, SourceError>) -> Result<String> {
    match result {
        Ok(_) => bail!("it was taken"),
        Err(error) => Ok(error.to_string()),
    }
}

fn events(told: &[Told]) -> Vec<(&str, i64)> {
    let event = |told: &Told| told.user["user_id"].as_i64().unwrap_or(-1);
    told.iter()
        .map(|told| (told.event.as_str(), event(told)))
        .collect()
}

async fn changes_become_events(place: &Place) -> Result<()> {
    let (config, mut database) = people(place).await?;
    let mut client = place.client().await?;
    client
        .run("INSERT INTO people VALUES (1, 'ann', 'new', 's'), (2, 'bob', NULL, NULL)")
        .await?;
    client
        .run("UPDATE people SET login = 'Ann', state = 'active' WHERE uid = 1")
        .await?;
    client
        .run("UPDATE people SET state = 'locked' WHERE uid = 1")
        .await?;
    client
        .run("UPDATE people SET login = NULL WHERE uid = 1")
        .await?;
    // Nothing that is mapped changes.
    client
        .run("UPDATE people SET secret = 'other'; UPDATE people SET login = login")
        .await?;
    client
        .run("UPDATE people SET uid = 3 WHERE uid = 1")
        .await?;
    client.run("DELETE FROM people WHERE uid = 2").await?;
    let all = told(&mut database).await?;
    let expected = [
        ("user.created", 1),
        ("user.created", 2),
        ("user.updated", 1),
        ("user.status_changed", 1),
        ("user.updated", 1),
        ("user.deleted", 1),
        ("user.created", 3),
        ("user.deleted", 2),
    ];
    ensure!(events(&all) == expected, "{all:?}");
    ensure!(
        all[0].user == json!({"user_id": 1, "username": "ann", "status": "new"}),
        "{all:?}"
    );
    ensure!(
        all[2].user == json!({"user_id": 1, "username": "Ann", "status": "active"}),
        "{all:?}"
    );
    ensure!(
        all[4].user == json!({"user_id": 1, "username": null, "status": "locked"}),
        "{all:?}"
    );
    ensure!(all[7].user == json!({"user_id": 2}), "{all:?}");
    // What differs in case or trailing blanks only has changed, whatever the collation says.
    client.run("UPDATE people SET login = 'x' WHERE uid = 3; UPDATE people SET login = 'X' WHERE uid = 3; UPDATE people SET login = 'X ' WHERE uid = 3").await?;
    ensure!(told(&mut database).await?.len() == 3);
    client
        .run("BEGIN; UPDATE people SET login = 'never'; ROLLBACK")
        .await?;
    ensure!(told(&mut database).await?.is_empty());
    place.clean(&config).await
}

async fn a_transaction_that_commits_late_is_not_missed(place: &Place) -> Result<()> {
    let (config, mut database) = people(place).await?;
    let (mut slow, mut quick) = (place.client().await?, place.client().await?);
    // SQLite has one writer at a time: nobody can commit meanwhile.
    if place.server() == Server::Sqlite {
        slow.run("BEGIN; INSERT INTO people (uid) VALUES (1)")
            .await?;
        ensure!(told(&mut database).await?.is_empty());
        slow.run("COMMIT").await?;
        ensure!(told(&mut database).await?.len() == 1);
        return place.clean(&config).await;
    }
    slow.run("BEGIN; INSERT INTO people (uid) VALUES (1)")
        .await?;
    quick.run("INSERT INTO people (uid) VALUES (2)").await?;
    let first = told(&mut database).await?;
    ensure!(events(&first) == [("user.created", 2)], "{first:?}");
    slow.run("COMMIT").await?;
    let second = told(&mut database).await?;
    ensure!(events(&second) == [("user.created", 1)], "{second:?}");
    ensure!(second[0].id < first[0].id, "the late one has the lower id");
    place.clean(&config).await
}

async fn reading_ahead_waits_for_whoever_commits_late(place: &Place) -> Result<()> {
    let (config, mut database) = people(place).await?;
    let (mut slow, mut quick) = (place.client().await?, place.client().await?);
    let several = place.server() != Server::Sqlite;
    if several {
        slow.run("BEGIN; INSERT INTO people (uid) VALUES (1)")
            .await?;
    }
    quick
        .run("INSERT INTO people (uid) VALUES (2), (3)")
        .await?;
    let under_way = database.unpublished(10).await?;
    let under_way = RowsUnderWay {
        last: under_way[1].id,
        count: 2,
    };
    quick.run("INSERT INTO people (uid) VALUES (4)").await?;
    let ahead = database.unpublished_behind(under_way, 10).await?;
    ensure!(ahead.is_some_and(|rows| rows.len() == 1 && rows[0].id > under_way.last));
    if several {
        slow.run("COMMIT").await?;
        let ahead = database.unpublished_behind(under_way, 10).await?;
        ensure!(ahead.is_none(), "{ahead:?}");
    }
    place.clean(&config).await
}

/// The trigger runs while the user's row is locked, so whoever commits later has the higher id.
async fn a_users_rows_stand_in_the_order_of_commits(place: &Place) -> Result<()> {
    let (config, mut database) = people(place).await?;
    let mut client = place.client().await?;
    client
        .run("INSERT INTO people VALUES (1, 'start', NULL, NULL)")
        .await?;
    told(&mut database).await?;
    let waits = place.server() != Server::Sqlite;
    for (holding, waiting) in [
        (
            "UPDATE people SET login = 'first' WHERE uid = 1",
            "UPDATE people SET login = 'second' WHERE uid = 1",
        ),
        (
            "DELETE FROM people WHERE uid = 1",
            "INSERT INTO people (uid, login) VALUES (1, 'second')",
        ),
    ] {
        let mut first = place.client().await?;
        first.run(&format!("BEGIN; {holding}")).await?;
        let mut second = place.client().await?;
        let later = tokio::spawn(async move { second.run(waiting).await });
        if waits {
            usersync_stack::eventually(std::time::Duration::from_secs(10), async || {
                let waiting = client.number(place.pick([
                    "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'",
                    "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'",
                    "",
                ]));
                let waiting = waiting.await?;
                ensure!(waiting == 1, "{waiting} wait");
                Ok(())
            })
            .await?;
        }
        first.run("COMMIT").await?;
        later.await??;
        let rows = told(&mut database).await?;
        ensure!(rows.len() == 2 && rows[0].id < rows[1].id, "{rows:?}");
        ensure!(rows[1].user["username"] == "second", "{rows:?}");
    }
    place.clean(&config).await
}

async fn what_is_applied_does_not_echo(place: &Place) -> Result<()> {
    let (config, mut database) = people(place).await?;
    let mut client = place.client().await?;
    let (begin, end) = match place.server() {
        Server::MySql => (
            "SET @usersync_apply = 1; BEGIN",
            "COMMIT; SET @usersync_apply = NULL",
        ),
        Server::Postgres => ("BEGIN; SET LOCAL usersync.apply = 'on'", "COMMIT"),
        Server::Sqlite => (
            "BEGIN; INSERT INTO usersync_apply VALUES (1)",
            "DELETE FROM usersync_apply; COMMIT",
        ),
    };
    client.run(begin).await?;
    client
        .run("INSERT INTO people VALUES (1, 'a', 'b', NULL), (2, 'a', 'b', NULL)")
        .await?;
    client.run("UPDATE people SET login = 'c'; UPDATE people SET uid = 3 WHERE uid = 1; DELETE FROM people WHERE uid = 2").await?;
    client.run(end).await?;
    ensure!(told(&mut database).await?.is_empty());
    client.run("UPDATE people SET login = 'd'").await?;
    ensure!(events(&told(&mut database).await?) == [("user.updated", 3)]);
    place.clean(&config).await
}

async fn installing_again_renews_and_removing_leaves_nothing(place: &Place) -> Result<()> {
    let (config, mut database) = people(place).await?;
    let mut client = place.client().await?;
    client
        .run("INSERT INTO people VALUES (1, 'a', 'b', 'c')")
        .await?;
    let wider = place.config(
        "people",
        "uid",
        &[("login", "username"), ("secret", "data.secret")],
    )?;
    let mut wide = Database::connect(&wider).await?;
    ensure!(wide.install(false).await?.again);
    ensure!(database.standing().await?.installed);
    client.run("UPDATE people SET secret = 'd'").await?;
    let rows = told(&mut database).await?;
    ensure!(
        events(&rows) == [("user.created", 1), ("user.updated", 1)],
        "{rows:?}"
    );
    ensure!(rows[1].user["data"] == json!({"secret": "d"}), "{rows:?}");

    client.run("UPDATE people SET secret = 'e'").await?;
    let refused = database.uninstall(false).await.map(drop);
    ensure!(refused.is_err_and(|error| {
        error
            .to_string()
            .contains("1 rows of user_outbox aren't published")
    }));
    ensure!(database.uninstall(true).await?);
    ensure!(
        !database.uninstall(false).await?,
        "there is nothing left to remove"
    );
    client.run("UPDATE people SET secret = 'f'").await?;
    ensure!(!database.standing().await?.installed);
    let error = database.unpublished(1).await.map(drop);
    ensure!(error.is_err_and(|error| error.to_string().contains("outbox install")));
    place.clean(&config).await
}

async fn ids_never_come_again(place: &Place) -> Result<()> {
    let (config, mut database) = people(place).await?;
    let mut client = place.client().await?;
    client.run("INSERT INTO people (uid) VALUES (1)").await?;
    let first = told(&mut database).await?[0].id;
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?;
    ensure!((now - first).abs() < 60_000_000, "{first} at {now}");
    database.uninstall(true).await?;
    // A coarse clock must have moved on.
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    database.install(false).await?;
    client.run("INSERT INTO people (uid) VALUES (2)").await?;
    ensure!(told(&mut database).await?[0].id > first);
    place.clean(&config).await
}

async fn what_stands_in_the_way_is_named(place: &Place) -> Result<()> {
    let mut client = place.client().await?;
    client
        .run("CREATE TABLE people (uid BIGINT PRIMARY KEY, login VARCHAR(100), twice VARCHAR(10))")
        .await?;
    client
        .run(&format!(
            "CREATE TABLE files (id BIGINT PRIMARY KEY, username VARCHAR(10), content {})",
            place.pick(["BLOB", "BYTEA", "BLOB"])
        ))
        .await?;
    client
        .run("CREATE VIEW few AS SELECT * FROM people")
        .await?;
    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a str);
    let rows: [Case<'_>; 5] = [
        ("nobody", "uid", COLUMNS, "there is no table `nobody`"),
        (
            "people",
            "id",
            COLUMNS,
            "has no column `id` (the id); it has uid, login, twice",
        ),
        (
            "people",
            "twice",
            &[("login", "username")],
            "column `twice` of `people` has no unique key",
        ),
        (
            "files",
            "id",
            &[("content", "data.content")],
            "which JSON can't hold",
        ),
        ("few", "uid", COLUMNS, "name the table behind it"),
    ];
    for (table, id, columns, expected) in rows {
        let config = place.config(table, id, columns)?;
        let error = refusal(Database::connect(&config).await?.install(false).await)?;
        ensure!(error.contains(expected), "{table}: {error}");
    }
    client.run("CREATE TABLE user_outbox (id BIGINT)").await?;
    let config = place.config("people", "uid", &[("login", "username")])?;
    let mut database = Database::connect(&config).await?;
    let error = refusal(database.install(false).await)?;
    ensure!(error.contains("that isn't ours"), "{error}");
    client.run("DROP TABLE user_outbox").await?;
    database.install(false).await?;
    let other = place.config("files", "id", &[("username", "username")])?;
    let error = refusal(Database::connect(&other).await?.install(false).await)?;
    ensure!(
        error.contains("serves the table `people` already"),
        "{error}"
    );
    client.run("DROP VIEW few; DROP TABLE files").await?;
    place.clean(&config).await
}

async fn rows_are_marked_pruned_and_counted(place: &Place) -> Result<()> {
    let (mut config, mut database) = people(place).await?;
    let mut client = place.client().await?;
    for user in 1..=5 {
        client
            .run(&format!("INSERT INTO people (uid) VALUES ({user})"))
            .await?;
    }
    let rows = database.unpublished(3).await?;
    ensure!(rows.len() == 3, "{rows:?}");
    let lag = database.lag().await?;
    ensure!((lag.unpublished, lag.failed) == (5, 0), "{lag:?}");
    database.mark_published(&[rows[0].id, rows[2].id]).await?;
    let failure = Failure {
        id: rows[1].id,
        reason: "too large".to_owned(),
    };
    database.mark_failed(&[failure]).await?;
    let lag = database.lag().await?;
    ensure!((lag.unpublished, lag.failed) == (2, 1), "{lag:?}");
    ensure!(database.standing().await?.reasons[0].reason == "too large");
    ensure!(database.prune(10).await? == 0, "nothing is an hour old");
    config.relay.retention = std::time::Duration::ZERO;
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    let mut strict = Database::connect(&config).await?;
    ensure!(strict.prune(1).await? == 1);
    ensure!(strict.prune(10).await? == 1);
    ensure!(database.unpublished(10).await?.len() == 2);
    place.clean(&config).await
}

async fn one_connection_at_a_time_has_the_lock(place: &Place) -> Result<()> {
    let (config, mut database) = people(place).await?;
    let mut other = Database::connect(&config).await?;
    ensure!(database.try_lock().await?);
    ensure!(!other.try_lock().await?);
    database.close().await;
    usersync_stack::eventually(std::time::Duration::from_secs(10), async || {
        ensure!(other.try_lock().await?, "it is still held");
        Ok(())
    })
    .await?;
    other.close().await;
    place.clean(&config).await
}
