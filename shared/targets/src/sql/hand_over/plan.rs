//! Who has to be written so that values can change hands, and who can't be.
//!
//! Pure: told who is to have what somebody else has, it says who moves together and who is stuck.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use usersync_core::user_id::UserId;

use super::Member;
use crate::{
    layout::{Layout, Row},
    unique::Claim,
};

/// How many users a reason, and a dead letter, names.
pub(super) const NAMED: usize = 8;

/// For how long after a change another may follow of those who are to have the same: values that go round among several
/// users come in one event after the other.
const FRESH_US: u64 = 10_000_000;

/// Everybody who has to move, as far as is known.
#[derive(Default)]
pub(super) struct Plan {
    /// Whose newest state is to be written, by id.
    pub(super) members: BTreeMap<String, Member>,
    /// Who can't be written, by id.
    pub(super) stuck: BTreeMap<String, Stuck>,
    /// Whose row stays as it is, by id.
    kept: BTreeMap<String, Kept>,
    /// Who is to have what whom has, by the id of the former.
    claims: BTreeMap<String, BTreeSet<(String, usize)>>,
}

/// Why a row stays as it is.
struct Kept {
    why: String,
    version: u64,
    lasting: bool,
}

/// Why a user can't be written.
#[derive(Clone, Debug)]
pub(super) struct Stuck {
    /// A sentence's end that begins with who is in the way.
    pub(super) reason: String,
    /// Who stands in the way, the nearest first, with the version that was looked at.
    pub(super) holders: Vec<(UserId, u64)>,
    pub(super) lasting: bool,
}

impl Plan {
    /// These are to be written.
    pub(super) fn add(&mut self, members: Vec<Member>) {
        for member in members {
            self.members.insert(member.row.id.clone(), member);
        }
    }

    /// Takes note of who is to have what whom has; says of whom nothing is known yet.
    pub(super) fn claim(&mut self, claims: Vec<Claim>) -> Vec<String> {
        let mut unknown = BTreeSet::new();
        for Claim { by, of, key } in claims {
            if !self.members.contains_key(&of) && !self.kept.contains_key(&of) {
                unknown.insert(of.clone());
            }
            self.claims.entry(by).or_default().insert((of, key));
        }
        unknown.into_iter().collect()
    }

    /// This row stays as it is.
    pub(super) fn keep(&mut self, id: String, why: String, version: u64, lasting: bool) {
        let kept = Kept {
            why,
            version,
            lasting,
        };
        self.kept.insert(id, kept);
    }

    /// Whom `by` is to have something of, and by which key.
    pub(super) fn claims_of(&self, by: &str) -> impl Iterator<Item = (&String, usize)> {
        let claims = self.claims.get(by).into_iter().flatten();
        claims.map(|(of, key)| (of, *key))
    }

    /// Whether somebody asked for this user to be written, and not only for somebody who is in the way of it.
    pub(super) fn is_asked_for(&self, id: &str) -> bool {
        let member = self.members.get(id);
        member.is_some_and(|member| member.row.index != usize::MAX)
    }

    /// Finds out who is stuck at `now_us` (unix µs). `rivals` are to have the same as each other.
    pub(super) fn settle(&mut self, rivals: Vec<Claim>, layout: &Layout, now_us: u64) {
        for Claim { by, of, key } in rivals {
            // Each pair is told twice; the one who loses it is told why.
            if self.loses(&by, &of, key) {
                let (Some(to_be), Some(other)) = (self.members.get(&by), self.members.get(&of))
                else {
                    continue;
                };
                let Some((user, version)) = user(&other.row) else {
                    continue;
                };
                let name = layout.keys.name(key);
                let newest = to_be.row.version.max(other.row.version).unsigned_abs();
                let (keeps, lasting) = match other.how {
                    super::How::Update => (
                        "who is disabled here and keeps its values (on_delete or on_out_of_scope = \"disable\")",
                        true,
                    ),
                    _ => (
                        "whose newest state has it too",
                        now_us.saturating_sub(newest) > FRESH_US,
                    ),
                };
                let stuck = Stuck {
                    reason: format!("user {user} has what must be unique (key `{name}`), {keeps}"),
                    holders: vec![(user, version)],
                    lasting,
                };
                self.stuck.entry(by).or_insert(stuck);
            }
        }
        self.spread(layout);
    }

    /// Whoever waits for one who stays is stuck, too, and so is who waits for that one.
    fn spread(&mut self, layout: &Layout) {
        let mut waiting: BTreeMap<&str, Vec<(&str, usize)>> = BTreeMap::new();
        for (by, claims) in &self.claims {
            for (of, key) in claims {
                waiting.entry(of).or_default().push((by, *key));
            }
        }
        let mut stuck = std::mem::take(&mut self.stuck);
        let stay = self.kept.keys().chain(stuck.keys());
        let mut next: VecDeque<String> = stay.cloned().collect();
        while let Some(of) = next.pop_front() {
            for (by, key) in waiting.get(of.as_str()).into_iter().flatten() {
                if !stuck.contains_key(*by) {
                    let why = self.behind(&of, layout.keys.name(*key), stuck.get(&of));
                    stuck.insert((*by).to_owned(), why);
                    next.push_back((*by).to_owned());
                }
            }
        }
        self.stuck = stuck;
    }

    /// Whether `by` has to give way to `of`, who is to have the same: to who has it now, else to who was to have it first.
    fn loses(&self, by: &str, of: &str, key: usize) -> bool {
        let has = |id: &str, from: &str| {
            let claims = self.claims.get(from);
            claims.is_some_and(|claims| claims.contains(&(id.to_owned(), key)))
        };
        match (has(of, by), has(by, of)) {
            (true, _) => true,
            (false, true) => false,
            (false, false) => {
                let age = |id: &str| self.members.get(id).map(|member| member.row.version);
                (age(by), by) > (age(of), of)
            }
        }
    }

    /// Why one can't be written who is to have what `of` has in this key.
    fn behind(&self, of: &str, key: &str, ahead: Option<&Stuck>) -> Stuck {
        let has = format!("user {of} has what must be unique (key `{key}`)");
        let holder = |version| {
            let user = of.parse().ok();
            user.map(|user| (user, version))
                .into_iter()
                .collect::<Vec<_>>()
        };
        if let Some(kept) = self.kept.get(of) {
            return Stuck {
                reason: format!("{has}, {}", kept.why),
                holders: holder(kept.version),
                lasting: kept.lasting,
            };
        }
        let version = self
            .members
            .get(of)
            .map_or(0, |of| of.row.version.unsigned_abs());
        let mut holders = holder(version);
        holders.extend(
            ahead
                .into_iter()
                .flat_map(|ahead| ahead.holders.iter().cloned()),
        );
        holders.truncate(NAMED);
        let ahead_of_it = ahead.map_or("", |ahead| ahead.reason.as_str());
        // Of a long line the end matters.
        let (_, last) = ahead_of_it.rsplit_once("in the end ").unwrap_or_default();
        let last = if last.is_empty() { ahead_of_it } else { last };
        Stuck {
            reason: format!("{has}, and can't move on: in the end {last}"),
            holders,
            lasting: ahead.is_none_or(|ahead| ahead.lasting),
        }
    }

    /// Who has to be written for the sake of `taken`.
    pub(super) fn all(&self, taken: &[Member]) -> BTreeMap<String, Member> {
        let mut needed = BTreeMap::new();
        let mut next: Vec<&String> = taken.iter().map(|member| &member.row.id).collect();
        while let Some(id) = next.pop() {
            let Some(member) = self.members.get(id).filter(|_| !needed.contains_key(id)) else {
                continue;
            };
            needed.insert(id.clone(), member.clone());
            next.extend(self.claims_of(id).map(|(of, _)| of));
        }
        needed
    }

    /// The same in parts that have nothing to do with each other.
    pub(super) fn groups(&self, taken: &[Member]) -> Vec<BTreeMap<String, Member>> {
        let mut groups: Vec<BTreeMap<String, Member>> = Vec::new();
        for member in taken {
            let mut group = self.all(std::slice::from_ref(member));
            let (shared, apart) = groups
                .into_iter()
                .partition::<Vec<_>, _>(|other| other.keys().any(|id| group.contains_key(id)));
            group.extend(shared.into_iter().flatten());
            groups = apart;
            groups.push(group);
        }
        groups
    }
}

/// Whose row it is, and the version it is to have.
pub(super) fn user(row: &Row) -> Option<(UserId, u64)> {
    Some((row.id.parse().ok()?, row.version.unsigned_abs()))
}
