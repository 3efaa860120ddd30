//! One look at everything: what the status shows, the gauges say and alerts are raised for.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::try_join_all;
use serde::Deserialize;
use usersync_core::{
    check::Report,
    registry::Entry,
    subjects::{self, INTAKE, USER_EVENTS},
    target::TargetName,
};

use super::{
    Control, checks, letters, nats, relays,
    standing::{Queue, Standing},
    status::LastError,
    workers,
};
use crate::{
    intake::{Mark, Marks},
    problem::Problem,
    relay::Notice,
};

/// How everything stands.
pub(crate) struct Look {
    /// What is known without asking workers.
    pub standing: Standing,
    /// Every target, sorted by name.
    pub targets: Vec<Target>,
    /// The newest report of every check, by target.
    pub checks: BTreeMap<String, Report>,
    /// What gateways say of the outboxes of main databases, by source.
    pub relays: BTreeMap<String, Vec<Notice>>,
    /// What intake knows of its streams; `None` before it has begun.
    pub mark: Option<Mark>,
    /// Events that intake refused.
    pub refused: u64,
    /// Events that aren't merged yet.
    pub events_pending: u64,
    /// For how long the oldest of them has been waiting.
    pub oldest_event: Duration,
    /// The bytes of USER_EVENTS, and how many an operator grants it; a full one refuses events.
    pub events_room: Option<(u64, u64)>,
}

/// One target.
pub(crate) struct Target {
    pub name: TargetName,
    pub entry: Entry,
    /// For how long the oldest change has been waiting.
    pub oldest: Duration,
    /// And the oldest repair.
    pub oldest_repair: Duration,
    /// What its workers say, one each.
    pub answers: Vec<Answer>,
}

/// What a worker says of a target.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Answer {
    target: TargetName,
    pub attempts_per_second: f64,
    pub failures_per_second: f64,
    pub last_failure: Option<LastError>,
}

impl Look {
    /// Asks the server and the workers.
    pub(crate) async fn at(control: &Control) -> Result<Self, Problem> {
        let entries = control.registry().await?.entries().await?;
        let named: Vec<(TargetName, Entry)> = entries
            .into_iter()
            .filter_map(|(name, entry)| Some((name.parse().ok()?, entry)))
            .collect();
        let names: Vec<String> = named.iter().map(|(name, _)| name.to_string()).collect();
        let questions: Vec<_> = named
            .iter()
            .map(|(name, _)| (subjects::worker_status(name), String::new()))
            .collect();
        let (standing, answers, checks, refused, events, relays, mark) = tokio::try_join!(
            async { Standing::of_all(control, &names).await.map_err(nats) },
            async {
                workers::ask::<Answer>(control, questions)
                    .await
                    .map_err(nats)
            },
            checks::list(control),
            async { letters::refused(control).await.map_err(nats) },
            async { events(control).await.map_err(nats) },
            async { relays::all(control).await.map_err(nats) },
            async { mark(control).await.map_err(nats) },
        )?;
        let target = async |(name, entry): (TargetName, Entry)| {
            let (oldest, oldest_repair) = standing.oldest(control, &name).await?;
            let of_it = answers.iter().filter(|answer| answer.target == name);
            anyhow::Ok(Target {
                answers: of_it.cloned().collect(),
                name,
                entry,
                oldest,
                oldest_repair,
            })
        };
        let targets = try_join_all(named.into_iter().map(target)).await;
        let checks = checks.checks.into_iter();
        let (events_pending, oldest_event, events_room) = events;
        Ok(Self {
            targets: targets.map_err(nats)?,
            checks: checks
                .map(|report| (report.target.clone(), report))
                .collect(),
            standing,
            relays,
            mark,
            refused,
            events_pending,
            oldest_event,
            events_room,
        })
    }
}

impl Target {
    /// Attempts per second, one per user, over the last minute.
    pub(crate) fn rate(&self) -> f64 {
        let rates = self.answers.iter().map(|answer| answer.attempts_per_second);
        // The sum of none is -0.0.
        rates.sum::<f64>() + 0.0
    }

    /// The share of them that failed; `None` when there were none.
    pub(crate) fn error_rate(&self) -> Option<f64> {
        let failures = self.answers.iter().map(|answer| answer.failures_per_second);
        let rate = self.rate();
        (rate > 0.0).then(|| failures.sum::<f64>() / rate)
    }

    /// Whether it is delivered to.
    pub(crate) fn enabled(&self) -> bool {
        let config = self.entry.config.as_ref();
        config.is_some_and(|config| config.enabled)
    }
}

async fn mark(control: &Control) -> anyhow::Result<Option<Mark>> {
    Ok(Marks::open(&control.jetstream).await?.read().await?.0)
}

/// Events that wait for intake, for how long the oldest does, and the room for more where that is bounded.
async fn events(control: &Control) -> anyhow::Result<(u64, Duration, Option<(u64, u64)>)> {
    let events = control.stream(USER_EVENTS).await?;
    let queue = Queue::of(&events.consumer_info(INTAKE).await?);
    let oldest = queue.oldest(&events, subjects::EVENTS).await?;
    let info = events.get_info().await?;
    let granted = u64::try_from(info.config.max_bytes).ok();
    let room = granted.filter(|granted| *granted > 0);
    let room = room.map(|granted| (info.state.bytes, granted));
    Ok((queue.waiting(), oldest, room))
}
