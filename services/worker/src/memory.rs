//! What is in doubt at a target without a guard, kept while its couriers come and go.

use std::{collections::HashMap, time::Duration};

use tokio::{sync::watch, time::Instant};
use usersync_core::{target::TargetName, user_id::UserId};

use crate::{doubt::Doubt, parcel::Later, presence::Crew};

/// The most users who are rechecked later.
const MOST: usize = 16_384;

/// The most users who are handed over to other workers.
const HANDED_OVER: usize = 1_000;

/// One target's, of one worker.
pub(crate) struct Memory {
    pub doubt: Doubt,
    /// Tells of workers that have vanished.
    pub vanished: watch::Receiver<u64>,
    /// Rechecks to be made later, by user.
    later: HashMap<UserId, Later>,
}

impl Memory {
    pub(crate) fn new(crew: &Crew, target: &TargetName, timeout: Duration) -> Self {
        Self {
            doubt: Doubt::new(timeout),
            vanished: crew.vanished(target),
            later: HashMap::new(),
        }
    }

    /// Has a user rechecked later, once. Bounded: what is dropped here the next change or check of that user finds.
    pub(crate) fn put_off(&mut self, later: Later) {
        if let Some(known) = self.later.get_mut(&later.user_id) {
            if later.version == 0 {
                // A call may land until then, so that nothing sooner would do, and nothing later is needed.
                *known = later;
            } else if known.version != 0 {
                known.at = known.at.max(later.at);
                known.version = known.version.min(later.version);
                known.tries = known.tries.max(later.tries);
            }
        } else if self.later.len() < MOST {
            self.later.insert(later.user_id.clone(), later);
        }
    }

    /// The rechecks whose time has come.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Later> {
        let due = self.later.extract_if(|_, later| later.at <= now);
        due.map(|(_, later)| later).collect()
    }

    /// Whether anybody may hold something older than they were told last.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.doubt.is_there() || self.later.values().any(|later| later.version == 0)
    }

    /// Those of whom that is known, as far as somebody else can be asked to deliver them.
    pub(crate) fn users_in_doubt(&self) -> Vec<UserId> {
        let later = self.later.keys().chain(self.doubt.users());
        later.take(HANDED_OVER).cloned().collect()
    }
}
