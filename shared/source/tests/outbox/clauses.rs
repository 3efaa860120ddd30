//! The promises, one function each.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use usersync_source::{Database, Failure, RowsUnderWay, Server, SourceConfig, SourceError, Stamp};

use crate::{
    place::{Place, documents, noted, shown},
    reading, values,
};

/// Every clause, each beginning with nothing.
pub(crate) async fn hold(place: &Place) -> Result<()> {
    changes_leave_notes(place).await?;
    a_row_that_is_replaced_is_told_from_an_id_that_is_used_again(place).await?;
    nothing_in_a_trigger_can_fail(place).await?;
    an_older_outbox_is_renewed_with_what_waits_in_it(place).await?;
    a_transaction_that_commits_late_is_not_missed(place).await?;
    reading_ahead_waits_for_whoever_commits_late(place).await?;
    a_users_rows_stand_in_the_order_of_commits(place).await?;
    what_is_applied_does_not_echo(place).await?;
    installing_again_renews_and_removing_leaves_nothing(place).await?;
    ids_never_come_again(place).await?;
    what_stands_in_the_way_is_named(place).await?;
    rows_are_marked_pruned_and_counted(place).await?;
    a_row_is_known_again(place).await?;
    what_failed_and_who_was_deleted_is_remembered(place).await?;
    one_connection_at_a_time_has_the_lock(place).await?;
    values::keep_their_meaning(place).await?;
    values::a_document_may_be_all_of_data(place).await?;
    values::one_that_cannot_be_read_fails_alone(place).await?;
    values::numbers_and_json_are_what_they_are(place).await?;
    values::ids_of_every_sort(place).await?;
    reading::pages_hold_every_user_once(place).await
}

const PEOPLE: &str = "CREATE TABLE people (uid BIGINT PRIMARY KEY, login VARCHAR(100), state VARCHAR(20), secret VARCHAR(20))";
const COLUMNS: &[(&str, &str)] = &[("login", "username"), ("state", "status")];

/// A table `people` with its outbox.
pub(crate) async fn people(place: &Place) -> Result<(SourceConfig, Database)> {
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

async fn changes_leave_notes(place: &Place) -> Result<()> {
    let (config, mut database) = people(place).await?;
    let mut client = place.client().await?;
    client
        .run("INSERT INTO people VALUES (1, 'ann', 'new', 's'), (2, 'bob', NULL, NULL)")
        .await?;
    client
        .run("UPDATE people SET login = 'Ann', state = 'active' WHERE uid = 1")
        .await?;
    client
        .run("UPDATE people SET secret = 'other' WHERE uid = 2")
        .await?;
    client
        .run("UPDATE people SET uid = 3 WHERE uid = 1")
        .await?;
    client.run("DELETE FROM people WHERE uid = 2").await?;
    let rows = noted(&mut database).await?;
    let expected = ["I 1", "I 2", "U 1", "U 2", "D 1", "I 3", "D 2"];
    ensure!(shown(&rows) == expected, "{rows:?}");
    ensure!(rows.iter().all(|row| row.payload.is_none()), "{rows:?}");
    client
        .run("BEGIN; UPDATE people SET login = 'never'; ROLLBACK")
        .await?;
    ensure!(noted(&mut database).await?.is_empty());
    place.clean(&config).await
}

async fn a_row_that_is_replaced_is_told_from_an_id_that_is_used_again(place: &Place) -> Result<()> {
    let (config, mut database) = people(place).await?;
    let mut client = place.client().await?;
    client.run("INSERT INTO people (uid) VALUES (1)").await?;
    noted(&mut database).await?;
    let upsert = place.pick([
        "INSERT INTO people (uid, login) VALUES (1, 'a') ON DUPLICATE KEY UPDATE login = 'b'",
        "INSERT INTO people (uid, login) VALUES (1, 'a') ON CONFLICT (uid) DO UPDATE SET login = 'b'",
        "INSERT INTO people (uid, login) VALUES (1, 'a') ON CONFLICT (uid) DO UPDATE SET login = 'b'",
    ]);
    client.run(upsert).await?;
    let rows = noted(&mut database).await?;
    ensure!(shown(&rows) == ["U 1"], "{rows:?}");
    // PostgreSQL has nothing of that kind: partitions move no row with its id.
    if place.server() != Server::Postgres {
        let replace = place.pick([
            "REPLACE INTO people (uid, login) VALUES (1, 'c')",
            "",
            "PRAGMA recursive_triggers = on; REPLACE INTO people (uid, login) VALUES (1, 'c')",
        ]);
        client.run(replace).await?;
        let rows = noted(&mut database).await?;
        ensure!(shown(&rows) == ["D 1", "I 1"], "{rows:?}");
        // In SQLite nothing tells; without recursive triggers there is only one note.
        let known = place.server() == Server::MySql;
        ensure!(
            rows[1].is_of_one_statement_with(&rows[0]) == known,
            "{rows:?}"
        );
    }
    client
        .run("BEGIN; DELETE FROM people WHERE uid = 1; INSERT INTO people (uid) VALUES (1); COMMIT")
        .await?;
    let rows = noted(&mut database).await?;
    ensure!(shown(&rows) == ["D 1", "I 1"], "{rows:?}");
    ensure!(!rows[1].is_of_one_statement_with(&rows[0]), "{rows:?}");
    client.run("DELETE FROM people WHERE uid = 1").await?;
    client.run("INSERT INTO people (uid) VALUES (1)").await?;
    let rows = noted(&mut database).await?;
    ensure!(!rows[1].is_of_one_statement_with(&rows[0]), "{rows:?}");
    place.clean(&config).await
}

/// Whatever the application does to columns that are mapped, its own writes never fail over a trigger.
async fn nothing_in_a_trigger_can_fail(place: &Place) -> Result<()> {
    let (config, mut database) = people(place).await?;
    let mut client = place.client().await?;
    client
        .run("ALTER TABLE people RENAME COLUMN login TO log_in")
        .await?;
    client
        .run("INSERT INTO people (uid, log_in) VALUES (1, 'ann')")
        .await?;
    client.run("UPDATE people SET log_in = 'bob'").await?;
    client.run("ALTER TABLE people DROP COLUMN state").await?;
    client.run("UPDATE people SET log_in = 'eve'").await?;
    let error = refusal(database.layout(false).await)?;
    ensure!(error.contains("has no column `login`"), "{error}");
    client
        .run("ALTER TABLE people RENAME COLUMN log_in TO login; ALTER TABLE people ADD COLUMN state VARCHAR(20)")
        .await?;
    let rows = noted(&mut database).await?;
    ensure!(shown(&rows) == ["I 1", "U 1", "U 1"], "{rows:?}");
    if place.server() == Server::MySql {
        // The settings of the writer's session don't matter, nor what a column shows beside its value.
        client.run("ALTER TABLE people MODIFY uid INT(8) UNSIGNED ZEROFILL NOT NULL, ADD twice VARCHAR(250) AS (CONCAT(login, login)) VIRTUAL").await?;
        client.run("SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ZERO_DATE,PAD_CHAR_TO_FULL_LENGTH,ANSI_QUOTES', time_zone = '+05:30', character_set_results = latin1").await?;
        client
            .run("INSERT INTO people (uid, login) VALUES (7, REPEAT('x', 100))")
            .await?;
        let wide = place.config(
            "people",
            "uid",
            &[("login", "username"), ("twice", "data.twice")],
        )?;
        client
            .run("UPDATE people SET login = 'ann' WHERE uid = 7")
            .await?;
        let mut wide = Database::connect(&wide).await?;
        let rows = noted(&mut wide).await?;
        ensure!(shown(&rows) == ["I 7", "U 7"], "{rows:?}");
        let layout = wide.layout(false).await?;
        let found = wide.users(&layout, &["7".to_owned()]).await?;
        ensure!(found.len() == 1 && found[0].id == "7", "{found:?}");
        let document: serde_json::Value = serde_json::from_slice(
            found[0]
                .document
                .as_ref()
                .map_err(|why| anyhow::anyhow!("{why}"))?,
        )?;
        ensure!(
            document["user_id"] == 7 && document["data"]["twice"] == "annann",
            "{document}"
        );
        client
            .run("UPDATE people SET login = 'bob' WHERE uid = 7")
            .await?;
        let waiting = wide
            .waiting(&layout, &["7".to_owned(), "8".to_owned()])
            .await?;
        ensure!(waiting == ["7"], "{waiting:?}");
        client.run("SET SESSION sql_mode = ''").await?;
    }
    place.clean(&config).await
}

/// Rows with payloads, which older triggers and services write, are kept by an installation and told from notes.
async fn an_older_outbox_is_renewed_with_what_waits_in_it(place: &Place) -> Result<()> {
    let (config, mut database) = people(place).await?;
    let mut client = place.client().await?;
    let older = place.pick([
        "DROP TABLE user_outbox_about; ALTER TABLE user_outbox DROP COLUMN tx, MODIFY user_id VARCHAR(255) NOT NULL; \
         DROP TRIGGER user_outbox_insert; DROP TRIGGER user_outbox_update; DROP TRIGGER user_outbox_delete",
        "DROP TABLE user_outbox_about; ALTER TABLE user_outbox DROP COLUMN tx; DROP TRIGGER user_outbox ON people",
        "DROP TABLE user_outbox_about; DROP TRIGGER user_outbox_insert; DROP TRIGGER user_outbox_update; DROP TRIGGER user_outbox_rename; DROP TRIGGER user_outbox_delete",
    ]);
    client.run(older).await?;
    let write = r#"INSERT INTO user_outbox (user_id, event, payload) VALUES ('1', 'user.created', '{"user_id": 1}')"#;
    client.run(write).await?;
    ensure!(database.about().await?.is_none());
    ensure!(!database.standing().await?.installed);
    let before = database.unpublished(10).await?;
    ensure!(
        before.len() == 1 && before[0].payload.is_some(),
        "{before:?}"
    );
    database.install(false).await?;
    let about = database.about().await?.context("no epoch")?;
    ensure!(
        about.first > before[0].id && about.epoch.len() >= 32,
        "{about:?}"
    );
    client.run("INSERT INTO people (uid) VALUES (1)").await?;
    client.run(write).await?;
    client
        .run("INSERT INTO user_outbox (user_id, event) VALUES ('1', 'user.updated')")
        .await?;
    let rows = database.unpublished(10).await?;
    ensure!(
        shown(&rows) == ["user.created 1", "I 1", "user.created 1", "user.updated 1"],
        "{rows:?}"
    );
    let payloads: Vec<bool> = rows.iter().map(|row| row.payload.is_some()).collect();
    ensure!(payloads == [true, false, true, false], "{rows:?}");
    ensure!(rows[1].id >= about.first, "{rows:?}");
    // Installing again leaves the epoch, unless another is asked for.
    database.install(false).await?;
    ensure!(database.about().await?.as_ref() == Some(&about));
    database.install_with(false, true).await?;
    let newer = database.about().await?.context("no epoch")?;
    ensure!(newer.epoch != about.epoch, "{newer:?}");
    database.approve().await?;
    let approved = database.about().await?.context("no epoch")?;
    ensure!(approved.approved == rows[3].id, "{approved:?}");
    // What a newer program wrote is read by nobody else, nor overwritten.
    client
        .run("UPDATE user_outbox_about SET format = 3")
        .await?;
    for refused in [
        database.about().await.err(),
        database.install(false).await.err(),
    ] {
        let said = refused.context("it is read")?.to_string();
        ensure!(
            said.contains("format 3, but this program reads up to 2: upgrade it"),
            "{said}"
        );
    }
    place.clean(&config).await
}

async fn a_transaction_that_commits_late_is_not_missed(place: &Place) -> Result<()> {
    let (config, mut database) = people(place).await?;
    let (mut slow, mut quick) = (place.client().await?, place.client().await?);
    // SQLite has one writer at a time: nobody can commit meanwhile.
    if place.server() == Server::Sqlite {
        slow.run("BEGIN; INSERT INTO people (uid) VALUES (1)")
            .await?;
        ensure!(noted(&mut database).await?.is_empty());
        slow.run("COMMIT").await?;
        ensure!(noted(&mut database).await?.len() == 1);
        return place.clean(&config).await;
    }
    slow.run("BEGIN; INSERT INTO people (uid) VALUES (1)")
        .await?;
    quick.run("INSERT INTO people (uid) VALUES (2)").await?;
    let first = noted(&mut database).await?;
    ensure!(shown(&first) == ["I 2"], "{first:?}");
    slow.run("COMMIT").await?;
    let second = noted(&mut database).await?;
    ensure!(shown(&second) == ["I 1"], "{second:?}");
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
    noted(&mut database).await?;
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
        let rows = noted(&mut database).await?;
        ensure!(rows.len() == 2 && rows[0].id < rows[1].id, "{rows:?}");
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
    ensure!(noted(&mut database).await?.is_empty());
    client.run("UPDATE people SET login = 'd'").await?;
    ensure!(shown(&noted(&mut database).await?) == ["U 3"]);
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
    let rows = noted(&mut database).await?;
    ensure!(shown(&rows) == ["I 1", "U 1"], "{rows:?}");
    let read = documents(&mut wide).await?;
    ensure!(read[0]["data"] == json!({"secret": "d"}), "{read:?}");

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
    let first = noted(&mut database).await?[0].id;
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?;
    ensure!((now - first).abs() < 60_000_000, "{first} at {now}");
    database.uninstall(true).await?;
    // A coarse clock must have moved on.
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    database.install(false).await?;
    client.run("INSERT INTO people (uid) VALUES (2)").await?;
    ensure!(noted(&mut database).await?[0].id > first);
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
            "has no column `id` (the id) that this login can see; it has uid, login, twice",
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
    let none = i64::MIN;
    ensure!(
        database.prune(none, 10).await? == 0,
        "nothing is an hour old"
    );
    config.relay.retention = std::time::Duration::ZERO;
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    let mut strict = Database::connect(&config).await?;
    let kept = rows[2].id;
    ensure!(strict.prune(kept, 10).await? == 1);
    ensure!(strict.prune(kept, 10).await? == 0, "it stays");
    ensure!(strict.prune(none, 1).await? == 1);
    ensure!(database.unpublished(10).await?.len() == 2);
    place.clean(&config).await
}

async fn a_row_is_known_again(place: &Place) -> Result<()> {
    let (config, mut database) = people(place).await?;
    let mut client = place.client().await?;
    ensure!(database.last_published().await?.is_none());
    for user in 1..=3 {
        let came = format!("INSERT INTO people (uid) VALUES ({user})");
        client.run(&came).await?;
    }
    let rows = database.unpublished(10).await?;
    database.mark_published(&[rows[1].id, rows[0].id]).await?;
    let last = database.last_published().await?;
    ensure!(last == Some(rows[1].stamp()), "{last:?}");
    for row in &rows {
        ensure!(!database.has_lost(&row.stamp()).await?, "{row:?}");
    }
    let other = Stamp {
        created_us: rows[0].created_us - 1_000_000,
        ..rows[0].stamp()
    };
    ensure!(database.has_lost(&other).await?, "written at another time");
    let other = Stamp {
        event: "D".to_owned(),
        ..rows[0].stamp()
    };
    ensure!(database.has_lost(&other).await?, "another event");
    client.run("DELETE FROM user_outbox").await?;
    ensure!(database.has_lost(&rows[0].stamp()).await?, "deleted");
    place.clean(&config).await
}

async fn what_failed_and_who_was_deleted_is_remembered(place: &Place) -> Result<()> {
    let (config, mut database) = people(place).await?;
    let mut client = place.client().await?;
    for user in 1..=4 {
        let came = format!("INSERT INTO people (uid) VALUES ({user})");
        client.run(&came).await?;
    }
    for user in 1..=3 {
        let went = format!("DELETE FROM people WHERE uid = {user}");
        client.run(&went).await?;
    }
    client.run("INSERT INTO people (uid) VALUES (2)").await?;
    let rows = database.unpublished(20).await?;
    let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
    // Of user 3 it isn't published, user 2 came back.
    let of_three = rows.iter().rposition(|row| row.user == "3");
    let of_three = ids[of_three.context("no note of user 3")?];
    let published: Vec<i64> = ids.iter().copied().filter(|id| *id != of_three).collect();
    database.mark_published(&published).await?;
    let hour = std::time::Duration::from_secs(3_600);
    let gone = database.gone_within(hour, 0).await?;
    ensure!(
        gone.len() == 1 && gone[0].0 == "1" && gone[0].1.as_secs() < 60,
        "{gone:?}"
    );
    ensure!(database.gone_within(hour, i64::MAX).await?.is_empty());
    let failure = Failure {
        id: of_three,
        reason: "no idea".to_owned(),
    };
    database.mark_failed(&[failure]).await?;
    let failed = database.failed_notes(i64::MIN).await?;
    ensure!(shown(&failed) == ["D 3"], "{failed:?}");
    ensure!(database.failed_notes(of_three).await?.is_empty());
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
