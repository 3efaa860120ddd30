//! How long and how often one event is tried.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    context::{PublishError, PublishErrorKind},
};

/// The bounds of publishing one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// How long publishing may take in all: no attempt starts that could end later.
    pub deadline: Duration,
    /// How long one attempt waits for the confirmation.
    pub attempt: Duration,
    /// The pause after the first attempt; it doubles with each further one.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            attempt: Duration::from_secs(2),
            first_pause: Duration::from_millis(50),
            longest_pause: Duration::from_secs(1),
        }
    }
}

impl Retry {
    /// The pause after attempt number `attempts`, `None` when no further one fits in.
    pub(crate) fn pause(&self, attempts: u32, elapsed: Duration) -> Option<Duration> {
        let doubled = self
            .first_pause
            .saturating_mul(1 << attempts.saturating_sub(1).min(20));
        let pause = doubled.min(self.longest_pause);
        (elapsed + pause + self.attempt <= self.deadline).then_some(pause)
    }
}

/// Whether another attempt with the same id can succeed where this one failed.
pub(crate) fn worth_another_attempt(error: &PublishError) -> bool {
    match error.kind() {
        // No stream listens: it is being made, or its leader is being elected.
        PublishErrorKind::StreamNotFound
        | PublishErrorKind::TimedOut
        | PublishErrorKind::BrokenPipe
        | PublishErrorKind::MaxAckPending => true,
        PublishErrorKind::Other => server_is_unavailable(error),
        PublishErrorKind::WrongLastMessageId
        | PublishErrorKind::WrongLastSequence
        | PublishErrorKind::MaxPayloadExceeded => false,
    }
}

/// JetStream says 503 when it is short of something: a full stream, no leader, no space.
fn server_is_unavailable(error: &PublishError) -> bool {
    let cause = std::error::Error::source(error);
    let answer = cause.and_then(|cause| cause.downcast_ref::<jetstream::Error>());
    answer.is_some_and(|answer| answer.code() == 503)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_end_at_the_deadline() {
        let retry = Retry::default();
        let pauses: Vec<_> = (1..8)
            .map(|n| retry.pause(n, Duration::ZERO).unwrap().as_millis())
            .collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(
            retry.pause(u32::MAX, Duration::ZERO),
            Some(retry.longest_pause)
        );
        assert_eq!(retry.pause(1, Duration::from_millis(7_951)), None);
    }

    #[test]
    fn a_full_stream_is_tried_again_and_a_bad_request_is_not() {
        for (code, again) in [(503, true), (400, false)] {
            let answer = serde_json::json!({"code": code, "err_code": 10077, "description": "d"});
            let cause: jetstream::Error = serde_json::from_value(answer).unwrap();
            let error = PublishError::with_source(PublishErrorKind::Other, cause);
            assert_eq!(worth_another_attempt(&error), again, "{code}");
        }
        assert!(worth_another_attempt(&PublishError::new(
            PublishErrorKind::TimedOut
        )));
        assert!(!worth_another_attempt(&PublishError::new(
            PublishErrorKind::MaxPayloadExceeded
        )));
    }
}
