//! Alerts: what people should know of, as messages on `user.alert.<kind>.<target>`, raised once and resolved once.
//!
//! The newest message of a subject says whether it is raised. Who publishes the next one names the sequence of that
//! message, so that of several who find the same only one is heard, also after a restart.

mod kind;
mod runbook;

use std::collections::BTreeMap;

use anyhow::Context as _;
use async_nats::jetstream::{
    self,
    context::PublishErrorKind,
    message::PublishMessage,
    stream::{LastRawMessageErrorKind, Stream},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use utoipa::ToSchema;

use crate::{
    check::{Class, Stage},
    nats::REQUEST_TIMEOUT,
    subjects::{self, USER_ALERT},
};

pub use kind::{Kind, Severity};
pub use runbook::{RUNBOOK, Runbook};

/// The settings of alerts beside `alerts.runbook`, and of who is told, which only gateways read.
pub const SETTINGS: &[&str] = &[
    "alerts.breaker",
    "alerts.backlog",
    "alerts.worker",
    "alerts.failing",
    "alerts.dead",
    "alerts.intake",
    "alerts.outbox",
    "alerts.check",
    "alerts.storage",
    "alerts.store_gib",
    "notify",
];
/// How often it is tried to be the next to speak of an alert.
const TRIES: usize = 5;
/// For how long what an alert says is brought up to date: the stream keeps a message for 30 days.
const UPDATED_FOR_SECONDS: i64 = 29 * 24 * 60 * 60;
/// How many alerts are read at once.
const READS: usize = 16;

/// Whether it is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is.
    Raised,
    /// It is no longer.
    Resolved,
}

/// One alert, raised or resolved. Nothing personal is in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Alert {
    /// The same for its being raised and its being resolved, and for no other alert.
    pub id: String,
    /// What it is about.
    pub kind: Kind,
    /// The target, `gateway`, or of `outbox` and `rows` the source.
    pub target: String,
    /// Whether it is so.
    pub status: Status,
    /// How bad it is.
    pub severity: Severity,
    /// Since when it is so.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// When what it says was last brought up to date; of one that is raised, and was told as it was then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub updated: Option<Timestamp>,
    /// Until when it was so; only of a resolved one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub until: Option<Timestamp>,
    /// What is wrong, in a sentence; of a resolved one what was.
    pub summary: String,
    /// What to do about it.
    pub runbook: String,
    /// Why, in the words of who found it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What was done about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Of `gone`: the worker that was told so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Of `gone`: the revision of the entry that was disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// Of `drift`: how many users differ, by class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<BTreeMap<Class, u64>>,
    /// Of `drift`: how the check stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
}

/// An alert's newest message.
#[derive(Clone, Debug, Default)]
pub struct Newest {
    /// Its sequence, 0 when there is none: what the next one follows.
    pub seq: u64,
    /// What it says, `None` when there is none or it can't be read.
    pub alert: Option<Alert>,
}

impl Newest {
    /// The alert, where it is raised.
    pub fn raised(&self) -> Option<&Alert> {
        let alert = self.alert.as_ref();
        alert.filter(|alert| alert.status == Status::Raised)
    }
}

impl Alert {
    /// One that is raised.
    pub fn raised(
        kind: Kind,
        target: &str,
        since: Timestamp,
        summary: impl Into<String>,
        runbook: &Runbook,
    ) -> Self {
        Self {
            id: format!("{kind}:{target}:{}", since.as_microsecond()),
            kind,
            target: target.to_owned(),
            status: Status::Raised,
            severity: kind.severity(),
            since,
            updated: None,
            until: None,
            summary: summary.into(),
            runbook: runbook.of(kind),
            reason: None,
            note: None,
            worker: None,
            revision: None,
            found: None,
            stage: None,
        }
    }

    /// What this one says, of `before`, which is raised; `None` where that says it already. Nobody is told anew, so one that is
    /// old stays as it is until the stream forgets it: then it is raised again, and told.
    pub fn in_place_of(&self, before: &Self) -> Option<Self> {
        let updated = Self {
            id: before.id.clone(),
            since: before.since,
            updated: before.updated,
            ..self.clone()
        };
        let now = Timestamp::now();
        let is_old = now.duration_since(before.since).as_secs() > UPDATED_FOR_SECONDS;
        (updated != *before && !is_old).then_some(Self {
            updated: Some(now),
            ..updated
        })
    }

    /// Whether what it says is younger than its being raised: then nobody is told.
    pub fn is_update(&self) -> bool {
        self.status == Status::Raised && self.updated.is_some()
    }

    /// The same, resolved now.
    pub fn resolved(&self) -> Self {
        Self {
            status: Status::Resolved,
            updated: None,
            until: Some(Timestamp::now()),
            ..self.clone()
        }
    }

    /// Its subject.
    pub fn subject(&self) -> String {
        subjects::alert(self.kind.as_str(), &self.target)
    }

    /// Publishes it, provided that `follows` is still the newest message of its subject; answers whether it was:
    /// else somebody else has told meanwhile.
    ///
    /// # Errors
    /// When it can't be stored.
    pub async fn publish(
        &self,
        jetstream: &jetstream::Context,
        follows: u64,
    ) -> anyhow::Result<bool> {
        let message = PublishMessage::build()
            .payload(serde_json::to_vec(self)?.into())
            .expected_last_subject_sequence(follows);
        let sent = jetstream.send_publish(self.subject(), message);
        match timeout(REQUEST_TIMEOUT, async { sent.await?.await }).await {
            Ok(Ok(_)) => {
                let (kind, target, status) = (self.kind.as_str(), &self.target, self.status);
                tracing::warn!(alert = kind, target, ?status, "{}", self.summary);
                Ok(true)
            }
            Ok(Err(error)) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(false),
            Ok(Err(error)) => Err(error).context("storing an alert"),
            Err(late) => Err(late).context("storing an alert"),
        }
    }
}

/// Publishes what `next` makes of an alert's newest message, if anything, and again when somebody else was faster.
///
/// # Errors
/// When the server can't be asked.
pub async fn tell(
    jetstream: &jetstream::Context,
    kind: Kind,
    target: &str,
    next: impl Fn(&Newest) -> Option<Alert>,
) -> anyhow::Result<()> {
    let alerts = jetstream.get_stream_no_info(USER_ALERT).await?;
    let subject = subjects::alert(kind.as_str(), target);
    for _ in 0..TRIES {
        let newest = timeout(REQUEST_TIMEOUT, newest_of(&alerts, &subject)).await??;
        match next(&newest) {
            Some(alert) if !alert.publish(jetstream, newest.seq).await? => {}
            _ => return Ok(()),
        }
    }
    anyhow::bail!("others keep telling of {subject}; it comes again")
}

/// The newest message of every alert there ever was, as long as the stream keeps them, by kind and target.
///
/// # Errors
/// When the server can't be asked.
pub async fn all(
    jetstream: &jetstream::Context,
) -> anyhow::Result<BTreeMap<(Kind, String), Newest>> {
    let alerts = jetstream.get_stream_no_info(USER_ALERT).await?;
    let named = async {
        let found = alerts.info_with_subjects(subjects::ALERTS).await?;
        anyhow::Ok(found.try_collect::<Vec<(String, usize)>>().await?)
    };
    let named = timeout(REQUEST_TIMEOUT, named).await??;
    let newest: Vec<Newest> = stream::iter(named)
        .map(async |(subject, _)| newest_of(&alerts, &subject).await)
        .buffer_unordered(READS)
        .try_collect()
        .await?;
    let known = newest.into_iter().filter_map(|newest| {
        let alert = newest.alert.as_ref()?;
        Some(((alert.kind, alert.target.clone()), newest))
    });
    Ok(known.collect())
}

async fn newest_of(alerts: &Stream<()>, subject: &str) -> anyhow::Result<Newest> {
    match alerts.get_last_raw_message_by_subject(subject).await {
        Ok(message) => Ok(Newest {
            seq: message.sequence,
            alert: serde_json::from_slice(&message.payload).ok(),
        }),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
            Ok(Newest::default())
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Reader;

    #[test]
    fn an_alert_is_read_as_it_is_written_and_its_id_stays() {
        let mut reader = Reader::new(None);
        let runbook = Runbook::read(&mut reader);
        reader.finish().unwrap();
        let since = "2026-01-01T00:00:00Z".parse().unwrap();
        let raised = Alert::raised(Kind::Breaker, "audit", since, "audit is down", &runbook);
        assert_eq!(raised.subject(), "user.alert.breaker.audit");
        assert_eq!(raised.runbook, "docs/RUNBOOK.md#breaker-open");
        let resolved = raised.resolved();
        assert_eq!((&resolved.id, resolved.since), (&raised.id, since));
        let text = serde_json::to_string(&resolved).unwrap();
        assert_eq!(serde_json::from_str::<Alert>(&text).unwrap(), resolved);
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }

    #[test]
    fn every_kind_has_a_section_in_the_run_book() {
        let book = include_str!("../../../docs/RUNBOOK.md");
        let headings = book.lines().filter_map(|line| line.strip_prefix("## "));
        let anchors: Vec<_> = headings
            .map(|heading| heading.to_lowercase().replace(' ', "-"))
            .collect();
        for kind in Kind::ALL {
            assert!(
                anchors.iter().any(|anchor| anchor == kind.anchor()),
                "{kind}"
            );
        }
    }
}
