//! The consistency check of a target, or of the states themselves: when it runs, what follows from what it finds, and what it found.
//!
//! `check` of a target or a source, the requests on `user.check.<target>` and the reports on
//! `user.check.result.<target>` (docs/CHECK.md).

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use jiff::{Timestamp, fmt::serde::unsigned_duration::friendly::compact as duration};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    subjects::GATEWAY_TARGET,
    target::{InvalidTargetName, TargetName},
    user_id::UserId,
};

/// How often a target is checked unless it says otherwise.
const EVERY: Duration = Duration::from_secs(60 * 60);
/// More often than this, one check would hardly end before the next.
const LEAST: Duration = Duration::from_secs(10);
/// A check that waits longer would run into the next one.
const LONGEST_WAIT: Duration = Duration::from_secs(10 * 60);
/// How many users of each class a report names.
pub const SAMPLE: usize = 20;

/// What can be checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Checked {
    /// `gateway`: the states, against the main database.
    States,
    /// A target, against the states.
    Target(TargetName),
}

impl FromStr for Checked {
    type Err = InvalidTargetName;

    fn from_str(text: &str) -> Result<Self, InvalidTargetName> {
        match text {
            GATEWAY_TARGET => Ok(Self::States),
            name => name.parse().map(Self::Target),
        }
    }
}

impl TryFrom<String> for Checked {
    type Error = InvalidTargetName;

    fn try_from(text: String) -> Result<Self, InvalidTargetName> {
        text.parse()
    }
}

impl From<Checked> for String {
    fn from(checked: Checked) -> Self {
        checked.as_ref().to_owned()
    }
}

impl AsRef<str> for Checked {
    fn as_ref(&self) -> &str {
        match self {
            Self::States => GATEWAY_TARGET,
            Self::Target(name) => name.as_ref(),
        }
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_ref())
    }
}

/// When a target, or the states, are checked, and what follows from a difference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Check {
    /// How often; `0s` for never.
    #[serde(with = "duration::required")]
    #[schema(value_type = String, default = "1h")]
    pub every: Duration,
    /// When, instead of `every`: six fields, seconds first, as NATS message schedules have them, in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "0 0 3 * * *")]
    pub cron: Option<String>,
    /// Users that are missing at the target.
    pub missing: Policy,
    /// Users the target has in an older version.
    pub stale: Policy,
    /// Users the target has in the newest version, with other content.
    pub different: Policy,
    /// Users the target has and the main database, or the states, haven't.
    pub orphan: Policy,
    /// More users to change than this, and more than `brake_share` of all, stop a check until it is approved.
    pub brake_users: u64,
    /// See `brake_users`: a share, from 0 to 1.
    pub brake_share: f64,
    /// How long a check waits for users whose newest state is on its way when they are looked at.
    #[serde(with = "duration::required")]
    #[schema(value_type = String, default = "1m")]
    pub wait: Duration,
    /// The share of the time for which a check may keep the databases busy: it rests in between.
    pub load: f64,
}

/// What follows from a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// The target is told the newest state again; of an orphan, that the user is gone.
    Repair,
    /// The report and an alert say so, and nothing else happens.
    Report,
    /// The report counts it as `accepted`, and it is no drift.
    Ignore,
}

impl Default for Check {
    fn default() -> Self {
        Self {
            every: EVERY,
            cron: None,
            missing: Policy::Repair,
            stale: Policy::Repair,
            different: Policy::Repair,
            orphan: Policy::Report,
            brake_users: 100,
            brake_share: 0.01,
            wait: Duration::from_secs(60),
            load: 0.5,
        }
    }
}

impl Check {
    /// The schedule in the words of NATS (ADR-51), `None` for never.
    pub fn schedule(&self) -> Option<String> {
        match &self.cron {
            Some(cron) => Some(cron.clone()),
            None if self.every.is_zero() => None,
            None => Some(format!("@every {}s", self.every.as_secs())),
        }
    }

    /// The interval of what [`Check::schedule`] made; `None` for a cron line, which has none.
    pub fn interval(schedule: &str) -> Option<Duration> {
        let seconds = schedule.strip_prefix("@every ")?.strip_suffix('s')?;
        seconds.parse().ok().map(Duration::from_secs)
    }

    /// What follows from a difference of `class`.
    pub fn policy(&self, class: Class) -> Policy {
        match class {
            Class::Missing => self.missing,
            Class::Stale => self.stale,
            Class::Different => self.different,
            Class::Orphan => self.orphan,
        }
    }

    /// How many of `users` may be changed in one check without asking.
    pub fn brake(&self, users: u64) -> u64 {
        self.brake_users
            .max((users as f64 * self.brake_share) as u64)
    }

    /// What is wrong, one sentence per problem, naming the key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.every.is_zero() && self.every < LEAST {
            problems.push("check.every: expected 0s, for never, or at least 10s".to_owned());
        }
        let six_fields = |cron: &String| cron.split_ascii_whitespace().count() == 6;
        if self.cron.as_ref().is_some_and(|cron| !six_fields(cron)) {
            problems.push(
                "check.cron: expected six fields, seconds first, such as `0 0 3 * * *`".to_owned(),
            );
        }
        if !(0.0..=1.0).contains(&self.brake_share) {
            problems.push("check.brake_share: expected 0 to 1".to_owned());
        }
        if self.wait > LONGEST_WAIT {
            problems.push("check.wait: expected at most 10m".to_owned());
        }
        if !(0.01..=1.0).contains(&self.load) {
            problems.push("check.load: expected 0.01 to 1".to_owned());
        }
        problems
    }
}

/// How a copy of a user differs from what it is meant to be.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// It isn't there.
    Missing,
    /// It is of an older version.
    Stale,
    /// It is of the newest version, with other content: somebody else has changed it.
    Different,
    /// It is there, and is not meant to be.
    Orphan,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 4] = [Self::Missing, Self::Stale, Self::Different, Self::Orphan];

    /// As reports, metrics and alerts have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Stale => "stale",
            Self::Different => "different",
            Self::Orphan => "orphan",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is asked for on `user.check.<target>`; an empty body asks for the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Request {
    /// Only this user.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub user_id: Option<UserId>,
    /// Only users with integer ids from this on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
    /// Only users with integer ids up to this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<u64>,
    /// Say what is found, and change nothing.
    pub dry_run: bool,
    /// Change however many users differ: what the brake asks for.
    pub approved: bool,
}

impl Request {
    /// Whether all users are asked for.
    pub fn is_of_all(&self) -> bool {
        self.user_id.is_none() && self.from.is_none() && self.to.is_none()
    }

    /// Whether the report says how a target stands: of all users, and with the repairs that follow.
    pub fn is_telling(&self) -> bool {
        self.is_of_all() && !self.dry_run
    }

    /// Whether `user` is in the range of ids asked for.
    pub fn covers(&self, user: &UserId) -> bool {
        let Self { from, to, .. } = self;
        match user {
            UserId::Number(number) => {
                from.is_none_or(|from| *number >= from) && to.is_none_or(|to| *number <= to)
            }
            UserId::Text(_) => from.is_none() && to.is_none(),
        }
    }

    /// Reads the body of a request.
    ///
    /// # Errors
    /// Where it is no such object; never quotes it.
    pub fn read(body: &[u8]) -> Result<Self, String> {
        if body.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_slice(body).map_err(|error| {
            format!(
                "line {} column {}: expected an object with user_id, from, to, dry_run, approved",
                error.line(),
                error.column()
            )
        })
    }
}

/// How a check stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// It is going on.
    Running,
    /// It has looked at everybody.
    Done,
    /// More users differ than it may change without being told to; nothing more was changed.
    Braked,
    /// It could not go on; `error` says why.
    Failed,
}

/// What a check has found: on `user.check.result.<target>`, the newest one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Report {
    /// The target, or `gateway` for the states themselves.
    pub target: String,
    /// What it was compared with: the name of a main database, or `states`.
    pub against: String,
    /// How it stands.
    pub stage: Stage,
    /// Nothing was to be changed.
    pub dry_run: bool,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    pub started: Timestamp,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// How many users the target was compared for.
    pub users: u64,
    /// What differed, by class; a class without users is absent.
    pub found: BTreeMap<Class, Found>,
    /// Users who differed and were still being delivered when the check ended: no drift yet.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pending: u64,
    /// Rows of the main database that can't be users: their ids or values are none that usersync takes. They are left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unusable: u64,
    /// Why, for the first of them; never what it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unusable_because: Option<String>,
    /// Users who can't be compared, for the target can't be told of them: the rule refuses them, their state can't be
    /// read, or the target shows them to nobody. Dead letters say why for each.
    #[serde(default, skip_serializing_if = "LeftOut::is_empty")]
    pub refused: LeftOut,
    /// Users who aren't there because the target forgets everybody after a time: no drift.
    #[serde(default, skip_serializing_if = "LeftOut::is_empty")]
    pub expired: LeftOut,
    /// Users who differ in a way that the target's `check` says to ignore: no drift.
    #[serde(default, skip_serializing_if = "LeftOut::is_empty")]
    pub accepted: LeftOut,
    /// Bytes of digests and lists that were read.
    pub bytes: u64,
    /// Why it failed, or what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Users of one class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Found {
    /// How many.
    pub users: u64,
    /// How many of them have been repaired.
    pub repaired: u64,
    /// How many of them can't be: the target can't hold the newest state, refuses it, or holds a version more than a day
    /// ahead of NATS's clock that it doesn't forget.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub unrepairable: u64,
    /// Some of them.
    #[schema(value_type = Vec<String>)]
    pub sample: Vec<UserId>,
}

/// Users of whom a check can't say that they are alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeftOut {
    /// How many.
    pub users: u64,
    /// Some of them.
    #[schema(value_type = Vec<String>)]
    pub sample: Vec<UserId>,
    /// Why, for the first of them; never what it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
}

impl LeftOut {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.users == 0
    }

    /// Counts one more.
    pub fn note(&mut self, user_id: &UserId, because: Option<&str>) {
        self.users += 1;
        if self.sample.len() < SAMPLE && !self.sample.contains(user_id) {
            self.sample.push(user_id.clone());
        }
        if self.because.is_none() {
            self.because = because.map(str::to_owned);
        }
    }

    /// With `others` behind them.
    #[must_use]
    pub fn and(mut self, others: &Self) -> Self {
        self.users += others.users;
        let room = SAMPLE.saturating_sub(self.sample.len());
        self.sample.extend(others.sample.iter().take(room).cloned());
        self.because = self.because.or_else(|| others.because.clone());
        self
    }
}

impl Report {
    /// Of a check that begins now.
    pub fn new(target: impl Into<String>, against: impl Into<String>, dry_run: bool) -> Self {
        Self {
            target: target.into(),
            against: against.into(),
            stage: Stage::Running,
            dry_run,
            started: Timestamp::now(),
            seconds: 0.0,
            users: 0,
            found: BTreeMap::new(),
            pending: 0,
            unusable: 0,
            unusable_because: None,
            refused: LeftOut::default(),
            expired: LeftOut::default(),
            accepted: LeftOut::default(),
            bytes: 0,
            error: None,
        }
    }

    /// Notes one user who differs.
    pub fn note(&mut self, class: Class, user_id: &UserId, repaired: bool) {
        let found = self.found.entry(class).or_default();
        found.users += 1;
        found.repaired += u64::from(repaired);
        // A check that was resumed may find whom it has named already.
        if found.sample.len() < SAMPLE && !found.sample.contains(user_id) {
            found.sample.push(user_id.clone());
        }
    }

    /// One of them is found unrepaired after all. Where its repair is `through`, it can't be.
    pub fn was_not_repaired(&mut self, class: Class, through: bool) {
        let found = self.found.entry(class).or_default();
        found.repaired = found.repaired.saturating_sub(1);
        found.unrepairable += u64::from(through);
        self.pending += u64::from(!through);
    }

    /// One of them can't be repaired.
    pub fn cannot_repair(&mut self, class: Class) {
        self.found.entry(class).or_default().unrepairable += 1;
    }

    /// Whether it has looked at everybody it was to look at, and all are as they are meant to be.
    pub fn is_alike(&self) -> bool {
        self.stage == Stage::Done
            && self.found.is_empty()
            && self.pending == 0
            && self.unusable == 0
            && self.refused.is_empty()
            && self.expired.is_empty()
            && self.accepted.is_empty()
    }

    /// Whether nobody is left who differs or can't be compared, but for those who may.
    pub fn is_clean(&self) -> bool {
        self.stage == Stage::Done
            && self.left() == 0
            && self.pending == 0
            && self.unusable == 0
            && self.refused.is_empty()
    }

    /// How many users differ whose repair nobody has asked for.
    pub fn left(&self) -> u64 {
        let left = |found: &Found| found.users.saturating_sub(found.repaired);
        self.found.values().map(left).sum()
    }

    /// How many users differ.
    pub fn drifted(&self) -> u64 {
        self.found.values().map(|found| found.users).sum()
    }
}

/// For serde, which needs a function.
fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_brake_is_a_hundred_users_or_a_hundredth_whichever_is_more() {
        let check = Check::default();
        assert_eq!((check.brake(0), check.brake(9_999)), (100, 100));
        assert_eq!(check.brake(1_000_000), 10_000);
    }

    #[test]
    fn a_schedule_is_an_interval_a_cron_line_or_never() {
        let schedule = |check: serde_json::Value| {
            let check: Check = serde_json::from_value(check).unwrap();
            assert!(check.problems().is_empty(), "{:?}", check.problems());
            check.schedule()
        };
        assert_eq!(schedule(json!({})).as_deref(), Some("@every 3600s"));
        assert_eq!(schedule(json!({"every": "0s"})), None);
        let cron = json!({"cron": "0 0 3 * * *"});
        assert_eq!(schedule(cron).as_deref(), Some("0 0 3 * * *"));
        assert_eq!(
            Check::interval("@every 3600s"),
            Some(Duration::from_secs(3600))
        );
        assert_eq!(Check::interval("0 0 3 * * *"), None);
        for (wrong, key) in [
            (json!({"every": "1s"}), "check.every"),
            (json!({"cron": "0 3 * * *"}), "check.cron"),
            (json!({"brake_share": 2.0}), "check.brake_share"),
            (json!({"wait": "1h"}), "check.wait"),
            (json!({"load": 0.0}), "check.load"),
        ] {
            let check: Check = serde_json::from_value(wrong).unwrap();
            let problems = check.problems();
            assert!(
                problems.len() == 1 && problems[0].starts_with(key),
                "{problems:?}"
            );
        }
    }

    #[test]
    fn a_target_is_checked_or_the_states() {
        assert_eq!("gateway".parse(), Ok(Checked::States));
        assert_eq!(
            serde_json::from_value::<Checked>(json!("crm"))
                .unwrap()
                .to_string(),
            "crm"
        );
        assert!("Crm".parse::<Checked>().is_err());
    }

    #[test]
    fn a_request_may_be_empty_and_never_unknown() {
        assert_eq!(Request::read(b" ").unwrap(), Request::default());
        let one = Request::read(br#"{"user_id": 42, "dry_run": true}"#).unwrap();
        assert_eq!((one.user_id, one.dry_run), (Some(UserId::from(42)), true));
        for body in ["{", r#"{"user": 42}"#, "7", r#"{"from": -1}"#] {
            let error = Request::read(body.as_bytes()).unwrap_err();
            assert!(error.contains("expected an object"), "{error}");
        }
    }

    #[test]
    fn a_report_counts_all_and_names_some() {
        let mut report = Report::new("t", "main", false);
        for user in 0..30 {
            report.note(Class::Stale, &UserId::from(user), user % 2 == 0);
        }
        report.note(Class::Orphan, &UserId::from(99), false);
        assert_eq!(report.drifted(), 31);
        let stale = &report.found[&Class::Stale];
        assert_eq!(
            (stale.users, stale.repaired, stale.sample.len()),
            (30, 15, SAMPLE)
        );
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}
