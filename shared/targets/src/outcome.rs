//! What became of one delivery, as its target kind classifies it. What follows from it is decided in the worker.

use std::{borrow::Cow, time::Duration};

use serde::Serialize;
use usersync_core::{
    retry::{Code, Retry},
    user_id::UserId,
};

/// The result of one delivery.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The target has this version.
    Delivered {
        /// Whether the target itself refuses older versions, so that order across workers is safe.
        guarded: bool,
    },
    /// The target already had a newer version, and kept it.
    AlreadyNewer,
    /// Trying again may help: this delivery failed, others may work.
    Transient(Failure),
    /// Trying again won't help: the target refuses this very user.
    Permanent(Failure),
    /// The target as a whole can't be used: not reachable, or it refuses us.
    Fault(Failure),
    /// The target as a whole takes nothing now: it says that it is read-only, or no longer the one that is written to.
    Down(Failure),
    /// The target says that it is gone for good (HTTP 410).
    Gone(Failure),
    /// Another user has a value there that must be unique. It says nothing of the target, and nothing of anybody else.
    Conflict(Conflict),
}

/// Why a user can't have a value that must be unique.
#[derive(Clone, Debug, PartialEq)]
pub struct Conflict {
    /// In words, with the user who has it where that is known.
    pub failure: Failure,
    /// Who stands in the way, each with the version that was looked at, 0 where there is none. Empty where nobody knows.
    pub holders: Vec<(UserId, u64)>,
    /// Whether it stays so until one of them changes; else trying again may help.
    pub lasting: bool,
}

/// Why a call failed. Never holds a payload, a secret or personal data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    /// In words, for people.
    pub reason: Cow<'static, str>,
    /// The code the target answered, where its protocol has one: HTTP status, SQLSTATE, Redis or Neo4j code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<Cow<'static, str>>,
    /// How long the target asks us to wait.
    #[serde(skip)]
    pub retry_after: Option<Duration>,
}

impl Conflict {
    /// One of which nothing more is known, and that may pass.
    pub fn passing(failure: Failure) -> Self {
        Self {
            failure,
            holders: Vec::new(),
            lasting: false,
        }
    }
}

impl Failure {
    /// A failure without a code.
    pub fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason: reason.into(),
            code: None,
            retry_after: None,
        }
    }
}

/// What `retry` makes of an outcome whose code it names, whatever the kind's own table says.
///
/// Success stays success.
pub fn reclassify(outcome: Outcome, retry: &Retry) -> Outcome {
    let failure = match &outcome {
        Outcome::Delivered { .. } | Outcome::AlreadyNewer => return outcome,
        Outcome::Transient(failure)
        | Outcome::Permanent(failure)
        | Outcome::Fault(failure)
        | Outcome::Down(failure)
        | Outcome::Gone(failure) => failure,
        Outcome::Conflict(conflict) => return of_conflict(conflict.clone(), retry),
    };
    if names(&retry.permanent_status, failure) {
        Outcome::Permanent(failure.clone())
    } else if names(&retry.transient_status, failure) {
        Outcome::Transient(failure.clone())
    } else {
        outcome
    }
}

/// A conflict stays one, for it never says anything of the target.
fn of_conflict(mut conflict: Conflict, retry: &Retry) -> Outcome {
    if names(&retry.permanent_status, &conflict.failure) {
        conflict.lasting = true;
    } else if names(&retry.transient_status, &conflict.failure) {
        conflict.lasting = false;
    }
    Outcome::Conflict(conflict)
}

fn names(codes: &[Code], failure: &Failure) -> bool {
    let code = failure.code.as_deref();
    code.is_some_and(|code| codes.iter().any(|listed| listed == code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_named_in_retry_overrides_the_table() {
        let retry =
            r#"{"permanent_status": [503, "OOM", 410], "transient_status": [409, "23505"]}"#;
        let retry: Retry = serde_json::from_str(retry).unwrap();
        let failure = |code: &'static str| Failure {
            code: Some(code.into()),
            retry_after: Some(Duration::from_secs(3)),
            ..Failure::new("no")
        };
        let conflict = |code, lasting| {
            let passing = Conflict::passing(failure(code));
            Outcome::Conflict(Conflict { lasting, ..passing })
        };
        use Outcome::{AlreadyNewer, Delivered, Fault, Gone, Permanent, Transient};
        let rows = [
            (Transient(failure("503")), Permanent(failure("503"))),
            (Transient(failure("OOM")), Permanent(failure("OOM"))),
            (Gone(failure("410")), Permanent(failure("410"))),
            (Permanent(failure("409")), Transient(failure("409"))),
            (Permanent(failure("23505")), Transient(failure("23505"))),
            (Transient(failure("500")), Transient(failure("500"))),
            (Fault(failure("401")), Fault(failure("401"))),
            (
                Permanent(Failure::new("409")),
                Permanent(Failure::new("409")),
            ),
            (Delivered { guarded: true }, Delivered { guarded: true }),
            (AlreadyNewer, AlreadyNewer),
            (conflict("23505", true), conflict("23505", false)),
            (conflict("503", false), conflict("503", true)),
            (conflict("23P01", true), conflict("23P01", true)),
        ];
        for (outcome, expected) in rows {
            assert_eq!(reclassify(outcome.clone(), &retry), expected, "{outcome:?}");
        }
    }
}
