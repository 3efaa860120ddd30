//! What a target holds, asked for as digests and lists, beside what it is meant to hold.

pub(crate) mod main_table;
pub(crate) mod sql;
mod sqlite;

use usersync_digest::{Form, RowHash, Side};

use crate::{Delivery, Failure};

/// What a target holds of all users, and what it should hold of each.
pub trait Holdings: Send + Sync {
    /// What it holds, as a side of a comparison.
    fn side(&self) -> &dyn Side;

    /// The hash that the target would answer for a user it has been told `delivery`; `None` for one who isn't meant to
    /// be there.
    ///
    /// What a partial or disabled user's target knew before isn't known here: such a user may be flagged though
    /// nothing is wrong, which [`Target::compare`](crate::Target::compare) then tells.
    fn expected(&self, delivery: &Delivery) -> Option<RowHash>;

    /// Whether users disappear there by themselves, so that a missing one isn't drift.
    fn forgets(&self) -> bool {
        false
    }

    /// The fields in their order, where each is one member of the user: a database can then be asked to make the same
    /// hashes ([`MainTable`](crate::MainTable)), provided that the rule is plain.
    fn fields(&self) -> Option<&[Field]> {
        None
    }
}

/// A field of the row hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// The member, as a dotted path; empty where it is none: whether a row is one that nobody is told to be.
    pub path: String,
    /// How its values are written.
    pub form: Form,
}

/// The path of the field that is no member.
const MARK: &str = "";

/// Why what a target holds can't be told in digests.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Unchecked {
    /// It can't, and users can't be read one by one either.
    #[error("not checkable: {0}")]
    Never(&'static str),
    /// It can't, but users can be read one by one: [`Target::compare`](crate::Target::compare).
    #[error("users can only be read one by one: {0}")]
    OneByOne(&'static str),
    /// It could, but not now, or not as things are.
    #[error(transparent)]
    Failed(#[from] Failure),
}
