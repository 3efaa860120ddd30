//! How what a target holds of a user stands to what it was told.

use std::borrow::Cow;

use crate::{Failure, Outcome};

/// What reading one user back came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Standing {
    /// The target holds what it was told, also where that is nobody.
    Same,
    /// The user isn't there.
    Missing,
    /// The user is there, and isn't meant to be.
    Extra,
    /// What is there is an older version, and isn't what was told.
    Older,
    /// What is there is an older version of the same: a target isn't called when nothing it sees has changed.
    Behind,
    /// What is there is this newer version.
    Newer(u64),
    /// It is this version, and this member isn't what was told. Never a value.
    Different(Cow<'static, str>),
    /// The target can't hold what it was told, for this reason, whatever it holds.
    Refused(Failure),
    /// It can't be said: this is what asking came to.
    Unknown(Outcome),
}

impl Standing {
    /// What it is where what is there is of an `older` version.
    pub(crate) fn aged(self, older: bool) -> Self {
        match self {
            standing if !older => standing,
            Self::Same => Self::Behind,
            _ => Self::Older,
        }
    }

    /// The same for every user of a batch.
    pub(crate) fn unknown(outcome: &Outcome, users: usize) -> Vec<Self> {
        vec![Self::Unknown(outcome.clone()); users]
    }
}

/// For `verify`: everything but the same and newer is a failure that may pass.
impl From<Standing> for Outcome {
    fn from(standing: Standing) -> Self {
        let what: Cow<'_, str> = match standing {
            Standing::Same => return Self::Delivered { guarded: false },
            Standing::Newer(_) => return Self::AlreadyNewer,
            Standing::Unknown(outcome) => return outcome,
            Standing::Refused(failure) => return Self::Permanent(failure),
            Standing::Missing => "the user isn't there".into(),
            Standing::Extra => "the user is still there".into(),
            Standing::Older | Standing::Behind => "it is an older version".into(),
            Standing::Different(member) => member,
        };
        let reason = format!("read back after delivery, the user differs: {what}");
        Self::Transient(Failure::new(reason))
    }
}
