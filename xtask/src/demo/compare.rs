//! Compares what was sent, what the gateway knows and what every target holds, field by field.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde_json::{Value, json};
use usersync_stack::{Stack, http};

use super::holdings::{self, Users};

/// One line of the table.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Row {
    /// Who holds the users.
    pub(super) name: String,
    /// How many.
    pub(super) held: usize,
    /// How many it should hold and doesn't.
    pub(super) missing: usize,
    /// How many have another value in some field.
    pub(super) different: usize,
    /// How many it holds and shouldn't.
    pub(super) extra: usize,
    /// What exactly, one line each.
    pub(super) details: Vec<String>,
}

/// The whole comparison.
#[derive(Debug)]
pub(super) struct Comparison {
    /// How many users there have to be.
    pub(super) users: usize,
    /// The gateway against what was sent, then every target against the gateway.
    pub(super) rows: Vec<Row>,
}

impl Comparison {
    /// Reads everything and compares. `sent` are the users as they have to be, `None` = deleted.
    pub(super) async fn of(stack: &Stack, sent: &BTreeMap<String, Option<Value>>) -> Result<Self> {
        let client = http::client();
        let targets = [
            (
                "unified-auth",
                holdings::service(&client, stack.example("unified-auth").url()).await?,
            ),
            (
                "user-service",
                holdings::service(&client, stack.example("user-service").url()).await?,
            ),
            ("redis-cache", holdings::redis(&stack.redis.url()).await?),
        ];
        // Whoever is held anywhere is looked up too: a deleted user who is still there is the worst case.
        let ids: BTreeSet<String> = targets
            .iter()
            .flat_map(|(_, held)| held.keys())
            .chain(sent.keys())
            .cloned()
            .collect();
        let gateway = stack.gateway().url();
        let states = holdings::states(&client, gateway, ids.into_iter().collect()).await?;

        let sent: Users = sent
            .iter()
            .filter_map(|(id, user)| Some((id.clone(), user.clone()?)))
            .collect();
        let mut rows = vec![compare("gateway", &sent, &states)];
        for (name, held) in &targets {
            // The password hash is for the service that checks passwords, and for nobody else.
            let mut meant = states.clone();
            if *name != "unified-auth" {
                meant
                    .values_mut()
                    .for_each(|user| user["has_password"] = json!(false));
            }
            rows.push(compare(name, &meant, held));
        }
        Ok(Self {
            users: sent.len(),
            rows,
        })
    }

    /// How much differs in all.
    pub(super) fn differences(&self) -> usize {
        let of = |row: &Row| row.missing + row.different + row.extra;
        self.rows.iter().map(of).sum()
    }
}

/// Compares the members that `meant` names.
fn compare(name: &str, meant: &Users, held: &Users) -> Row {
    let mut row = Row {
        name: name.to_owned(),
        held: held.len(),
        ..Row::default()
    };
    for (id, user) in meant {
        let Some(found) = held.get(id) else {
            row.missing += 1;
            row.details.push(format!("user {id} is missing"));
            continue;
        };
        let members = user.as_object().into_iter().flatten();
        let differing: Vec<String> = members
            .filter(|(member, value)| found[member.as_str()] != **value)
            .map(|(member, value)| format!("{member} is {}, not {value}", found[member.as_str()]))
            .collect();
        if !differing.is_empty() {
            row.different += 1;
            row.details
                .push(format!("user {id}: {}", differing.join("; ")));
        }
    }
    for id in held.keys().filter(|id| !meant.contains_key(*id)) {
        row.extra += 1;
        row.details.push(format!("user {id} should not be there"));
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users<const N: usize>(users: [(&str, Value); N]) -> Users {
        users.map(|(id, user)| (id.to_owned(), user)).into()
    }

    #[test]
    fn every_kind_of_difference_is_counted_and_told() {
        let meant = users([
            ("1", json!({ "email": "a@example.com" })),
            ("2", json!({ "email": "b@example.com" })),
            ("3", json!({ "email": "c@example.com" })),
        ]);
        let held = users([
            ("1", json!({ "email": "a@example.com", "more": true })),
            ("2", json!({ "email": "old@example.com" })),
            ("4", json!({ "email": "d@example.com" })),
        ]);
        let row = compare("cache", &meant, &held);
        assert_eq!(
            (row.held, row.missing, row.different, row.extra),
            (3, 1, 1, 1)
        );
        assert_eq!(
            row.details,
            [
                "user 2: email is \"old@example.com\", not \"b@example.com\"",
                "user 3 is missing",
                "user 4 should not be there",
            ]
        );
    }

    #[test]
    fn equal_is_equal() {
        let same = users([("1", json!({ "email": "a@example.com" }))]);
        let row = compare("cache", &same, &same);
        let equal = Row {
            name: "cache".to_owned(),
            held: 1,
            ..Row::default()
        };
        assert_eq!(row, equal);
    }
}
