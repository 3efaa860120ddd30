//! From v0.1.0 to today: its programs beside ours while users are changed, and what it left behind.

mod beside;
mod newer;
mod outbox;
mod recorded;

use std::{env, path::PathBuf};

use usersync_stack::tools;

/// A worktree of v0.1.0 with its binaries; `cargo xtask test --long` makes one and names it.
fn before() -> Option<PathBuf> {
    env::var_os("USERSYNC_V0_1_0").map(PathBuf::from)
}

/// What v0.1.0 left behind.
fn recorded(name: &str) -> PathBuf {
    let folder = tools::repository().join("tests/e2e/recorded/v0.1.0");
    folder.join(name)
}
