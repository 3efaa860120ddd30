//! Dead letters: one per target and user, stored before the original is given up.

use async_nats::{
    HeaderMap,
    jetstream::{
        self, context::PublishErrorKind, message::PublishMessage, stream::LastRawMessageErrorKind,
    },
};
use jiff::Timestamp;
use serde::Serialize;
use usersync_core::{
    subjects::{self, header},
    target::TargetName,
    user_id::UserId,
};
use usersync_targets::Failure;

use crate::settle::Class;

/// What a dead letter says: a reference to the user, never a copy.
#[derive(Debug, Serialize)]
pub(crate) struct DeadLetter<'a> {
    /// The target that could not be served.
    pub target: &'a TargetName,
    /// The user it could not be served with.
    pub user_id: &'a UserId,
    /// The version that was tried.
    pub version: u64,
    /// How often it was tried.
    pub attempts: u32,
    /// Why it was given up.
    pub class: &'static str,
    /// What the target said last.
    pub reason: &'a str,
    /// The code it answered with.
    pub code: Option<&'a str>,
    /// When this version first failed, as far as this worker has seen.
    pub first_failure: Timestamp,
    /// When it last failed.
    pub last_failure: Timestamp,
}

impl<'a> DeadLetter<'a> {
    pub(crate) fn new(
        target: &'a TargetName,
        user_id: &'a UserId,
        version: u64,
        attempts: u32,
        class: Class,
        failure: &'a Failure,
        first_failure: Timestamp,
    ) -> Self {
        let class = class.as_str();
        Self {
            target,
            user_id,
            version,
            attempts,
            class,
            reason: &failure.reason,
            code: failure.code.as_deref(),
            first_failure,
            last_failure: Timestamp::now(),
        }
    }

    /// Stores the letter and awaits the PubAck. An older version never replaces a newer one.
    ///
    /// # Errors
    /// When the server can't be asked or refuses; nothing may be given up then.
    pub(crate) async fn store(&self, jetstream: &jetstream::Context) -> anyhow::Result<()> {
        let subject = subjects::dead_letter(self.target, self.user_id);
        let stream = jetstream.get_stream_no_info(subjects::USER_DEAD).await?;
        loop {
            let expected = match stream.get_last_raw_message_by_subject(&subject).await {
                Ok(stored) if version_of(&stored.headers) > self.version => return Ok(()),
                Ok(stored) => stored.sequence,
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => 0,
                Err(error) => return Err(error.into()),
            };
            let message = PublishMessage::build()
                .payload(serde_json::to_vec(self)?.into())
                .headers(self.headers())
                .expected_last_subject_sequence(expected);
            match jetstream
                .send_publish(subject.clone(), message)
                .await?
                .await
            {
                Ok(_) => return Ok(()),
                // Somebody else stored one in between: look again.
                Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        // A header holds one line.
        headers.insert(header::REASON, self.reason.replace(char::is_control, " "));
        headers.insert(header::CLASS, self.class);
        headers.insert(header::ATTEMPTS, self.attempts.to_string());
        headers.insert(header::VERSION, self.version.to_string());
        headers.insert(header::FIRST_FAILURE, self.first_failure.to_string());
        headers.insert(header::LAST_FAILURE, self.last_failure.to_string());
        if let Some(code) = self.code {
            headers.insert(header::STATUS_CODE, code);
        }
        headers
    }
}

fn version_of(headers: &HeaderMap) -> u64 {
    headers
        .get(header::VERSION)
        .and_then(|version| version.as_str().parse().ok())
        .unwrap_or(0)
}
