//! Random users through random rules: nothing panics, and what must hold of every verdict holds.

use serde_json::{Map, Value, json};
use usersync_core::target::{Removal, TargetConfig};

use super::{Verdict, tests::state};
use crate::Action;

const CASES: usize = 20_000;
const PATHS: [&str; 9] = [
    "username",
    "email",
    "status",
    "data",
    "data.a",
    "data.b",
    "data.a.b",
    "data.status",
    "data.a.ä",
];
const FILTERS: [&str; 10] = [
    "user.data.a == user.data.b",
    "has(user.data.a.b) || user.partial",
    "user.data.a.b > 1",
    "user.email.endsWith('x') && user.data.b in [1, 'x', null]",
    "user.data.a.all(x, x == 'x')",
    "user.data.a.exists(x, x.all(y, y != ''))",
    "size(user.data) > 1 ? user.status == 'active' : user.deleted",
    "string(user.data.a).matches('[0-9]+')",
    "user.data[user.username] != user.data",
    "true",
];
const VALUES: [&str; 9] = [
    "user.data.a",
    "user.data",
    "user.email + '!'",
    "null",
    "user.data.b + user.data.b",
    "{'x': user.username, 'y': [user.data.a]}",
    "event.timestamp",
    "user.data.a.map(x, x + x)",
    "int(user.data.b) * 9223372036854775807",
];

fn one<'a>(random: &mut fastrand::Rng, of: &[&'a str]) -> &'a str {
    of[random.usize(..of.len())]
}

fn value(random: &mut fastrand::Rng, depth: u32) -> Value {
    match random.u32(..if depth == 0 { 7 } else { 9 }) {
        0 => Value::Null,
        1 => json!(random.bool()),
        2 => json!(random.i64(..)),
        3 => json!(random.u64(..)),
        4 => json!(random.f64() * 1e300),
        5 => json!(one(
            random,
            &["", "x", "active", "ünï", "𝄞𝄞𝄞𝄞𝄞", "a.b", "4111111111111111"]
        )),
        6 => json!(random.i8(..)),
        7 => (0..random.usize(..4))
            .map(|_| value(random, depth - 1))
            .collect(),
        _ => Value::Object(members(random, depth)),
    }
}

fn members(random: &mut fastrand::Rng, depth: u32) -> Map<String, Value> {
    let count = random.usize(..5);
    (0..count)
        .map(|_| {
            (
                one(random, &["a", "b", "status", "ä", "a.b", ""]).to_owned(),
                value(random, depth - 1),
            )
        })
        .collect()
}

fn user(random: &mut fastrand::Rng) -> Value {
    let types = [
        "user.created",
        "user.created",
        "user.updated",
        "user.status_changed",
        "user.deleted",
    ];
    let mut user = json!({"type": one(random, &types)});
    for name in ["username", "email"] {
        if random.bool() {
            user[name] = json!(one(random, &["", "ann", "a", "x@x", "ßß"]));
        }
    }
    if random.u8(..5) > 0 {
        user["data"] = match random.u8(..8) {
            0 => value(random, 2),
            _ => Value::Object(members(random, 3)),
        };
    }
    user
}

fn config(random: &mut fastrand::Rng, key: &str) -> TargetConfig {
    let removals = ["delete", "disable", "ignore"];
    let masks = ["redact", "hash", "last4"];
    let mut some = |most: usize| -> Vec<&str> {
        let count = random.usize(..=most);
        (0..count).map(|_| one(random, &PATHS)).collect()
    };
    let (include, exclude) = (some(3), some(2));
    let (computed, masked, from, to) = (some(2), some(3), some(2), some(2));
    let table = |paths: Vec<&str>, of: &mut dyn FnMut() -> String| -> Value {
        let entries = paths.into_iter().map(|path| (path.to_owned(), json!(of())));
        Value::Object(entries.collect())
    };
    let renames: Map<String, Value> = from
        .into_iter()
        .zip(to)
        .map(|(from, to)| (from.to_owned(), json!(to)))
        .collect();
    let mut config = json!({
        "name": "t", "url": "http://localhost/x",
        "on_delete": one(random, &removals), "on_out_of_scope": one(random, &removals),
        "fields": {
            "include": include, "exclude": exclude, "mask_key": key, "rename": renames,
            "compute": table(computed, &mut || one(random, &VALUES).to_owned()),
            "mask": table(masked, &mut || one(random, &masks).to_owned()),
        },
    });
    if random.bool() {
        config["filter"] = json!(one(random, &FILTERS));
    }
    serde_json::from_value(config).unwrap()
}

#[test]
fn no_user_and_no_rule_break_it() {
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), "0123456789abcdef").unwrap();
    let key = format!("file:{}", key.path().display());
    let mut random = fastrand::Rng::with_seed(20_261_123);
    let (mut sent, mut skipped, mut refused, mut unusable) = (0, 0, 0, 0);
    let mut rule = None;
    for case in 0..CASES {
        // Compiling costs far more than applying.
        if case % 10 == 0 {
            let config = config(&mut random, &key);
            rule = super::tests::compile(&config)
                .ok()
                .map(|rule| (rule, config));
        }
        let Some((rule, config)) = &rule else {
            unusable += 1;
            continue;
        };
        let user = user(&mut random);
        let state = state(user.clone());
        let (deleted, partial) = (state.deleted, state.partial);
        match rule.apply(state) {
            Verdict::Send(delivery) => {
                sent += 1;
                let action = delivery.action;
                if deleted {
                    assert_ne!(action, Action::Upsert);
                }
                if config.filter.is_none() && !deleted {
                    assert_eq!((action, delivery.partial), (Action::Upsert, partial));
                }
                if action == Action::Delete {
                    let told = serde_json::to_value(&delivery.members).unwrap();
                    assert!(
                        told.as_object().unwrap().values().all(Value::is_null),
                        "{told}"
                    );
                }
                assert_eq!(delivery.content_hash(), delivery.clone().content_hash());
            }
            Verdict::Skip { .. } => {
                skipped += 1;
                assert!([config.on_delete, config.on_out_of_scope].contains(&Removal::Ignore));
            }
            Verdict::Refused(failure) => {
                refused += 1;
                assert!(!failure.reason.contains("4111"), "{failure}");
            }
        }
    }
    // Each outcome is met often enough to have been tested.
    let counts = [sent, skipped, refused, unusable];
    assert!(counts.iter().all(|count| *count > 500), "{counts:?}");
}
