//! What a target is meant to have of a user, by the rule of its entry.

use std::sync::Arc;

use serde::Serialize;
use usersync_core::{
    grant::Grants,
    state::State,
    target::{Removal, TargetConfig},
};
use usersync_targets::{Action, Rule, Verdict};

/// What the rule makes of a user's newest state.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Meant {
    /// What the target is told.
    pub outcome: Told,
    /// Whether the filter is true of the user; also without one.
    pub in_scope: bool,
    /// The clause that has decided, and how; null where everybody is told.
    pub because: Option<String>,
}

/// What a target is told of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Told {
    /// Who they are.
    Upsert,
    /// That they are gone.
    Delete,
    /// That they are disabled.
    Disable,
    /// Nothing.
    Nothing,
    /// Nothing, for the rule has no answer: a dead letter.
    Refused,
}

impl Meant {
    /// What the rule of `config` makes of `state`.
    pub(super) fn of(config: &Arc<TargetConfig>, grants: &Grants, state: State) -> Self {
        let (deleted, erased) = (state.deleted, state.erased);
        let verdict = match Rule::compile(config, grants) {
            Ok(rule) => rule.apply(state),
            Err(error) => {
                return Self {
                    outcome: Told::Refused,
                    in_scope: true,
                    because: Some(error.to_string()),
                };
            }
        };
        let outcome = match &verdict {
            Verdict::Send(delivery) => match delivery.action {
                Action::Upsert => Told::Upsert,
                Action::Delete => Told::Delete,
                Action::Disable => Told::Disable,
            },
            Verdict::Skip { .. } => Told::Nothing,
            Verdict::Refused(_) => Told::Refused,
        };
        let in_scope = deleted || matches!(outcome, Told::Upsert | Told::Refused);
        let because = match verdict {
            Verdict::Refused(failure) => Some(failure.to_string()),
            _ if !in_scope => {
                let filter = config.filter.as_deref().unwrap_or_default();
                let then = words(config.on_out_of_scope);
                Some(format!(
                    "the filter `{filter}` isn't true of the user, and on_out_of_scope is `{then}`"
                ))
            }
            _ if erased && outcome == Told::Delete => {
                Some("the user was erased, so the target is told to delete them".to_owned())
            }
            _ if deleted => {
                let then = words(config.on_delete);
                Some(format!("the user is deleted, and on_delete is `{then}`"))
            }
            _ => None,
        };
        Self {
            outcome,
            in_scope,
            because,
        }
    }
}

fn words(removal: Removal) -> &'static str {
    match removal {
        Removal::Delete => "delete",
        Removal::Disable => "disable",
        Removal::Ignore => "ignore",
    }
}

/// The same for every target of `configs`, in their order.
pub(super) fn by_target(
    configs: &[Arc<TargetConfig>],
    grants: &Grants,
    state: &State,
) -> Vec<Meant> {
    let meant = |config| Meant::of(config, grants, state.clone());
    configs.iter().map(meant).collect()
}
