//! What went wrong at a database, and what that means for the users under way.

use crate::{Conflict, Failure, Outcome};

/// Why a row that the server took isn't there.
pub(crate) const UNWRITTEN: &str = "the server took the user and didn't write it as it was told: a trigger, a rule or a policy for rows has a say";

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
    /// The server: it takes nothing, for it is read-only or no longer the primary.
    Demoted,
    /// The table: it isn't as it was.
    Table,
}

/// An error of a server or of the way to it.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    pub(crate) blame: Blame,
    pub(crate) failure: Failure,
    /// Whether it is about a column that nobody mapped.
    pub(crate) foreign: bool,
    /// Whether the connection is of no more use.
    pub(crate) lost: bool,
}

impl Trouble {
    /// The target can't take users as it is.
    pub(crate) fn misfit(failure: Failure) -> Self {
        Self {
            blame: Blame::Server,
            failure,
            foreign: false,
            lost: false,
        }
    }

    /// The server is read-only: another one is to be looked for at its address.
    pub(crate) fn demoted(failure: Failure) -> Self {
        Self {
            blame: Blame::Demoted,
            failure,
            foreign: false,
            lost: true,
        }
    }

    /// There is no way to the server.
    pub(crate) fn unreachable(failure: Failure) -> Self {
        Self {
            foreign: false,
            lost: true,
            ..Self::misfit(failure)
        }
    }

    /// Another row has what a row is to have, and must be unique.
    pub(crate) fn in_the_way() -> Self {
        Self {
            blame: Blame::Conflict,
            failure: Failure {
                code: Some("23000".into()),
                ..Failure::new("another user's row has a value that must be unique")
            },
            foreign: false,
            lost: false,
        }
    }

    /// The server took a row and holds another.
    pub(crate) fn unwritten() -> Self {
        Self {
            blame: Blame::Row,
            failure: Failure::new(UNWRITTEN),
            foreign: false,
            lost: false,
        }
    }

    /// The same, with the column that it is about.
    pub(crate) fn at(mut self, column: &str) -> Self {
        self.failure.reason = format!("{}, column `{column}`", self.failure.reason).into();
        self
    }

    /// The same, with the member that it is about.
    pub(crate) fn with(mut self, member: &str) -> Self {
        self.failure.reason = format!("{}; `{member}` differs", self.failure.reason).into();
        self
    }

    /// The same, with the address that was to be reached, and the database there.
    pub(crate) fn reaching(mut self, host: &str, port: u16, database: Option<&str>) -> Self {
        let database = database.unwrap_or_default();
        self.failure.reason = format!("{} ({host}:{port}/{database})", self.failure.reason).into();
        self
    }

    /// A call took too long.
    pub(crate) fn late() -> Self {
        Self {
            blame: Blame::Busy,
            failure: Failure::new("the database did not answer in time"),
            foreign: false,
            lost: true,
        }
    }

    /// What it means for a user on the way.
    pub(crate) fn outcome(&self) -> Outcome {
        let failure = self.failure.clone();
        match self.blame {
            Blame::Row => Outcome::Permanent(failure),
            Blame::Conflict => Outcome::Conflict(Conflict::passing(failure)),
            Blame::Collision | Blame::Busy => Outcome::Transient(failure),
            Blame::Demoted => Outcome::Down(failure),
            Blame::Server | Blame::Table => Outcome::Fault(failure),
        }
    }
}
