//! How much a caller may ask for: token buckets, and what their answers say of them.
//!
//! Fields as in draft-ietf-httpapi-ratelimit-headers-10.

use std::{collections::BTreeMap, convert::Infallible, num::NonZeroU32, sync::Arc, time::Duration};

use axum::{
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::StateInformationMiddleware,
    state::{InMemoryState, NotKeyed},
};
use metrics::counter;
use quick_cache::sync::Cache;
use usersync_core::settings::Reader;

use super::Caller;
use crate::problem::Problem;

/// The most buckets of each kind. Those that are hardly used give way, and begin full when they come back: whoever names
/// ever new sources gains events by that, but no requests.
const MOST_BUCKETS: usize = 10_000;
/// The most events in one request: less at once would refuse such a request for ever.
const LEAST_BURST: u32 = 1_000;

/// How much every caller may ask for: `[http.limit]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    /// Requests per second of a caller.
    requests: NonZeroU32,
    /// Events per second of a caller, for each source.
    events: NonZeroU32,
}

impl Rates {
    /// Reads `[http.limit]`; problems stay in `reader`.
    pub(crate) fn read(reader: &mut Reader) -> Self {
        let expected = "a whole number per second, 1 or more";
        let mut rate = |key, default| {
            let rate = reader.get(key, default, expected);
            NonZeroU32::new(rate).unwrap_or_else(|| {
                reader.problem(key, expected);
                NonZeroU32::MIN
            })
        };
        Self {
            requests: rate("http.limit.requests", 1_000),
            events: rate("http.limit.events", 10_000),
        }
    }
}

/// The buckets of all callers.
pub(crate) struct Limits {
    rates: Rates,
    requests: Buckets<(String, Size)>,
    events: Buckets<(String, Size, Option<String>)>,
}

/// Of a bucket: what comes in per second, and what it holds. Part of its key, so that another limit is another bucket.
type Size = (NonZeroU32, NonZeroU32);

impl Limits {
    pub(crate) fn new(rates: Rates) -> Self {
        for policy in ["requests", "events"] {
            // There from the start, and 0, where no key is asked for.
            counter!("usersync_http_limited_total", "caller" => "anyone", "limit" => policy)
                .increment(0);
        }
        Self {
            rates,
            requests: Buckets::new("requests"),
            events: Buckets::new("events"),
        }
    }

    /// Takes one request of `caller`.
    pub(crate) fn request(&self, caller: &Caller) -> Result<Standing, Refusal> {
        let rate = caller.limit.requests.unwrap_or(self.rates.requests);
        let size = (rate, rate);
        self.requests
            .take(caller, (caller.name.clone(), size), size, NonZeroU32::MIN)
    }

    /// Takes events of `caller`, so many of each source, all or none of a source. What other sources of a refused
    /// request took is not given back. Callers share no bucket, so that none can use up another's.
    pub(crate) fn events(
        &self,
        caller: &Caller,
        sources: BTreeMap<Option<String>, u32>,
    ) -> Result<Option<Standing>, Refusal> {
        let rate = caller.limit.events.unwrap_or(self.rates.events);
        let least_burst = NonZeroU32::new(LEAST_BURST).unwrap_or(NonZeroU32::MIN);
        let size = (rate, caller.limit.burst.unwrap_or(rate).max(least_burst));
        let mut least: Option<Standing> = None;
        for (source, count) in sources {
            let Some(count) = NonZeroU32::new(count) else {
                continue;
            };
            let key = (caller.name.clone(), size, source);
            let taken = self.events.take(caller, key, size, count)?;
            least = match least {
                Some(least) if least.remaining <= taken.remaining => Some(least),
                _ => Some(taken),
            };
        }
        Ok(least)
    }
}

type Bucket = RateLimiter<NotKeyed, InMemoryState, DefaultClock, StateInformationMiddleware>;

/// Buckets of one kind.
struct Buckets<K> {
    policy: &'static str,
    buckets: Cache<K, Arc<Bucket>>,
    clock: DefaultClock,
}

impl<K: std::hash::Hash + Eq + Clone> Buckets<K> {
    fn new(policy: &'static str) -> Self {
        Self {
            policy,
            buckets: Cache::new(MOST_BUCKETS),
            clock: DefaultClock::default(),
        }
    }

    fn take(
        &self,
        caller: &Caller,
        key: K,
        (rate, burst): Size,
        count: NonZeroU32,
    ) -> Result<Standing, Refusal> {
        let size = Quota::per_second(rate).allow_burst(burst);
        let Ok(bucket) = self.buckets.get_or_insert_with::<_, Infallible>(&key, || {
            let bucket = RateLimiter::direct(size);
            Ok(Arc::new(
                bucket.with_middleware::<StateInformationMiddleware>(),
            ))
        });
        let quota = burst.get();
        let wait = match bucket.check_n(count) {
            Ok(Ok(state)) => {
                let remaining = state.remaining_burst_capacity();
                let missing = quota.saturating_sub(remaining);
                return Ok(Standing {
                    policy: self.policy,
                    quota,
                    window: size.burst_size_replenished_in(),
                    remaining,
                    reset: size.replenish_interval() * missing,
                });
            }
            Ok(Err(until)) => until.wait_time_from(self.clock.now()),
            // More than the bucket holds, which no request can ask for.
            Err(_) => size.burst_size_replenished_in(),
        };
        counter!("usersync_http_limited_total", "caller" => caller.name.clone(), "limit" => self.policy)
            .increment(1);
        Err(Refusal(Standing {
            policy: self.policy,
            quota,
            window: size.burst_size_replenished_in(),
            remaining: 0,
            reset: wait,
        }))
    }
}

/// How a bucket stands.
#[derive(Debug)]
pub(crate) struct Standing {
    policy: &'static str,
    /// What a full bucket holds.
    quota: u32,
    /// How long an empty one takes to be full.
    window: Duration,
    remaining: u32,
    /// When it is full again; of a refused request: when it can pass.
    reset: Duration,
}

impl Standing {
    /// Adds it to an answer.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        let policy = self.policy;
        let (window, reset) = (seconds(self.window), seconds(self.reset));
        let limits = [
            (
                "ratelimit-policy",
                format!("\"{policy}\";q={};w={window}", self.quota),
            ),
            (
                "ratelimit",
                format!("\"{policy}\";r={};t={reset}", self.remaining),
            ),
        ];
        for (name, value) in limits {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.append(HeaderName::from_static(name), value);
            }
        }
    }
}

/// A bucket that hasn't enough.
#[derive(Debug)]
pub(crate) struct Refusal(Standing);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Standing {
            policy,
            quota,
            window,
            reset,
            ..
        } = &self.0;
        let detail = format!(
            "more {policy} than {quota} in {} s; send it again in {} s",
            seconds(*window),
            seconds(*reset)
        );
        let mut response = Problem::new(StatusCode::TOO_MANY_REQUESTS, detail).into_response();
        let headers = response.headers_mut();
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds(*reset)));
        self.0.tell(headers);
        response
    }
}

/// Whole seconds, rounded up, at least one.
fn seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(requests: u32, events: u32) -> Limits {
        let rate = |rate| NonZeroU32::new(rate).unwrap();
        Limits::new(Rates {
            requests: rate(requests),
            events: rate(events),
        })
    }

    fn of(source: &str, count: u32) -> BTreeMap<Option<String>, u32> {
        BTreeMap::from([(Some(source.to_owned()), count)])
    }

    #[test]
    fn a_caller_that_has_used_up_its_requests_is_refused_alone() {
        let limits = limits(2, 1);
        let (one, other) = (Caller::named("one"), Caller::named("other"));
        assert_eq!(limits.request(&one).unwrap().remaining, 1);
        assert_eq!(limits.request(&one).unwrap().remaining, 0);
        let Refusal(standing) = limits.request(&one).unwrap_err();
        assert!(standing.reset <= Duration::from_millis(500), "{standing:?}");
        assert_eq!(limits.request(&other).unwrap().remaining, 1);
    }

    #[test]
    fn events_are_counted_by_caller_and_source() {
        let limits = limits(1, 5);
        let (one, other) = (Caller::named("one"), Caller::named("other"));
        let standing = limits.events(&one, of("a", LEAST_BURST)).unwrap().unwrap();
        assert_eq!((standing.remaining, standing.quota), (0, LEAST_BURST));
        assert_eq!(standing.window, Duration::from_secs(200));
        let Refusal(standing) = limits.events(&one, of("a", 5)).unwrap_err();
        assert!(standing.reset > Duration::from_millis(500), "{standing:?}");
        assert!(limits.events(&one, of("b", 1)).is_ok());
        assert!(limits.events(&other, of("a", 1)).is_ok());
        assert!(limits.events(&one, BTreeMap::new()).unwrap().is_none());
    }

    #[test]
    fn a_caller_with_limits_of_its_own_has_those() {
        let limits = limits(1, 1);
        let number = |number| NonZeroU32::new(number);
        let mut one = Caller::named("one");
        one.limit = super::super::caller::Limit {
            requests: number(3),
            events: number(2_000),
            burst: number(4_000),
        };
        assert_eq!(limits.request(&one).unwrap().quota, 3);
        let standing = limits.events(&one, of("a", 1)).unwrap().unwrap();
        assert_eq!(
            (standing.quota, standing.window),
            (4_000, Duration::from_secs(2))
        );
        assert_eq!(limits.request(&Caller::named("other")).unwrap().quota, 1);
        // A changed limit holds at once.
        one.limit.requests = number(5);
        assert_eq!(limits.request(&one).unwrap().remaining, 4);
        one.limit.burst = number(1);
        let standing = limits.events(&one, of("a", LEAST_BURST)).unwrap().unwrap();
        assert_eq!(standing.quota, LEAST_BURST, "a whole array must fit");
    }

    #[test]
    fn buckets_are_bounded() {
        let limits = limits(1, 1);
        let caller = Caller::named("one");
        for number in 0..MOST_BUCKETS + 1_000 {
            limits.events(&caller, of(&number.to_string(), 1)).unwrap();
        }
        assert!(limits.events.buckets.len() <= MOST_BUCKETS);
    }

    #[test]
    fn the_fields_are_those_of_the_draft() {
        let mut headers = HeaderMap::new();
        limits(50, 1)
            .request(&Caller::named("one"))
            .unwrap()
            .tell(&mut headers);
        assert_eq!(headers["ratelimit-policy"], "\"requests\";q=50;w=1");
        assert_eq!(headers["ratelimit"], "\"requests\";r=49;t=1");
    }
}
