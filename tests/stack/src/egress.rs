//! Where targets may be in tests: every server of theirs is on this machine.

use usersync_core::{
    egress::Egress,
    network::{Kind, Network},
};

/// The internet as always, and this machine without a word in the entry.
#[must_use]
pub fn egress() -> Egress {
    Egress {
        allow: vec![Network::Named(Kind::Public), Network::Named(Kind::Loopback)],
        ..Egress::default()
    }
}
