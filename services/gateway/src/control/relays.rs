//! How the gateways stand with the outboxes of main databases.

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use usersync_core::{nats::REQUEST_TIMEOUT, subjects::RELAYS_BUCKET};

use super::Control;
use crate::relay::Notice;

/// What every gateway says of every source.
pub(super) async fn all(control: &Control) -> anyhow::Result<BTreeMap<String, Vec<Notice>>> {
    let store = control.jetstream.get_key_value(RELAYS_BUCKET).await?;
    let keys: Vec<String> =
        tokio::time::timeout(REQUEST_TIMEOUT, store.keys().await?.try_collect()).await??;
    let mut known: BTreeMap<String, Vec<Notice>> = BTreeMap::new();
    for key in keys {
        let (Some(value), Some((source, _))) = (store.get(&key).await?, key.split_once('.')) else {
            continue;
        };
        if let Ok(notice) = serde_json::from_slice(&value) {
            known.entry(source.to_owned()).or_default().push(notice);
        }
    }
    Ok(known)
}
