//! What an erasure has come to: what was overwritten, and how far each target is.

use anyhow::Context as _;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use serde::{Deserialize, Serialize};
use usersync_core::{
    state::State,
    stored_state,
    subjects::{self, USER_STATE},
    target::{Removal, TargetName},
    user_id::UserId,
};

use super::{
    Control,
    erase::Erase,
    meant::Told,
    users::{self, ById, Status},
};

/// What was erased where: numbers and names of targets, nothing of the user but the id.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct Erasure {
    /// Who.
    pub user_id: UserId,
    /// Whether nothing was done, only counted.
    pub dry_run: bool,
    /// The sequence in USER_EVENTS of the event that says so: what is older is erased.
    pub event_seq: Option<u64>,
    /// Whether an event after that one has created the user again, as somebody new.
    pub revived: bool,
    /// Events of the user in USER_EVENTS that were overwritten.
    pub events: u64,
    /// Refused events of the user that were overwritten.
    pub refused_events: u64,
    /// Refused events that don't say whose they are: look at them with `usersync.refused.list`.
    pub unclear: u64,
    /// Dead letters of the user that were overwritten.
    pub dead_letters: u64,
    /// How every target stands.
    pub targets: Vec<AtTarget>,
}

/// How far a target is with an erasure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct AtTarget {
    /// Which.
    pub target: TargetName,
    /// How far it is.
    pub state: Gone,
    /// Why it isn't done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Whether a target still has a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Gone {
    /// It has been told, and has said that it is done.
    Erased,
    /// It will be told.
    Pending,
    /// It can't be told, or refuses: somebody has to look after it.
    NotPossible,
}

impl Erasure {
    pub(super) fn of(erase: &Erase) -> Self {
        Self {
            user_id: erase.user_id.clone(),
            dry_run: erase.dry_run,
            event_seq: None,
            revived: false,
            events: 0,
            refused_events: 0,
            unclear: 0,
            dead_letters: 0,
            targets: Vec::new(),
        }
    }
}

/// How every target stands with the newest state.
pub(super) async fn standing(control: &Control, erase: &Erase) -> anyhow::Result<Vec<AtTarget>> {
    let user_id = erase.user_id.clone();
    let tasks = match newest(control, &user_id).await? {
        Some(_) => {
            users::tasks(control, ById { user_id })
                .await
                .map_err(|problem| anyhow::anyhow!(problem.detail))?
                .targets
        }
        None => Vec::new(),
    };
    let entries = control.registry().await?.entries().await?;
    let standing = entries.into_iter().filter_map(|(name, entry)| {
        let target: TargetName = name.parse().ok()?;
        let task = tasks.iter().find(|task| task.target == target);
        let (state, reason) = match (entry.config, task) {
            (None, _) => (Gone::Pending, Some("its entry can't be used; see usersync.targets.show".to_owned())),
            (Some(config), _) if config.on_delete == Removal::Ignore => {
                let reason = "on_delete = \"ignore\": it is never told of deletions, erase the user there by hand";
                (Gone::NotPossible, Some(reason.to_owned()))
            }
            _ if erase.dry_run => (Gone::Pending, None),
            (Some(_), Some(task)) => match task.status {
                // Whoever came again since, and is none of the target's.
                Status::OutOfScope | Status::Ignored if task.rule.outcome == Told::Nothing => {
                    (Gone::NotPossible, task.rule.because.clone())
                }
                Status::Synced | Status::OutOfScope | Status::Ignored => (Gone::Erased, None),
                Status::Dead => {
                    let why = task.error.as_deref().unwrap_or("no reason is known");
                    let reason = format!("given up: {why}; mend it and replay the dead letter");
                    (Gone::NotPossible, Some(reason))
                }
                Status::Pending | Status::Retrying if !task.enabled => {
                    (Gone::Pending, Some("it is disabled, and told once it is enabled".to_owned()))
                }
                Status::Unproven | Status::Pending | Status::Retrying => (
                    Gone::Pending, task.error.clone()),
            },
            (Some(_), None) => (Gone::Pending, None),
        };
        Some(AtTarget { target, state, reason })
    });
    Ok(standing.collect())
}

/// The newest state, from the stream's leader.
pub(super) async fn newest(control: &Control, user_id: &UserId) -> anyhow::Result<Option<State>> {
    let states = control.stream(USER_STATE).await?;
    let subject = subjects::state(user_id);
    match states.get_last_raw_message_by_subject(&subject).await {
        // What is no state was stored by a foreign writer; the event that erases takes its place.
        Ok(message) => Ok(stored_state::read(user_id, &message.payload).ok()),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {subject}")),
    }
}
