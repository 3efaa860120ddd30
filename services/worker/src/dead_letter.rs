//! Dead letters as this worker writes them: one per target and user, stored before the original is given up.

use async_nats::jetstream;
use usersync_core::{
    dead_letter::{Class, DeadLetter, Same},
    target::TargetName,
    user_id::UserId,
};
use usersync_targets::Failure;

/// Stores a letter and awaits the PubAck. An older version never replaces a newer one.
///
/// # Errors
/// When the server can't be asked or refuses; nothing may be given up then.
pub(crate) async fn store(
    jetstream: &jetstream::Context,
    target: &TargetName,
    (user_id, version): (&UserId, u64),
    attempts: u32,
    class: Class,
    failure: &Failure,
) -> anyhow::Result<()> {
    let letter = DeadLetter {
        target: target.clone(),
        user_id: user_id.clone(),
        version,
        attempts,
        class,
        reason: failure.reason.to_string(),
        code: failure.code.as_deref().map(str::to_owned),
        first_failure: None,
        last_failure: None,
    };
    letter.store(jetstream, Same::Replace).await?;
    Ok(())
}
