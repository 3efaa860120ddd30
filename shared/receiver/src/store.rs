//! The seam to the service's own storage.

use std::{error::Error, future::Future};

use serde_json::Value;
use usersync_core::user_id::UserId;

use crate::delivery::Delivery;

/// Where a service keeps its copy of the users.
///
/// The kit leaves the order of deliveries to the store, because only a conditional write can
/// keep it: two deliveries of one user may arrive at the same time, or the older one last.
pub trait UserStore: Send + Sync + 'static {
    /// Writes one delivery, unless the store holds a newer version of that user.
    ///
    /// - The comparison and the write are one atomic step.
    /// - An **older** version than the stored one is not written: [`Applied::AlreadyNewer`].
    /// - An **equal** version is written again, so that a repair restores a tampered row.
    /// - A deleted user leaves a row with nothing but its id and version, so that an older
    ///   delivery can't bring it back; a newer one may.
    /// - A delivery to `disable` changes a user who is there, as a partial one does. One who isn't, or is
    ///   deleted, stays so, with the new version.
    /// - Members that are [`Change::Keep`](crate::Change::Keep) stay as they are. `data` replaces
    ///   what is stored, or is merged into it (RFC 7396) where the delivery is `partial`.
    ///
    /// # Errors
    /// [`StoreError`] when the delivery could not be written; nothing of it may stay written.
    fn apply(&self, delivery: Delivery)
    -> impl Future<Output = Result<Applied, StoreError>> + Send;

    /// The next users that aren't deleted, in an order of the store's own: those after `after`, or the first ones, at
    /// most `most`; none when there are no more. With it the kit answers digests, so that the copy can be checked
    /// without reading it; `None`, as by default, where the store doesn't do that.
    ///
    /// # Errors
    /// [`StoreError`] when the store can't be read.
    fn page(
        &self,
        after: Option<&UserId>,
        most: usize,
    ) -> impl Future<Output = Result<Option<Vec<HeldUser>>, StoreError>> + Send {
        let _ = (after, most);
        async { Ok(None) }
    }
}

/// A user as the store holds them.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldUser {
    /// Who it is.
    pub user_id: UserId,
    /// The log-in name.
    pub username: Option<String>,
    /// The e-mail address.
    pub email: Option<String>,
    /// Everything else; null when there is nothing. Members that no delivery told of don't belong here.
    pub data: Value,
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It is written.
    Stored,
    /// A newer version was there already; nothing was written.
    AlreadyNewer,
}

impl Applied {
    /// `stored` or `already_newer`, as the answer says it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::AlreadyNewer => "already_newer",
        }
    }
}

/// Why a delivery could not be written. What is said here is logged, so name no values.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another user holds a value that must be unique; answered with 409.
    #[error("another user holds the same {0}")]
    Conflict(String),
    /// The store can't be used right now; answered with 503, and tried again.
    #[error("the store is unavailable: {0}")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
}
