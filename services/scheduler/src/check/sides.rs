//! The two sides of a check, user by user. All that a check of the states and one of a target differ in lies behind it.

use async_trait::async_trait;
use usersync_core::{
    check::{Check, Class, LeftOut},
    user_id::UserId,
};

use super::repair::Remedy;

/// How a user's copy stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Seen {
    /// As it is meant to be, or nothing is meant to be said of it.
    Alike,
    /// Not so; and what makes it so.
    Drift(Class, Remedy),
    /// The newest of it is still on its way there.
    Pending,
    /// The target can't be told of it, for this reason. Who reads all states finds them, too.
    Untold(String),
    /// The target shows it to nobody, for this reason.
    Unshown(String),
    /// It isn't there, where everybody is forgotten after a time.
    Expired,
}

/// Rows that can't be users.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unusable {
    /// How many.
    pub rows: u64,
    /// Why the first of them can't, without what it holds.
    pub because: Option<String>,
}

impl Unusable {
    /// Counts one more.
    pub(crate) fn note(&mut self, reason: String) {
        self.rows += 1;
        self.because.get_or_insert(reason);
    }

    /// Counts others too.
    pub(crate) fn add(&mut self, others: Self) {
        self.rows += others.rows;
        self.because = self.because.take().or(others.because);
    }
}

/// What a check compares.
#[async_trait(?Send)]
pub(crate) trait Sides {
    /// The name it is checked by.
    fn name(&self) -> &str;

    /// What follows from a difference, and how much the check may ask of the databases.
    fn check(&self) -> &Check;

    /// Whether every repair that was asked for has been done, or given up.
    ///
    /// # Errors
    /// When NATS can't be asked.
    async fn repairs_are_through(&self) -> anyhow::Result<bool> {
        Ok(true)
    }

    /// What the sides had that could be no user, when they were read last.
    fn unusable(&self) -> Unusable {
        Unusable::default()
    }

    /// Users who can't be held, found when all states were read last: each of them is [`Seen::Untold`], too.
    fn refused(&self) -> LeftOut {
        LeftOut::default()
    }

    /// Looks at everybody again, for a digest is a hint; in the same order.
    ///
    /// # Errors
    /// When a side can't be asked, or can't say how a user stands.
    async fn look(&self, users: &[UserId]) -> anyhow::Result<Vec<Seen>>;
}
