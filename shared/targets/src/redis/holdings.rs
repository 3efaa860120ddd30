//! What Redis holds of all users: keys by `SCAN`, documents by `MGET`, hashed here; in a cluster of each master, by `GET`,
//! for keys of one call must be in one slot there.
//!
//! The pages of both overlap: each round trip brings the documents of one page and the keys of the next. Redis reads
//! a page while the one before is hashed here.

use std::{future::Future, time::Duration};

use async_trait::async_trait;
use futures_util::future::join;
use redis::{ErrorKind, RedisError, ServerErrorKind, Value, aio::MultiplexedConnection};
use tokio::task::yield_now;
use usersync_digest::{Each, Row, RowHash, Scan, Scanned, Side, SideError};

use super::{
    Place, RedisTarget,
    cluster::Answer,
    document,
    errors::{describe, late},
    key,
};
use crate::{Action, Delivery, Failure, Holdings};

/// Keys asked for at once, about.
const PAGE: u32 = 1_000;
/// How long one page may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Everybody a Redis target holds.
pub(super) struct RedisHoldings<'a> {
    pub(super) target: &'a RedisTarget,
}

/// A server that is read, and how it is asked for documents.
struct Reader {
    connection: MultiplexedConnection,
    is_of_a_cluster: bool,
}

/// Where the scan stands, and the keys that came last.
type Keys = (u64, Vec<Vec<u8>>);
/// What is under some keys.
type Documents = Vec<Option<Vec<u8>>>;

impl RedisHoldings<'_> {
    async fn all(&self, each: Each<'_>) -> Result<u64, RedisError> {
        let server = &self.target.server;
        let cluster = match self.target.place().await? {
            Place::Alone(connection) => {
                let is_of_a_cluster = false;
                let mut reader = Reader {
                    connection,
                    is_of_a_cluster,
                };
                return reader.all(each).await;
            }
            Place::Cluster(cluster) => cluster,
        };
        cluster.look_again(server).await;
        let mut bytes = 0;
        for (node, _) in cluster.masters()? {
            let mut reader = Reader {
                connection: cluster.connection(server, &node).await?,
                is_of_a_cluster: true,
            };
            let read = reader.all(each).await;
            bytes += read.inspect_err(|_| cluster.forget(&node))?;
        }
        Ok(bytes)
    }
}

impl Reader {
    async fn all(&mut self, each: Each<'_>) -> Result<u64, RedisError> {
        let (mut row, mut bytes) = (Row::default(), 0);
        let (mut cursor, mut keys) = self.first().await?;
        let (mut page, mut documents) = (Vec::<Vec<u8>>::new(), Documents::new());
        loop {
            keys.retain(|key| key::user(key).is_some());
            let hashing = async {
                // What is asked for is sent first.
                yield_now().await;
                for (key, document) in page.iter().zip(documents) {
                    bytes += key.len() as u64;
                    // It has gone meanwhile, or is no text.
                    let (Some(document), Some(id)) = (document, key::user(key)) else {
                        continue;
                    };
                    bytes += document.len() as u64;
                    if key::is_former_tombstone(id, &document) {
                        continue;
                    }
                    row.begin(id);
                    document::hashed(&document, id, &mut row);
                    each(id, row.hash());
                }
            };
            let (asked, ()) = join(self.next(&keys, cursor), hashing).await;
            page = std::mem::take(&mut keys);
            (documents, cursor, keys) = asked?;
            if page.is_empty() && cursor == 0 && keys.is_empty() {
                return Ok(bytes);
            }
        }
    }

    async fn first(&mut self) -> Result<Keys, RedisError> {
        in_time(scan(0).query_async(&mut self.connection)).await
    }

    /// The documents of `keys`, and the keys that follow, unless `cursor` says that there are none.
    async fn next(
        &mut self,
        keys: &[Vec<u8>],
        cursor: u64,
    ) -> Result<(Documents, u64, Vec<Vec<u8>>), RedisError> {
        let mut pipeline = redis::pipe();
        match self.is_of_a_cluster {
            true => keys.iter().for_each(|key| {
                pipeline.cmd("GET").arg(key);
            }),
            false if !keys.is_empty() => {
                pipeline.cmd("MGET").arg(keys);
            }
            false => {}
        }
        if cursor != 0 {
            pipeline.add_command(scan(cursor));
        }
        if pipeline.is_empty() {
            return Ok((Vec::new(), 0, Vec::new()));
        }
        let asking = pipeline.ignore_errors().query_async(&mut self.connection);
        let mut answers: Vec<Answer> = in_time(asking).await?;
        let (cursor, next) = match cursor {
            0 => (0, Vec::new()),
            _ => redis::from_redis_value(answers.pop().ok_or_else(late)??)?,
        };
        let documents = match self.is_of_a_cluster {
            // A slot that moves is read once more user by user, where that makes a difference.
            true => answers
                .into_iter()
                .map(|answer| document(answer).or_else(elsewhere))
                .collect::<Result<_, _>>()?,
            false => match answers.pop() {
                Some(documents) => redis::from_redis_value(documents?)?,
                None => Vec::new(),
            },
        };
        Ok((documents, cursor, next))
    }
}

/// What `GET` answers; what is no text is an empty one, which is no document either.
pub(super) fn document(answer: Answer) -> Result<Option<Vec<u8>>, RedisError> {
    match answer {
        Ok(Value::Nil) => Ok(None),
        Ok(value) => Ok(redis::from_redis_value(value)?),
        Err(error) if error.code() == Some("WRONGTYPE") => Ok(Some(Vec::new())),
        Err(error) => Err(error),
    }
}

/// Nothing, where the document is at another node of the cluster.
fn elsewhere(error: RedisError) -> Result<Option<Vec<u8>>, RedisError> {
    match error.kind() {
        ErrorKind::Server(
            ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::TryAgain,
        ) => Ok(None),
        _ => Err(error),
    }
}

/// Refuses a replica, which may be behind. Who may not ask for the role isn't told.
pub(super) async fn refuse_replica(target: &RedisTarget) -> Result<(), Failure> {
    // The masters are those that a cluster names.
    let place = in_time(target.place()).await;
    let place = place.map_err(|error| Failure::new(describe(&target.server.explained(error))))?;
    let Place::Alone(mut connection) = place else {
        return Ok(());
    };
    let role = in_time(redis::cmd("ROLE").query_async(&mut connection)).await;
    let is_replica = match role {
        Ok(Value::Array(said)) => {
            matches!(said.first(), Some(Value::BulkString(role)) if role == b"slave")
        }
        _ => false,
    };
    match is_replica {
        false => Ok(()),
        true => Err(Failure::new(
            "this server is a replica: it may be behind; name the one that is written to in `url`",
        )),
    }
}

/// Asks for a few keys, at each master of a cluster.
pub(super) async fn try_to_read(target: &RedisTarget) -> Result<(), Failure> {
    let reading = async {
        let cluster = match target.place().await? {
            Place::Alone(mut connection) => {
                return scan(0).query_async::<Keys>(&mut connection).await.map(drop);
            }
            Place::Cluster(cluster) => cluster,
        };
        for (node, _) in cluster.masters()? {
            let mut connection = cluster.connection(&target.server, &node).await?;
            scan(0).query_async::<Keys>(&mut connection).await?;
        }
        Ok(())
    };
    let read = in_time(reading).await;
    read.map_err(|error| Failure::new(describe(&target.server.explained(error))))
}

fn scan(cursor: u64) -> redis::Cmd {
    let mut scan = redis::cmd("SCAN");
    scan.arg(cursor)
        .arg("MATCH")
        .arg("user:*")
        .arg("COUNT")
        .arg(PAGE);
    scan
}

async fn in_time<T>(call: impl Future<Output = Result<T, RedisError>>) -> Result<T, RedisError> {
    let answered = tokio::time::timeout(PATIENCE, call).await;
    answered.unwrap_or_else(|_| Err(late()))
}

#[async_trait]
impl Scan for RedisHoldings<'_> {
    async fn scan(&self, each: Each<'_>) -> Result<u64, SideError> {
        let read = self.all(each).await;
        read.map_err(|error| SideError::new(describe(&self.target.server.explained(error))))
    }
}

impl Holdings for Scanned<RedisHoldings<'_>> {
    fn side(&self) -> &dyn Side {
        self
    }

    fn expected(&self, delivery: &Delivery) -> Option<RowHash> {
        if delivery.action != Action::Upsert {
            return None;
        }
        let id = delivery.user_id.to_string();
        let mut row = Row::new(&id);
        let written = document::written(delivery, self.0.target.ids).ok()?;
        document::hashed(&written, &id, &mut row);
        Some(row.hash())
    }

    /// A document lives for a day.
    fn forgets(&self) -> bool {
        true
    }
}
