//! How many dead letters there are: counted by the server, and again only after something has changed.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use futures_util::{StreamExt, TryStreamExt, stream};
use usersync_core::{
    subjects::{self, USER_DEAD, USER_REFUSED},
    target::TargetName,
};

use super::{Control, scan};

/// Targets whose letters are counted at once.
const COUNTS: usize = 8;

/// What was counted last.
#[derive(Debug, Default)]
pub(super) struct Counted(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Last sequence and number of messages of USER_DEAD then: letters that come raise the one, those that go
    /// lower the other.
    at: (u64, u64),
    /// By filter.
    counts: BTreeMap<String, u64>,
}

/// The letters of each target, by name.
pub(crate) async fn count(
    control: &Control,
    targets: Vec<TargetName>,
) -> anyhow::Result<BTreeMap<String, u64>> {
    stream::iter(targets)
        .map(async |target| {
            let count = under(control, subjects::dead_letters_of(&target)).await?;
            Ok((target.to_string(), count))
        })
        .buffer_unordered(COUNTS)
        .try_collect()
        .await
}

/// The events that intake refused.
pub(crate) async fn refused(control: &Control) -> anyhow::Result<u64> {
    let refused = control.jetstream.get_stream(USER_REFUSED).await?;
    Ok(refused.cached_info().state.messages)
}

async fn under(control: &Control, filter: String) -> anyhow::Result<u64> {
    let dead = control.jetstream.get_stream(USER_DEAD).await?;
    let state = &dead.cached_info().state;
    let at = (state.last_sequence, state.messages);
    if state.messages == 0 {
        return Ok(0);
    }
    let known = || {
        let counted = &control.letters.0;
        counted.lock().unwrap_or_else(PoisonError::into_inner)
    };
    if let known = known()
        && known.at == at
        && let Some(count) = known.counts.get(&filter)
    {
        return Ok(*count);
    }
    // Their subjects may be as many as the users, so the server counts.
    let count = scan::count(&control.stream(USER_DEAD).await?, &filter).await?;
    let mut known = known();
    if known.at != at {
        *known = Known {
            at,
            counts: BTreeMap::new(),
        };
    }
    known.counts.insert(filter, count);
    Ok(count)
}
