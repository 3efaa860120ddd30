//! What Redis holds of all users: keys by `SCAN`, documents by `MGET`, hashed here.
//!
//! The pages of both overlap: each round trip brings the documents of one page and the keys of the next. Redis reads
//! a page while the one before is hashed here.

use std::{future::Future, time::Duration};

use async_trait::async_trait;
use futures_util::future::join;
use redis::{RedisError, Value, aio::MultiplexedConnection};
use tokio::task::yield_now;
use usersync_digest::{Each, Row, RowHash, Scan, Scanned, Side, SideError};

use super::{RedisTarget, describe, document, key, late};
use crate::{Action, Delivery, Failure, Holdings};

/// Keys asked for at once, about.
const PAGE: u32 = 1_000;
/// How long one page may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Everybody a Redis target holds.
pub(super) struct RedisHoldings<'a> {
    pub(super) target: &'a RedisTarget,
}

/// Where the scan stands, and the keys that came last.
type Keys = (u64, Vec<Vec<u8>>);
/// What is under some keys.
type Documents = Vec<Option<Vec<u8>>>;

impl RedisHoldings<'_> {
    async fn all(&self, each: Each<'_>) -> Result<u64, RedisError> {
        let mut connection = self.target.connection().await?;
        let (mut row, mut bytes) = (Row::default(), 0);
        let (mut cursor, mut keys) = first(&mut connection).await?;
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
            let (asked, ()) = join(next(&mut connection, &keys, cursor), hashing).await;
            page = std::mem::take(&mut keys);
            (documents, cursor, keys) = asked?;
            if page.is_empty() && cursor == 0 && keys.is_empty() {
                return Ok(bytes);
            }
        }
    }
}

/// Refuses a replica, which may be behind. Who may not ask for the role isn't told.
pub(super) async fn refuse_replica(target: &RedisTarget) -> Result<(), Failure> {
    let connection = in_time(target.connection()).await;
    let mut connection =
        connection.map_err(|error| Failure::new(describe(&target.explained(error))))?;
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

fn scan(cursor: u64) -> redis::Cmd {
    let mut scan = redis::cmd("SCAN");
    scan.arg(cursor)
        .arg("MATCH")
        .arg("user:*")
        .arg("COUNT")
        .arg(PAGE);
    scan
}

async fn first(connection: &mut MultiplexedConnection) -> Result<Keys, RedisError> {
    in_time(scan(0).query_async(connection)).await
}

/// The documents of `keys`, and the keys that follow, unless `cursor` says that there are none.
async fn next(
    connection: &mut MultiplexedConnection,
    keys: &[Vec<u8>],
    cursor: u64,
) -> Result<(Documents, u64, Vec<Vec<u8>>), RedisError> {
    let mut mget = redis::cmd("MGET");
    mget.arg(keys);
    let mut pipeline = redis::pipe();
    match (keys.is_empty(), cursor) {
        (true, 0) => Ok((Vec::new(), 0, Vec::new())),
        (true, cursor) => {
            let (cursor, keys) = in_time(scan(cursor).query_async(connection)).await?;
            Ok((Vec::new(), cursor, keys))
        }
        (false, 0) => Ok((in_time(mget.query_async(connection)).await?, 0, Vec::new())),
        (false, cursor) => {
            pipeline.add_command(mget).add_command(scan(cursor));
            let (documents, (cursor, keys)) = in_time(pipeline.query_async(connection)).await?;
            Ok((documents, cursor, keys))
        }
    }
}

async fn in_time<T>(call: impl Future<Output = Result<T, RedisError>>) -> Result<T, RedisError> {
    let answered = tokio::time::timeout(PATIENCE, call).await;
    answered.unwrap_or_else(|_| Err(late()))
}

#[async_trait]
impl Scan for RedisHoldings<'_> {
    async fn scan(&self, each: Each<'_>) -> Result<u64, SideError> {
        let read = self.all(each).await;
        read.map_err(|error| SideError::new(describe(&self.target.explained(error))))
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
