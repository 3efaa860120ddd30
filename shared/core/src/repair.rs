//! What a message `user.repair.<target>.<user_id>` says. Its body may be empty: deliver the newest state.

use serde::{Deserialize, Serialize};

use crate::json;

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repair {
    /// The version that the target holds and that can't be: it is to be forgotten first, provided that it still is that one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub damaged_version: Option<u64>,
}

impl Repair {
    /// What a body says; one that can't be read says nothing.
    pub fn read(body: &[u8]) -> Self {
        json::read(body).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_may_be_empty_or_anything() {
        for body in ["", "please", "{}", "[]", "null"] {
            assert_eq!(Repair::read(body.as_bytes()), Repair::default(), "{body}");
        }
        let damaged = Repair {
            damaged_version: Some(9),
        };
        let body = serde_json::to_vec(&damaged).unwrap();
        assert_eq!(Repair::read(&body), damaged);
    }
}
