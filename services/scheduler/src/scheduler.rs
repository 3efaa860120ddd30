//! What every check needs: the connection, the states, the targets, the health of this scheduler.

use async_nats::jetstream::{self, stream::Stream};
use usersync_core::{admin::Health, registry::Registry};

/// One scheduler.
pub(crate) struct Scheduler {
    /// This scheduler's name in NATS.
    pub id: String,
    /// The JetStream connection.
    pub jetstream: jetstream::Context,
    /// USER_STATE.
    pub states: Stream,
    /// The targets.
    pub registry: Registry,
    /// How everything stands.
    pub health: Health,
}

impl Scheduler {
    /// A scheduler with a name of its own.
    pub(crate) fn new(
        jetstream: jetstream::Context,
        states: Stream,
        registry: Registry,
        health: Health,
    ) -> Self {
        // The last, random part is enough to tell schedulers apart.
        let id = uuid::Uuid::now_v7().simple().to_string();
        Self {
            id: id[id.len() - 12..].to_owned(),
            jetstream,
            states,
            registry,
            health,
        }
    }
}
