//! When the next call may begin, and how many users it may carry: rate limit and linger of a target.

use std::{num::NonZeroU32, time::Duration};

use governor::{
    DefaultDirectRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use tokio::time::Instant;

/// What a target's entry asks for.
pub(crate) struct Throttle {
    limiter: Option<DefaultDirectRateLimiter>,
    clock: DefaultClock,
    /// What the limiter grants at once.
    burst: usize,
    batch: usize,
    linger: Duration,
    /// Since when users have been waiting for their batch to fill.
    waiting: Option<Instant>,
}

/// What may be done now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// A call with up to this many users.
    Call(usize),
    /// Nothing before this, for the batch to fill.
    Wait(Instant),
    /// Nothing before this, by the target's rate limit.
    Limited(Instant),
    /// Nobody is waiting.
    Nobody,
}

impl Throttle {
    pub(crate) fn new(rate: Option<NonZeroU32>, batch: usize, linger: Duration) -> Self {
        // A tenth of a second's worth at once, so that the limit is smooth and batches still fill.
        let burst = rate.map(|rate| NonZeroU32::new(rate.get() / 10).unwrap_or(NonZeroU32::MIN));
        let quota = rate
            .zip(burst)
            .map(|(rate, burst)| Quota::per_second(rate).allow_burst(burst));
        Self {
            limiter: quota.map(RateLimiter::direct),
            clock: DefaultClock::default(),
            burst: burst.map_or(usize::MAX, |burst| burst.get() as usize),
            batch,
            linger,
            waiting: None,
        }
    }

    /// Asks for a call when about `ready` users are waiting.
    pub(crate) fn admit(&mut self, ready: usize, now: Instant) -> Admission {
        if ready == 0 {
            self.waiting = None;
            return Admission::Nobody;
        }
        if ready < self.batch && !self.linger.is_zero() {
            let until = *self.waiting.get_or_insert(now) + self.linger;
            if now < until {
                return Admission::Wait(until);
            }
        }
        let users = ready.min(self.batch).min(self.burst);
        if let (Some(limiter), Ok(Some(count))) =
            (&self.limiter, u32::try_from(users).map(NonZeroU32::new))
            && let Ok(Err(not_until)) = limiter.check_n(count)
        {
            let wait = not_until.wait_time_from(self.clock.now());
            return Admission::Limited(now + wait.max(Duration::from_millis(1)));
        }
        self.waiting = None;
        Admission::Call(users)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_limits_a_call_begins_at_once() {
        let mut throttle = Throttle::new(None, 100, Duration::ZERO);
        let now = Instant::now();
        assert_eq!(throttle.admit(0, now), Admission::Nobody);
        assert_eq!(throttle.admit(7, now), Admission::Call(7));
        assert_eq!(throttle.admit(700, now), Admission::Call(100));
    }

    #[test]
    fn a_batch_lingers_until_it_is_full_or_late() {
        let linger = Duration::from_millis(5);
        let mut throttle = Throttle::new(None, 10, linger);
        let now = Instant::now();
        assert_eq!(throttle.admit(3, now), Admission::Wait(now + linger));
        let later = now + Duration::from_millis(2);
        assert_eq!(throttle.admit(4, later), Admission::Wait(now + linger));
        assert_eq!(throttle.admit(10, later), Admission::Call(10));
        assert_eq!(throttle.admit(1, later), Admission::Wait(later + linger));
        assert_eq!(throttle.admit(1, later + linger), Admission::Call(1));
    }

    #[test]
    fn a_rate_limit_bounds_what_a_second_takes() {
        let mut throttle = Throttle::new(NonZeroU32::new(100), 50, Duration::ZERO);
        let now = Instant::now();
        assert_eq!(throttle.admit(500, now), Admission::Call(10));
        let Admission::Limited(until) = throttle.admit(500, now) else {
            panic!("more than a tenth of a second's worth at once");
        };
        let wait = until - now;
        assert!(
            (Duration::from_millis(50)..Duration::from_millis(150)).contains(&wait),
            "{wait:?}"
        );
    }
}
