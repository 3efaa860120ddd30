//! What went wrong at a database, and what that means for the users under way.

use crate::{Failure, Outcome};

/// Who or what is to blame for an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blame {
    /// A row's content.
    Row,
    /// A row that has what must be unique and another user has.
    Conflict,
    /// Nobody: two statements wanted the same rows, and this one was rolled back.
    Collision,
    /// The server, for a while.
    Busy,
    /// The server, or our right to use it.
    Server,
    /// The table: it isn't as it was.
    Table,
}

/// An error of a server or of the way to it.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    pub(crate) blame: Blame,
    pub(crate) failure: Failure,
    /// Whether the connection is of no more use.
    pub(crate) lost: bool,
}

impl Trouble {
    /// The target can't take users as it is.
    pub(crate) fn misfit(failure: Failure) -> Self {
        Self {
            blame: Blame::Server,
            failure,
            lost: false,
        }
    }

    /// There is no way to the server.
    pub(crate) fn unreachable(failure: Failure) -> Self {
        Self {
            lost: true,
            ..Self::misfit(failure)
        }
    }

    /// A call took too long.
    pub(crate) fn late() -> Self {
        Self {
            blame: Blame::Busy,
            failure: Failure::new("the database did not answer in time"),
            lost: true,
        }
    }

    /// What it means for a user on the way.
    pub(crate) fn outcome(&self) -> Outcome {
        let failure = self.failure.clone();
        match self.blame {
            Blame::Row => Outcome::Permanent(failure),
            Blame::Conflict | Blame::Collision | Blame::Busy => Outcome::Transient(failure),
            Blame::Server | Blame::Table => Outcome::Fault(failure),
        }
    }
}
