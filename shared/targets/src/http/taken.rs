//! Values that must be unique at a service: it says 409 of whoever is to have what somebody else has.
//!
//! The service doesn't say who that is. What it was told last does, as far as this process has told it; so where users wait
//! for each other in a round, they can be named. A round ends only if one of them gives up its value first: where the entry
//! names what is `unique`, users who were refused twice are delivered without it, and get it with the next attempt.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Mutex, MutexGuard, PoisonError},
};

use usersync_core::{event::Change, target::TargetConfig, user_id::UserId};

use crate::{Delivery, table::told};

/// How many values are remembered, in two halves: when one is full, the older is forgotten.
const VALUES: usize = 16_384;
/// How many users are remembered who were refused.
const USERS: usize = 10_000;
/// What services often have as unique, unless the entry says: the likelier one first.
const OFTEN: [&str; 2] = ["email", "username"];
/// The refusal from which on a user gives up what is unique. The first one often passes by itself.
const GIVES_UP: u32 = 2;

/// What is known of values that must be unique.
pub(super) struct Taken {
    members: Vec<String>,
    /// Whether the entry names them.
    named: bool,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Who was told a value last, by its hash.
    told: HashMap<u64, UserId>,
    told_before: HashMap<u64, UserId>,
    refused: HashMap<UserId, Refused>,
}

/// A user who was refused, and not delivered since.
struct Refused {
    version: u64,
    times: u32,
    wants: Vec<u64>,
}

/// What is known of a refusal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Who was told the value last, with the version that was refused where that one was refused too, else 0.
    pub(super) holder: Option<(UserId, u64)>,
    /// Whether the two wait for each other, be it through others.
    pub(super) is_round: bool,
    /// Whether it is time to give up what is unique.
    pub(super) gives_up: bool,
}

impl Taken {
    pub(super) fn new(config: &TargetConfig) -> Self {
        let named = !config.unique.is_empty();
        let members = match named {
            true => config.unique.clone(),
            false => OFTEN.map(str::to_owned).into(),
        };
        Self {
            members,
            named,
            known: Mutex::default(),
        }
    }

    /// The service has taken `delivery`.
    pub(super) fn took(&self, delivery: &Delivery) {
        let values = self.values(delivery);
        let mut known = self.known();
        known.refused.remove(&delivery.user_id);
        for value in values {
            known.tell(value, delivery.user_id.clone());
        }
    }

    /// The service has refused `delivery`, for somebody else has a value of it.
    pub(super) fn refused(&self, delivery: &Delivery) -> Refusal {
        let (user, version) = (&delivery.user_id, delivery.version);
        let wants = self.values(delivery);
        let mut known = self.known();
        let before = known.refused.get(user);
        let times = before.filter(|before| before.version == version);
        let times = times.map_or(0, |before| before.times) + 1;
        let refused = Refused {
            version,
            times,
            wants,
        };
        if known.refused.len() < USERS || known.refused.contains_key(user) {
            known.refused.insert(user.clone(), refused);
        }
        let holder = known.holder(user);
        Refusal {
            is_round: holder.is_some() && known.waits_for_itself(user),
            holder: holder.map(|holder| {
                let version = known
                    .refused
                    .get(&holder)
                    .map_or(0, |refused| refused.version);
                (holder, version)
            }),
            gives_up: self.named && times >= GIVES_UP,
        }
    }

    /// `delivery` without what is unique. It is another task: the service may take it and the whole one, too.
    pub(super) fn without(&self, delivery: &Delivery) -> Delivery {
        let mut bare = delivery.clone();
        bare.task_id += ":without";
        let members = &mut bare.members;
        for path in &self.members {
            match path.as_str() {
                "username" => give_up(&mut members.username),
                "email" => give_up(&mut members.email),
                _ => {
                    if let Change::Set(data) = &mut members.data {
                        let pointer = path.trim_start_matches("data").replace('.', "/");
                        if let Some(value) = data.pointer_mut(&pointer) {
                            value.take();
                        }
                    }
                }
            }
        }
        bare
    }

    /// The members that are given up, for people.
    pub(super) fn members(&self) -> String {
        self.members.join(", ")
    }

    /// The hashes of what is unique.
    fn values(&self, delivery: &Delivery) -> Vec<u64> {
        let values = self.members.iter().filter_map(|path| {
            let Change::Set(value) = told(delivery, path) else {
                return None;
            };
            let mut hasher = DefaultHasher::new();
            (path, value.to_string()).hash(&mut hasher);
            Some(hasher.finish())
        });
        values.collect()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What isn't told stays untold.
fn give_up(member: &mut Change<String>) {
    if let Change::Set(_) = member {
        *member = Change::Clear;
    }
}

impl Known {
    fn tell(&mut self, value: u64, user: UserId) {
        if self.told.len() >= VALUES / 2 {
            self.told_before = std::mem::take(&mut self.told);
        }
        self.told.insert(value, user);
    }

    /// Who was told last what `user` was refused for.
    fn holder(&self, user: &UserId) -> Option<UserId> {
        let wants = &self.refused.get(user)?.wants;
        let tellers = wants.iter().filter_map(|value| {
            let now = self.told.get(value);
            now.or_else(|| self.told_before.get(value))
        });
        tellers.into_iter().find(|holder| *holder != user).cloned()
    }

    /// Whether whoever `user` waits for waits for `user`, be it through others.
    fn waits_for_itself(&self, user: &UserId) -> bool {
        let mut seen = BTreeSet::new();
        let mut next = self.holder(user);
        while let Some(holder) = next {
            if holder == *user {
                return true;
            }
            if !seen.insert(holder.clone()) {
                return false;
            }
            next = self.holder(&holder);
        }
        false
    }
}
