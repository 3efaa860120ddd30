//! Tells people of alerts by a webhook or by mail: `[notify.webhook]` and `[notify.email]`.
//!
//! Each channel has a durable consumer on USER_ALERT, pinned to one gateway at a time. `queue` holds what is to be
//! told, `throttle` says when, `notice` is one message about one or several alerts, `webhook` and `email` send it.

mod channel;
mod command;
mod email;
mod meters;
mod notice;
mod queue;
mod settings;
mod throttle;
mod webhook;

use async_nats::jetstream;
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;
use usersync_core::streams;

use self::{meters::Meters, queue::Queue};
pub use command::NotifyCommand;
pub(crate) use settings::Settings;

/// Makes the consumer of every channel: what is raised from then on is told.
///
/// # Errors
/// When the server refuses.
pub(crate) async fn begin(
    jetstream: &jetstream::Context,
    settings: &Settings,
) -> anyhow::Result<()> {
    for channel in settings.channels() {
        streams::ensure_notify_consumer(jetstream, channel.durable()).await?;
    }
    Ok(())
}

/// Tells until `shutdown`; a channel that can't holds up no other.
pub(crate) async fn run(
    settings: Settings,
    jetstream: jetstream::Context,
    shutdown: CancellationToken,
) {
    meters::begin();
    let channels = settings.channels();
    let telling = channels.iter().map(|channel| {
        Queue::new(channel, jetstream.clone(), Meters::of(channel.name())).run(&shutdown)
    });
    join_all(telling).await;
}
