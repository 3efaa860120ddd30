//! At most so many messages in any minute.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);

/// When the messages of the last minute were sent.
pub(super) struct Throttle {
    most: usize,
    sent: VecDeque<Instant>,
}

impl Throttle {
    pub(super) fn new(most: usize) -> Self {
        let sent = VecDeque::new();
        Self { most, sent }
    }

    /// When the next one may be sent, at the earliest.
    pub(super) fn free_at(&self, now: Instant) -> Instant {
        let full = self.sent.len() >= self.most;
        let first = self.sent.front().filter(|_| full);
        first.map_or(now, |first| now.max(*first + MINUTE))
    }

    /// One is sent.
    pub(super) fn count(&mut self, now: Instant) {
        self.sent.push_back(now);
        while self.sent.len() > self.most {
            self.sent.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_minute_has_more_than_allowed() {
        let begun = Instant::now();
        let (mut throttle, mut now) = (Throttle::new(3), begun);
        let mut sent = Vec::new();
        for n in 0..20 {
            now = throttle.free_at(now + Duration::from_secs(n));
            throttle.count(now);
            sent.push(now);
        }
        for four in sent.windows(4) {
            assert!(four[3] - four[0] >= MINUTE);
        }
        assert!(sent[1] - sent[0] < MINUTE, "nothing is put off needlessly");
    }
}
