//! Neo4j, over Bolt: one `UNWIND … MERGE … SET` per batch, guarded by version.
//!
//! A user is a node; a deleted one stays as a node with nothing but its id and version.

mod errors;
mod holdings;
mod property;
mod row;
mod server;
mod transaction;

use std::{
    future::Future,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use neo4rs::{Graph, Query};
use serde_json::Value;
use tokio::sync::Mutex;
use usersync_core::{
    fields::Fields,
    target::{Table, TargetConfig},
    user_id::UserId,
};

use usersync_digest::Scanned;

use self::{
    errors::unreadable,
    holdings::Neo4jHoldings,
    row::{Row, list},
    server::Server,
    transaction::{rolled_back, transact},
};
use crate::{
    Action, ConfigError, Delivery, Failure, Holdings, Limits, Outcome, Standing, Target, Unchecked,
    connections::Connections,
    password, portions, table,
    tls::Peer,
    trouble::{Blame, Trouble},
    way::Way,
};

const CONCURRENCY: usize = 4;
const BATCH: usize = 256;
/// The nodes' label, unless it is told.
const LABEL: &str = "User";
/// A database without the constraint is looked at again after this long.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How often a statement is tried that the server rolled back for the sake of another one.
const TURNS: u32 = 4;

/// Nodes in a Neo4j database.
pub(crate) struct Neo4jTarget {
    server: Server,
    /// Each of one connection: the driver's own pool would give back one that was cut off, with answers still
    /// to come on it, or one whose failed transaction still holds locks.
    connections: Connections<Graph>,
    /// Whether the constraint is there, and when it was missing.
    fits: Mutex<Option<Result<(), (Failure, Instant)>>>,
    table: Table,
    label: String,
    timeout: Duration,
    limits: Limits,
    verify: bool,
    fields: Fields,
    hint: String,
}

impl Neo4jTarget {
    pub(crate) fn new(config: &TargetConfig, way: Way) -> Result<Self, ConfigError> {
        let (table, password) = (table::table(config)?, password::of(config)?);
        let limits = Limits::of(config, CONCURRENCY, BATCH);
        Ok(Self {
            server: Server::new(&config.url, password, Peer::of(config), way)?,
            // One more for those who only look.
            connections: Connections::new(limits.concurrency + 1),
            fits: Mutex::new(None),
            label: table.name.clone().unwrap_or_else(|| LABEL.to_owned()),
            table,
            timeout: config.timeout,
            limits,
            verify: config.verify,
            fields: config.fields.clone(),
            hint: format!(
                "create it with: usersync-worker --init-target {}",
                config.name
            ),
        })
    }

    /// Runs a statement to its end; statements that collided with others are sent again.
    async fn ask<T>(
        &self,
        query: Query,
        read: fn(&neo4rs::Row) -> Result<T, neo4rs::DeError>,
    ) -> Result<Vec<T>, Trouble> {
        let mut turn = 1;
        loop {
            match self.ask_once(query.clone(), read).await {
                Err(trouble) if trouble.blame == Blame::Collision && turn < TURNS => turn += 1,
                answered => return answered,
            }
        }
    }

    async fn ask_once<T>(
        &self,
        query: Query,
        read: fn(&neo4rs::Row) -> Result<T, neo4rs::DeError>,
    ) -> Result<Vec<T>, Trouble> {
        let lease = self.connections.lease().await;
        let graph = match lease.idle() {
            Some((graph, _)) => graph,
            None => self.server.open().await?,
        };
        self.server.check().await?;
        let answered = transact(&self.server, &graph, query, read).await;
        let usable = match &answered {
            Ok(_) => true,
            Err(trouble) => !trouble.lost && rolled_back(&graph).await,
        };
        if usable {
            lease.keep(graph);
        }
        answered
    }

    /// Makes sure that ids are unique: without it, two batches at once make two nodes of one user.
    async fn check(&self) -> Result<(), Trouble> {
        let mut fits = self.fits.lock().await;
        match &*fits {
            Some(Ok(())) => return Ok(()),
            Some(Err((failure, since))) if since.elapsed() < LOOK_AGAIN => {
                return Err(Trouble::misfit(failure.clone()));
            }
            Some(Err(_)) | None => {}
        }
        if self.missing().await?.is_empty() {
            *fits = Some(Ok(()));
            return Ok(());
        }
        let (label, id) = (&self.label, &self.table.id);
        let failure = Failure::new(format!(
            "there is no constraint that `{id}` is unique among nodes `{label}`; {}",
            self.hint
        ));
        *fits = Some(Err((failure.clone(), Instant::now())));
        Err(Trouble::misfit(failure))
    }

    /// The statements that make what is missing.
    async fn missing(&self) -> Result<Vec<String>, Trouble> {
        let constraints = Query::new(
            "SHOW CONSTRAINTS YIELD labelsOrTypes, properties, type RETURN labelsOrTypes, properties, type".to_owned(),
        );
        let read = |row: &neo4rs::Row| {
            let labels: Vec<String> = row.get("labelsOrTypes")?;
            let properties: Vec<String> = row.get("properties")?;
            let kind: String = row.get("type")?;
            Ok((labels, properties, kind))
        };
        let constraints = self.ask(constraints, read).await?;
        let suits = |(labels, properties, kind): &(Vec<String>, Vec<String>, String)| {
            *labels == [self.label.as_str()]
                && *properties == [self.table.id.as_str()]
                && (kind.contains("UNIQUE") || kind.contains("NODE_KEY"))
        };
        if constraints.iter().any(suits) {
            return Ok(Vec::new());
        }
        Ok(vec![format!(
            "CREATE CONSTRAINT {} IF NOT EXISTS FOR (u:{}) REQUIRE u.{} IS UNIQUE",
            quoted(&format!("usersync_{}_{}", self.label, self.table.id)),
            quoted(&self.label),
            quoted(&self.table.id),
        )])
    }

    /// Writes rows; those whom it says nothing of weren't there. When the server refuses one of them, halves
    /// are tried, and halves of those, until that row is alone.
    async fn write(
        &self,
        how: &str,
        rows: &[Row],
        outcomes: &mut [Option<Outcome>],
    ) -> Result<(), Trouble> {
        let mut pending = portions::of(rows, |row| row.size);
        pending.reverse();
        while let Some(rows) = pending.pop() {
            let query = Query::new(self.statement(how)).param("rows", list(rows));
            let read = |row: &neo4rs::Row| Ok((row.get::<i64>("n")?, row.get::<bool>("fresh")?));
            match self.ask(query, read).await {
                Ok(fates) => {
                    for row in rows {
                        let fate = fates
                            .iter()
                            .find(|(n, _)| usize::try_from(*n) == Ok(row.index));
                        outcomes[row.index] = Some(match fate {
                            Some((_, true)) => Outcome::Delivered { guarded: true },
                            Some((_, false)) => Outcome::AlreadyNewer,
                            // Nobody has to be there to be disabled.
                            None if how == MATCH => Outcome::Delivered { guarded: true },
                            None => unreadable().outcome(),
                        });
                    }
                }
                Err(trouble) if matches!(trouble.blame, Blame::Row | Blame::Conflict) => match rows
                {
                    [row] => outcomes[row.index] = Some(trouble.outcome()),
                    _ => {
                        let (left, right) = rows.split_at(rows.len() / 2);
                        pending.extend([right, left]);
                    }
                },
                Err(trouble) => return Err(trouble),
            }
        }
        Ok(())
    }

    fn statement(&self, how: &str) -> String {
        let [label, id, version, deleted] = [
            &self.label,
            &self.table.id,
            &self.table.version,
            &self.table.deleted,
        ]
        .map(|name| quoted(name));
        // Writing the version before it is read takes the node's lock: nobody writes between look and write.
        let told = match how {
            MATCH => {
                format!("CASE WHEN gone THEN {{{version}: row.version}} ELSE row.properties END")
            }
            _ => "row.properties".to_owned(),
        };
        format!(
            "UNWIND $rows AS row {how} (u:{label} {{{id}: row.id}}) SET u.{version} = coalesce(u.{version}, 0) \
             WITH u, row, u.{version} <= row.version AS fresh, coalesce(u.{deleted}, false) AS gone \
             SET u += CASE WHEN fresh THEN {told} ELSE {{}} END RETURN row.n AS n, fresh"
        )
    }

    async fn deliver_all(
        &self,
        batch: &[Delivery],
        outcomes: &mut [Option<Outcome>],
    ) -> Result<(), Trouble> {
        self.check().await?;
        let (mut upserts, mut disables) = (Vec::new(), Vec::new());
        let mut order: Vec<usize> = (0..batch.len()).collect();
        // All take locks in the same order, so that they rarely collide.
        order.sort_by(|a, b| batch[*a].user_id.cmp(&batch[*b].user_id));
        for index in order {
            let delivery = &batch[index];
            match Row::of(&self.table, index, delivery) {
                Err(failure) => outcomes[index] = Some(Outcome::Permanent(failure)),
                Ok(row) if delivery.action == Action::Disable => disables.push(row),
                Ok(row) => upserts.push(row),
            }
        }
        self.write(MERGE, &upserts, outcomes).await?;
        self.write(MATCH, &disables, outcomes).await
    }

    async fn compare_all(&self, batch: &[Delivery]) -> Result<Vec<Standing>, Trouble> {
        let rows = batch
            .iter()
            .enumerate()
            .map(|(index, delivery)| Row::of(&self.table, index, delivery));
        let rows: Vec<_> = rows.collect();
        let written: Vec<Row> = rows.iter().flatten().cloned().collect();
        let statement = format!(
            "UNWIND $rows AS row MATCH (u:{} {{{}: row.id}}) RETURN row.n AS n, properties(u) AS held",
            quoted(&self.label),
            quoted(&self.table.id)
        );
        let read = |row: &neo4rs::Row| Ok((row.get::<usize>("n")?, row.get::<Value>("held")?));
        let query = Query::new(statement).param("rows", list(&written));
        let held = self.ask(query, read).await?;
        let verdict = |(index, row): (usize, Result<Row, Failure>)| {
            let row = match row {
                Ok(row) => row,
                Err(failure) => return Standing::Refused(failure),
            };
            let held = held.iter().find(|(n, _)| *n == index).map(|(_, held)| held);
            row.compare(&self.table, batch[index].action, held)
        };
        Ok(rows.into_iter().enumerate().map(verdict).collect())
    }

    /// `work`, for as long as a call may take.
    async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, Trouble>>,
    ) -> Result<T, Trouble> {
        let done = tokio::time::timeout(self.timeout, work).await;
        done.unwrap_or_else(|_| Err(Trouble::late()))
    }
}

const MERGE: &str = "MERGE";
const MATCH: &str = "MATCH";

#[async_trait]
impl Target for Neo4jTarget {
    async fn deliver(&self, batch: &[Delivery]) -> Vec<Outcome> {
        let mut outcomes = vec![None; batch.len()];
        let trouble = self
            .in_time(self.deliver_all(batch, &mut outcomes))
            .await
            .err();
        // What had been settled before the trouble stays so.
        let rest = trouble.unwrap_or_else(Trouble::late).outcome();
        let outcomes = outcomes.into_iter();
        outcomes
            .map(|outcome| outcome.unwrap_or_else(|| rest.clone()))
            .collect()
    }

    fn forgets_versions(&self) -> bool {
        true
    }

    async fn forget_version(&self, user_id: &UserId, version: u64) -> Result<(), Failure> {
        let [label, id, kept] =
            [&self.label, &self.table.id, &self.table.version].map(|name| quoted(name));
        let statement =
            format!("MATCH (u:{label} {{{id}: $id}}) WHERE u.{kept} = $version SET u.{kept} = 0");
        let version = i64::try_from(version).unwrap_or(i64::MAX);
        let query = Query::new(statement).param("version", version);
        let query = match user_id {
            UserId::Number(number) => query.param("id", i64::try_from(*number).unwrap_or(-1)),
            UserId::Text(text) => query.param("id", text.as_ref()),
        };
        let forgotten = self.in_time(self.ask(query, |_| Ok(()))).await;
        forgotten.map(drop).map_err(|trouble| trouble.failure)
    }

    async fn probe(&self) -> Result<(), Failure> {
        *self.fits.lock().await = None;
        self.in_time(self.check())
            .await
            .map_err(|trouble| trouble.failure)
    }

    fn verifies(&self) -> bool {
        self.verify
    }

    async fn compare(&self, batch: &[Delivery]) -> Option<Vec<Standing>> {
        let compared = self.in_time(self.compare_all(batch)).await;
        Some(compared.unwrap_or_else(|trouble| Standing::unknown(&trouble.outcome(), batch.len())))
    }

    async fn holdings(&self) -> Result<Box<dyn Holdings + '_>, Unchecked> {
        Ok(Box::new(Scanned(Neo4jHoldings::new(self))))
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    async fn ddl(&self) -> Result<Vec<String>, Failure> {
        self.in_time(self.missing())
            .await
            .map_err(|trouble| trouble.failure)
    }

    async fn init(&self) -> Result<(), Failure> {
        let make = async {
            for statement in self.in_time(self.missing()).await? {
                self.ask(Query::new(statement), |_| Ok(())).await?;
            }
            Ok(())
        };
        let made: Result<(), Trouble> = make.await;
        *self.fits.lock().await = None;
        made.map_err(|trouble| trouble.failure)
    }
}

fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}
