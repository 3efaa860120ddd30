//! A copy of the users that can be asked for digests and lists.

use std::{borrow::Cow, ops::Range};

use async_trait::async_trait;

use crate::{
    cut::{Cut, Extent},
    digest::Digest,
    row::RowHash,
};

/// A copy of the users, or what one is meant to be.
///
/// Both questions name buckets of a cut as sorted ranges that don't touch. Whoever answers keeps its own time
/// limits; memory is bounded by the one who asks ([`Walk`](crate::Walk)).
#[async_trait]
pub trait Side: Send + Sync {
    /// What ids there are.
    ///
    /// # Errors
    /// When the side can't say.
    async fn extent(&self) -> Result<Extent, SideError>;

    /// Whether users of some buckets are found without looking at everybody.
    fn seeks(&self, cut: &Cut) -> bool;

    /// The digests of those of `buckets` that hold somebody, in ascending order.
    ///
    /// # Errors
    /// When the side can't say.
    async fn digest(
        &self,
        cut: &Cut,
        buckets: &[Range<u64>],
    ) -> Result<Answer<(u64, Digest)>, SideError>;

    /// Everybody in `buckets`, in any order.
    ///
    /// # Errors
    /// When the side can't say.
    async fn list(&self, cut: &Cut, buckets: &[Range<u64>]) -> Result<Answer<Entry>, SideError>;
}

/// One user of a list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The id as text.
    pub id: Box<str>,
    /// The hash of the row.
    pub hash: RowHash,
}

/// An answer, and how many bytes of it were read.
#[derive(Clone, Debug)]
pub struct Answer<T> {
    /// What was asked for.
    pub items: Vec<T>,
    /// What it took to read it.
    pub bytes: u64,
}

/// Why a side doesn't answer. Holds no payload, no secret and no personal data.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct SideError(pub Cow<'static, str>);

impl SideError {
    /// An error in words.
    pub fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self(reason.into())
    }
}
