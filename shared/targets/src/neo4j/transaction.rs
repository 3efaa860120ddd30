//! One statement in one transaction, and what is left when it failed.

use neo4rs::{Graph, Query};

use super::{errors::unreadable, server::Server};
use crate::trouble::Trouble;

/// Runs one statement in a transaction of its own: one that commits by itself would be tried again by the
/// driver, for a minute.
pub(super) async fn transact<T>(
    server: &Server,
    graph: &Graph,
    query: Query,
    read: fn(&neo4rs::Row) -> Result<T, neo4rs::DeError>,
) -> Result<Vec<T>, Trouble> {
    let failed = |error| server.trouble(&error);
    let mut transaction = graph.start_txn().await.map_err(failed)?;
    let mut rows = transaction.execute(query).await.map_err(failed)?;
    let mut answers = Vec::new();
    while let Some(row) = rows.next(transaction.handle()).await.map_err(failed)? {
        answers.push(read(&row).map_err(|_| unreadable())?);
    }
    transaction.commit().await.map_err(failed)?;
    Ok(answers)
}

/// Ends what a failed statement has left open: the driver resets a connection when it is used again, and only
/// then.
pub(super) async fn rolled_back(graph: &Graph) -> bool {
    match graph.start_txn().await {
        Ok(transaction) => transaction.rollback().await.is_ok(),
        Err(_) => false,
    }
}
