//! Unique values that change hands: every user ends up with their own, whoever has them now.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use async_trait::async_trait;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, MySqlPool, PgPool, mysql::MySqlPoolOptions, postgres::PgPoolOptions};
use usersync_core::{event::Change, user_id::UserId};
use usersync_stack::{Directory, MariaDbServer, MySqlServer, PgBouncerServer, PostgresServer};
use usersync_targets::{Delivery, Failure, Meant, Others, Outcome, Skip, Target};

use crate::{
    clauses::is_delivered,
    deliveries::{data, deleted, disabled, email, partial, user},
    peer::open,
};

const SYNC: &str =
    "sync_deleted boolean NOT NULL DEFAULT false, sync_version bigint NOT NULL DEFAULT 0";

/// The newest of everybody, as a worker knows it; and who was written without being delivered.
#[derive(Default)]
struct States {
    newest: HashMap<UserId, Meant>,
    written: Mutex<Vec<UserId>>,
}

impl States {
    fn of(deliveries: &[Delivery]) -> Self {
        let mut states = Self::default();
        for delivery in deliveries {
            states.put(delivery.user_id.clone(), Meant::Told(delivery.clone()));
        }
        states
    }

    fn put(&mut self, user: UserId, meant: Meant) {
        self.newest.insert(user, meant);
    }
}

#[async_trait]
impl Others for States {
    async fn newest(&self, users: &[UserId]) -> Vec<Meant> {
        let newest = users.iter().map(|user| self.newest.get(user).cloned());
        newest
            .map(|meant| meant.unwrap_or(Meant::Unknown))
            .collect()
    }

    fn written(&self, mut users: Vec<UserId>) {
        self.written.lock().expect("a lock").append(&mut users);
    }
}

/// A real server, and clients that aren't ours.
enum Client {
    Postgres(PgPool, PostgresServer),
    MariaDb(MySqlPool, MariaDbServer),
    MySql(MySqlPool, MySqlServer),
}

struct Database {
    client: Client,
    /// What is between the target and the server.
    pooler: Option<PgBouncerServer>,
    dir: Directory,
}

impl Database {
    async fn postgres() -> Result<Self> {
        let dir = Directory::temporary()?;
        std::fs::write(dir.path().join("password"), PostgresServer::PASSWORD)?;
        let server = PostgresServer::start(dir.path()).await?;
        let pool = PgPoolOptions::new().max_connections(2);
        let pool = pool.connect(&server.url_with_password()).await?;
        Ok(Self {
            client: Client::Postgres(pool, server),
            pooler: None,
            dir,
        })
    }

    async fn mariadb() -> Result<Self> {
        let dir = Directory::temporary()?;
        std::fs::write(dir.path().join("password"), MariaDbServer::PASSWORD)?;
        let server = MariaDbServer::start(dir.path()).await?;
        let pool = MySqlPoolOptions::new().max_connections(2);
        let pool = pool.connect(&server.url_with_password()).await?;
        Ok(Self {
            client: Client::MariaDb(pool, server),
            pooler: None,
            dir,
        })
    }

    async fn mysql() -> Result<Self> {
        let dir = Directory::temporary()?;
        std::fs::write(dir.path().join("password"), MySqlServer::PASSWORD)?;
        let server = MySqlServer::start(dir.path()).await?;
        let pool = MySqlPoolOptions::new().max_connections(2);
        let pool = pool.connect(&server.url_with_password()).await?;
        Ok(Self {
            client: Client::MySql(pool, server),
            pooler: None,
            dir,
        })
    }

    /// PostgreSQL behind PgBouncer.
    async fn pooled() -> Result<Self> {
        let mut database = Self::postgres().await?;
        let Client::Postgres(_, server) = &database.client else {
            bail!("no PostgreSQL");
        };
        let pooler = PgBouncerServer::start(database.dir.path(), server, &[]).await?;
        database.pooler = Some(pooler);
        Ok(database)
    }

    /// The servers that are on this machine.
    async fn all() -> Result<Vec<Self>> {
        let mut all = vec![Self::postgres().await?, Self::mariadb().await?];
        if !MySqlServer::is_left_out()? {
            all.push(Self::mysql().await?);
        }
        if !PgBouncerServer::is_left_out()? {
            all.push(Self::pooled().await?);
        }
        Ok(all)
    }

    /// MariaDB, and MySQL where it is on this machine.
    async fn like_mysql() -> Result<Vec<Self>> {
        let mut all = Self::all().await?;
        all.retain(|database| !database.is_postgres());
        Ok(all)
    }

    fn name(&self) -> &'static str {
        match self.client {
            Client::Postgres(..) if self.pooler.is_some() => "PostgreSQL behind PgBouncer",
            Client::Postgres(..) => "PostgreSQL",
            Client::MariaDb(..) => "MariaDB",
            Client::MySql(..) => "MySQL",
        }
    }

    fn is_postgres(&self) -> bool {
        matches!(self.client, Client::Postgres(..))
    }

    async fn run(&self, statement: &str) -> Result<()> {
        match &self.client {
            Client::Postgres(pool, _) => {
                let statement = sqlx::raw_sql(AssertSqlSafe(statement));
                statement.execute(pool).await?;
            }
            Client::MariaDb(pool, _) | Client::MySql(pool, _) => {
                let statement = sqlx::raw_sql(AssertSqlSafe(statement));
                statement.execute(pool).await?;
            }
        }
        Ok(())
    }

    /// A text column of everybody who isn't deleted.
    async fn held(&self, table: &str, column: &str) -> Result<BTreeMap<String, Option<String>>> {
        let kind = if self.is_postgres() { "text" } else { "char" };
        let query = format!(
            "SELECT CAST(id AS {kind}), CAST({column} AS {kind}) FROM {table} WHERE NOT sync_deleted"
        );
        let rows: Vec<(String, Option<String>)> = match &self.client {
            Client::Postgres(pool, _) => {
                let rows = sqlx::query_as(AssertSqlSafe(query));
                rows.fetch_all(pool).await?
            }
            Client::MariaDb(pool, _) | Client::MySql(pool, _) => {
                let rows = sqlx::query_as(AssertSqlSafe(query));
                rows.fetch_all(pool).await?
            }
        };
        Ok(rows.into_iter().collect())
    }

    fn target(&self, table: &str, columns: Value, more: Value) -> Result<Box<dyn Target>> {
        let url = match &self.client {
            Client::Postgres(_, server) => {
                let direct = || server.url();
                self.pooler
                    .as_ref()
                    .map_or_else(direct, PgBouncerServer::url)
            }
            Client::MariaDb(_, server) => server.url(),
            Client::MySql(_, server) => server.url(),
        };
        let secret = self.dir.path().join("password");
        let entry = json!({
            "url": url, "secret": format!("file:{}", secret.display()),
            "table": {"name": table, "columns": columns},
        });
        open(entry, more)
    }

    /// A table of names and emails, with more in its definition.
    async fn people(&self, table: &str, more: &str) -> Result<Box<dyn Target>> {
        self.run(&format!(
            "CREATE TABLE {table} (id bigint PRIMARY KEY, username varchar(100), email varchar(100), {SYNC}{more})"
        ))
        .await?;
        self.target(table, plain(), json!({}))
    }
}

fn plain() -> Value {
    json!({"username": "username", "email": "email"})
}

/// User `id` with the email of `of`.
fn with_email_of(id: u64, version: u64, of: u64) -> Delivery {
    let delivery = user(&id.to_string(), version, &format!("name-{id}"));
    email(delivery, &format!("{of}@example.com"))
}

async fn deliver(target: &dyn Target, batch: &[Delivery], states: &States) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for part in batch.chunks(target.limits().batch) {
        outcomes.extend(target.deliver_among(part, states).await);
    }
    outcomes
}

async fn all_delivered(target: &dyn Target, batch: &[Delivery], states: &States) -> Result<()> {
    let outcomes = deliver(target, batch, states).await;
    for (delivery, outcome) in batch.iter().zip(&outcomes) {
        is_delivered(outcome).with_context(|| format!("user {}", delivery.user_id))?;
    }
    Ok(())
}

/// Everybody's email is that of somebody.
async fn emails_are(database: &Database, table: &str, of: &[(u64, u64)]) -> Result<()> {
    let held = database.held(table, "email").await?;
    let expected = of
        .iter()
        .map(|(id, of)| (id.to_string(), Some(format!("{of}@example.com"))));
    let expected: BTreeMap<_, _> = expected.collect();
    ensure!(held == expected, "{}: {held:?}", database.name());
    Ok(())
}

/// User `n` has the email of the next one, and the last that of the first.
fn round(users: u64, version: u64) -> Vec<Delivery> {
    let next = |id| if id == users { 1 } else { id + 1 };
    (1..=users)
        .map(|id| with_email_of(id, version, next(id)))
        .collect()
}

fn own(users: u64, version: u64) -> Vec<Delivery> {
    (1..=users)
        .map(|id| with_email_of(id, version, id))
        .collect()
}

#[tokio::test]
async fn two_users_swap_whoever_is_delivered() -> Result<()> {
    for database in Database::all().await? {
        let target = database.people("swap", ", UNIQUE (email)").await?;
        let swapped = [(1, 2), (2, 1)];
        for alone in [true, false] {
            for first in [0, 1] {
                database.run("DELETE FROM swap").await?;
                all_delivered(&*target, &own(2, 5), &States::default()).await?;
                let mut both = round(2, 6);
                let states = States::of(&both);
                both.rotate_left(first);
                if alone {
                    both.truncate(1);
                }
                all_delivered(&*target, &both, &states)
                    .await
                    .context(database.name())?;
                emails_are(&database, "swap", &swapped).await?;
                let written = states.written.lock().expect("a lock").len();
                ensure!(written == usize::from(alone), "{written} were written too");
                // What follows is what it always is.
                all_delivered(&*target, &round(2, 6), &states).await?;
                emails_are(&database, "swap", &swapped).await?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn rounds_and_lines_of_any_length_move_on_in_one_batch_or_many() -> Result<()> {
    for database in Database::all().await? {
        let target = database
            .people("rounds", ", UNIQUE (email), UNIQUE (username)")
            .await?;
        for users in [3, 7, 300] {
            database.run("DELETE FROM rounds").await?;
            all_delivered(&*target, &own(users, 5), &States::default()).await?;
            let moved = round(users, 6);
            let states = States::of(&moved);
            // One is enough to move them all; or all come, in any order.
            let one = std::slice::from_ref(&moved[users as usize / 2]);
            all_delivered(&*target, one, &states)
                .await
                .context(database.name())?;
            let expected: Vec<_> = (1..=users).map(|id| (id, id % users + 1)).collect();
            emails_are(&database, "rounds", &expected).await?;
            let mut back = own(users, 7);
            let states = States::of(&back);
            back.reverse();
            all_delivered(&*target, &back, &states)
                .await
                .context(database.name())?;
            let expected: Vec<_> = (1..=users).map(|id| (id, id)).collect();
            emails_are(&database, "rounds", &expected).await?;
            // A line: everybody takes what the next one has, and the last something new.
            let mut line = round(users, 8);
            line.pop();
            line.push(with_email_of(users, 8, 9_999));
            let states = States::of(&line);
            all_delivered(&*target, &line[..1], &states)
                .await
                .context(database.name())?;
            let next = |id| if id == users { 9_999 } else { id + 1 };
            let expected: Vec<_> = (1..=users).map(|id| (id, next(id))).collect();
            emails_are(&database, "rounds", &expected).await?;
        }
    }
    Ok(())
}

/// Half of them swap with the other half, in many ways of being unique.
async fn half_swaps(database: &Database, table: &str, target: &dyn Target) -> Result<()> {
    let users = 20;
    all_delivered(target, &own(users, 5), &States::default()).await?;
    let other = |id: u64| if id.is_multiple_of(2) { id - 1 } else { id + 1 };
    let swapped: Vec<_> = (1..=users)
        .map(|id| with_email_of(id, 6, other(id)))
        .collect();
    let states = States::of(&swapped);
    let odd: Vec<_> = swapped.iter().step_by(2).cloned().collect();
    all_delivered(target, &odd, &states)
        .await
        .with_context(|| format!("{} {table}", database.name()))?;
    let expected: Vec<_> = (1..=users).map(|id| (id, other(id))).collect();
    emails_are(database, table, &expected).await
}

#[tokio::test]
async fn values_are_unique_in_many_ways_in_postgres() -> Result<()> {
    let database = Database::postgres().await?;
    for (number, more) in [
        ", UNIQUE (email)",
        ", UNIQUE (email) DEFERRABLE",
        ", UNIQUE (email) DEFERRABLE INITIALLY DEFERRED",
        ", tenant integer DEFAULT 7, UNIQUE (tenant, email)",
        ", EXCLUDE (email WITH =)",
        ", UNIQUE NULLS NOT DISTINCT (email)",
        ", plain text GENERATED ALWAYS AS (lower(email)) STORED UNIQUE",
        ", CHECK (email IS NOT NULL AND email LIKE '%@%.%'), UNIQUE (email)",
    ]
    .into_iter()
    .enumerate()
    {
        let table = format!("ways_{number}");
        let target = database.people(&table, more).await?;
        half_swaps(&database, &table, &*target).await?;
    }
    for (number, index) in [
        "(lower(email))",
        "(email) WHERE NOT sync_deleted",
        "(lower(email)) WHERE username IS NOT NULL",
        "(email text_pattern_ops)",
        "(email) INCLUDE (username)",
        "(COALESCE(email, ''))",
    ]
    .into_iter()
    .enumerate()
    {
        let table = format!("indexed_{number}");
        let target = database.people(&table, "").await?;
        database
            .run(&format!("CREATE UNIQUE INDEX ON {table} {index}"))
            .await?;
        half_swaps(&database, &table, &*target).await?;
    }
    Ok(())
}

#[tokio::test]
async fn values_are_unique_in_many_ways_in_mysql_and_mariadb() -> Result<()> {
    for database in Database::like_mysql().await? {
        let mut ways = vec![
            ", UNIQUE (email)",
            ", UNIQUE (email(10))",
            ", tenant integer DEFAULT 7, UNIQUE (tenant, email)",
            ", plain varchar(100) AS (lower(email)) VIRTUAL UNIQUE",
            ", plain varchar(100) AS (IF(sync_deleted, NULL, email)) STORED UNIQUE",
            ", UNIQUE (email), CHECK (email IS NOT NULL AND email LIKE '%@%.%')",
        ];
        if let Client::MySql(..) = database.client {
            ways.extend([
                ", UNIQUE ((lower(email)))",
                ", UNIQUE ((concat(email, '\\'', 'x')))",
            ]);
        }
        for (number, more) in ways.into_iter().enumerate() {
            let table = format!("ways_{number}");
            let target = database.people(&table, more).await?;
            half_swaps(&database, &table, &*target)
                .await
                .with_context(|| more.to_owned())?;
        }
        // A character set and a collation of its own.
        let table = "latin";
        database
            .run(&format!(
                "CREATE TABLE latin (id varchar(64) COLLATE ascii_bin PRIMARY KEY, username varchar(100), \
                 email varchar(100) CHARACTER SET latin1 COLLATE latin1_german2_ci UNIQUE, {SYNC})"
            ))
            .await?;
        let target = database.target(table, plain(), json!({}))?;
        half_swaps(&database, table, &*target).await?;
    }
    Ok(())
}

#[tokio::test]
async fn columns_that_cannot_be_null_and_other_types_change_hands() -> Result<()> {
    for database in Database::all().await? {
        database
            .run(&format!(
                "CREATE TABLE typed (id varchar(64) {} PRIMARY KEY, email varchar(17) NOT NULL UNIQUE, \
                 badge integer NOT NULL UNIQUE, balance decimal(8, 2) NOT NULL, born date NOT NULL, \
                 seen timestamp(3) NOT NULL, {SYNC}, UNIQUE (balance), UNIQUE (born), UNIQUE (seen))",
                if database.is_postgres() { "" } else { "COLLATE ascii_bin" }
            ))
            .await?;
        let columns = json!({
            "email": "email", "badge": "data.badge", "balance": "data.balance", "born": "data.born", "seen": "data.seen",
        });
        let target = database.target("typed", columns, json!({"on_delete": "ignore"}))?;
        let with = |id: u64, version, of: u64| {
            let values = json!({
                "badge": of, "balance": of as f64 + 0.5, "born": format!("1990-01-{of:02}"),
                "seen": format!("2026-01-{of:02}T12:00:00.25Z"),
            });
            data(with_email_of(id, version, of), values)
        };
        let before: Vec<_> = (1..=9).map(|id| with(id, 5, id)).collect();
        all_delivered(&*target, &before, &States::default())
            .await
            .context(database.name())?;
        let after: Vec<_> = (1..=9).map(|id| with(id, 6, id % 9 + 1)).collect();
        let states = States::of(&after);
        all_delivered(&*target, &after[..1], &states)
            .await
            .context(database.name())?;
        let expected: Vec<_> = (1..=9).map(|id| (id, id % 9 + 1)).collect();
        emails_are(&database, "typed", &expected).await?;
        let badges = database.held("typed", "badge").await?;
        ensure!(badges["9"].as_deref() == Some("1"), "{badges:?}");
    }
    Ok(())
}

/// What is written meanwhile has to suit the rules of the column too.
#[tokio::test]
async fn columns_with_rules_change_hands() -> Result<()> {
    for database in Database::all().await? {
        let postgres = database.is_postgres();
        if postgres {
            let label = "CREATE TYPE size AS ENUM ('xs', 's', 'm', 'l', 'it''s')";
            database.run(label).await?;
        }
        let (size, address) = match postgres {
            true => ("size", "inet"),
            false => ("enum('xs', 's', 'm', 'l', 'it''s')", "varchar(40)"),
        };
        for (column, kind, ours, theirs) in [
            (
                "work",
                "varchar(40) NOT NULL UNIQUE CHECK (work LIKE '%@example.com')",
                json!("ann.lee@example.com"),
                json!("bob.may@example.com"),
            ),
            (
                "code",
                "char(8) NOT NULL UNIQUE CHECK (code LIKE 'EMP-%')",
                json!("EMP-0042"),
                json!("EMP-1234"),
            ),
            (
                "place",
                "integer NOT NULL UNIQUE CHECK (place BETWEEN 10 AND 99)",
                json!(10),
                json!(42),
            ),
            (
                "shift",
                "time NOT NULL UNIQUE",
                json!("08:00:00"),
                json!("16:30:00"),
            ),
            (
                "size",
                &format!("{size} NOT NULL UNIQUE"),
                json!("it's"),
                json!("m"),
            ),
            (
                "address",
                &format!("{address} NOT NULL UNIQUE"),
                json!("192.168.0.1"),
                json!("192.168.0.254"),
            ),
            // What is told is rounded as it is written, and so it has to be looked for.
            (
                "balance",
                "decimal(8, 2) NOT NULL UNIQUE",
                json!(1.004),
                json!(7.499),
            ),
            (
                "seen",
                "timestamp(3) NOT NULL UNIQUE",
                json!("2026-01-01T12:00:00.0001Z"),
                json!("2026-01-02T12:00:00.0004Z"),
            ),
        ] {
            let table = format!("ruled_{column}");
            database
                .run(&format!(
                    "CREATE TABLE {table} (id bigint PRIMARY KEY, {column} {kind}, {SYNC})"
                ))
                .await?;
            let columns = json!({column: format!("data.{column}")});
            let target = database.target(&table, columns, json!({"on_delete": "ignore"}))?;
            let with = |id: u64, version, value: &Value| {
                data(with_email_of(id, version, id), json!({column: value}))
            };
            let said = || format!("{column} of {}", database.name());
            let before = [with(1, 5, &ours), with(2, 5, &theirs)];
            all_delivered(&*target, &before, &States::default())
                .await
                .with_context(said)?;
            let held = database.held(&table, column).await?;
            let after = [with(1, 6, &theirs), with(2, 6, &ours)];
            let states = States::of(&after);
            all_delivered(&*target, &after[..1], &states)
                .await
                .with_context(said)?;
            let now = database.held(&table, column).await?;
            ensure!(
                now["1"] == held["2"] && now["2"] == held["1"],
                "{}: {now:?}",
                said()
            );
        }
    }
    Ok(())
}

/// A server that makes up ids takes those it is told, 0 too, which may mean "make one up".
#[tokio::test]
async fn ids_that_a_server_would_make_up_are_taken_as_they_are_told() -> Result<()> {
    for database in Database::all().await? {
        let made_up = match database.is_postgres() {
            true => "GENERATED ALWAYS AS IDENTITY",
            false => "AUTO_INCREMENT",
        };
        database
            .run(&format!(
                "CREATE TABLE made_up (id bigint {made_up} PRIMARY KEY, email varchar(100) UNIQUE, {SYNC})"
            ))
            .await?;
        let target = database.target("made_up", json!({"email": "email"}), json!({}))?;
        for version in [5, 6] {
            let batch = [0, 1, 7].map(|id| with_email_of(id, version, id));
            all_delivered(&*target, &batch, &States::default())
                .await
                .context(database.name())?;
        }
        emails_are(&database, "made_up", &[(0, 0), (1, 1), (7, 7)]).await?;
        // As those who wait for each other's values are written, too.
        let swapped = [with_email_of(0, 7, 1), with_email_of(1, 7, 0)];
        all_delivered(&*target, &swapped[..1], &States::of(&swapped)).await?;
        emails_are(&database, "made_up", &[(0, 1), (1, 0), (7, 7)]).await?;
        all_delivered(&*target, &[deleted("0", 8)], &States::default()).await?;
        emails_are(&database, "made_up", &[(1, 0), (7, 7)]).await?;
        database
            .run("UPDATE made_up SET sync_deleted = false WHERE id = 0")
            .await?;
        let all = database.held("made_up", "email").await?;
        ensure!(all.len() == 3 && all["0"].is_none(), "{all:?}");
    }
    Ok(())
}

/// The reason of a conflict that lasts, and who is in the way.
fn stuck(outcome: &Outcome) -> Result<(String, Vec<u64>)> {
    let Outcome::Conflict(conflict) = outcome else {
        bail!("{outcome:?}");
    };
    ensure!(conflict.lasting, "{conflict:?}");
    let holders = conflict.holders.iter();
    let holders = holders.map(|(user, _)| user.to_string().parse());
    Ok((
        conflict.failure.reason.to_string(),
        holders.collect::<Result<_, _>>()?,
    ))
}

#[tokio::test]
async fn who_cannot_be_helped_is_told_who_is_in_the_way_and_why() -> Result<()> {
    for database in Database::all().await? {
        let target = database.people("stuck", ", UNIQUE (email)").await?;
        let mut newest = own(4, 5);
        all_delivered(&*target, &newest, &States::default()).await?;
        let kept = Meant::Kept(Skip::Deleted, 9);
        let away = Meant::Kept(Skip::OutOfScope, 9);
        let mad = Meant::Refused(Failure::new("fields.mask"), 9);
        // A disabled user keeps what it has.
        newest[3] = disabled("4", 9);
        for (holder, meant, expected) in [
            (2, Meant::Told(newest[1].clone()), "newest state has it too"),
            (2, Meant::Unknown, "usersync doesn't know"),
            (2, kept, "on_delete = \"ignore\""),
            (2, away, "on_out_of_scope = \"ignore\""),
            (2, mad, "can't be told: fields.mask"),
            (4, Meant::Told(newest[3].clone()), "disabled"),
        ] {
            let mut states = States::of(&newest);
            states.put(holder.into(), meant);
            let batch = [
                with_email_of(1, 6, holder),
                with_email_of(3, 6, 33),
                with_email_of(8, 6, 8),
            ];
            let outcomes = deliver(&*target, &batch, &states).await;
            let (reason, holders) = stuck(&outcomes[0]).context(expected)?;
            ensure!(
                reason.contains(&format!("user {holder} ")) && reason.contains(expected),
                "{reason}"
            );
            ensure!(holders == [holder], "{holders:?}");
            is_delivered(&outcomes[1])?;
            is_delivered(&outcomes[2])?;
            emails_are(
                &database,
                "stuck",
                &[(1, 1), (2, 2), (3, 33), (4, 4), (8, 8)],
            )
            .await?;
        }
        // At the end of a line somebody stays.
        let line = [with_email_of(1, 7, 2), with_email_of(2, 7, 4)];
        let mut states = States::of(&line);
        states.put(4.into(), Meant::Unknown);
        let outcomes = deliver(&*target, &line[..1], &states).await;
        let (reason, holders) = stuck(&outcomes[0])?;
        ensure!(
            reason.contains("user 2 ") && reason.contains("user 4 "),
            "{reason}"
        );
        ensure!(holders == [2, 4], "{holders:?}");
        // Of two who are to have the same, and nobody has it, one gets it.
        let both = [with_email_of(1, 8, 77), with_email_of(2, 9, 77)];
        let outcomes = deliver(&*target, &both, &States::of(&both)).await;
        is_delivered(&outcomes[0])?;
        ensure!(stuck(&outcomes[1])?.1 == [1], "{outcomes:?}");
        // What can't be asked about now may be later.
        let mut states = States::default();
        states.put(4.into(), Meant::Unavailable(Failure::new("NATS is away")));
        let outcomes = deliver(&*target, &[with_email_of(2, 9, 4)], &states).await;
        let passing = matches!(&outcomes[0], Outcome::Conflict(conflict) if !conflict.lasting);
        ensure!(passing, "{outcomes:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_deleted_holder_makes_room_and_a_partial_one_only_if_it_is_told() -> Result<()> {
    for database in Database::all().await? {
        let target = database.people("gone", ", UNIQUE (email)").await?;
        all_delivered(&*target, &own(3, 5), &States::default()).await?;
        let states = States::of(&[deleted("2", 6), partial("3", 6, "cleo")]);
        all_delivered(&*target, &[with_email_of(1, 6, 2)], &states)
            .await
            .context(database.name())?;
        emails_are(&database, "gone", &[(1, 2), (3, 3)]).await?;
        let outcomes = deliver(&*target, &[with_email_of(1, 7, 3)], &states).await;
        ensure!(stuck(&outcomes[0])?.1 == [3], "{outcomes:?}");
        let moves = email(partial("3", 7, "cleo"), "new@example.com");
        let states = States::of(&[moves]);
        all_delivered(&*target, &[with_email_of(1, 7, 3)], &states).await?;
        let held = database.held("gone", "email").await?;
        ensure!(held["1"].as_deref() == Some("3@example.com"), "{held:?}");
        ensure!(held["3"].as_deref() == Some("new@example.com"), "{held:?}");
    }
    Ok(())
}

#[tokio::test]
async fn nobody_is_written_over_with_something_older() -> Result<()> {
    for database in Database::all().await? {
        let target = database.people("guarded", ", UNIQUE (email)").await?;
        all_delivered(&*target, &own(2, 9), &States::default()).await?;
        // The states are behind the table: by a replica that lags.
        let states = States::of(&round(2, 6));
        let outcomes = deliver(&*target, &[with_email_of(1, 10, 2)], &states).await;
        let passing = matches!(&outcomes[0], Outcome::Conflict(conflict) if !conflict.lasting);
        ensure!(passing, "{outcomes:?}");
        let outcomes = deliver(&*target, &[with_email_of(1, 6, 2)], &states).await;
        ensure!(
            matches!(outcomes[0], Outcome::AlreadyNewer | Outcome::Conflict(_)),
            "{outcomes:?}"
        );
        emails_are(&database, "guarded", &[(1, 1), (2, 2)]).await?;
    }
    Ok(())
}

/// One of a batch is old, and the row is ahead of it: nobody of the same batch takes what it has.
#[tokio::test]
async fn what_a_newer_row_has_is_not_taken_by_who_comes_with_an_older_one_of_it() -> Result<()> {
    for database in Database::all().await? {
        let target = database.people("ahead", ", UNIQUE (email)").await?;
        let newest = [with_email_of(2, 7, 2), with_email_of(3, 5, 3)];
        all_delivered(&*target, &newest, &States::default()).await?;
        // The third makes room for what the second was to have before.
        let (wanted, moved) = (with_email_of(1, 6, 2), with_email_of(3, 6, 30));
        let states = States::of(&[wanted.clone(), newest[0].clone(), moved]);
        let outcomes = deliver(&*target, &[wanted, with_email_of(2, 6, 3)], &states).await;
        ensure!(outcomes[1] == Outcome::AlreadyNewer, "{outcomes:?}");
        ensure!(matches!(outcomes[0], Outcome::Conflict(_)), "{outcomes:?}");
        emails_are(&database, "ahead", &[(2, 2), (3, 3)]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_differs_in_case_is_the_same_where_the_server_says_so() -> Result<()> {
    let database = Database::postgres().await?;
    database.people("cases", "").await?;
    database
        .run("CREATE UNIQUE INDEX ON cases (lower(email))")
        .await?;
    let mut all = vec![("cases", database)];
    for database in Database::like_mysql().await? {
        database.people("cases", ", UNIQUE (email)").await?;
        all.push(("cases", database));
    }
    for (table, database) in all {
        let target = database.target(table, plain(), json!({}))?;
        all_delivered(&*target, &own(2, 5), &States::default()).await?;
        let swapped = [
            email(user("1", 6, "ann"), "2@Example.com"),
            email(user("2", 6, "ben"), "1@EXAMPLE.com"),
        ];
        all_delivered(&*target, &swapped[..1], &States::of(&swapped))
            .await
            .context(database.name())?;
        let held = database.held(table, "email").await?;
        ensure!(held["1"].as_deref() == Some("2@Example.com"), "{held:?}");
        ensure!(held["2"].as_deref() == Some("1@EXAMPLE.com"), "{held:?}");
    }
    Ok(())
}

#[tokio::test]
async fn several_workers_move_the_same_users_at_once() -> Result<()> {
    for database in Database::all().await? {
        database.people("busy", ", UNIQUE (email)").await?;
        let target = || database.target("busy", plain(), json!({}));
        let targets = [target()?, target()?, target()?];
        let users = 60;
        all_delivered(&*targets[0], &own(users, 5), &States::default()).await?;
        for version in 6..12 {
            let mut moved = match version % 2 {
                0 => round(users, version),
                _ => own(users, version),
            };
            let states = States::of(&moved);
            let mut left = Vec::new();
            fastrand::shuffle(&mut moved);
            let parts: Vec<_> = moved.chunks(users as usize / 3).collect();
            let (a, b, c) = tokio::join!(
                deliver(&*targets[0], parts[0], &states),
                deliver(&*targets[1], parts[1], &states),
                deliver(&*targets[2], parts[2], &states)
            );
            for (delivery, outcome) in moved.iter().zip(a.into_iter().chain(b).chain(c)) {
                match outcome {
                    Outcome::Delivered { .. } => {}
                    // What collided is tried again by the worker.
                    Outcome::Transient(_) => left.push(delivery.clone()),
                    Outcome::Conflict(conflict) if !conflict.lasting => left.push(delivery.clone()),
                    other => bail!("{}: {other:?}", database.name()),
                }
            }
            all_delivered(&*targets[0], &left, &states).await?;
            let of = |id| if version % 2 == 0 { id % users + 1 } else { id };
            let expected: Vec<_> = (1..=users).map(|id| (id, of(id))).collect();
            emails_are(&database, "busy", &expected).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn one_who_is_refused_for_another_reason_keeps_nobody_else_from_moving() -> Result<()> {
    for database in Database::all().await? {
        let target = database
            .people("refused", ", UNIQUE (email), CHECK (username <> 'refused')")
            .await?;
        all_delivered(&*target, &own(6, 5), &States::default()).await?;
        let mut moved = vec![
            with_email_of(1, 6, 2),
            with_email_of(2, 6, 1),
            with_email_of(3, 6, 4),
            with_email_of(4, 6, 3),
        ];
        moved[3].members.username = Change::Set("refused".to_owned());
        let outcomes = deliver(&*target, &moved[..3], &States::of(&moved)).await;
        is_delivered(&outcomes[0])?;
        is_delivered(&outcomes[1])?;
        let (reason, holders) = stuck(&outcomes[2])?;
        ensure!(
            reason.contains('4') && holders == [4],
            "{reason} {holders:?}"
        );
        emails_are(
            &database,
            "refused",
            &[(1, 2), (2, 1), (3, 3), (4, 4), (5, 5), (6, 6)],
        )
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_key_that_is_added_meanwhile_is_learnt() -> Result<()> {
    for database in Database::all().await? {
        let target = database.people("later", "").await?;
        let with = |id: &str, version, address: &str| email(user(id, version, "x"), address);
        for outcome in target
            .deliver(&[with("1", 5, "a@x"), with("2", 5, "b@x")])
            .await
        {
            is_delivered(&outcome)?;
        }
        database
            .run("CREATE UNIQUE INDEX addresses ON later (email)")
            .await?;
        let swapped = [with("1", 6, "b@x"), with("2", 6, "a@x")];
        let states = States::of(&swapped);
        usersync_stack::eventually(Duration::from_secs(60), async || {
            for outcome in target.deliver_among(&swapped, &states).await {
                is_delivered(&outcome).context(database.name())?;
            }
            Ok(())
        })
        .await?;
        let held = database.held("later", "email").await?;
        ensure!(
            held["1"].as_deref() == Some("b@x") && held["2"].as_deref() == Some("a@x"),
            "{held:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn columns_named_like_a_part_of_a_keys_text_have_no_part_in_it() -> Result<()> {
    let database = Database::postgres().await?;
    database
        .run(&format!(
            "CREATE TABLE named (id bigint PRIMARY KEY, email text NOT NULL, t time, mail time, score real NOT NULL, {SYNC}); \
             CREATE UNIQUE INDEX ON named (lower(email)); CREATE UNIQUE INDEX ON named (email, score)"
        ))
        .await?;
    let columns =
        json!({"email": "email", "t": "data.t", "mail": "data.mail", "score": "data.score"});
    let target = database.target("named", columns, json!({"on_delete": "ignore"}))?;
    let times = json!({"t": "07:20:41", "mail": "23:59:59", "score": 0.5});
    let with = |id: &str, version, address: &str| {
        data(email(user(id, version, "x"), address), times.clone())
    };
    for outcome in target
        .deliver(&[with("1", 5, "a@x"), with("2", 5, "b@x")])
        .await
    {
        is_delivered(&outcome)?;
    }
    let swapped = [with("1", 6, "b@x"), with("2", 6, "a@x")];
    let states = States::of(&swapped);
    for outcome in target.deliver_among(&swapped, &states).await {
        is_delivered(&outcome)?;
    }
    Ok(())
}
