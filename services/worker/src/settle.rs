//! What follows from an outcome: acknowledge, try again later, or dead-letter. Decided here and nowhere else.

use std::time::Duration;

use usersync_core::{dead_letter::Class, retry::Retry};
use usersync_targets::{Failure, Outcome};

/// What is to be done with a message.
#[derive(Debug, PartialEq)]
pub(crate) enum Verdict<'a> {
    /// The target has it: acknowledge.
    Acknowledge,
    /// Hand it out again after this long.
    Retry(Duration, &'a Failure),
    /// Keep it as a dead letter, then terminate it.
    DeadLetter(Class, &'a Failure),
}

/// Decides on one message. `attempts` counts this one; `jitter` is −1 to 1.
pub(crate) fn decide<'a>(
    outcome: &'a Outcome,
    attempts: u32,
    retry: &Retry,
    jitter: f64,
) -> Verdict<'a> {
    let (class, failure) = match outcome {
        Outcome::Delivered { .. } | Outcome::AlreadyNewer => return Verdict::Acknowledge,
        Outcome::Permanent(failure) => return Verdict::DeadLetter(Class::Permanent, failure),
        Outcome::Transient(failure) => (Class::Transient, failure),
        Outcome::Fault(failure) | Outcome::Gone(failure) => (Class::TargetFault, failure),
    };
    if attempts >= retry.max_deliver {
        return Verdict::DeadLetter(class, failure);
    }
    let delay = backoff(attempts, retry, jitter).max(failure.retry_after.unwrap_or_default());
    Verdict::Retry(delay, failure)
}

/// base × factor^(attempts − 1), at most cap, ± 20 %.
fn backoff(attempts: u32, retry: &Retry, jitter: f64) -> Duration {
    let exponent = i32::try_from(attempts.saturating_sub(1)).unwrap_or(i32::MAX);
    let seconds =
        (retry.base.as_secs_f64() * retry.factor.powi(exponent)).min(retry.cap.as_secs_f64());
    Duration::from_secs_f64(seconds * (1.0 + 0.2 * jitter.clamp(-1.0, 1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transient(retry_after: Option<Duration>) -> Outcome {
        Outcome::Transient(Failure {
            retry_after,
            ..Failure::new("busy")
        })
    }

    #[test]
    fn success_of_any_kind_is_acknowledged() {
        for outcome in [Outcome::Delivered { guarded: false }, Outcome::AlreadyNewer] {
            assert_eq!(
                decide(&outcome, 99, &Retry::default(), 0.0),
                Verdict::Acknowledge
            );
        }
    }

    #[test]
    fn the_defaults_give_eight_attempts_over_about_an_hour() {
        let retry = Retry::default();
        let mut total = Duration::ZERO;
        for attempt in 1..8 {
            let outcome = transient(None);
            let Verdict::Retry(delay, _) = decide(&outcome, attempt, &retry, 0.0) else {
                panic!("attempt {attempt} gave up");
            };
            total += delay;
        }
        assert!((3_000..4_500).contains(&total.as_secs()), "{total:?}");
        assert!(matches!(
            decide(&transient(None), 8, &retry, 0.0),
            Verdict::DeadLetter(Class::Transient, _)
        ));
    }

    #[test]
    fn a_permanent_failure_is_dead_lettered_at_once() {
        let outcome = Outcome::Permanent(Failure::new("no such route"));
        assert!(matches!(
            decide(&outcome, 1, &Retry::default(), 0.0),
            Verdict::DeadLetter(Class::Permanent, _)
        ));
    }

    #[test]
    fn retry_after_lengthens_a_delay_and_jitter_stays_within_a_fifth() {
        let retry = Retry::default();
        let delay = |wait, jitter| match decide(&transient(wait), 1, &retry, jitter) {
            Verdict::Retry(delay, _) => delay.as_millis(),
            other => panic!("{other:?}"),
        };
        assert_eq!(delay(Some(Duration::from_secs(30)), 0.0), 30_000);
        assert_eq!(delay(Some(Duration::ZERO), 0.0), 1_000);
        assert_eq!((delay(None, -1.0), delay(None, 1.0)), (800, 1_200));
    }
}
