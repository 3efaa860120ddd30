//! What a user would become at a target, and whether they would be sent: for trying rules out.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use usersync_core::{
    event::{Envelope, Event, EventType},
    fields::Members,
    grant::Grants,
    state::State,
    target::{TargetConfig, TargetName},
    user_id::UserId,
};
use usersync_targets::{Action, Rule, Verdict};

use super::{Control, aside, changes, users};
use crate::problem::Problem;

/// Which user, at which target.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Preview {
    /// The target; over HTTP the path names it.
    #[serde(default)]
    #[schema(ignore)]
    pub name: Option<TargetName>,
    /// A user whose newest state is taken.
    #[serde(default)]
    pub user_id: Option<UserId>,
    /// A user document, as an event or a state has it.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub user: Option<Value>,
    /// An entry to try in place of the one that is saved; need not be saved at all.
    #[serde(default)]
    #[schema(value_type = Option<TargetConfig>)]
    pub entry: Option<Value>,
}

/// What would be done.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Previewed {
    /// The target.
    pub target: TargetName,
    /// Who.
    pub user_id: UserId,
    /// Whether the target would be called.
    pub sent: bool,
    /// Why not, or what else should be known.
    pub note: Option<String>,
    /// What is wrong with the newest value of the entry: this is what the last good one would do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// `upsert`, `delete` or `disable`; null when nothing is sent.
    #[schema(value_type = Option<String>)]
    pub action: Option<Action>,
    /// `<target>:<user_id>:<version>`.
    pub task_id: Option<String>,
    /// What the target would be told of the user: absent when it isn't told, null when there is none.
    #[schema(value_type = Option<Object>)]
    pub members: Option<Members>,
}

pub(crate) async fn preview(control: &Control, preview: Preview) -> Result<Previewed, Problem> {
    let name = preview.name;
    let name = name.ok_or_else(|| Problem::unprocessable("name: expected a target's name"))?;
    let (config, problem) = match preview.entry {
        Some(entry) => (changes::check(control, &name, entry).await?.0, None),
        None => control.running(&name).await?,
    };
    let state = match (preview.user_id, preview.user) {
        (Some(user_id), None) => {
            let stored = users::state(control, &users::ById { user_id }).await?;
            serde_json::from_slice(&stored.payload)
                .map_err(|_| Problem::unprocessable("what USER_STATE holds is no state"))?
        }
        (None, Some(document)) => read(document)?,
        _ => return Err(Problem::unprocessable("expected one of user_id and user")),
    };
    // The key of masks is read from a file.
    let grants = control.egress.secrets.clone();
    let outcome = aside(move || outcome(&config, &grants, state)).await;
    let outcome = outcome.unwrap_or_else(|problem| Err(Problem::unprocessable(problem)))?;
    Ok(Previewed { problem, ..outcome })
}

/// Makes a state of a document: one is taken as it is, anything else as an event that makes the user.
fn read(document: Value) -> Result<State, Problem> {
    if document.get("event_seq").is_some() {
        return serde_json::from_value(document).map_err(|_| {
            let detail = "user: has event_seq, so it should be a state, and is none";
            Problem::unprocessable(detail)
        });
    }
    let mut event = document;
    let deleted = event.get("deleted") == Some(&json!(true));
    let kind = match deleted {
        true => EventType::Deleted,
        false => EventType::Created,
    };
    if let Value::Object(members) = &mut event {
        // A hint that targets see; whatever it is, the document is the whole user.
        members.remove("type");
    }
    let envelope = Envelope {
        kind: Some(kind),
        id: Some("preview".to_owned()),
        timestamp: Some(Timestamp::now()),
    };
    let event = Event::from_value(event, envelope)?;
    let now = u64::try_from(Timestamp::now().as_microsecond()).unwrap_or_default();
    Ok(State::of_one(&event, 1, now))
}

/// What the rule of `config` makes of `state`.
fn outcome(
    config: &Arc<TargetConfig>,
    grants: &Grants,
    state: State,
) -> Result<Previewed, Problem> {
    let rule =
        Rule::compile(config, grants).map_err(|error| Problem::unprocessable(error.to_string()))?;
    let mut previewed = Previewed {
        target: config.name.clone(),
        user_id: state.user_id.clone(),
        sent: false,
        note: None,
        problem: None,
        action: None,
        task_id: None,
        members: None,
    };
    match rule.apply(state) {
        Verdict::Send(delivery) => {
            previewed.sent = true;
            previewed.note = (!config.enabled).then(|| "the target is paused".to_owned());
            previewed.action = Some(delivery.action);
            previewed.task_id = Some(delivery.task_id);
            previewed.members = Some(delivery.members);
        }
        Verdict::Skip { why } => previewed.note = Some(why.as_str().to_owned()),
        Verdict::Refused(failure) => {
            previewed.note = Some(format!("would become a dead letter: {failure}"));
        }
    }
    Ok(previewed)
}
