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
    /// The consumer sequence received last; 0 before the first.
    last_seq: u64,
    /// The first message after the last gap.
    last_gap: u64,
    /// The sequence of the consumer of repairs received last.
    last_repair: u64,
    /// Landed since the server was last asked how far it has handed out messages.
    landed: Vec<Unproven>,
    /// Landed before it was asked; the answer is on its way.
    asked: Vec<Unproven>,
    /// Await our having received everything up to this consumer sequence.
    pending: Option<(u64, Vec<Unproven>)>,
}

/// A delivery that may have landed after a newer one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unproven {
    /// Who.
    pub user_id: UserId,
    /// The version delivered.
    pub version: u64,
    /// The consumer sequence received when that version was the newest; 0 when unknown.
    pub since: u64,
}

impl Freshness {
    /// A live message arrived with this consumer sequence. Answers whether the consumer was made anew,
    /// so that nothing said in its sequences holds any more.
    pub(crate) fn received(&mut self, seq: u64) -> bool {
        let anew = seq <= self.last_seq;
        if anew {
            let pending = self.pending.iter_mut().flat_map(|(_, waiting)| waiting);
            for unproven in self.landed.iter_mut().chain(&mut self.asked).chain(pending) {
                unproven.since = 0;
            }
        }
        if anew || (self.last_seq != 0 && seq != self.last_seq + 1) {
            self.last_gap = seq;
        }
        self.last_seq = seq;
        anew
    }

    /// A repair arrived with this sequence of its consumer.
    pub(crate) fn repaired(&mut self, seq: u64) {
        if seq != self.last_repair.wrapping_add(1) {
            self.not_alone();
        }
        self.last_repair = seq;
    }

    /// Another worker was handed something, nobody knows just when.
    pub(crate) fn not_alone(&mut self) {
        self.last_gap = self.last_seq + 1;
    }

    /// The consumer sequence since which nobody else was handed anything, as far as is known.
    pub(crate) fn alone_since(&self) -> u64 {
        self.last_gap
    }

    /// The consumer sequence received last.
    pub(crate) fn last_received(&self) -> u64 {
        self.last_seq
    }

    /// A target without a guard took this version, or was not called because it has it.
    pub(crate) fn delivered(&mut self, unproven: Unproven) {
        self.landed.push(unproven);
    }

    /// Whether nothing awaits proof.
    pub(crate) fn is_empty(&self) -> bool {
        self.landed.is_empty() && self.asked.is_empty() && self.pending.is_none()
    }

    /// Everything that awaits proof, in the order it was delivered. Who was skipped is left out if nobody else was handed
    /// anything since, as far as is known.
    pub(crate) fn into_unproven(self) -> Vec<Unproven> {
        let pending = self.pending.into_iter().flat_map(|(_, waiting)| waiting);
        let unproven = pending.chain(self.asked).chain(self.landed);
        let overtaken =
            |unproven: &Unproven| unproven.version != 0 || unproven.since < self.last_gap;
        unproven.filter(overtaken).collect()
    }

    /// The server is being asked now how far it has handed out messages.
    pub(crate) fn asking(&mut self) {
        self.asked.append(&mut self.landed);
    }

    /// The server has handed out states up to this consumer sequence, and repairs up to that one,
    /// to whomever.
    ///
    /// Returns the deliveries that must be compared with the newest state.
    pub(crate) fn suspects(&mut self, handed_out: u64, repairs: u64) -> Vec<Unproven> {
        if repairs != self.last_repair {
            self.not_alone();
            self.last_repair = repairs;
        }
        let mut suspects = Vec::new();
        if let Some((seq, deliveries)) = self.pending.take() {
            let alone_since = |since| self.last_seq >= seq && since != 0 && since >= self.last_gap;
            suspects = deliveries;
            suspects.retain(|delivery| !alone_since(delivery.since));
        }
        if !self.asked.is_empty() {
            self.pending = Some((handed_out, std::mem::take(&mut self.asked)));
        }
        suspects
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(since: u64) -> Unproven {
        Unproven {
            user_id: UserId::from(1),
            version: since,
            since,
        }
    }

    /// Asks, and answers that everything up to `handed_out` is out.
    fn ask(freshness: &mut Freshness, handed_out: u64) -> Vec<Unproven> {
        freshness.asking();
        freshness.suspects(handed_out, 0)
    }

    #[test]
    fn a_worker_that_is_alone_compares_nothing() {
        let mut freshness = Freshness::default();
        for seq in 7..20 {
            freshness.received(seq);
            freshness.delivered(delivery(seq));
            assert_eq!(ask(&mut freshness, seq), []);
        }
        assert_eq!(ask(&mut freshness, 19), []);
        assert!(freshness.is_empty());
    }

    #[test]
    fn a_gap_while_a_call_was_under_way_makes_its_delivery_suspect() {
        let mut freshness = Freshness::default();
        freshness.received(1);
        freshness.received(3);
        // Long after the gap was seen, the slow call of the first message lands.
        assert_eq!(ask(&mut freshness, 3), []);
        freshness.delivered(delivery(1));
        freshness.delivered(delivery(3));
        assert_eq!(ask(&mut freshness, 3), []);
        assert_eq!(ask(&mut freshness, 3), [delivery(1)]);
        assert!(freshness.is_empty());
    }

    #[test]
    fn messages_that_only_the_other_worker_got_make_ours_suspect() {
        let mut freshness = Freshness::default();
        freshness.received(1);
        freshness.delivered(delivery(1));
        assert_eq!(ask(&mut freshness, 9), []);
        assert_eq!(ask(&mut freshness, 9), [delivery(1)]);
    }

    #[test]
    fn a_consumer_made_anew_makes_everything_suspect() {
        let mut freshness = Freshness::default();
        for seq in 1..=9 {
            assert!(!freshness.received(seq));
        }
        freshness.delivered(delivery(9));
        assert!(freshness.received(1));
        assert_eq!(ask(&mut freshness, 1), []);
        let suspects = ask(&mut freshness, 1);
        assert_eq!(suspects.len(), 1, "whatever the numbers say");
    }

    #[test]
    fn a_repair_by_another_worker_makes_everything_before_it_suspect() {
        let mut freshness = Freshness::default();
        freshness.received(1);
        freshness.repaired(1);
        freshness.received(2);
        freshness.delivered(delivery(2));
        freshness.asking();
        assert_eq!(freshness.suspects(2, 1), []);
        freshness.asking();
        assert_eq!(
            freshness.suspects(2, 2),
            [delivery(2)],
            "somebody got repair 2"
        );
        assert_eq!(freshness.alone_since(), 3);
    }

    #[test]
    fn what_lands_while_the_server_is_asked_waits_for_the_next_answer() {
        let mut freshness = Freshness::default();
        freshness.received(1);
        freshness.asking();
        freshness.delivered(delivery(1));
        assert_eq!(freshness.suspects(1, 0), []);
        assert_eq!(ask(&mut freshness, 2), []);
        assert_eq!(ask(&mut freshness, 2), [delivery(1)]);
    }
}
