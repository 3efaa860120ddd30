//! What an answer means: the table of docs/ARCHITECTURE.md, and bodies read within bounds.

use std::{
    error::Error as _,
    time::{Duration, SystemTime},
};

use reqwest::{
    Response, StatusCode,
    header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER},
};

use super::client::Unanswered;
use crate::{Conflict, Failure, Outcome};

/// The most of an answer's body that is read, so that the connection can be used again.
const ANSWER_BYTES: usize = 64 * 1024;
/// `Retry-After` is taken up to this.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60 * 60);
/// A target that answers this header refuses older versions by itself (the receiver kit does).
const GUARD: HeaderName = HeaderName::from_static("x-sync-guard");

/// What became of a call whose answer's status says it all.
pub(super) async fn of(sent: Result<Response, Unanswered>) -> Outcome {
    match sent {
        Ok(response) => {
            let outcome = classify(response.status(), response.headers());
            // What follows only frees the connection.
            let _ = read(response, ANSWER_BYTES).await;
            outcome
        }
        Err(error) => unanswered(error),
    }
}

/// What an answer means for the users in the call.
pub(super) fn classify(status: StatusCode, headers: &HeaderMap) -> Outcome {
    let failure = || Failure {
        reason: format!("the target answered {status}").into(),
        code: Some(status.as_u16().to_string().into()),
        retry_after: headers.get(RETRY_AFTER).and_then(retry_after),
    };
    match status.as_u16() {
        200..=299 => Outcome::Delivered {
            guarded: headers.contains_key(GUARD),
        },
        401 | 403 => Outcome::Fault(failure()),
        // Somebody else has what this user is to have, and may be about to give it up.
        409 => Outcome::Conflict(Conflict::passing(failure())),
        410 => Outcome::Gone(failure()),
        408 | 425 | 429 | 500..=599 => Outcome::Transient(failure()),
        _ => Outcome::Permanent(failure()),
    }
}

/// What a call that got no answer means for the users in it.
pub(super) fn unanswered(error: Unanswered) -> Outcome {
    let at_fault = match &error {
        Unanswered::Refused(_) | Unanswered::NoToken(_) => true,
        Unanswered::Late => false,
        Unanswered::Failed(error) => error.is_connect(),
    };
    match at_fault {
        true => Outcome::Fault(error.into()),
        false => Outcome::Transient(error.into()),
    }
}

impl From<Unanswered> for Failure {
    fn from(error: Unanswered) -> Self {
        match error {
            Unanswered::Refused(refused) => Self::new(refused.to_string()),
            Unanswered::NoToken(failure) => failure,
            Unanswered::Failed(error) => Self::new(describe(&error)),
            Unanswered::Late => Self::new("timed out"),
        }
    }
}

/// Seconds or an HTTP date in any of its three forms (RFC 9110 sections 5.6.7 and 10.2.3), clamped.
fn retry_after(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = httpdate::parse_http_date(text).ok()?;
            // One that has passed means now.
            date.duration_since(SystemTime::now()).unwrap_or_default()
        }
    };
    Some(wait.min(LONGEST_RETRY_AFTER))
}

/// A body that was to be read.
pub(super) enum Body {
    /// All of it.
    Whole(Vec<u8>),
    /// It is longer than what was asked for.
    TooLong,
}

/// Reads the body of an answer, so that its connection can carry the next call, up to `most` bytes.
///
/// # Errors
/// When the connection breaks or time is up.
pub(super) async fn read(mut response: Response, most: usize) -> Result<Body, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > most {
            return Ok(Body::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Body::Whole(body))
}

/// An error with its causes, without the URL, which may hold a password.
pub(super) fn describe(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() {
        "timed out".to_owned()
    } else {
        "the call failed".to_owned()
    };
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16) -> Outcome {
        classify(StatusCode::from_u16(code).unwrap(), &HeaderMap::new())
    }

    #[test]
    fn answers_are_classified_as_documented() {
        for code in [200, 201, 202, 204] {
            assert_eq!(status(code), Outcome::Delivered { guarded: false });
        }
        for code in [408, 425, 429, 500, 502, 503, 504] {
            assert!(matches!(status(code), Outcome::Transient(_)), "{code}");
        }
        for code in [301, 302, 307, 400, 404, 413, 422] {
            assert!(matches!(status(code), Outcome::Permanent(_)), "{code}");
        }
        assert!(matches!(status(409), Outcome::Conflict(conflict) if !conflict.lasting));
        assert!(matches!(status(410), Outcome::Gone(_)));
        for code in [401, 403] {
            assert!(matches!(status(code), Outcome::Fault(_)), "{code}");
        }
    }

    #[test]
    fn retry_after_takes_seconds_and_dates_and_is_clamped() {
        let wait = |text: &str| retry_after(&HeaderValue::from_str(text).unwrap());
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("999999999"), Some(LONGEST_RETRY_AFTER));
        // The examples of RFC 9110 section 5.6.7: IMF-fixdate, RFC 850, asctime.
        for past in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(wait(past), Some(Duration::ZERO), "{past}");
        }
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(30));
        let soon = wait(&soon).unwrap();
        assert!((28..=30).contains(&soon.as_secs()), "{soon:?}");
        assert_eq!(
            wait("Fri, 31 Dec 9999 23:59:59 GMT"),
            Some(LONGEST_RETRY_AFTER)
        );
        for neither in ["soon", "-3", ""] {
            assert_eq!(wait(neither), None, "{neither}");
        }
    }
}
