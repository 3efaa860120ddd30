//! Rows as they come, each within a deadline.

use std::time::Duration;

use futures_util::{Stream, StreamExt as _};

use crate::trouble::Trouble;

/// The next of `rows`, which is waited for no longer than `patience`.
pub(crate) async fn next<T>(
    rows: &mut (impl Stream<Item = T> + Unpin),
    patience: Duration,
) -> Result<Option<T>, Trouble> {
    let next = tokio::time::timeout(patience, rows.next()).await;
    next.map_err(|_| Trouble::late())
}
