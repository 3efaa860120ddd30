//! What a graph holds of all users: nodes as they come, a thousand at a time, hashed here.

use std::time::Duration;

use async_trait::async_trait;
use neo4rs::Query;
use serde_json::Value;
use usersync_core::event::Change;
use usersync_digest::{Each, Row, RowHash, Scan, Scanned, Side, SideError, canonical};

use super::{Neo4jTarget, property, quoted};
use crate::{
    Action, Delivery, Holdings,
    table::{is_told, told},
    trouble::Trouble,
};

/// How long the next node may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everybody a graph holds.
pub(super) struct Neo4jHoldings<'a> {
    target: &'a Neo4jTarget,
    /// Properties and members that are hashed: those the target is told of.
    hashed: Vec<(&'a String, &'a String)>,
}

impl<'a> Neo4jHoldings<'a> {
    pub(super) fn new(target: &'a Neo4jTarget) -> Self {
        let columns = target.table.columns.iter();
        let hashed = columns.filter(|(_, path)| is_told(&target.fields, path));
        Self {
            target,
            hashed: hashed.collect(),
        }
    }

    fn query(&self) -> Query {
        let target = self.target;
        let [label, id, deleted] =
            [&target.label, &target.table.id, &target.table.deleted].map(|name| quoted(name));
        let values = self.hashed.iter().enumerate();
        let values = values.map(|(at, (name, _))| format!(", u.{} AS c{at}", quoted(name)));
        Query::new(format!(
            "MATCH (u:{label}) WHERE NOT coalesce(u.{deleted}, false) RETURN u.{id} AS id{}",
            values.collect::<String>()
        ))
    }

    async fn all(&self, each: Each<'_>) -> Result<u64, Trouble> {
        let failed = |error| self.target.server.trouble(&error);
        // A connection of its own, which nobody has to trust afterwards.
        let graph = in_time(self.target.server.open()).await??;
        let mut transaction = in_time(graph.start_txn()).await?.map_err(failed)?;
        let mut nodes = in_time(transaction.execute(self.query()))
            .await?
            .map_err(failed)?;
        let (mut row, mut bytes) = (Row::default(), 0);
        while let Some(node) = in_time(nodes.next(transaction.handle()))
            .await?
            .map_err(failed)?
        {
            let id = match node.get::<Value>("id") {
                Ok(Value::String(id)) => id,
                Ok(Value::Number(id)) => id.to_string(),
                // A node of others, with an id that is none of a user.
                _ => continue,
            };
            row.begin(&id);
            bytes += id.len() as u64;
            for at in 0..self.hashed.len() {
                let value = node.get::<Value>(&format!("c{at}")).unwrap_or_default();
                bytes += field(&value, &mut row);
            }
            each(&id, row.hash());
        }
        // Nothing was written; how it ends makes no difference.
        let _ = in_time(transaction.rollback()).await;
        Ok(bytes)
    }
}

/// Adds a property to a row; says how long it is.
fn field(value: &Value, row: &mut Row) -> u64 {
    if value.is_null() {
        row.field(None);
        return 0;
    }
    let text = canonical(value);
    row.field(Some(text.as_bytes()));
    text.len() as u64
}

async fn in_time<T>(call: impl Future<Output = T>) -> Result<T, Trouble> {
    let answered = tokio::time::timeout(PATIENCE, call).await;
    answered.map_err(|_| Trouble::late())
}

#[async_trait]
impl Scan for Neo4jHoldings<'_> {
    async fn scan(&self, each: Each<'_>) -> Result<u64, SideError> {
        let read = self.all(each).await;
        read.map_err(|trouble| SideError::new(trouble.failure.reason))
    }
}

impl Holdings for Scanned<Neo4jHoldings<'_>> {
    fn side(&self) -> &dyn Side {
        self
    }

    fn expected(&self, delivery: &Delivery) -> Option<RowHash> {
        if delivery.action != Action::Upsert {
            return None;
        }
        let mut row = Row::new(&delivery.user_id.to_string());
        for (_, path) in &self.0.hashed {
            let value = match told(delivery, path) {
                Change::Set(value) => property::shown(&property::of(&value, *path == "data")),
                Change::Keep | Change::Clear => Value::Null,
            };
            field(&value, &mut row);
        }
        Some(row.hash())
    }
}
