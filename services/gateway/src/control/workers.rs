//! Asking workers, each of which answers for itself.

use std::time::Duration;

use async_nats::StatusCode;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;

use super::Control;

/// How long their answers are waited for.
const PATIENCE: Duration = Duration::from_millis(150);

/// Asks every question, a subject and the text that is its body as JSON; answers what any worker says, nothing
/// when there are none.
///
/// # Errors
/// When NATS can't be asked.
pub(super) async fn ask<T: DeserializeOwned>(
    control: &Control,
    questions: impl IntoIterator<Item = (String, String)>,
) -> anyhow::Result<Vec<T>> {
    let client = control.jetstream.client();
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await?;
    let mut open = 0;
    for (subject, body) in questions {
        let body = serde_json::to_vec(&body)?;
        client
            .publish_with_reply(subject, inbox.clone(), body.into())
            .await?;
        open += 1;
    }
    let mut known = Vec::new();
    let listen = async {
        while open > 0 {
            let Some(answer) = answers.next().await else {
                return;
            };
            if answer.status == Some(StatusCode::NO_RESPONDERS) {
                open -= 1;
            } else {
                known.extend(serde_json::from_slice::<T>(&answer.payload).ok());
            }
        }
    };
    // How many workers there are, nobody knows: all that can be done is to wait a little.
    let _ = tokio::time::timeout(PATIENCE, listen).await;
    Ok(known)
}
