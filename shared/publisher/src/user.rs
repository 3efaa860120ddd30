//! A user as a service hands it over, whole or as what changed.

use serde_json::Value;
use usersync_core::{event::Change, user_id::UserId};

/// A whole user.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    /// Who it is.
    pub user_id: UserId,
    /// The log-in name.
    pub username: Option<String>,
    /// The e-mail address.
    pub email: Option<String>,
    /// Anything else, usually an object; a status belongs at `data.status`.
    pub data: Option<Value>,
}

/// What changed of a user; the default changes nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UserChanges {
    /// The log-in name.
    pub username: Change<String>,
    /// The e-mail address.
    pub email: Change<String>,
    /// Merged into what is there (RFC 7396): members not named stay, null ones are removed.
    pub data: Change<Value>,
}

impl UserChanges {
    /// Whether there is nothing to publish.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
