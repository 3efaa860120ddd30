//! Order between workers of one target that has no guard of its own.
//!
//! While this worker is the only one the server hands messages to, its lanes keep order. It can
//! tell: consumer sequences then arrive without a gap. When there is a gap, another worker may
//! have delivered a newer version before an older one of ours landed, so every unguarded
//! delivery of the time in question is compared with the newest state, and a newer state is
//! delivered again. Costs nothing while a worker is alone. Best effort: see docs/ARCHITECTURE.md.

use usersync_core::user_id::UserId;

/// What was delivered to a target without a guard, until it is known to be the newest.
#[derive(Debug, Default)]
pub(crate) struct Freshness {
    last_seq: Option<u64>,
    shared: bool,
    recent: Vec<Unproven>,
    /// What awaits proof that we were alone up to this consumer sequence.
    pending: Option<(u64, Vec<Unproven>)>,
}

/// A delivery that may have landed after a newer one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unproven {
    /// Who.
    pub user_id: UserId,
    /// The version delivered.
    pub version: u64,
}

impl Freshness {
    /// A live message arrived with this consumer sequence.
    pub(crate) fn received(&mut self, seq: u64) {
        self.shared |= self.last_seq.is_some_and(|last| seq != last + 1);
        self.last_seq = Some(seq);
    }

    /// A target without a guard took this version.
    pub(crate) fn delivered(&mut self, unproven: Unproven) {
        self.recent.push(unproven);
    }

    /// Whether anything awaits proof.
    pub(crate) fn is_empty(&self) -> bool {
        self.recent.is_empty() && self.pending.is_none()
    }

    /// Takes stock, given the last consumer sequence the server has handed out to anyone.
    ///
    /// Returns the deliveries that must be compared with the newest state.
    pub(crate) fn suspects(&mut self, handed_out: u64) -> Vec<Unproven> {
        let alone_up_to = |seq| !self.shared && self.last_seq.is_some_and(|last| last >= seq);
        let mut suspects = Vec::new();
        if let Some((seq, deliveries)) = self.pending.take() {
            if !alone_up_to(seq) {
                suspects = deliveries;
                suspects.append(&mut self.recent);
            }
            self.shared = false;
        }
        if !self.recent.is_empty() {
            self.pending = Some((handed_out, std::mem::take(&mut self.recent)));
        }
        suspects
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(version: u64) -> Unproven {
        Unproven {
            user_id: UserId::from(1),
            version,
        }
    }

    #[test]
    fn a_worker_that_is_alone_compares_nothing() {
        let mut freshness = Freshness::default();
        for seq in 7..20 {
            freshness.received(seq);
            freshness.delivered(delivery(seq));
            assert_eq!(freshness.suspects(seq), []);
        }
        assert_eq!(freshness.suspects(19), []);
        assert!(freshness.is_empty());
    }

    #[test]
    fn a_gap_makes_what_was_delivered_around_it_suspect() {
        let mut freshness = Freshness::default();
        freshness.received(1);
        freshness.delivered(delivery(1));
        assert_eq!(freshness.suspects(1), []);
        freshness.received(3);
        freshness.delivered(delivery(3));
        assert_eq!(freshness.suspects(3), [delivery(1), delivery(3)]);
        freshness.received(4);
        freshness.delivered(delivery(4));
        assert_eq!(freshness.suspects(4), []);
        assert_eq!(freshness.suspects(4), []);
        assert!(freshness.is_empty());
    }

    #[test]
    fn messages_that_only_the_other_worker_got_make_ours_suspect() {
        let mut freshness = Freshness::default();
        freshness.received(1);
        freshness.delivered(delivery(1));
        assert_eq!(freshness.suspects(9), []);
        assert_eq!(freshness.suspects(9), [delivery(1)]);
    }
}
