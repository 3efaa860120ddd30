//! Triggers: how they are made and renewed, whether they are seen to work, and what they say in odd cases.

use anyhow::{Context as _, Result, bail, ensure};
use usersync_source::{Database, Server, SourceConfig, Watched};

use crate::place::{Client, Place, noted, shown};

const PEOPLE: &str = "CREATE TABLE people (uid BIGINT PRIMARY KEY, login VARCHAR(100))";
const COLUMNS: &[(&str, &str)] = &[("login", "username")];

async fn people(place: &Place) -> Result<(SourceConfig, Database)> {
    place.client().await?.run(PEOPLE).await?;
    let config = place.config("people", "uid", COLUMNS)?;
    let mut database = Database::connect(&config).await?;
    database.install(false).await?;
    Ok((config, database))
}

/// The same source for another user of the server.
fn seen_by(config: &SourceConfig, user: &str) -> Result<SourceConfig> {
    let mut config = config.clone();
    let named = config.url.set_username(user);
    named.map_err(|()| anyhow::anyhow!("no user in the url"))?;
    Ok(config)
}

async fn mysql_and_mariadb() -> Result<Vec<Place>> {
    let mut places = vec![Place::mariadb().await?];
    if !usersync_stack::MySqlServer::is_left_out()? {
        places.push(Place::mysql().await?);
    }
    Ok(places)
}

async fn postgres_of_each_version() -> Result<Vec<Place>> {
    let mut places = vec![Place::postgres().await?];
    if !usersync_stack::PostgresServer::newest_is_left_out()? {
        places.push(Place::newest_postgres().await?);
    }
    Ok(places)
}

async fn is_broken(database: &mut Database, why: &str) -> Result<()> {
    match database.watch().await? {
        Watched::Broken(said) if said.contains(why) => Ok(()),
        other => bail!("expected {why}, not {other:?}"),
    }
}

async fn is_good(database: &mut Database) -> Result<()> {
    let watched = database.watch().await?;
    ensure!(watched == Watched::Good, "{watched:?}");
    Ok(())
}

#[tokio::test]
async fn a_renewal_that_the_server_refuses_leaves_the_triggers_that_are_there() -> Result<()> {
    if usersync_stack::MySqlServer::is_left_out()? {
        return Ok(());
    }
    let place = Place::mysql().await?;
    let (config, mut database) = people(&place).await?;
    // With a binary log, whoever isn't SUPER may drop triggers and make none.
    place
        .root()
        .await?
        .run("CREATE USER 'installer'@'%' IDENTIFIED BY 'of-a-test'; GRANT ALL ON users.* TO 'installer'@'%'; \
              SET GLOBAL log_bin_trust_function_creators = 0")
        .await?;
    let limited = seen_by(&config, "installer")?;
    let mut limited = Database::connect(&limited).await?;
    for new_epoch in [false, true] {
        let before = database.about().await?;
        let refused = limited.install_with(false, new_epoch).await.err();
        let said = refused.context("it is renewed")?.to_string();
        ensure!(said.contains("SUPER"), "{said}");
        ensure!(database.about().await? == before, "another epoch began");
        ensure!(database.watch().await? == Watched::Good);
        let mut client = place.client().await?;
        client
            .run("INSERT INTO people VALUES (1, 'a'); UPDATE people SET login = 'b'; DELETE FROM people")
            .await?;
        let rows = noted(&mut database).await?;
        ensure!(shown(&rows) == ["I 1", "U 1", "D 1"], "{rows:?}");
        let left =
            "SELECT COUNT(*) FROM information_schema.triggers WHERE trigger_schema = 'users'";
        ensure!(client.number(left).await? == 4, "some stand in");
    }
    place.clean(&config).await
}

#[tokio::test]
async fn an_account_that_is_gone_is_seen_to_make_writes_fail_and_another_takes_over() -> Result<()>
{
    for place in mysql_and_mariadb().await? {
        let mut root = place.root().await?;
        root.run(
            "SET GLOBAL log_bin_trust_function_creators = 1; \
             CREATE USER 'installer'@'%' IDENTIFIED BY 'of-a-test'; GRANT ALL ON users.* TO 'installer'@'%'; \
             CREATE USER 'relay'@'%' IDENTIFIED BY 'of-a-test'",
        )
        .await?;
        let mut client = place.client().await?;
        client.run(PEOPLE).await?;
        let config = place.config("people", "uid", COLUMNS)?;
        let mut installer = Database::connect(&seen_by(&config, "installer")?).await?;
        installer.install(false).await?;
        const RIGHTS: &str = "GRANT SELECT, UPDATE, DELETE ON users.user_outbox TO 'relay'@'%'; \
             GRANT SELECT ON users.user_outbox_about TO 'relay'@'%'; GRANT SELECT ON users.people TO 'relay'@'%'; \
             GRANT EXECUTE ON FUNCTION users.user_outbox_trigger TO 'relay'@'%'";
        root.run(RIGHTS).await?;
        let mut relay = Database::connect(&seen_by(&config, "relay")?).await?;
        let mut database = Database::connect(&config).await?;
        is_good(&mut relay).await?;

        root.run("DROP USER 'installer'@'%'").await?;
        let refused = client.run("INSERT INTO people VALUES (1, 'a')").await.err();
        refused.context("the server lets it pass")?;
        for database in [&mut relay, &mut database] {
            is_broken(database, "every write to `people` fails").await?;
            ensure!(!database.standing().await?.installed);
        }
        // As OUTBOX.md has the rights.
        root.run(
            "CREATE USER 'second'@'%' IDENTIFIED BY 'of-a-test'; GRANT CREATE, DROP, ALTER, TRIGGER, LOCK TABLES, SELECT, INSERT, DELETE, \
             CREATE ROUTINE, ALTER ROUTINE, EXECUTE ON users.* TO 'second'@'%'",
        )
        .await?;
        let mut second = Database::connect(&seen_by(&config, "second")?).await?;
        let plan = second.install(false).await?;
        let remark = plan
            .remarks
            .iter()
            .any(|said| said.contains("GRANT EXECUTE"));
        ensure!(remark, "{:?}", plan.remarks);
        client.run("INSERT INTO people VALUES (1, 'a')").await?;
        ensure!(shown(&noted(&mut database).await?) == ["I 1"]);
        root.run(RIGHTS).await?;
        is_good(&mut relay).await?;
        is_good(&mut database).await?;
    }
    Ok(())
}

#[tokio::test]
async fn whoever_relays_sees_how_triggers_are_with_the_least_rights() -> Result<()> {
    for place in mysql_and_mariadb().await? {
        let (config, mut database) = people(&place).await?;
        let mut root = place.root().await?;
        root.run(
            "CREATE USER 'relay'@'%' IDENTIFIED BY 'of-a-test'; \
             GRANT SELECT, UPDATE, DELETE ON users.user_outbox TO 'relay'@'%'; \
             GRANT SELECT ON users.user_outbox_about TO 'relay'@'%'; GRANT SELECT (uid, login) ON users.people TO 'relay'@'%'",
        )
        .await?;
        let mut relay = Database::connect(&seen_by(&config, "relay")?).await?;
        match relay.watch().await? {
            Watched::Unknown(why) => ensure!(why.contains("GRANT EXECUTE"), "{why}"),
            other => bail!("{other:?}"),
        }
        ensure!(
            relay.standing().await?.installed,
            "it isn't known to be broken"
        );
        // As the service's own account, which may write to the table.
        root.run("GRANT SELECT, INSERT, UPDATE, DELETE ON users.* TO 'relay'@'%'")
            .await?;
        let mut relay = Database::connect(&seen_by(&config, "relay")?).await?;
        ensure!(matches!(relay.watch().await?, Watched::Unknown(_)));
        root.run("GRANT EXECUTE ON FUNCTION users.user_outbox_trigger TO 'relay'@'%'")
            .await?;
        is_good(&mut relay).await?;
        let mut client = place.client().await?;
        client.run("DROP TRIGGER user_outbox_update").await?;
        is_broken(&mut relay, "there is no trigger user_outbox_update").await?;
        database.install(false).await?;
        is_good(&mut relay).await?;
        // Older ones go on, and that is said.
        client
            .run("DROP TRIGGER user_outbox_update; CREATE TRIGGER user_outbox_update AFTER UPDATE ON people FOR EACH ROW \
                  INSERT INTO user_outbox (user_id, event) VALUES (NEW.uid, 'U')")
            .await?;
        ensure!(matches!(relay.watch().await?, Watched::Older(_)));
        database.install(false).await?;
        // As gh-ost and pt-online-schema-change do it.
        client
            .run("CREATE TABLE _people_new LIKE people; RENAME TABLE people TO _people_old, _people_new TO people")
            .await?;
        is_broken(&mut relay, "is on `_people_old`: the table was swapped").await?;
        let refused = database.install(false).await.err().context("installed")?;
        ensure!(refused.to_string().contains("gh-ost"), "{refused}");
        client.run("DROP TABLE _people_old").await?;
        is_broken(&mut relay, "there is no trigger user_outbox_insert").await?;
        // Whoever may make triggers needs no function to know that there are none.
        client.run("DROP FUNCTION user_outbox_trigger").await?;
        is_broken(&mut database, "there is no trigger user_outbox_insert").await?;
        ensure!(!database.standing().await?.installed, "it is installed");
        database.install(false).await?;
        is_good(&mut database).await?;
        place.clean(&config).await?;
    }
    Ok(())
}

/// As the restore of a dump does, and many a tool.
#[tokio::test]
async fn whoever_has_locked_the_table_writes() -> Result<()> {
    for place in mysql_and_mariadb().await? {
        let (_, mut database) = people(&place).await?;
        let mut client = place.client().await?;
        client
            .run("INSERT INTO people (uid, login) VALUES (1, 'a'), (2, 'b'), (3, 'c')")
            .await?;
        ensure!(shown(&noted(&mut database).await?) == ["I 1", "I 2", "I 3"]);
        for (write, notes) in [
            (
                "INSERT INTO people (uid, login) VALUES (4, 'd')",
                vec!["I 4"],
            ),
            (
                "REPLACE INTO people (uid, login) VALUES (4, 'e')",
                vec!["D 4", "I 4"],
            ),
            (
                "INSERT INTO people (uid, login) VALUES (4, 'f') ON DUPLICATE KEY UPDATE login = 'g'",
                vec!["U 4"],
            ),
            (
                "UPDATE people SET login = 'h' WHERE uid < 3",
                vec!["U 1", "U 2"],
            ),
            (
                "UPDATE people SET uid = 5 WHERE uid = 4",
                vec!["D 4", "I 5"],
            ),
            ("DELETE FROM people WHERE uid = 5", vec!["D 5"]),
            (
                "INSERT INTO people (uid, login) SELECT uid + 10, login FROM (SELECT 1 uid, 'x' login) one",
                vec!["I 11"],
            ),
        ] {
            // So many open instances of the table are in the server's cache.
            let all: Vec<_> = (0..8).map(|n| format!("user_outbox o{n}")).collect();
            client
                .run(&format!("SELECT * FROM {} LIMIT 1", all.join(", ")))
                .await?;
            let mut locked = place.client().await?;
            locked.run("LOCK TABLES people WRITE").await?;
            locked.run(write).await.with_context(|| write.to_owned())?;
            locked.run("UNLOCK TABLES").await?;
            let noted = shown(&noted(&mut database).await?);
            ensure!(noted == notes, "{write}: {noted:?}");
        }
    }
    Ok(())
}

const SEE: &str = "GRANT EXECUTE ON FUNCTION users.user_outbox_trigger TO 'relay'@'%'";

/// A dump leaves procedures out unless it is told not to.
#[tokio::test]
async fn a_procedure_that_is_gone_is_seen_and_no_write_fails() -> Result<()> {
    for place in mysql_and_mariadb().await? {
        let (config, mut database) = people(&place).await?;
        let mut root = place.root().await?;
        // MySQL has none.
        if root.number("SELECT VERSION() NOT LIKE '%MariaDB%'").await? == 1 {
            continue;
        }
        root.run(
            "CREATE USER 'relay'@'%' IDENTIFIED BY 'of-a-test'; \
             GRANT SELECT, UPDATE, DELETE ON users.user_outbox TO 'relay'@'%'; \
             GRANT SELECT ON users.user_outbox_about TO 'relay'@'%'; GRANT SELECT ON users.people TO 'relay'@'%'",
        )
        .await?;
        root.run(SEE).await?;
        let mut relay = Database::connect(&seen_by(&config, "relay")?).await?;
        is_good(&mut relay).await?;
        let mut client = place.client().await?;
        for gone in [
            "DROP PROCEDURE users.user_outbox_note",
            // As after the restore of a dump.
            "DROP PROCEDURE users.user_outbox_note; DROP FUNCTION users.user_outbox_trigger",
        ] {
            root.run(gone).await?;
            client
                .run("INSERT INTO people (uid, login) VALUES (1, 'a'); DELETE FROM people")
                .await?;
            // Who may see nothing else can't tell one that is gone from one that isn't theirs.
            match gone.contains("FUNCTION") {
                true => ensure!(matches!(relay.watch().await?, Watched::Unknown(_))),
                false => is_broken(&mut relay, "there is no procedure user_outbox_note").await?,
            }
            ensure!(!database.standing().await?.installed);
            is_broken(&mut database, "there is no procedure user_outbox_note").await?;
            database.install(false).await?;
            root.run(SEE).await?;
            is_good(&mut relay).await?;
        }
        client
            .run("INSERT INTO people (uid, login) VALUES (2, 'b')")
            .await?;
        ensure!(shown(&noted(&mut database).await?) == ["I 2"]);
    }
    Ok(())
}

#[tokio::test]
async fn an_id_that_a_session_has_asked_for_is_not_the_notes() -> Result<()> {
    for place in mysql_and_mariadb().await? {
        let (config, mut database) = people(&place).await?;
        let first = database.about().await?.context("no epoch")?.first;
        let mut client = place.client().await?;
        for (id, statement) in [
            (5, "INSERT INTO people VALUES (1, 'a')"),
            (5, "UPDATE people SET login = 'b'"),
            (5, "UPDATE people SET uid = 2"),
            (5, "DELETE FROM people"),
            (5, "INSERT INTO people VALUES (3, 'a'), (4, 'a')"),
        ] {
            client
                .run(&format!("SET insert_id = {id}; {statement}"))
                .await
                .with_context(|| format!("insert_id = {id}"))?;
        }
        let rows = noted(&mut database).await?;
        let expected = ["I 1", "U 1", "D 1", "I 2", "D 2", "I 3", "I 4"];
        ensure!(shown(&rows) == expected, "{rows:?}");
        ensure!(rows.iter().all(|row| row.id >= first), "{rows:?}");
        // Nor one of a note that is there.
        let taken = rows[3].id;
        client
            .run(&format!(
                "SET insert_id = {taken}; UPDATE people SET login = 'z' WHERE uid = 3"
            ))
            .await?;
        let rows = noted(&mut database).await?;
        ensure!(shown(&rows) == ["U 3"] && rows[0].id > taken, "{rows:?}");
        // Nor do the largest leave none for those who come later.
        for id in [
            "9223372036854775806",
            "9223372036854775807",
            "18446744073709551614",
        ] {
            for login in ["x", "y"] {
                client
                    .run(&format!(
                        "SET insert_id = {id}; UPDATE people SET login = '{login}' WHERE uid = 3"
                    ))
                    .await
                    .with_context(|| format!("insert_id = {id}"))?;
            }
        }
        client
            .run("UPDATE people SET login = 'w' WHERE uid = 3")
            .await?;
        let rows = noted(&mut database).await?;
        ensure!(shown(&rows) == ["U 3"; 7], "{rows:?}");
        ensure!(rows[6].id < taken + 1_000, "{rows:?}");
        let kept = client.number("SELECT COUNT(*) FROM user_outbox").await?;
        ensure!(kept == 15, "{kept} notes");
        let spent = client
            .number("SELECT COUNT(*) FROM user_outbox_spent")
            .await?;
        ensure!(spent == 0, "{spent} ids are kept");
        // Whatever a session takes for the row under way.
        for (user, row) in [
            "18446744073709551615",
            "-1",
            "'abc'",
            "1e300",
            "999999999999999999",
        ]
        .iter()
        .enumerate()
        {
            client
                .run(&format!(
                    "SET @usersync_row = {row}; INSERT INTO people VALUES ({}, 'a')",
                    100 + user
                ))
                .await
                .with_context(|| format!("@usersync_row = {row}"))?;
        }
        place.clean(&config).await?;
    }
    Ok(())
}

#[tokio::test]
async fn whoever_renames_the_column_of_the_id_goes_on_writing() -> Result<()> {
    for place in mysql_and_mariadb().await? {
        let (config, mut database) = people(&place).await?;
        let mut client = place.client().await?;
        client.run("INSERT INTO people VALUES (1, 'a')").await?;
        client
            .run("ALTER TABLE people RENAME COLUMN uid TO number")
            .await?;
        client
            .run("INSERT INTO people VALUES (2, 'a'); UPDATE people SET login = 'b'; REPLACE INTO people VALUES (2, 'c'); \
                  UPDATE people SET number = 3 WHERE number = 2; DELETE FROM people WHERE number = 3")
            .await?;
        is_broken(&mut database, "it has no column `uid`").await?;
        client
            .run("ALTER TABLE people RENAME COLUMN number TO uid; UPDATE people SET login = 'd'")
            .await?;
        ensure!(database.watch().await? == Watched::Good);
        let rows = noted(&mut database).await?;
        ensure!(shown(&rows) == ["I 1", "U 1"], "{rows:?}");
        place.clean(&config).await?;
    }
    Ok(())
}

/// A row is looked for by the column that the settings name: by another than the triggers note it would be somebody else's.
#[tokio::test]
async fn triggers_that_note_another_column_than_the_settings_name_are_seen() -> Result<()> {
    let mut places = mysql_and_mariadb().await?;
    places.extend([Place::postgres().await?, Place::sqlite()?]);
    for place in places {
        let (config, mut database) = people(&place).await?;
        let mut client = place.client().await?;
        client
            .run(
                "ALTER TABLE people ADD legacy INT; CREATE UNIQUE INDEX by_legacy ON people (legacy)",
            )
            .await?;
        is_good(&mut database).await?;
        let mut other = config.clone();
        other.id = "legacy".to_owned();
        let mut relay = Database::connect(&other).await?;
        for refused in [relay.watch().await.err(), relay.readable().await.err()] {
            let refused = refused.context("it is read")?.to_string();
            ensure!(
                refused.contains("it notes another column than `legacy`"),
                "{refused}"
            );
        }
        ensure!(
            !relay.standing().await?.installed,
            "it is taken for installed"
        );
        relay.install(false).await?;
        is_good(&mut relay).await?;
        let refused = database
            .readable()
            .await
            .err()
            .context("it is read")?
            .to_string();
        ensure!(
            refused.contains("it notes another column than `uid`"),
            "{refused}"
        );
        place.clean(&config).await?;
    }
    Ok(())
}

#[tokio::test]
async fn two_statements_are_two_however_they_are_sent() -> Result<()> {
    for place in mysql_and_mariadb().await? {
        let (config, mut database) = people(&place).await?;
        let mut client = place.client().await?;
        client.run("INSERT INTO people VALUES (1, 'a')").await?;
        // The time stands still, and a statement fails half way.
        client
            .run("SET timestamp = 1700000000; INSERT IGNORE INTO people VALUES (1, 'x'); DELETE FROM people WHERE uid = 1; \
                  INSERT INTO people VALUES (1, 'b'); REPLACE INTO people VALUES (1, 'c')")
            .await?;
        let mut root = place.root().await?;
        root.run(
            "CREATE FUNCTION anew() RETURNS INT DETERMINISTIC MODIFIES SQL DATA BEGIN \
             DELETE FROM people WHERE uid = 1; INSERT INTO people VALUES (1, 'd'); RETURN 1; END",
        )
        .await?;
        client.run("SELECT anew()").await?;
        client.run("DROP FUNCTION anew").await?;
        let rows = noted(&mut database).await?;
        let expected = ["I 1", "D 1", "I 1", "D 1", "I 1", "D 1", "I 1"];
        ensure!(shown(&rows) == expected, "{rows:?}");
        let one = |at: usize| rows[at].is_of_one_statement_with(&rows[at - 1]);
        ensure!([one(2), one(4), one(6)] == [false, true, false], "{rows:?}");
        place.clean(&config).await?;
    }
    let place = Place::postgres().await?;
    let (config, mut database) = people(&place).await?;
    let mut client = place.client().await?;
    client
        .run(
            "CREATE FUNCTION anew() RETURNS void LANGUAGE sql AS \
              'DELETE FROM people WHERE uid = 1; INSERT INTO people VALUES (1)'",
        )
        .await?;
    for sent in [
        "DO 'BEGIN DELETE FROM people WHERE uid = 1; INSERT INTO people VALUES (1); END'",
        "SELECT anew()",
        "BEGIN; DELETE FROM people WHERE uid = 1; INSERT INTO people VALUES (1); COMMIT",
    ] {
        client.run("INSERT INTO people VALUES (1)").await?;
        noted(&mut database).await?;
        client.run(sent).await?;
        let rows = noted(&mut database).await?;
        ensure!(shown(&rows) == ["D 1", "I 1"], "{sent}: {rows:?}");
        ensure!(
            !rows[1].is_of_one_statement_with(&rows[0]),
            "{sent}: {rows:?}"
        );
        client.run("DELETE FROM people").await?;
    }
    client.run("DROP FUNCTION anew").await?;
    place.clean(&config).await
}

#[tokio::test]
async fn a_partitioned_table_has_one_outbox() -> Result<()> {
    for place in postgres_of_each_version().await? {
        partitions_have_one_outbox(&place).await?;
    }
    Ok(())
}

async fn partitions_have_one_outbox(place: &Place) -> Result<()> {
    let mut client = place.client().await?;
    client
        .run("CREATE TABLE people (uid BIGINT PRIMARY KEY, login VARCHAR(100)) PARTITION BY RANGE (uid); \
              CREATE TABLE people_1 PARTITION OF people FOR VALUES FROM (0) TO (100); \
              CREATE TABLE people_2 PARTITION OF people FOR VALUES FROM (100) TO (200)")
        .await?;
    let config = place.config("people", "uid", COLUMNS)?;
    let mut database = Database::connect(&config).await?;
    ensure!(!database.install(false).await?.again);
    ensure!(database.install(false).await?.again);
    ensure!(database.watch().await? == Watched::Good);
    client
        .run("INSERT INTO people VALUES (1, 'a'), (101, 'b'); UPDATE people SET uid = 102 WHERE uid = 1; \
              DELETE FROM people_2 WHERE uid = 101")
        .await?;
    let rows = noted(&mut database).await?;
    let expected = ["I 1", "I 101", "D 1", "I 102", "D 101"];
    ensure!(shown(&rows) == expected, "{rows:?}");
    client
        .run("ALTER TABLE people_1 DISABLE TRIGGER user_outbox")
        .await?;
    is_broken(&mut database, "it is disabled on `people_1`").await?;
    client
        .run("ALTER TABLE people_1 ENABLE TRIGGER user_outbox")
        .await?;
    place.clean(&config).await?;
    // Where a row can move with its id, no key is the id's alone, so it isn't taken.
    client
        .run("CREATE TABLE people (uid BIGINT, part INT, login TEXT, UNIQUE (uid, part)) PARTITION BY LIST (part)")
        .await?;
    let refused = Database::connect(&config).await?.install(false).await.err();
    ensure!(
        refused
            .context("installed")?
            .to_string()
            .contains("no unique key of its own")
    );
    client
        .run("DROP TABLE people; CREATE TABLE people (uid BIGINT PRIMARY KEY, login TEXT); CREATE TABLE vips () INHERITS (people)")
        .await?;
    let plan = Database::connect(&config).await?.install(false).await?;
    let told = plan
        .remarks
        .iter()
        .any(|said| said.starts_with("`vips` inherits"));
    ensure!(told, "{:?}", plan.remarks);
    client.run("DROP TABLE people CASCADE").await
}

#[tokio::test]
async fn triggers_that_are_off_in_postgres_are_seen() -> Result<()> {
    for place in postgres_of_each_version().await? {
        triggers_that_are_off_are_seen(&place).await?;
    }
    Ok(())
}

async fn triggers_that_are_off_are_seen(place: &Place) -> Result<()> {
    let (config, mut database) = people(place).await?;
    let mut client = place.client().await?;
    for (off, on, why) in [
        (
            "ALTER TABLE people DISABLE TRIGGER USER",
            "ALTER TABLE people ENABLE TRIGGER USER",
            "it is disabled on `people`",
        ),
        (
            "ALTER TABLE people DISABLE TRIGGER user_outbox_truncate",
            "ALTER TABLE people ENABLE TRIGGER user_outbox_truncate",
            "the trigger user_outbox_truncate: it is disabled on `people`",
        ),
        (
            "ALTER TABLE people ENABLE REPLICA TRIGGER user_outbox",
            "ALTER TABLE people ENABLE TRIGGER user_outbox",
            "it is disabled on `people`",
        ),
        (
            "CREATE ROLE loader; ALTER ROLE loader SET session_replication_role = 'replica'",
            "ALTER ROLE loader RESET ALL",
            "is `replica` for role loader",
        ),
        (
            "ALTER DATABASE postgres SET session_replication_role = 'replica'",
            "ALTER DATABASE postgres RESET session_replication_role",
            "is `replica` for this database",
        ),
        (
            "DROP TRIGGER user_outbox ON people",
            "",
            "there is no trigger user_outbox",
        ),
    ] {
        client.run(off).await?;
        is_broken(&mut database, why).await.with_context(|| off)?;
        match on {
            "" => drop(database.install(false).await?),
            on => client.run(on).await?,
        }
        ensure!(database.watch().await? == Watched::Good, "{on}");
    }
    // Where the tables are isn't what comes first.
    client
        .run("ALTER DATABASE postgres SET search_path = pg_catalog, public")
        .await?;
    let mut elsewhere = Database::connect(&config).await?;
    ensure!(elsewhere.watch().await? == Watched::Good);
    ensure!(elsewhere.standing().await?.installed);
    client
        .run("ALTER DATABASE postgres RESET search_path")
        .await?;
    client
        .run("ALTER TABLE people RENAME TO old; CREATE TABLE people (LIKE old INCLUDING ALL)")
        .await?;
    is_broken(&mut database, "is on `old`: the table was swapped").await?;
    client.run("DROP TABLE old").await?;
    is_broken(&mut database, "there is no trigger").await?;
    place.clean(&config).await
}

#[tokio::test]
async fn no_change_of_a_table_in_postgres_makes_a_write_fail() -> Result<()> {
    for place in postgres_of_each_version().await? {
        no_change_makes_a_write_fail(&place).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_change_can_be_prepared_where_the_server_prepares_any() -> Result<()> {
    let mut place = Place::postgres().await?;
    let mut client = place.client().await?;
    client
        .run("ALTER SYSTEM SET max_prepared_transactions = 5")
        .await?;
    drop(client);
    place.restart_postgres().await?;
    let (config, mut database) = people(&place).await?;
    let mut client = place.client().await?;
    client
        .run("BEGIN; INSERT INTO people VALUES (1, 'a'); PREPARE TRANSACTION 'one'")
        .await?;
    ensure!(noted(&mut database).await?.is_empty());
    client.run("COMMIT PREPARED 'one'").await?;
    ensure!(shown(&noted(&mut database).await?) == ["I 1"]);
    place.clean(&config).await
}

#[tokio::test]
async fn a_note_of_no_time_holds_nobody_up() -> Result<()> {
    for place in postgres_of_each_version().await? {
        let (config, mut database) = people(&place).await?;
        let mut client = place.client().await?;
        for time in ["infinity", "-infinity", "0044-01-01 BC", "200000-01-01"] {
            client
                .run(&format!("INSERT INTO user_outbox (user_id, event, created_at) VALUES ('1', 'U', '{time}')"))
                .await?;
        }
        let rows = database.unpublished(10).await?;
        ensure!(rows.len() == 4, "{rows:?}");
        let possible = 0..253_402_300_800_000_000;
        ensure!(
            rows.iter().all(|row| possible.contains(&row.created_us)),
            "{rows:?}"
        );
        database.lag().await?;
        place.clean(&config).await?;
    }
    Ok(())
}

async fn no_change_makes_a_write_fail(place: &Place) -> Result<()> {
    let (config, mut database) = people(place).await?;
    let mut client = place.client().await?;
    client.run("INSERT INTO people VALUES (1, 'a')").await?;
    // In a session that knows the type.
    client
        .run("ALTER TABLE people ALTER uid TYPE numeric")
        .await?;
    client
        .run("INSERT INTO people VALUES (2, 'a'); UPDATE people SET login = 'b' WHERE uid = 1")
        .await?;
    client
        .run("ALTER TABLE people ALTER uid TYPE int; ALTER TABLE people RENAME uid TO number")
        .await?;
    client
        .run("INSERT INTO people VALUES (3, 'a'); UPDATE people SET login = 'c' WHERE number = 3; DELETE FROM people WHERE number = 3")
        .await?;
    client
        .run("ALTER TABLE people RENAME number TO uid")
        .await?;
    let rows = noted(&mut database).await?;
    let expected = ["I 1", "I 2", "U 1", "I 3", "U 3", "D 3"];
    ensure!(shown(&rows) == expected, "{rows:?}");
    client.run("TRUNCATE people").await?;
    let rows = noted(&mut database).await?;
    let mut said = shown(&rows);
    said.sort();
    ensure!(said == ["D 1", "D 2"], "{rows:?}");
    client.run("INSERT INTO people VALUES (4, 'a'); ALTER TABLE people RENAME uid TO number; TRUNCATE people").await?;
    client
        .run("ALTER TABLE people RENAME number TO uid")
        .await?;
    let rows = noted(&mut database).await?;
    ensure!(shown(&rows) == ["I 4", "D 4"], "{rows:?}");
    place.clean(&config).await
}

async fn odd_names_are_taken(place: &Place) -> Result<()> {
    let mut client: Client = place.client().await?;
    let quoted = |name: &str| match place.server() {
        Server::MySql => format!("`{}`", name.replace('`', "``")),
        _ => format!("\"{}\"", name.replace('"', "\"\"")),
    };
    for (table, id, login) in [
        ("My Users", "User ID", "Log In"),
        ("100%s 'People'", "it's", "a`b\"c"),
        ("SELECT", "order", "group"),
    ] {
        let (table_quoted, id_quoted, login_quoted) = (quoted(table), quoted(id), quoted(login));
        client
            .run(&format!(
                "CREATE TABLE {table_quoted} ({id_quoted} BIGINT PRIMARY KEY, {login_quoted} VARCHAR(9))"
            ))
            .await?;
        let config = place.config(table, id, &[(login, "username")])?;
        let mut database = Database::connect(&config).await?;
        database.install(false).await?;
        database.install(false).await?;
        ensure!(database.watch().await? == Watched::Good, "{table}");
        client
            .run(&format!(
                "INSERT INTO {table_quoted} VALUES (1, 'a'); UPDATE {table_quoted} SET {login_quoted} = 'b'; DELETE FROM {table_quoted}"
            ))
            .await?;
        let rows = noted(&mut database).await?;
        ensure!(shown(&rows) == ["I 1", "U 1", "D 1"], "{table}: {rows:?}");
        if place.server() == Server::Postgres {
            client
                .run(&format!(
                    "INSERT INTO {table_quoted} VALUES (2, 'a'); TRUNCATE {table_quoted}"
                ))
                .await?;
            ensure!(
                shown(&noted(&mut database).await?) == ["I 2", "D 2"],
                "{table}"
            );
        }
        database.uninstall(true).await?;
        client.run(&format!("DROP TABLE {table_quoted}")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn odd_names_are_taken_everywhere() -> Result<()> {
    for place in mysql_and_mariadb().await? {
        odd_names_are_taken(&place).await?;
    }
    odd_names_are_taken(&Place::postgres().await?).await?;
    odd_names_are_taken(&Place::sqlite()?).await
}

#[tokio::test]
async fn odd_tables_of_mysql_and_mariadb_are_taken() -> Result<()> {
    for place in mysql_and_mariadb().await? {
        let mut client = place.client().await?;
        client
            .run("CREATE TABLE teams (id INT PRIMARY KEY)")
            .await?;
        let mut tables = vec![
            "CREATE TABLE people (uid BIGINT PRIMARY KEY, login VARCHAR(9), team INT, \
             CONSTRAINT of_team FOREIGN KEY (team) REFERENCES teams (id) ON DELETE CASCADE)",
        ];
        if place.is_mysql() {
            tables.extend([
                "CREATE TABLE people (uid BIGINT PRIMARY KEY, login VARCHAR(9), team INT, UNIQUE KEY ((lower(login))), UNIQUE KEY (team) INVISIBLE)",
                "CREATE TABLE people (uid BIGINT, login VARCHAR(9), team INT INVISIBLE, UNIQUE KEY (uid) INVISIBLE)",
            ]);
        } else {
            tables.extend([
                "CREATE TABLE people (uid BIGINT PRIMARY KEY, login VARCHAR(9), team INT) WITH SYSTEM VERSIONING",
                "CREATE TABLE people (uid BIGINT PRIMARY KEY, login VARCHAR(9), team INT, s TIMESTAMP(6) GENERATED ALWAYS AS ROW START, \
                 e TIMESTAMP(6) GENERATED ALWAYS AS ROW END, PERIOD FOR SYSTEM_TIME (s, e)) WITH SYSTEM VERSIONING",
                "CREATE TABLE people (uid BIGINT, login VARCHAR(9), team INT INVISIBLE, UNIQUE KEY (uid) IGNORED)",
            ]);
        }
        for (at, table) in tables.iter().enumerate() {
            client.run(table).await?;
            let config = place.config("people", "uid", COLUMNS)?;
            let mut database = Database::connect(&config).await?;
            let plan = database.install(false).await.with_context(|| *table)?;
            let said = plan.remarks.join("; ");
            ensure!(
                said.contains("of_team (ON DELETE CASCADE") == (at == 0),
                "{said}"
            );
            client
                .run("INSERT INTO people (uid, login) VALUES (1, 'a'); UPDATE people SET login = 'b'; DELETE FROM people")
                .await?;
            let rows = noted(&mut database).await?;
            ensure!(shown(&rows) == ["I 1", "U 1", "D 1"], "{table}: {rows:?}");
            place.clean(&config).await?;
        }
    }
    Ok(())
}
