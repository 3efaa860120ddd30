//! What the copies are, beside what they should be: USER_EVENTS is read again, merged by `merge`, and compared with every
//! target.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    ops::Range,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use futures_util::StreamExt as _;
use redis::AsyncTypedCommands as _;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Row as _};
use tokio::time::{Instant, timeout};

use crate::{
    merge::{People, Person},
    world::{TARGETS, World, ask_graph},
};

/// How long one look may take.
const LOOK: Duration = Duration::from_secs(20);
const AGAIN: Duration = Duration::from_millis(250);

/// What has been read so far.
#[derive(Default)]
pub(crate) struct Checker {
    people: People,
    stored: HashSet<String>,
    /// The last sequence read.
    read: u64,
}

/// What differs.
pub(crate) struct Wrong {
    pub(crate) target: &'static str,
    pub(crate) user: u64,
    /// What the target holds.
    holds: Option<Person>,
    should: Option<Person>,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (target, user) = (self.target, self.user);
        write!(
            f,
            "{target} holds {:?} of user {user}, and should {:?}",
            self.holds, self.should
        )
    }
}

impl Checker {
    /// Takes in what the stream has got since.
    async fn read(&mut self, world: &World) -> Result<()> {
        let stream = world.jetstream.get_stream("USER_EVENTS").await?;
        let last = stream.cached_info().state.last_sequence;
        if last <= self.read {
            return Ok(());
        }
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: self.read + 1,
            },
            ack_policy: AckPolicy::None,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await?;
        let mut messages = consumer.stream().messages().await?;
        while self.read < last {
            let message = messages.next().await.context("the stream ended")?;
            let message = message.map_err(|error| anyhow::anyhow!("{error}"))?;
            let info = message.info().map_err(|error| anyhow::anyhow!("{error}"))?;
            self.read = info.stream_sequence;
            let headers = message.headers.as_ref();
            let id = headers.and_then(|headers| headers.get("Nats-Msg-Id"));
            self.people
                .take(&message.subject, id.map(|id| id.as_str()), &message.payload);
            let body: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
            if let Some(id) = body["id"].as_str() {
                self.stored.insert(id.to_owned());
            }
        }
        Ok(())
    }

    /// How many of these events the stream doesn't have.
    pub(crate) fn lost(&self, acknowledged: &[String]) -> u64 {
        acknowledged
            .iter()
            .filter(|id| !self.stored.contains(*id))
            .count() as u64
    }

    /// How many of these events the stream has.
    pub(crate) fn taken(&self, forged: &[String]) -> u64 {
        forged.len() as u64 - self.lost(forged)
    }

    /// Who is wrong at which target; those in `but` are left out at the HTTP targets.
    async fn look(
        &mut self,
        world: &World,
        users: &Range<u64>,
        but: &BTreeSet<u64>,
    ) -> Result<Vec<Wrong>> {
        self.read(world).await?;
        let copies = tokio::try_join!(
            main_database(world, users),
            redis(world, users),
            postgres(world, users),
            mariadb(world, users),
            graph(world, users)
        );
        let (main, redis, crm, shop, graph) = copies?;
        let mut wrong = Vec::new();
        for user in users.clone() {
            let whole = self.should(&main, user);
            let part = whole.map(in_columns);
            for target in TARGETS {
                let (holds, should) = match target {
                    "guarded" | "plain" if but.contains(&user) => continue,
                    "guarded" => (alive(world.guarded.holds(user)), whole.cloned()),
                    "plain" => (alive(world.plain.holds(user)), whole.cloned()),
                    "redis-cache" => (redis.get(&user).cloned(), whole.cloned()),
                    "crm" => (crm.get(&user).cloned(), part.clone()),
                    "shop" => (shop.get(&user).cloned(), part.clone()),
                    _ => (graph.get(&user).cloned(), part.clone()),
                };
                if holds != should {
                    wrong.push(Wrong {
                        target,
                        user,
                        holds,
                        should,
                    });
                }
            }
        }
        for example in &world.examples {
            let held = example.holds(users).await?;
            for user in users.clone() {
                let holds = held.get(&user).cloned();
                let should = self.should(&main, user).cloned();
                if holds != should {
                    let target = example.name;
                    wrong.push(Wrong {
                        target,
                        user,
                        holds,
                        should,
                    });
                }
            }
        }
        Ok(wrong)
    }

    /// What there should be of a user, unless they are gone.
    fn should<'a>(&'a self, main: &'a BTreeMap<u64, Person>, user: u64) -> Option<&'a Person> {
        let person = match World::is_of_main(user) {
            true => main.get(&user),
            false => self.people.get(user),
        };
        person.filter(|person| !person.deleted)
    }

    /// Looks until everybody is right, or `deadline` is over: then who is wrong.
    pub(crate) async fn settle(
        &mut self,
        world: &World,
        users: &Range<u64>,
        but: &BTreeSet<u64>,
        deadline: Duration,
    ) -> Result<Vec<Wrong>> {
        let end = Instant::now() + deadline;
        loop {
            let looked = timeout(LOOK, self.look(world, users, but)).await;
            let over = Instant::now() > end;
            match looked.context("the look took too long").flatten() {
                Ok(wrong) if wrong.is_empty() || over => return Ok(wrong),
                Err(error) if over => return Err(error),
                _ => {}
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

fn alive(person: Option<Person>) -> Option<Person> {
    person.filter(|person| !person.deleted)
}

/// What the databases hold of a user.
fn in_columns(person: &Person) -> Person {
    let n = person.data.get("n").cloned();
    Person {
        data: n.map(|n| ("n".to_owned(), n)).into_iter().collect(),
        ..person.clone()
    }
}

fn row(username: Option<String>, email: Option<String>, n: Option<i64>) -> Person {
    Person {
        username,
        email,
        data: n.map(|n| ("n".to_owned(), n.into())).into_iter().collect(),
        deleted: false,
    }
}

/// The users of the main database.
async fn main_database(world: &World, users: &Range<u64>) -> Result<BTreeMap<u64, Person>> {
    let statement = format!(
        "SELECT uid, username, email, n FROM people WHERE uid >= {} AND uid < {}",
        users.start, users.end
    );
    let client = world.main_client()?;
    let rows = sqlx::query(AssertSqlSafe(statement))
        .fetch_all(&client)
        .await?;
    rows.iter().map(of_mysql).collect()
}

async fn redis(world: &World, users: &Range<u64>) -> Result<BTreeMap<u64, Person>> {
    let client = redis::Client::open(world.stack.redis.url())?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let keys: Vec<String> = users.clone().map(|user| format!("user:{user}")).collect();
    let held = connection.mget(keys).await?;
    let mut found = BTreeMap::new();
    for (user, text) in users.clone().zip(held) {
        let Some(text) = text else { continue };
        let body: Value = serde_json::from_str(&text)?;
        let text = |name: &str| body[name].as_str().map(str::to_owned);
        let person = Person {
            username: text("username"),
            email: text("email"),
            data: body["data"].as_object().cloned().unwrap_or_default(),
            deleted: false,
        };
        found.insert(user, person);
    }
    Ok(found)
}

fn rows(users: &Range<u64>) -> String {
    format!(
        "SELECT id, username, email, n FROM users WHERE NOT sync_deleted AND id >= {} AND id < {}",
        users.start, users.end
    )
}

async fn postgres(world: &World, users: &Range<u64>) -> Result<BTreeMap<u64, Person>> {
    let client = world.postgres_client().await?;
    let rows = sqlx::query(AssertSqlSafe(rows(users)))
        .fetch_all(&client)
        .await?;
    let one = |held: &sqlx::postgres::PgRow| {
        let id: i64 = held.try_get(0)?;
        Ok((
            id.unsigned_abs(),
            row(held.try_get(1)?, held.try_get(2)?, held.try_get(3)?),
        ))
    };
    rows.iter().map(one).collect()
}

async fn mariadb(world: &World, users: &Range<u64>) -> Result<BTreeMap<u64, Person>> {
    let client = world.mariadb_client().await?;
    let rows = sqlx::query(AssertSqlSafe(rows(users)))
        .fetch_all(&client)
        .await?;
    rows.iter().map(of_mysql).collect()
}

fn of_mysql(held: &sqlx::mysql::MySqlRow) -> Result<(u64, Person)> {
    let id: i64 = held.try_get(0)?;
    let person = row(held.try_get(1)?, held.try_get(2)?, held.try_get(3)?);
    Ok((id.unsigned_abs(), person))
}

async fn graph(world: &World, users: &Range<u64>) -> Result<BTreeMap<u64, Person>> {
    let graph = world.graph_client().await?;
    let statement = format!(
        "MATCH (u:User) WHERE u.id >= {} AND u.id < {} AND u.sync_deleted = false \
         RETURN u.id AS id, u.username AS username, u.email AS email, u.n AS n",
        users.start, users.end
    );
    let mut found = BTreeMap::new();
    for held in ask_graph(&graph, &statement).await? {
        let id: i64 = held.get("id")?;
        let text = |name: &str| held.get::<String>(name).ok();
        let person = row(text("username"), text("email"), held.get("n").ok());
        let before = found.insert(id.unsigned_abs(), person);
        ensure!(before.is_none(), "user {id} has two nodes");
    }
    Ok(found)
}

/// How many rows of these users ever went back to an older version.
pub(crate) async fn regressed_rows(world: &World, users: &Range<u64>) -> Result<u64> {
    let query = format!(
        "SELECT count(*) FROM regressed WHERE id >= {} AND id < {}",
        users.start, users.end
    );
    let count: i64 = sqlx::query_scalar(AssertSqlSafe(query))
        .fetch_one(&world.postgres_client().await?)
        .await?;
    Ok(count.unsigned_abs())
}

/// The last sequence of USER_ALERT.
pub(crate) async fn last_alert(world: &World) -> Result<u64> {
    let stream = world.jetstream.get_stream("USER_ALERT").await?;
    Ok(stream.cached_info().state.last_sequence)
}

/// The kinds of alerts that were raised after `since`, or still are.
pub(crate) async fn alerts(world: &World, since: u64) -> Result<BTreeSet<String>> {
    let last = last_alert(world).await?;
    let stream = world.jetstream.get_stream("USER_ALERT").await?;
    let (mut kinds, mut standing) = (BTreeSet::new(), BTreeMap::new());
    for seq in 1..=last {
        // Of each subject the newest few are kept.
        let Ok(message) = stream.get_raw_message(seq).await else {
            continue;
        };
        let body: Value = serde_json::from_slice(&message.payload)?;
        let kind = body["kind"].as_str().unwrap_or_default().to_owned();
        let raised = body["status"] == "raised";
        if raised && seq > since {
            kinds.insert(kind.clone());
        }
        standing.insert(message.subject, (kind, raised));
    }
    // What is so for long isn't told twice; that a cache was filled again is told each time.
    standing.retain(|_, (kind, _)| kind != "refill");
    kinds.extend(
        standing
            .into_values()
            .filter_map(|(kind, raised)| raised.then_some(kind)),
    );
    Ok(kinds)
}
