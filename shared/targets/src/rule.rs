//! What a target gets of a user, if anything: filter, fields, and what becomes of those who go.
//!
//! Made once from a target's entry; docs/RULES.md is what people read. A rule that can't be evaluated
//! for a user neither tells the target of them nor deletes them there: the user is refused.

mod budget;
mod document;
mod expression;
mod mask;
#[cfg(test)]
mod random;
mod shape;
#[cfg(test)]
mod tests;

use serde::Serialize;
use serde_json::{Value, json};
use usersync_core::{
    event::Change,
    fields::{Fields, Members},
    grant::Grants,
    state::State,
    subjects,
    target::{Removal, TargetConfig, TargetName},
};

use self::{
    expression::{Expression, Language},
    mask::Masks,
};
use crate::{Action, Delivery, Failure};

/// The status of a user who is disabled.
const DISABLED: &str = "disabled";

/// The rule of one target.
#[derive(Debug)]
pub struct Rule {
    target: TargetName,
    filter: Option<Expression>,
    on_out_of_scope: Removal,
    on_delete: Removal,
    fields: Fields,
    compute: Vec<(String, Expression)>,
    masks: Masks,
    rename: Vec<(String, String)>,
}

/// What is wrong with the rule of a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.join("; "))]
pub struct RuleError {
    /// One sentence per problem, beginning with the key, and for an expression with line and column.
    pub problems: Vec<String>,
}

/// What is to be done about one user.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// Tell the target this.
    Send(Delivery),
    /// Don't call the target: it isn't meant to hear of this.
    Skip {
        /// Why.
        why: Skip,
    },
    /// Don't call the target: the rule can't be evaluated for this user, and trying again won't help.
    Refused(Failure),
}

/// Why a target isn't called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Skip {
    /// The filter isn't true of the user, and `on_out_of_scope` is `ignore`.
    OutOfScope,
    /// The user is deleted, and `on_delete` is `ignore`.
    Deleted,
}

impl Skip {
    /// `out_of_scope` or `deleted`: the outcome it is counted as.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OutOfScope => "out_of_scope",
            Self::Deleted => "deleted",
        }
    }
}

impl Rule {
    /// Makes the rule of `config`, with the key of its masks.
    ///
    /// # Errors
    /// Everything that is wrong with it, also a key that isn't to be had here or isn't among `grants`.
    pub fn compile(config: &TargetConfig, grants: &Grants) -> Result<Self, RuleError> {
        let (rule, mut problems) = Self::read(config);
        let Some(mut rule) = rule else {
            return Err(RuleError { problems });
        };
        let keyed = rule
            .masks
            .fetch_key(config.fields.mask_key.as_ref(), grants);
        problems.extend(keyed.err());
        match problems.is_empty() {
            true => Ok(rule),
            false => Err(RuleError { problems }),
        }
    }

    /// What is wrong with the rule of `config`, without looking for the key of its masks: for those who
    /// save an entry where its secrets aren't.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn check(config: &TargetConfig) -> Result<(), RuleError> {
        let (_, problems) = Self::read(config);
        match problems.is_empty() {
            true => Ok(()),
            false => Err(RuleError { problems }),
        }
    }

    /// Whether everybody is told, of what they are told nothing but what they are: then a database that has the same
    /// users can be compared with the target without asking the rule about each.
    pub fn is_plain(&self) -> bool {
        self.filter.is_none()
            && self.compute.is_empty()
            && self.masks.paths.is_empty()
            && self.rename.is_empty()
    }

    fn read(config: &TargetConfig) -> (Option<Self>, Vec<String>) {
        let mut problems = config.fields.problems();
        let language = match Language::new() {
            Ok(language) => language,
            Err(problem) => return (None, vec![problem]),
        };
        let mut compile = |key: &str, source: &str| {
            let compiled = language.compile(source);
            let named = |errors: Vec<String>| {
                problems.extend(errors.iter().map(|error| format!("{key}: {error}")));
            };
            compiled.map_err(named).ok()
        };
        let filter = config
            .filter
            .as_ref()
            .and_then(|source| compile("filter", source));
        let compute = config.fields.compute.iter();
        let compute = compute.filter_map(|(path, source)| {
            let expression = compile(&format!("fields.compute.{path}"), source)?;
            Some((path.clone(), expression))
        });
        let compute = compute.collect();
        let reads_event = filter.as_ref().is_some_and(|filter| filter.reads_event);
        if reads_event && config.on_out_of_scope != Removal::Ignore {
            problems.push(
                "filter: it reads `event`, so a user would leave and enter its scope with every event; set on_out_of_scope = \"ignore\""
                    .to_owned(),
            );
        }
        let disables = [config.on_delete, config.on_out_of_scope].contains(&Removal::Disable);
        if disables
            && !["status", "data.status"]
                .iter()
                .any(|path| config.fields.tells(path))
        {
            problems.push(
                "fields: `disable` needs status or data.status among the fields this target is told"
                    .to_owned(),
            );
        }
        let rule = Self {
            target: config.name.clone(),
            filter,
            on_out_of_scope: config.on_out_of_scope,
            on_delete: config.on_delete,
            fields: config.fields.clone(),
            compute,
            masks: Masks::without_key(&config.fields),
            rename: config.fields.rename.clone().into_iter().collect(),
        };
        (Some(rule), problems)
    }

    /// What the target gets of `state`.
    ///
    /// The filter isn't asked about a deleted user, of whom nothing is left to ask about. One who was erased is not
    /// only disabled: nothing of them may stay.
    pub fn apply(&self, mut state: State) -> Verdict {
        let removal = match (state.deleted, &self.filter) {
            (true, _) if state.erased && self.on_delete == Removal::Disable => {
                Some((Removal::Delete, Skip::Deleted))
            }
            (true, _) => Some((self.on_delete, Skip::Deleted)),
            (false, None) => None,
            (false, Some(filter)) => match filter.holds(&state) {
                Ok(true) => None,
                Ok(false) => Some((self.on_out_of_scope, Skip::OutOfScope)),
                Err(reason) => return Verdict::Refused(failure("filter", &reason)),
            },
        };
        let (action, members) = match removal {
            None => match self.members(&mut state) {
                Ok(members) => (Action::Upsert, members),
                Err(failure) => return Verdict::Refused(failure),
            },
            Some((Removal::Delete, _)) => (Action::Delete, self.nobody(&mut state)),
            Some((Removal::Disable, _)) => match self.disabled() {
                Ok(members) => (Action::Disable, members),
                Err(failure) => return Verdict::Refused(failure),
            },
            Some((Removal::Ignore, why)) => return Verdict::Skip { why },
        };
        Verdict::Send(Delivery {
            task_id: subjects::task(&self.target, &state.user_id, state.version),
            user_id: state.user_id,
            version: state.version,
            action,
            // Of somebody who is to be disabled the target is told nothing but that.
            partial: state.partial || action == Action::Disable,
            event_type: state.event.kind,
            timestamp: state.event.timestamp,
            source: state.event.source,
            members,
            trace: None,
        })
    }

    /// The members the target is told of somebody who is meant to be there.
    fn members(&self, state: &mut State) -> Result<Members, Failure> {
        let mut computed = Vec::with_capacity(self.compute.len());
        for (path, expression) in &self.compute {
            match expression.value(state) {
                // Of a partial user null says that nobody knows.
                Ok(Value::Null) if state.partial => {}
                Ok(value) => computed.push((path, value)),
                // What it is made of may be unknown yet.
                Err(_) if state.partial => {}
                Err(reason) => return Err(failure(&format!("fields.compute.{path}"), &reason)),
            }
        }
        let partial = state.partial;
        let mut members = self.fields.project(state);
        for (path, value) in computed {
            shape::put(&mut members, path, Change::Set(value))
                .map_err(|misfit| failure(&format!("fields.compute.{path}"), misfit.0))?;
        }
        for (path, mask) in &self.masks.paths {
            let masked = match shape::take(&mut members, path) {
                Change::Set(value) => Change::Set(self.masks.apply(*mask, value)),
                none => none,
            };
            shape::put(&mut members, path, masked)
                .map_err(|misfit| failure(&format!("fields.mask.{path}"), misfit.0))?;
        }
        self.rename(&mut members, partial)?;
        Ok(members)
    }

    /// Moves members; all are taken before any is put, so that two can change places.
    fn rename(&self, members: &mut Members, partial: bool) -> Result<(), Failure> {
        let mut taken = Vec::with_capacity(self.rename.len());
        for (from, to) in &self.rename {
            let value = match shape::take(members, from) {
                // `data` says all there is, so what isn't in it isn't.
                Change::Keep if from.starts_with("data.") && !partial => Change::Clear,
                value => value,
            };
            taken.push((to, value));
        }
        for (to, value) in taken {
            shape::put(members, to, value)
                .map_err(|misfit| failure(&format!("fields.rename to {to}"), misfit.0))?;
        }
        Ok(())
    }

    /// What is told of somebody who is to go: nothing but that there is nothing.
    fn nobody(&self, state: &mut State) -> Members {
        (state.username, state.email, state.status) = (None, None, None);
        state.data = Value::Null;
        state.partial = false;
        self.fields.project(state)
    }

    /// The status, as far as the target sees it and where it sees it.
    fn disabled(&self) -> Result<Members, Failure> {
        let mut members = Members::default();
        if self.fields.tells("status") {
            members.status = Change::Set(DISABLED.to_owned());
        }
        if self.fields.tells("data.status") {
            members.data = Change::Set(json!({"status": DISABLED}));
        }
        self.rename(&mut members, true)?;
        Ok(members)
    }
}

fn failure(key: &str, reason: &str) -> Failure {
    Failure::new(format!("{key}: {reason}"))
}
