//! How many calls a target may have under way, by what this process may have open: each call takes a connection.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use usersync_core::descriptors;

/// The connections there may be, in equal parts for all targets served.
#[derive(Clone, Debug)]
pub(crate) struct Share(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    connections: usize,
    targets: AtomicUsize,
}

impl Share {
    pub(crate) fn new() -> Self {
        Self::of(descriptors::for_connections())
    }

    fn of(connections: usize) -> Self {
        Self(Arc::new(Parts {
            connections,
            targets: AtomicUsize::new(1),
        }))
    }

    /// So many targets are served now.
    pub(crate) fn serve(&self, targets: usize) {
        self.0.targets.store(targets.max(1), Ordering::Relaxed);
    }

    /// How many calls one of them may have under way; at least one.
    pub(crate) fn of_one(&self) -> usize {
        (self.0.connections / self.0.targets.load(Ordering::Relaxed)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_target_has_its_part_and_never_none() {
        let share = Share::of(32);
        for (targets, expected) in [(0, 32), (1, 32), (3, 10), (64, 1)] {
            share.serve(targets);
            assert_eq!(share.of_one(), expected, "{targets}");
        }
    }
}
