//! Dead letters: one per target and user, stored before the original is given up, cleared by a later success.

use std::{fmt, time::Duration};

use async_nats::{
    HeaderMap,
    jetstream::{
        self,
        context::PublishErrorKind,
        message::{PublishMessage, StreamMessage},
        stream::DirectGetErrorKind,
    },
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    subjects::{self, header},
    target::TargetName,
    user_id::UserId,
};

/// How long the empty message stays that takes a cleared letter's place.
const CLEARED: Duration = Duration::from_secs(1);

/// Why something was dead-lettered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// The target refuses this user.
    Permanent,
    /// The attempts are used up.
    Transient,
    /// The attempts are used up on a target that can't be used.
    TargetFault,
}

impl Class {
    /// As headers, metrics and logs have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Permanent => "permanent",
            Self::Transient => "transient",
            Self::TargetFault => "target-fault",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a dead letter says: a reference to the user, never a copy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeadLetter {
    /// The target that could not be served.
    pub target: TargetName,
    /// The user it could not be served with.
    pub user_id: UserId,
    /// The version that was tried; 0 when it isn't known.
    pub version: u64,
    /// How often it was tried.
    pub attempts: u32,
    /// Why it was given up.
    pub class: Class,
    /// What the target said last.
    pub reason: String,
    /// The code it answered with: HTTP status, SQLSTATE…
    #[serde(default)]
    pub code: Option<String>,
    /// When it first failed, as far as the worker that gave up has seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub first_failure: Option<Timestamp>,
    /// When it last failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_failure: Option<Timestamp>,
    /// Who has a value there that must be unique and that this user is to have: when one of them was delivered, this user
    /// is delivered again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits_for: Vec<UserId>,
}

/// What becomes of a stored letter of the same version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Same {
    /// The new one takes its place.
    Replace,
    /// It stays: whoever stored it knew more.
    Keep,
}

impl DeadLetter {
    /// Stores the letter and awaits the PubAck; false when the one there stays. An older version
    /// never replaces a newer one.
    ///
    /// # Errors
    /// When the server can't be asked or refuses; nothing may be given up then.
    pub async fn store(&self, jetstream: &jetstream::Context, same: Same) -> anyhow::Result<bool> {
        let subject = subjects::dead_letter(&self.target, &self.user_id);
        let stream = jetstream.get_stream_no_info(subjects::USER_DEAD).await?;
        let payload = bytes::Bytes::from(serde_json::to_vec(self)?);
        loop {
            // A replica that lags is found out when storing, and asked again.
            let expected = match stream.direct_get_last_for_subject(subject.as_str()).await {
                Ok(stored) => {
                    let version = version_of(&stored.headers);
                    let keep = version == self.version
                        && same == Same::Keep
                        && !is_cleared(&stored.headers);
                    if version > self.version || keep {
                        return Ok(false);
                    }
                    stored.sequence
                }
                Err(error) if error.kind() == DirectGetErrorKind::NotFound => 0,
                Err(error) => return Err(error.into()),
            };
            let message = PublishMessage::build()
                .payload(payload.clone())
                .headers(self.headers())
                .expected_last_subject_sequence(expected);
            let sent = jetstream.send_publish(subject.clone(), message).await?;
            match sent.await {
                Ok(_) => return Ok(true),
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
        headers.insert(header::CLASS, self.class.as_str());
        headers.insert(header::ATTEMPTS, self.attempts.to_string());
        headers.insert(header::VERSION, self.version.to_string());
        let times = [
            (header::FIRST_FAILURE, self.first_failure),
            (header::LAST_FAILURE, self.last_failure),
        ];
        for (name, time) in times {
            if let Some(time) = time {
                headers.insert(name, time.to_string());
            }
        }
        if let Some(code) = &self.code {
            headers.insert(header::STATUS_CODE, code.as_str());
        }
        if !self.waits_for.is_empty() {
            let users: Vec<String> = self.waits_for.iter().map(UserId::to_string).collect();
            headers.insert(header::WAITS_FOR, users.join(" "));
        }
        headers
    }

    /// Reads a stored message; `None` for one that was cleared, or is no letter of a target.
    pub fn read(message: &StreamMessage) -> Option<Self> {
        if is_cleared(&message.headers) {
            return None;
        }
        serde_json::from_slice(&message.payload).ok()
    }
}

/// Whether a message in USER_DEAD only marks that the letter was cleared.
pub fn is_cleared(headers: &HeaderMap) -> bool {
    headers.get(header::CLASS).is_none()
}

/// The version a letter is about, 0 without one.
pub fn version_of(headers: &HeaderMap) -> u64 {
    headers
        .get(header::VERSION)
        .and_then(|version| version.as_str().parse().ok())
        .unwrap_or(0)
}

/// For whom a letter's user waits; see [`DeadLetter::waits_for`].
pub fn waits_for(headers: &HeaderMap) -> Vec<UserId> {
    let users = headers.get(header::WAITS_FOR);
    let users = users
        .into_iter()
        .flat_map(|users| users.as_str().split(' '));
    users.filter_map(|user| user.parse().ok()).collect()
}

/// What takes the place of the letter at `sequence`, and goes away by itself. Needs no right to purge.
///
/// Publish it to the letter's subject; refused (wrong last sequence) when a newer letter is there.
pub fn clearing(sequence: u64) -> PublishMessage {
    PublishMessage::build()
        .ttl(CLEARED)
        .expected_last_subject_sequence(sequence)
}
