//! Where targets may be in tests, and which secrets they may name: every server of theirs is on this machine.

use usersync_core::{
    egress::Egress,
    grant::{Grant, Grants},
    network::{Kind, Network},
};

/// The secrets of tests: files in directories that are gone afterwards, and variables named as users would.
pub(crate) fn secrets() -> Vec<Grant> {
    let directory = Grant::Directory(std::env::temp_dir());
    vec![Grant::Variables("USERSYNC_TARGET_".to_owned()), directory]
}

/// The internet as always, and this machine without a word in the entry.
#[must_use]
pub fn egress() -> Egress {
    Egress {
        allow: vec![Network::Named(Kind::Public), Network::Named(Kind::Loopback)],
        secrets: Grants::of(secrets()),
        ..Egress::default()
    }
}
