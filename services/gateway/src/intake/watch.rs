//! Looks at both streams every second while a session goes on, and renews the mark.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use async_nats::jetstream::{self, kv::UpdateErrorKind};
use jiff::Timestamp;
use tokio::time::timeout;
use usersync_core::{
    nats::REQUEST_TIMEOUT,
    pull::{Stopped, connects},
};

use super::{
    mark::{self, Extent, Mark, Marks},
    past::SYNCED,
    session::Lost,
    survey::{Ground, Survey},
};

/// How often the streams are looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Renews the mark while a session goes on.
pub(super) struct Watch {
    survey: Survey,
    marks: Marks,
    mark: Mark,
    revision: u64,
    floors: Floors,
}

/// Up to which event all were acknowledged, and when that was so: from the newest one that is synced by now on.
#[derive(Default)]
struct Floors(VecDeque<(Instant, u64)>);

impl Watch {
    /// For the session that begins with this mark.
    pub(super) fn new(survey: Survey, marks: Marks, mark: Mark, revision: u64) -> Self {
        Self {
            survey,
            marks,
            mark,
            revision,
            floors: Floors::default(),
        }
    }

    /// Looks every second, until the streams aren't what they were.
    pub(super) async fn run(&mut self, ground: &Ground) -> Lost {
        loop {
            tokio::time::sleep(EVERY).await;
            if let Ok(Err(lost)) = timeout(REQUEST_TIMEOUT, self.look(ground)).await {
                return lost;
            }
        }
    }

    /// Looks once. What can't be asked now is asked next time: a session doesn't live without its streams anyway.
    pub(super) async fn look(&mut self, ground: &Ground) -> Result<(), Lost> {
        let least = ground.intact.least();
        // States first: none of them contains an event that isn't seen after them.
        let Ok(states) = self.survey.states.get_info().await else {
            return Ok(());
        };
        if !ground.intact.is_so(&states, least) {
            return Err(Lost::States);
        }
        let Ok(events) = self.survey.events.get_info().await else {
            return Ok(());
        };
        let Ok(floor) = self.survey.floor().await else {
            return Ok(());
        };
        let mut mark = self.mark.clone();
        (mark.states, mark.events) = (Extent::of(&states), Extent::of(&events));
        mark.last_event = mark::last_event(&events);
        let named = events.config.metadata.get(mark::EPOCH).cloned();
        let same = named.is_none_or(|named| named == mark.epochs.current().to_string());
        if !same || !self.mark.events.can_become(&mark.events) {
            return Err(Lost::Events);
        }
        if events.config.duplicate_window != ground.history.window {
            return Err(Lost::Window(events.config.duplicate_window));
        }
        if let Some(merged) = self.floors.synced(Instant::now(), floor) {
            mark.merged = Some(merged);
        }
        if ground.is_crowded() {
            mark.crowded = Some(Timestamp::now());
        }
        if mark == self.mark {
            return Ok(());
        }
        // What was found after the connection was lost may be of a server that has lost something: the next session compares.
        if connects(&self.survey.jetstream) != ground.connects {
            return Err(Lost::Stopped(Stopped::Reconnected));
        }
        match self.marks.write(&mark, self.revision).await {
            Ok(revision) => (self.mark, self.revision) = (mark, revision),
            Err(error) if is_overtaken(&error) => return Err(Lost::Pin),
            Err(error) => tracing::debug!(error = format!("{error:#}"), "can't renew the mark"),
        }
        Ok(())
    }
}

impl Floors {
    /// Up to which event all were acknowledged long enough ago, `floor` being how far they are `now`; `None` while nothing known
    /// is that old.
    fn synced(&mut self, now: Instant, floor: u64) -> Option<u64> {
        let Self(floors) = self;
        floors.push_back((now, floor));
        let is_old = |(at, _): &(Instant, u64)| now.duration_since(*at) >= SYNCED;
        while floors.get(1).is_some_and(is_old) {
            floors.pop_front();
        }
        let oldest = floors.front().filter(|oldest| is_old(oldest));
        oldest.map(|(_, floor)| *floor)
    }
}

/// Whether somebody else has written the mark.
fn is_overtaken(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<jetstream::kv::UpdateError>();
    error.is_some_and(|error| error.kind() == UpdateErrorKind::WrongLastRevision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_merged_long_ago_is_synced() {
        let now = Instant::now();
        let ago = |seconds| now.checked_sub(Duration::from_secs(seconds)).unwrap_or(now);
        let mut floors = Floors::default();
        assert_eq!(floors.synced(ago(30), 10), None);
        assert_eq!(floors.synced(ago(25), 20), None);
        assert_eq!(floors.synced(ago(19), 30), Some(10));
        assert_eq!(floors.synced(ago(15), 40), Some(20));
        assert_eq!(floors.synced(now, 50), Some(40));
    }
}
